//! What goes wrong in a round.

use std::time::Duration;

use fastrand::Rng;

use super::source::{POISON, REFUSED};
use crate::support::endpoint::{Api, Faults, Kind, Lifetime, Quota, Rule};

#[derive(Debug, Clone, Copy)]
pub(super) enum Weather {
    Fair,
    /// All that passes,
    Mixed,
    /// at one of the streams.
    MixedAtOne,
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
    Weather::MixedAtOne,
    Weather::MixedAtOne,
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
const OUT_OF_ORDER: Kind = Kind::Error(500, "InternalFailure");
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

/// How one stream refuses the records of one user, for as long as a world lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ForEver {
    Not,
    /// The whole call, because of its content,
    Content,
    /// the record by itself, with a code that AWS does not document,
    Undocumented,
    /// or with an internal error. Half of these records are accepted all the same.
    InternalError,
}

/// One for each world.
pub(super) const FOR_EVER: [ForEver; 4] = [
    ForEver::InternalError,
    ForEver::Content,
    ForEver::Undocumented,
    ForEver::Not,
];

impl ForEver {
    fn at(self, stream: &'static str, faults: Faults) -> Faults {
        let faults = match self {
            Self::Not => return faults,
            Self::Content => faults.poison(REFUSED, &["ValidationException"]),
            Self::Undocumented => faults.refuse_for_ever(REFUSED, &["NotInTheManual"]),
            Self::InternalError => {
                let faults = faults.refuse_for_ever(REFUSED, &["InternalFailure"]);
                faults.and_accept_it(0.5)
            }
        };
        faults.poison_at(stream)
    }
}

/// What keeps a stream from accepting anything for several rounds, while others may be fine.
pub(super) const OUTAGES: [Kind; 5] = [Kind::NoSuchStream, DENIED, NO_KEY, NO_SOURCE, OUT_OF_ORDER];

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
    kinds.extend(["NotInTheManual", "InternalFailure"].map(Kind::RefusedForEver));
    kinds
}

/// What goes wrong in a world beside the weather.
#[derive(Debug)]
pub(super) struct Troubles {
    pub for_ever: ForEver,
    /// The stream that refuses a user for ever.
    pub refuses: &'static str,
    pub outage: Option<Outage>,
}

/// A stream that accepts nothing for so many rounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    pub stream: &'static str,
    pub kind: Kind,
    pub rounds_left: usize,
}

impl Outage {
    pub(super) fn at(stream: &'static str, dice: &mut Rng) -> Self {
        Self {
            stream,
            kind: OUTAGES[dice.usize(..OUTAGES.len())],
            rounds_left: dice.usize(2..7),
        }
    }

    /// Whether a command ends by itself all the same.
    pub(super) fn is_told_at_once(&self) -> bool {
        self.kind != OUT_OF_ORDER
    }
}

impl Troubles {
    /// All that goes wrong where the weather is fair.
    pub(super) fn faults(&self, dice: &mut Rng) -> Faults {
        let faults = self.for_ever.at(self.refuses, Faults::seeded(dice.u64(..)));
        match self.outage {
            Some(Outage { stream, kind, .. }) => faults.rule(Rule::always(kind).at(stream)),
            None => faults,
        }
    }
}

impl Weather {
    /// What goes wrong at these streams, beside the troubles of the world.
    pub(super) fn faults(
        self,
        streams: &[&'static str],
        troubles: &Troubles,
        dice: &mut Rng,
    ) -> Faults {
        let mut faults = troubles.faults(dice);
        faults = match dice.u8(..4) {
            0 => faults,
            1 => faults.poison(POISON, BLAMES),
            _ => faults
                .poison(POISON, BLAMES)
                .poison_at(one_of(streams, dice)),
        };
        if let Some(lifetime) = lifetime(dice) {
            faults = faults.sessions(lifetime);
        }
        let stream = one_of(streams, dice);
        match self {
            Self::Fair => faults,
            Self::Mixed => faults.rules(passing()),
            Self::MixedAtOne => faults.rules(passing().map(|rule| rule.at(stream))),
            Self::Throttled => faults.quota(quota(dice)),
            Self::Missing => faults.rule(Rule::always(Kind::NoSuchStream).at(stream)),
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

fn one_of(streams: &[&'static str], dice: &mut Rng) -> &'static str {
    streams[dice.usize(..streams.len())]
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
