//! What goes wrong at an endpoint, and how often: a plan of faults, thrown with seeded dice.
//!
//! A plan decides instead of a script. What it does not let go wrong is accepted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::{Answer, Api, CLIENT_PATIENCE, Call};

/// One way in which a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Some records of a 200 have this code and no record ID.
    Refused(&'static str),
    /// Nothing is accepted: status and code.
    Error(u16, &'static str),
    /// The connection is reset before a byte of the request is read,
    ResetBeforeReading,
    /// or when half of its body is.
    ResetHalfWay,
    /// Everything is accepted, and the connection is closed instead of saying so,
    AcceptedThenClosed,
    /// or reset,
    AcceptedThenReset,
    /// or nothing ever comes,
    AcceptedThenHung,
    /// or the answer is closed in its middle,
    CutShort,
    /// or it has not as many entries as there are records,
    WrongCount,
    /// or it comes after some time,
    Late,
    /// or when nobody waits for it any more.
    TooLate,
    /// A record that is not to its liking makes it refuse the whole call, with this code.
    Poisoned(&'static str),
    /// One record is refused in each call, with this code.
    RefusedForEver(&'static str),
    NoSuchStream,
    SessionExpired,
    /// Records over the quota are refused in a 200,
    OverQuota,
    /// and a call over it as a whole.
    TooManyCalls,
}

impl Kind {
    /// Whether something of a call is accepted.
    const fn accepts(self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::AcceptedThenClosed
                | Self::AcceptedThenReset
                | Self::AcceptedThenHung
                | Self::CutShort
                | Self::WrongCount
                | Self::Late
                | Self::TooLate
        )
    }

    const fn is_before_reading(self) -> bool {
        matches!(self, Self::ResetBeforeReading | Self::ResetHalfWay)
    }
}

/// A kind of fault, how often it is played, and in which calls: those of Firehose, unless it says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    kind: Kind,
    chance: f64,
    left: usize,
    api: Option<Api>,
    stream: Option<&'static str>,
}

impl Rule {
    pub(crate) const fn always(kind: Kind) -> Self {
        Self::sometimes(1.0, kind)
    }

    pub(crate) const fn sometimes(chance: f64, kind: Kind) -> Self {
        Self {
            kind,
            chance,
            left: usize::MAX,
            api: None,
            stream: None,
        }
    }

    /// No more than so many times.
    pub(crate) const fn times(mut self, times: usize) -> Self {
        self.left = times;
        self
    }

    /// Only in calls of this kind.
    pub(crate) const fn of(mut self, api: Api) -> Self {
        self.api = Some(api);
        self
    }

    /// Only in calls for this stream.
    pub(crate) const fn at(mut self, stream: &'static str) -> Self {
        self.stream = Some(stream);
        self
    }

    fn fits(&self, call: &Call) -> bool {
        let api = match self.api {
            Some(api) => call.api == api,
            None => call.api != Api::AssumeRole,
        };
        api && self.stream.is_none_or(|stream| call.stream == stream)
    }

    fn throw(&mut self, dice: &mut Rng) -> Option<Kind> {
        let is_played = self.left > 0 && dice.f64() < self.chance;
        self.left -= usize::from(is_played);
        is_played.then_some(self.kind)
    }
}

/// How long a session is good, from its first call on.
#[derive(Debug, Clone)]
pub(crate) enum Lifetime {
    Calls(Range<usize>),
    Time(Range<Duration>),
}

/// What a stream takes in a second; infinite where there is no limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quota {
    pub records: f64,
    pub requests: f64,
    pub bytes: f64,
}

impl Quota {
    pub(crate) const NONE: Self = Self {
        records: f64::INFINITY,
        requests: f64::INFINITY,
        bytes: f64::INFINITY,
    };
}

/// The plan.
#[derive(Debug)]
pub(crate) struct Faults {
    dice: Rng,
    rules: Vec<Rule>,
    streams: Option<&'static [&'static str]>,
    poisons: Vec<Poison>,
    lifetime: Option<Lifetime>,
    quota: Option<Quota>,
    late: Range<Duration>,
    sessions: BTreeMap<String, Session>,
    buckets: BTreeMap<String, Bucket>,
}

impl Faults {
    /// Lets nothing go wrong yet.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self {
            dice: Rng::with_seed(seed),
            rules: Vec::new(),
            streams: None,
            poisons: Vec::new(),
            lifetime: None,
            quota: None,
            late: Duration::from_millis(1)..Duration::from_millis(60),
            sessions: BTreeMap::new(),
            buckets: BTreeMap::new(),
        }
    }

    /// Of several rules that fit a call, the first whose dice fall is played.
    pub(crate) fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    pub(crate) fn rules(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.rules.extend(rules);
        self
    }

    /// No other streams exist.
    pub(crate) fn streams(mut self, streams: &'static [&'static str]) -> Self {
        self.streams = Some(streams);
        self
    }

    /// A call with a record that holds this text is refused as a whole, with one of these codes.
    pub(crate) fn poison(mut self, text: &'static str, codes: &'static [&'static str]) -> Self {
        self.poisons.push(Poison {
            text,
            codes,
            stream: None,
            how: How::WholeCall,
        });
        self
    }

    /// A record that holds this text is refused in each call, with one of these codes. The others are accepted.
    pub(crate) fn refuse_for_ever(
        mut self,
        text: &'static str,
        codes: &'static [&'static str],
    ) -> Self {
        self = self.poison(text, codes);
        self.last_poison().how = How::OneRecord { accepted: 0.0 };
        self
    }

    /// It is accepted all the same, this often.
    pub(crate) fn and_accept_it(mut self, chance: f64) -> Self {
        self.last_poison().how = How::OneRecord { accepted: chance };
        self
    }

    /// Only by this stream.
    pub(crate) fn poison_at(mut self, stream: &'static str) -> Self {
        self.last_poison().stream = Some(stream);
        self
    }

    fn last_poison(&mut self) -> &mut Poison {
        self.poisons.last_mut().expect("there is a poison")
    }

    pub(crate) fn sessions(mut self, lifetime: Lifetime) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// Of each stream, with one second of burst.
    pub(crate) fn quota(mut self, quota: Quota) -> Self {
        self.quota = Some(quota);
        self
    }

    /// How long an answer that is [`Kind::Late`] takes.
    pub(crate) fn late(mut self, late: Range<Duration>) -> Self {
        self.late = late;
        self
    }

    /// Whether the next request is cut off, which is decided before anything is known of it.
    pub(super) fn cut(&mut self) -> Option<Kind> {
        let rules = self.rules.iter_mut();
        let mut cuts = rules.filter(|rule| rule.kind.is_before_reading());
        cuts.find_map(|rule| rule.throw(&mut self.dice))
    }

    pub(super) fn decide(&mut self, call: &Call) -> (Answer, Option<Kind>) {
        let kind = self.state_of_affairs(call).or_else(|| self.throw(call));
        if kind.is_none_or(Kind::accepts)
            && let Some((answer, kind)) = self.poisoned(call)
        {
            return (answer, Some(kind));
        }
        match kind {
            Some(kind) => (self.answer(call, kind), Some(kind)),
            None => self.within_quota(call),
        }
    }

    /// What no dice are needed for.
    fn state_of_affairs(&mut self, call: &Call) -> Option<Kind> {
        if call.api == Api::AssumeRole {
            return None;
        }
        if self.has_expired(call) {
            return Some(Kind::SessionExpired);
        }
        let exists = |streams: &[&str]| streams.contains(&&*call.stream);
        (!self.streams.is_none_or(exists)).then_some(Kind::NoSuchStream)
    }

    fn has_expired(&mut self, call: &Call) -> bool {
        let (Some(lifetime), Some(_)) = (&self.lifetime, &call.session_token) else {
            return false;
        };
        let session = self.sessions.entry(call.access_key.clone());
        let session = session.or_insert_with(|| Session::new(lifetime, &mut self.dice));
        session.calls_left = session.calls_left.saturating_sub(1);
        session.calls_left == 0 || Instant::now() > session.until
    }

    fn throw(&mut self, call: &Call) -> Option<Kind> {
        let fits = |rule: &&mut Rule| !rule.kind.is_before_reading() && rule.fits(call);
        let mut rules = self.rules.iter_mut().filter(fits);
        rules.find_map(|rule| rule.throw(&mut self.dice))
    }

    fn poisoned(&mut self, call: &Call) -> Option<(Answer, Kind)> {
        let poison = self.poisons.iter().find(|poison| poison.is_in(call))?;
        let code = poison.codes[self.dice.usize(..poison.codes.len())];
        let How::OneRecord { accepted } = poison.how else {
            return Some((Answer::error(400, code), Kind::Poisoned(code)));
        };
        let records = call.records.iter().enumerate();
        let refused = records.filter(|(_, record)| poison.is_about(record));
        let refused = refused.map(|(index, _)| index).collect();
        let answer = match self.dice.f64() < accepted {
            true => Answer::RefuseAccepted(refused, code),
            false => Answer::Refuse(refused, code),
        };
        Some((answer, Kind::RefusedForEver(code)))
    }

    fn answer(&mut self, call: &Call, kind: Kind) -> Answer {
        let count = call.records.len();
        match kind {
            Kind::Refused(code) => Answer::Refuse(self.some_of(count), code),
            Kind::Error(status, code) => Answer::error(status, code),
            Kind::AcceptedThenClosed => Answer::AcceptAndClose,
            Kind::AcceptedThenReset => Answer::AcceptAndReset,
            Kind::AcceptedThenHung => Answer::AcceptAndHang,
            Kind::CutShort => Answer::AcceptAndCutShort,
            Kind::WrongCount => Answer::Entries(*self.pick(&[0, count - 1, count + 1])),
            Kind::Late => Answer::Late(self.some_time(), Box::new(Answer::Accept)),
            Kind::TooLate => {
                let delay = CLIENT_PATIENCE + Duration::from_secs(1);
                Answer::Late(delay, Box::new(Answer::Accept))
            }
            Kind::NoSuchStream => {
                let message = format!(
                    "Firehose {} under account 874699288871 not found.",
                    call.stream
                );
                Answer::Error(400, "ResourceNotFoundException", message)
            }
            Kind::SessionExpired => Answer::error(400, "ExpiredTokenException"),
            Kind::TooManyCalls => {
                let message = "Slow down.".to_owned();
                Answer::Error(503, "ServiceUnavailableException", message)
            }
            Kind::OverQuota
            | Kind::Poisoned(_)
            | Kind::RefusedForEver(_)
            | Kind::ResetBeforeReading
            | Kind::ResetHalfWay => unreachable!("{kind:?} is no answer of its own"),
        }
    }

    /// About three in ten, and at least one.
    fn some_of(&mut self, count: usize) -> Vec<usize> {
        let mut some: Vec<usize> = (0..count).filter(|_| self.dice.f64() < 0.3).collect();
        if some.is_empty() {
            some.push(self.dice.usize(..count));
        }
        some
    }

    fn some_time(&mut self) -> Duration {
        between(&self.late, &mut self.dice)
    }

    fn pick<'p, T>(&mut self, from: &'p [T]) -> &'p T {
        &from[self.dice.usize(..from.len())]
    }

    /// Accepts what the quota has room for.
    fn within_quota(&mut self, call: &Call) -> (Answer, Option<Kind>) {
        let (Some(quota), false) = (self.quota, call.api == Api::AssumeRole) else {
            return (Answer::Accept, None);
        };
        let bucket = self.buckets.entry(call.stream.clone());
        let bucket = bucket.or_insert_with(|| Bucket::full(quota));
        bucket.refill(quota);
        if !bucket.takes_request() {
            let kind = Kind::TooManyCalls;
            return (self.answer(call, kind), Some(kind));
        }
        let records = call.records.iter().enumerate();
        let over = records.filter(|(_, record)| !bucket.takes_record(record.len()));
        let over: Vec<usize> = over.map(|(index, _)| index).collect();
        let kind = (!over.is_empty()).then_some(Kind::OverQuota);
        (Answer::Refuse(over, "ServiceUnavailableException"), kind)
    }
}

/// What Firehose does not like.
#[derive(Debug)]
struct Poison {
    text: &'static str,
    codes: &'static [&'static str],
    stream: Option<&'static str>,
    how: How,
}

/// What is refused because of a poison.
#[derive(Debug, Clone, Copy)]
enum How {
    WholeCall,
    /// It is accepted this often, whatever the answer says.
    OneRecord {
        accepted: f64,
    },
}

impl Poison {
    fn is_in(&self, call: &Call) -> bool {
        let is_here = self.stream.is_none_or(|stream| call.stream == stream);
        is_here && call.records.iter().any(|record| self.is_about(record))
    }

    fn is_about(&self, record: &[u8]) -> bool {
        let text = std::str::from_utf8(record);
        text.is_ok_and(|text| text.contains(self.text))
    }
}

fn between(range: &Range<Duration>, dice: &mut Rng) -> Duration {
    range.start + (range.end - range.start).mul_f64(dice.f64())
}

/// What is left of a session.
#[derive(Debug)]
struct Session {
    /// The last one is refused.
    calls_left: usize,
    until: Instant,
}

impl Session {
    fn new(lifetime: &Lifetime, dice: &mut Rng) -> Self {
        let (calls, time) = match lifetime {
            Lifetime::Calls(calls) => (dice.usize(calls.clone()) + 1, Duration::from_secs(3_600)),
            Lifetime::Time(time) => (usize::MAX, between(time, dice)),
        };
        Self {
            calls_left: calls,
            until: Instant::now() + time,
        }
    }
}

/// What a stream has room for now.
#[derive(Debug)]
struct Bucket {
    room: Quota,
    at: Instant,
}

impl Bucket {
    fn full(quota: Quota) -> Self {
        Self {
            room: quota,
            at: Instant::now(),
        }
    }

    /// A second's worth fits into it.
    fn refill(&mut self, quota: Quota) {
        let seconds = self.at.elapsed().as_secs_f64();
        self.at = Instant::now();
        let more = |room: f64, quota: f64| quota.min(room + seconds * quota);
        self.room = Quota {
            records: more(self.room.records, quota.records),
            requests: more(self.room.requests, quota.requests),
            bytes: more(self.room.bytes, quota.bytes),
        };
    }

    fn takes_request(&mut self) -> bool {
        let takes = self.room.requests >= 1.0;
        self.room.requests -= f64::from(u8::from(takes));
        takes
    }

    fn takes_record(&mut self, bytes: usize) -> bool {
        let takes = self.room.records >= 1.0 && self.room.bytes >= bytes as f64;
        if takes {
            self.room.records -= 1.0;
            self.room.bytes -= bytes as f64;
        }
        takes
    }
}
