//! Firehose and STS on this machine, over HTTP: as strict as AWS about its limits, and otherwise as a script says.
//!
//! It remembers every call, and every record that it accepted, so that a test can compare what a run says it delivered
//! with what really arrived.

mod http;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, NaiveDateTime, SecondsFormat, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::json;

use http::{Request, Response};

// <https://docs.aws.amazon.com/firehose/latest/dev/limits.html>, apart from the program's own idea of them.
const MAX_RECORDS: usize = 500;
const MAX_CALL_BYTES: usize = 4_194_304;
const MAX_RECORD_BYTES: usize = 1_024_000;
/// A signature of another time than this is refused, on either side.
const MAX_SKEW: TimeDelta = TimeDelta::minutes(5);

/// How long a test waits for something before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    PutRecordBatch,
    PutRecord,
    AssumeRole,
}

/// One call, as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub api: Api,
    /// Empty for AssumeRole.
    pub stream: String,
    pub records: Vec<Vec<u8>>,
    /// Those of AssumeRole, by name.
    pub parameters: BTreeMap<String, String>,
    /// Whose signature it bears.
    pub access_key: String,
    pub session_token: Option<String>,
    /// Region and service that it is signed for: `us-west-2/firehose`.
    pub scope: String,
    signed_at: DateTime<Utc>,
}

/// What becomes of a call.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Accept,
    /// A 200 in which the records at these indices have this code and no record ID.
    Refuse(Vec<usize>, &'static str),
    /// Nothing is accepted: status, code and message.
    Error(u16, &'static str, String),
    /// Everything is accepted, and the connection is closed instead of saying so.
    AcceptAndClose,
    /// Everything is accepted, and the answer never comes.
    AcceptAndHang,
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

/// What arrived, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    pub calls: Vec<Call>,
    /// Stream and bytes of each record that was accepted.
    pub accepted: Vec<(String, Vec<u8>)>,
}

impl Ledger {
    pub(crate) fn of(&self, api: Api) -> Vec<&Call> {
        self.calls.iter().filter(|call| call.api == api).collect()
    }

    /// The records that a stream accepted.
    pub(crate) fn accepted_by(&self, stream: &str) -> Vec<&[u8]> {
        let at_stream = self.accepted.iter().filter(|(at, _)| at == stream);
        at_stream.map(|(_, record)| record.as_slice()).collect()
    }
}

/// The endpoint itself. It closes when it is dropped.
pub(crate) struct Endpoint {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    script: Script,
    ledger: Ledger,
    /// Requests whose connection is reset before a byte of them is read.
    resets: usize,
    sessions: u32,
    /// How far its clock is ahead of this machine's.
    ahead: TimeDelta,
    open: BTreeMap<usize, TcpStream>,
    closed: bool,
}

impl Endpoint {
    /// Accepts everything, until it is told otherwise.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                script: Box::new(|_| Answer::Accept),
                ledger: Ledger::default(),
                resets: 0,
                sessions: 0,
                ahead: TimeDelta::zero(),
                open: BTreeMap::new(),
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
        self.shared.lock().script = Box::new(script);
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

    /// Resets the connections of the next requests before anything of them is read.
    pub(crate) fn reset_next(&self, requests: usize) {
        self.shared.lock().resets = requests;
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
        std::mem::take(&mut self.shared.lock().ledger)
    }

    /// Waits until enough has arrived.
    #[track_caller]
    pub(crate) fn wait_until(&self, enough: impl Fn(&Ledger) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.lock();
        while !enough(&state.ledger) {
            let left = deadline.saturating_duration_since(Instant::now());
            let arrived = (state.ledger.calls.len(), state.ledger.accepted.len());
            assert!(
                !left.is_zero(),
                "calls and records that arrived: {arrived:?}"
            );
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        for connection in state.open.values() {
            drop(connection.shutdown(Shutdown::Both));
        }
        drop(state);
        // Whoever listens sees that it is closed when somebody comes.
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            drop(listening.join());
        }
    }
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
            let shared = Arc::clone(self);
            thread::spawn(move || {
                // A connection that breaks is the client's affair.
                drop(shared.serve(&connection));
                shared.lock().open.remove(&number);
            });
        }
    }

    fn serve(&self, mut connection: &TcpStream) -> io::Result<()> {
        loop {
            // To close a connection on which something waits to be read is to reset it.
            if connection.peek(&mut [0])? == 0 || self.takes_reset() {
                return Ok(());
            }
            let Some(request) = Request::read(&mut connection)? else {
                return Ok(());
            };
            match self.decide(&request) {
                Reply::Send(response, delay) => {
                    thread::sleep(delay);
                    let now = self.lock().now();
                    connection.write_all(&response.to_bytes(now))?;
                }
                Reply::Close => return Ok(()),
                // Until the other side has had enough, or this one is dropped.
                Reply::Hang => return connection.read(&mut [0]).map(drop),
            }
        }
    }

    fn takes_reset(&self) -> bool {
        let mut state = self.lock();
        let left = state.resets.checked_sub(1);
        state.resets = left.unwrap_or(0);
        left.is_some()
    }

    fn decide(&self, request: &Request) -> Reply {
        let call = Call::parse(request);
        let mut state = self.lock();
        let refused = violation(&call).or_else(|| badly_timed(&call, state.now()));
        let answer = refused.unwrap_or_else(|| (state.script)(&call));
        let reply = state.reply(&call, answer);
        state.ledger.calls.push(call);
        self.changed.notify_all();
        reply
    }
}

enum Reply {
    Send(Response, Duration),
    Close,
    Hang,
}

impl State {
    fn now(&self) -> DateTime<Utc> {
        Utc::now() + self.ahead
    }

    fn reply(&mut self, call: &Call, answer: Answer) -> Reply {
        let now = |response| Reply::Send(response, Duration::ZERO);
        match answer {
            Answer::Accept if call.api == Api::AssumeRole => now(self.assume_role()),
            Answer::Accept => self.reply(call, Answer::Refuse(Vec::new(), "")),
            Answer::Refuse(refused, code) => {
                self.accept(call, &refused);
                now(call.answer(call.records.len(), &refused, code))
            }
            Answer::Error(status, code, message) => now(call.error(status, code, &message)),
            Answer::Entries(count) => {
                self.accept(call, &[]);
                now(call.answer(count, &[], ""))
            }
            Answer::AcceptAndClose => {
                self.accept(call, &[]);
                Reply::Close
            }
            Answer::AcceptAndHang => {
                self.accept(call, &[]);
                Reply::Hang
            }
            Answer::Late(delay, answer) => match self.reply(call, *answer) {
                Reply::Send(response, _) => Reply::Send(response, delay),
                other => other,
            },
        }
    }

    fn accept(&mut self, call: &Call, refused: &[usize]) {
        let records = call.records.iter().enumerate();
        let accepted = records.filter(|(index, _)| !refused.contains(index));
        let accepted = accepted.map(|(_, record)| (call.stream.clone(), record.clone()));
        self.ledger.accepted.extend(accepted);
    }

    /// Credentials for an hour: those of the first session are `ASIA1`, `secret1` and `token1`.
    fn assume_role(&mut self) -> Response {
        self.sessions += 1;
        let number = self.sessions;
        let expiration =
            (self.now() + TimeDelta::hours(1)).to_rfc3339_opts(SecondsFormat::Secs, true);
        Response::xml(
            200,
            format!(
                "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
                 <AccessKeyId>ASIA{number}</AccessKeyId><SecretAccessKey>secret{number}</SecretAccessKey>\
                 <SessionToken>token{number}</SessionToken><Expiration>{expiration}</Expiration>\
                 </Credentials></AssumeRoleResult></AssumeRoleResponse>"
            ),
        )
    }
}

/// A limit of AWS's that a call breaks.
fn violation(call: &Call) -> Option<Answer> {
    let bytes: usize = call.records.iter().map(Vec::len).sum();
    let code = match call.api {
        Api::AssumeRole => return None,
        _ if call.records.is_empty() => "ValidationException",
        _ if call.records.len() > MAX_RECORDS => "ValidationException",
        _ if call
            .records
            .iter()
            .any(|data| data.len() > MAX_RECORD_BYTES) =>
        {
            "ValidationException"
        }
        _ if bytes > MAX_CALL_BYTES => "InvalidArgumentException",
        _ => return None,
    };
    let message = format!("{} records of {bytes} bytes", call.records.len());
    Some(Answer::Error(400, code, message))
}

/// A signature of another time than AWS's.
fn badly_timed(call: &Call, now: DateTime<Utc>) -> Option<Answer> {
    let code = match call.api {
        Api::AssumeRole => "SignatureDoesNotMatch",
        _ => "InvalidSignatureException",
    };
    let message = format!("signed at {}, and it is {now}", call.signed_at);
    ((now - call.signed_at).abs() > MAX_SKEW).then_some(Answer::Error(403, code, message))
}

/// The body of PutRecordBatch or PutRecord.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Put {
    delivery_stream_name: String,
    #[serde(default)]
    records: Vec<WireRecord>,
    record: Option<WireRecord>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireRecord {
    data: String,
}

impl Call {
    fn parse(request: &Request) -> Self {
        let signed = request.header("authorization").unwrap_or_default();
        let credential = signed.split_once("Credential=").unwrap_or_default().1;
        let credential: Vec<&str> = credential.split(['/', ',']).collect();
        let date = request.header("x-amz-date").unwrap_or_default();
        let signed_at = NaiveDateTime::parse_from_str(date, "%Y%m%dT%H%M%SZ").unwrap();
        let mut call = Self {
            api: Api::AssumeRole,
            stream: String::new(),
            records: Vec::new(),
            parameters: BTreeMap::new(),
            access_key: credential[0].to_owned(),
            session_token: request.header("x-amz-security-token").map(str::to_owned),
            scope: format!("{}/{}", credential[2], credential[3]),
            signed_at: signed_at.and_utc(),
        };
        call.api = match request.header("x-amz-target") {
            Some("Firehose_20150804.PutRecordBatch") => Api::PutRecordBatch,
            Some("Firehose_20150804.PutRecord") => Api::PutRecord,
            None => {
                call.parameters = request.form();
                assert_eq!(call.parameters["Action"], "AssumeRole");
                return call;
            }
            Some(other) => panic!("nobody plays {other}"),
        };
        let put: Put = serde_json::from_slice(&request.body).unwrap();
        let records = put.records.into_iter().chain(put.record);
        call.records = records
            .map(|record| BASE64_STANDARD.decode(record.data).unwrap())
            .collect();
        call.stream = put.delivery_stream_name;
        call
    }

    /// A 200 of Firehose's.
    fn answer(&self, entries: usize, refused: &[usize], code: &str) -> Response {
        if self.api == Api::PutRecord && refused.is_empty() {
            return Response::json(200, &json!({ "RecordId": "id", "Encrypted": false }));
        }
        if self.api == Api::PutRecord {
            return self.error(503, code, "Slow down.");
        }
        let entry = |index: usize| match refused.contains(&index) {
            true => json!({ "ErrorCode": code, "ErrorMessage": "Slow down." }),
            false => json!({ "RecordId": format!("id-{index}") }),
        };
        let entries: Vec<_> = (0..entries).map(entry).collect();
        Response::json(
            200,
            &json!({ "FailedPutCount": refused.len(), "Encrypted": false, "RequestResponses": entries }),
        )
    }

    fn error(&self, status: u16, code: &str, message: &str) -> Response {
        if self.api != Api::AssumeRole {
            return Response::json(status, &json!({ "__type": code, "message": message }));
        }
        Response::xml(
            status,
            format!(
                "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                 <Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
            ),
        )
    }
}
