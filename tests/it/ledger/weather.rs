//! What goes wrong in a round.

use std::time::Duration;

use fastrand::Rng;

use super::STREAMS;
use super::source::POISON;
use crate::support::endpoint::{Api, Faults, Kind, Lifetime, Quota, Rule};

#[derive(Debug, Clone, Copy)]
pub(super) enum Weather {
    Fair,
    /// All that passes.
    Mixed,
    /// More is sent than is taken.
    Throttled,
    /// One of the streams does not exist,
    Missing,
    /// or may not be written to,
    Denied,
    /// or only record by record,
    OnlySingle,
    /// or something is wrong with it.
    Unusable,
    /// The role may not be assumed.
    NoRole,
}

/// How often each comes: they are dealt out like cards.
pub(super) const DECK: [Weather; 16] = [
    Weather::Fair,
    Weather::Fair,
    Weather::Mixed,
    Weather::Mixed,
    Weather::Mixed,
    Weather::Mixed,
    Weather::Mixed,
    Weather::Mixed,
    Weather::Throttled,
    Weather::Throttled,
    Weather::Throttled,
    Weather::Missing,
    Weather::Denied,
    Weather::OnlySingle,
    Weather::Unusable,
    Weather::NoRole,
];

const UNAVAILABLE: &str = "ServiceUnavailableException";
const DENIED: Kind = Kind::Error(400, "AccessDeniedException");
const NO_ROLE: Kind = Kind::Error(403, "AccessDenied");
const NO_KEY: Kind = Kind::Error(400, "InvalidKMSResourceException");
const NO_SOURCE: Kind = Kind::Error(400, "InvalidSourceException");
const STS_FAILS: Kind = Kind::Error(500, "InternalError");
const STS_IS_BUSY: Kind = Kind::Error(400, "Throttling");

/// What passes by itself, and how often it happens to a call. Answers that never come are rare: each ends a round.
const PASSING: [(f64, Kind); 19] = [
    (0.05, Kind::Refused(UNAVAILABLE)),
    (0.03, Kind::Refused("InternalFailure")),
    (0.02, Kind::Refused("NotInTheManual")),
    (0.03, Kind::Error(500, "InternalFailure")),
    (0.03, Kind::Error(503, UNAVAILABLE)),
    (0.02, Kind::Error(400, "ThrottlingException")),
    (0.02, Kind::Error(400, "LimitExceededException")),
    (0.02, Kind::Error(429, "TooManyRequestsException")),
    (0.02, Kind::Error(400, "UnrecognizedClientException")),
    (0.02, Kind::Error(400, "InvalidSignatureException")),
    (0.02, Kind::ResetBeforeReading),
    (0.02, Kind::ResetHalfWay),
    (0.03, Kind::AcceptedThenClosed),
    (0.03, Kind::AcceptedThenReset),
    (0.03, Kind::CutShort),
    (0.03, Kind::WrongCount),
    (0.08, Kind::Late),
    (0.02, Kind::AcceptedThenHung),
    (0.02, Kind::TooLate),
];

/// What blames a record.
const BLAMES: &[&str] = &[
    "ValidationException",
    "InvalidArgumentException",
    "SerializationException",
    "NotInTheManualException",
];

/// Everything that must have happened.
pub(super) fn kinds() -> Vec<Kind> {
    let mut kinds: Vec<Kind> = PASSING.iter().map(|(_, kind)| *kind).collect();
    kinds.extend([DENIED, NO_ROLE, NO_KEY, NO_SOURCE, STS_FAILS, STS_IS_BUSY]);
    kinds.extend([Kind::NoSuchStream, Kind::SessionExpired]);
    kinds.extend([Kind::OverQuota, Kind::TooManyCalls]);
    kinds.extend(BLAMES.iter().map(|code| Kind::Poisoned(code)));
    kinds
}

impl Weather {
    pub(super) fn faults(self, dice: &mut Rng) -> Faults {
        let mut faults = Faults::seeded(dice.u64(..));
        faults = match dice.u8(..4) {
            0 => faults,
            1 => faults.poison(POISON, BLAMES),
            _ => faults.poison(POISON, BLAMES).poison_at(stream(dice)),
        };
        if let Some(lifetime) = lifetime(dice) {
            faults = faults.sessions(lifetime);
        }
        let stream = stream(dice);
        match self {
            Self::Fair => faults,
            Self::Mixed => faults.rules(passing()),
            Self::Throttled => faults.quota(quota(dice)),
            Self::Missing => faults.streams(match dice.bool() {
                true => &STREAMS[..1],
                false => &STREAMS[1..],
            }),
            Self::Denied => faults.rule(Rule::always(DENIED).at(stream)),
            Self::OnlySingle => {
                let no_batch = Rule::always(DENIED).at(stream).of(Api::PutRecordBatch);
                faults.rule(no_batch).rules(passing())
            }
            Self::Unusable => {
                let wrong = [NO_KEY, NO_SOURCE][dice.usize(..2)];
                faults.rule(Rule::sometimes(0.7, wrong).at(stream))
            }
            Self::NoRole => faults.rule(Rule::always(NO_ROLE).of(Api::AssumeRole)),
        }
    }
}

fn passing() -> impl Iterator<Item = Rule> {
    let sts = [STS_FAILS, STS_IS_BUSY].map(|kind| Rule::sometimes(0.12, kind).of(Api::AssumeRole));
    let firehose = PASSING.map(|(chance, kind)| Rule::sometimes(chance, kind));
    sts.into_iter().chain(firehose)
}

fn stream(dice: &mut Rng) -> &'static str {
    STREAMS[dice.usize(..STREAMS.len())]
}

fn lifetime(dice: &mut Rng) -> Option<Lifetime> {
    match dice.u8(..4) {
        0 => None,
        1 => Some(Lifetime::Time(
            Duration::from_millis(5)..Duration::from_millis(200),
        )),
        _ => Some(Lifetime::Calls(2..30)),
    }
}

/// One of the three limits is the one that is met.
fn quota(dice: &mut Rng) -> Quota {
    let (records, requests, bytes) = match dice.u8(..4) {
        0 => (100.0, 1_000.0, 1e9),
        1 | 2 => (1e9, 3.0, 1e9),
        _ => (1e9, 1_000.0, 40_000.0),
    };
    Quota {
        records,
        requests,
        bytes,
    }
}
