//! Firehose and STS on this machine, over HTTP: as strict as AWS about its limits, and otherwise as a script or a plan of
//! faults says.
//!
//! It remembers every call, and every record that it accepted, so that a test can compare what a run says it delivered
//! with what really arrived.

mod call;
mod faults;
mod http;
mod ledger;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

pub(crate) use call::{Api, Call};
pub(crate) use faults::{Faults, Kind, Lifetime, Quota, Rule};
use http::{Request, Response};
pub(crate) use ledger::Ledger;

/// How long a test waits for something before it fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// A client that has no answer for so long has given the call up.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of a call.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Accept,
    /// A 200 in which the records at these indices have this code and no record ID.
    Refuse(Vec<usize>, &'static str),
    /// The same, but they are accepted all the same.
    RefuseAccepted(Vec<usize>, &'static str),
    /// Nothing is accepted: status, code and message.
    Error(u16, &'static str, String),
    /// Everything is accepted, and the connection is closed instead of saying so.
    AcceptAndClose,
    /// The same, and it is reset.
    AcceptAndReset,
    /// Everything is accepted, and the answer never comes.
    AcceptAndHang,
    /// Everything is accepted, and the answer is closed in its middle.
    AcceptAndCutShort,
    /// Everything is accepted, and the answer has so many entries.
    Entries(usize),
    /// The answer takes a while.
    Late(Duration, Box<Answer>),
}

impl Answer {
    pub(crate) fn error(status: u16, code: &'static str) -> Self {
        Self::Error(status, code, "as the test says".to_owned())
    }

    pub(crate) fn denied() -> Self {
        Self::error(400, "AccessDeniedException")
    }
}

type Script = Box<dyn FnMut(&Call) -> Answer + Send>;

/// The endpoint itself. It closes when it is dropped, and fails a test in which a limit of AWS's was broken.
pub(crate) struct Endpoint {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Who decides about calls.
enum Decider {
    Script(Script),
    Faults(Box<Faults>),
}

struct State {
    decider: Decider,
    ledger: Ledger,
    /// How many accepted records were taken out of the ledger.
    taken: usize,
    /// Limits of AWS's that were broken.
    violations: Vec<String>,
    sessions: u32,
    /// How far its clock is ahead of this machine's.
    ahead: TimeDelta,
    open: BTreeMap<usize, TcpStream>,
    last_opened_by: Option<SocketAddr>,
    closed: bool,
}

impl Endpoint {
    /// Accepts everything, until it is told otherwise.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                decider: Decider::Script(Box::new(|_| Answer::Accept)),
                ledger: Ledger::default(),
                taken: 0,
                violations: Vec::new(),
                sessions: 0,
                ahead: TimeDelta::zero(),
                open: BTreeMap::new(),
                last_opened_by: None,
                closed: false,
            }),
            changed: Condvar::new(),
        });
        let listening = Some(thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.listen(&listener)
        }));
        Self {
            address,
            shared,
            listening,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, this decides about each call, one after another.
    pub(crate) fn script(&self, script: impl FnMut(&Call) -> Answer + Send + 'static) {
        self.shared.lock().decider = Decider::Script(Box::new(script));
    }

    /// From now on, this goes wrong.
    pub(crate) fn play(&self, faults: Faults) {
        self.shared.lock().decider = Decider::Faults(Box::new(faults));
    }

    /// The next calls of Firehose are answered like this; later ones, and those of STS, are accepted.
    pub(crate) fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        let mut answers: VecDeque<Answer> = answers.into_iter().collect();
        self.script(move |call| match call.api {
            Api::AssumeRole => Answer::Accept,
            _ => answers.pop_front().unwrap_or(Answer::Accept),
        });
    }

    pub(crate) fn accept_everything(&self) {
        self.answer([]);
    }

    /// Sets its clock.
    pub(crate) fn be_ahead(&self, ahead: TimeDelta) {
        self.shared.lock().ahead = ahead;
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.shared.lock().ledger.clone()
    }

    /// What arrived until now, which is forgotten here.
    pub(crate) fn take_ledger(&self) -> Ledger {
        let mut state = self.shared.lock();
        state.taken += state.ledger.accepted.len();
        std::mem::take(&mut state.ledger)
    }

    /// Waits until enough has arrived.
    #[track_caller]
    pub(crate) fn wait_until(&self, enough: impl Fn(&Ledger) -> bool) {
        let arrived = self.wait_for(PATIENCE, |state| enough(&state.ledger));
        assert!(
            arrived,
            "calls and records that arrived: {:?}",
            self.arrived()
        );
    }

    /// Waits until enough has arrived, or for so long.
    pub(crate) fn wait_at_most(&self, time: Duration, enough: impl Fn(&Ledger) -> bool) -> bool {
        self.wait_for(time, |state| enough(&state.ledger))
    }

    /// Waits until every client is gone, and all that they sent has been decided. They must have ended.
    #[track_caller]
    pub(crate) fn wait_until_idle(&self) {
        // Connections come in order: behind this one there is none that nobody has looked at yet.
        let last = TcpStream::connect(self.address).unwrap();
        let address = last.local_addr().unwrap();
        let came = self.wait_for(PATIENCE, |state| state.last_opened_by == Some(address));
        drop(last);
        let idle = came && self.wait_for(PATIENCE, |state| state.open.is_empty());
        assert!(idle, "somebody is still connected");
    }

    fn arrived(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.ledger.calls.len(), state.ledger.accepted.len())
    }

    fn wait_for(&self, time: Duration, is_so: impl Fn(&State) -> bool) -> bool {
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, time, |state| !is_so(state));
        !waited.unwrap().1.timed_out()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        for connection in state.open.values() {
            drop(connection.shutdown(Shutdown::Both));
        }
        let violations = std::mem::take(&mut state.violations);
        drop(state);
        // Whoever listens sees that it is closed when somebody comes.
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            drop(listening.join());
        }
        let is_failing = thread::panicking();
        assert!(is_failing || violations.is_empty(), "{violations:?}");
    }
}

/// What is told of a call, after it was decided.
struct Reply {
    /// The records that were accepted and that the answer says were accepted, counted from the first that ever was.
    acknowledged: Vec<usize>,
    ending: Ending,
}

/// Which of the records that were accepted the answer says were accepted.
enum Told {
    All,
    Nothing,
    /// All but these, by their positions.
    AllBut(Vec<usize>),
}

impl Told {
    fn acknowledged(&self, accepted: Range<usize>) -> Vec<usize> {
        let from = accepted.start;
        match self {
            Self::All => accepted.collect(),
            Self::Nothing => Vec::new(),
            Self::AllBut(refused) => accepted
                .filter(|record| !refused.contains(&(record - from)))
                .collect(),
        }
    }
}

enum Ending {
    Send(Response, Duration),
    CutShort(Response),
    Close,
    Reset,
    Hang,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(self: &Arc<Self>, listener: &TcpListener) {
        for (number, connection) in listener.incoming().enumerate() {
            let connection = connection.unwrap();
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.open.insert(number, connection.try_clone().unwrap());
            state.last_opened_by = connection.peer_addr().ok();
            let shared = Arc::clone(self);
            thread::spawn(move || {
                // A connection that breaks is the client's affair.
                drop(shared.serve(&connection));
                drop(connection);
                shared.lock().open.remove(&number);
                shared.changed.notify_all();
            });
            drop(state);
            self.changed.notify_all();
        }
    }

    fn serve(&self, connection: &TcpStream) -> io::Result<()> {
        loop {
            if connection.peek(&mut [0])? == 0 {
                return Ok(());
            }
            match self.lock().cut() {
                None => {}
                Some(Kind::ResetHalfWay) => return Request::read_half(connection),
                // To close a connection on which something waits to be read is to reset it.
                Some(_) => return Ok(()),
            }
            let Some(request) = Request::read(connection)? else {
                return Ok(());
            };
            let reply = self.decide(&request);
            if !self.reply(connection, reply)? {
                return Ok(());
            }
        }
    }

    fn decide(&self, request: &Request) -> Reply {
        let call = Call::parse(request);
        let mut state = self.lock();
        let answer = state.decide(&call);
        let from = state.taken + state.ledger.accepted.len();
        let (ending, told) = state.settle(&call, answer);
        let accepted = from..state.taken + state.ledger.accepted.len();
        state.ledger.calls.push(call);
        self.changed.notify_all();
        Reply {
            acknowledged: told.acknowledged(accepted),
            ending,
        }
    }

    /// Whether the connection is good for another call.
    fn reply(&self, mut connection: &TcpStream, reply: Reply) -> io::Result<bool> {
        if let Ending::Reset = reply.ending {
            return Ok(false);
        }
        Request::finish(connection)?;
        match reply.ending {
            Ending::Send(response, delay) => {
                if !delay.is_zero() && !stays(connection, delay)? {
                    return Ok(false);
                }
                let now = self.lock().now();
                connection.write_all(&response.to_bytes(now))?;
                if delay < CLIENT_PATIENCE {
                    self.lock().acknowledge(&reply.acknowledged);
                }
                Ok(true)
            }
            Ending::CutShort(response) => {
                let bytes = response.to_bytes(self.lock().now());
                connection.write_all(&bytes[..bytes.len() - 2])?;
                Ok(false)
            }
            Ending::Close | Ending::Reset => Ok(false),
            // Until the other side has had enough, or this one is dropped.
            Ending::Hang => connection.read(&mut [0]).map(|_| false),
        }
    }
}

/// Waits for so long: `false` where the other side goes away meanwhile.
fn stays(connection: &TcpStream, delay: Duration) -> io::Result<bool> {
    connection.set_read_timeout(Some(delay))?;
    let is_there = match connection.peek(&mut [0]) {
        Ok(count) => count > 0,
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    };
    connection.set_read_timeout(None)?;
    Ok(is_there)
}

impl State {
    fn now(&self) -> DateTime<Utc> {
        Utc::now() + self.ahead
    }

    /// Whether the next request is cut off.
    fn cut(&mut self) -> Option<Kind> {
        let Decider::Faults(faults) = &mut self.decider else {
            return None;
        };
        let cut = faults.cut()?;
        *self.ledger.played.entry(cut).or_default() += 1;
        Some(cut)
    }

    fn decide(&mut self, call: &Call) -> Answer {
        if let Some((code, problem)) = call.violation() {
            self.violations.push(problem.clone());
            return Answer::Error(400, code, problem);
        }
        if let Some((code, problem)) = call.bad_time(self.now()) {
            return Answer::Error(403, code, problem);
        }
        let faults = match &mut self.decider {
            Decider::Script(script) => return script(call),
            Decider::Faults(faults) => faults,
        };
        let (answer, played) = faults.decide(call);
        if let Some(kind) = played {
            *self.ledger.played.entry(kind).or_default() += 1;
        }
        answer
    }

    /// Accepts what an answer says is accepted; how that is told, and of which records.
    fn settle(&mut self, call: &Call, answer: Answer) -> (Ending, Told) {
        let count = call.records.len();
        let send = |response| Ending::Send(response, Duration::ZERO);
        match answer {
            Answer::Accept if call.api == Api::AssumeRole => {
                self.sessions += 1;
                let session = call::session(call.action(), self.sessions, self.now());
                (send(session), Told::All)
            }
            Answer::Accept => self.settle(call, Answer::Refuse(Vec::new(), "")),
            Answer::Refuse(refused, code) => {
                self.accept(call, &refused);
                (send(call.answer(count, &refused, code)), Told::All)
            }
            Answer::RefuseAccepted(refused, code) => {
                self.accept(call, &[]);
                let answer = send(call.answer(count, &refused, code));
                (answer, Told::AllBut(refused))
            }
            Answer::Error(status, code, message) => {
                (send(call.error(status, code, &message)), Told::All)
            }
            Answer::Late(delay, answer) => match self.settle(call, *answer) {
                (Ending::Send(response, _), told) => (Ending::Send(response, delay), told),
                other => other,
            },
            Answer::Entries(entries) => {
                self.accept(call, &[]);
                let told = if entries == count {
                    Told::All
                } else {
                    Told::Nothing
                };
                (send(call.answer(entries, &[], "")), told)
            }
            Answer::AcceptAndCutShort => {
                let ending = Ending::CutShort(call.answer(count, &[], ""));
                self.lose(call, ending)
            }
            Answer::AcceptAndClose => self.lose(call, Ending::Close),
            Answer::AcceptAndReset => self.lose(call, Ending::Reset),
            Answer::AcceptAndHang => self.lose(call, Ending::Hang),
        }
    }

    fn lose(&mut self, call: &Call, ending: Ending) -> (Ending, Told) {
        self.accept(call, &[]);
        (ending, Told::Nothing)
    }

    fn accept(&mut self, call: &Call, refused: &[usize]) {
        let records = call.records.iter().enumerate();
        let accepted = records.filter(|(index, _)| !refused.contains(index));
        let accepted = accepted.map(|(_, record)| (call.stream.clone(), record.clone()));
        self.ledger.accepted.extend(accepted);
        let count = self.ledger.accepted.len();
        self.ledger.acknowledged.resize(count, false);
    }

    fn acknowledge(&mut self, records: &[usize]) {
        for record in records {
            let record = record.checked_sub(self.taken);
            if let Some(acknowledged) = record.and_then(|at| self.ledger.acknowledged.get_mut(at)) {
                *acknowledged = true;
            }
        }
    }
}
