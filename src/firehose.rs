//! Delivers records to streams: to Amazon Data Firehose, or to files laid out as Firehose lays them out.
//!
//! A call has no single outcome. Its [`Receipt`] names the records that were delivered, and says for the others what to
//! do next: try again, renew the credentials, leave them until an operator acts, or find the line whose content is rejected.
//! [`Destination::deliver`] and [`Destination::retry`] do it, and nothing else tries again. The SDK's own retries are
//! off: it neither sees refused records inside a 200 nor drops expired credentials.
//!
//! Each stream stands alone: its quota, its stall timeout and what is known about its refusals are its own.

mod aimd;
mod aws;
mod credentials;
mod deliver;
mod directory;
mod endpoint;
mod foresee;
mod https_only;
mod meter;
mod rate_limiter;
mod refusals;
mod retry;
#[cfg(test)]
mod scripted;
mod stall;
mod streams;
mod suspects;
mod time_limit;

use std::time::Duration;

use crate::audience::DestinationName;
use crate::batch::Record;
use crate::bill::PRICE_PER_GB;
use crate::mapping::StreamName;

pub use aws::{Api, Aws, AwsSettings};
pub use credentials::Role;
pub use deliver::{Delivery, Ended, Rejected};
pub use directory::Directory;
pub use endpoint::endpoint_of_environment;
pub use https_only::{PLAIN_HTTP_HINT, endpoint_host, is_loopback, is_private};
pub use meter::{Meter, Meters};
pub use rate_limiter::Quota;
use streams::Streams;
pub use suspects::Suspect;
use time_limit::TimeLimit;

/// What one call delivered, and why it did not deliver the rest.
#[must_use]
#[derive(Debug, Default)]
pub struct Receipt {
    /// Indices of the records that have a record ID, or are on disk.
    pub delivered: Vec<usize>,
    /// Records that have an answer of their own, and were not accepted.
    pub refused: Vec<(usize, Failure)>,
    /// Why the records that are in neither list were not accepted. Never absent when there are such records.
    pub refusal: Option<Refusal>,
}

impl Receipt {
    fn all(count: usize) -> Self {
        Self {
            delivered: (0..count).collect(),
            ..Self::default()
        }
    }

    fn none(refusal: Refusal) -> Self {
        Self {
            refusal: Some(refusal),
            ..Self::default()
        }
    }
}

/// Why records were not delivered, named by what happens next.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// Nothing was sent, for this reason. The same records may be delivered later.
    Retry(String),
    /// The same records may be delivered later.
    Failed(Failure),
    /// The credentials, of this generation, are not accepted any more: new ones, and the same records at once.
    Refresh { reason: String, refused: u64 },
    /// Nothing reaches this stream until an operator acts. The records stay in the journal.
    Blocked(Blocked),
    /// The content of some record is rejected, and nothing tells of which: halves of the call find it.
    Rejected { code: String, message: String },
}

/// A call, or one record of it, that was sent and not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub cause: Cause,
    /// AWS's code, such as `InternalFailure`.
    pub code: String,
    /// AWS's words, which may repeat what it was sent.
    pub message: String,
    /// The stream may have accepted it all the same.
    pub is_maybe_accepted: bool,
}

impl Failure {
    fn of_content(code: String, message: String) -> Self {
        Self {
            cause: Cause::Content,
            code,
            message,
            is_maybe_accepted: false,
        }
    }
}

/// Without anything that the call carried.
impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Retry(reason) | Self::Refresh { reason, .. } => f.write_str(reason),
            Self::Failed(failure) => failure.fmt(f),
            Self::Blocked(blocked) => f.write_str(&blocked.problem),
            Self::Rejected { code, .. } => write!(f, "firehose answered {code}"),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.cause {
            // The words are our own.
            Cause::Unanswered => f.write_str(&self.message),
            _ => write!(f, "firehose answered {}", self.code),
        }
    }
}

/// What a failure says about a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The stream has no room for it now.
    Throttled,
    /// Firehose failed.
    InternalError,
    /// No answer came from Firehose, so nothing is said about the line.
    Unanswered,
    /// A record was refused with a code that AWS does not document.
    Undocumented,
    /// The content is rejected.
    Content,
}

/// What an operator must act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    pub problem: String,
    pub hint: Option<String>,
}

impl std::fmt::Display for Blocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem)?;
        self.hint
            .iter()
            .try_for_each(|hint| write!(f, "\n\nhint: {hint}"))
    }
}

/// The region where the configuration names none.
pub const DEFAULT_REGION: &str = "us-west-2";

/// A destination that is ready to take records.
#[derive(Debug)]
pub struct Destination {
    pub name: DestinationName,
    /// Several lines in one record.
    pub pack: bool,
    /// Dollars.
    price_per_gb: f64,
    streams: Streams,
    time_limit: TimeLimit,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Firehose(Box<Aws>),
    Directory(Directory),
}

impl Destination {
    pub fn firehose(name: DestinationName, pack: bool, aws: Aws) -> Self {
        Self {
            name,
            pack,
            price_per_gb: PRICE_PER_GB,
            streams: Streams::new(aws.quota()),
            time_limit: TimeLimit::default(),
            kind: Kind::Firehose(Box::new(aws)),
        }
    }

    pub fn directory(name: DestinationName, pack: bool, directory: Directory) -> Self {
        Self {
            name,
            pack,
            price_per_gb: PRICE_PER_GB,
            streams: Streams::new(Quota::NONE),
            time_limit: TimeLimit::default(),
            kind: Kind::Directory(directory),
        }
    }

    /// The same at another price.
    pub fn priced(self, price_per_gb: f64) -> Self {
        Self {
            price_per_gb,
            ..self
        }
    }

    /// Begins a command or tick: forgets outages and missing permissions, and starts the time that its deliveries may take together.
    ///
    /// A stream with a delivery under way, of another tick, keeps its stall timeout and what is known of its refusals.
    pub fn begin(&self, deliver_for: Option<Duration>) {
        if let Kind::Firehose(aws) = &self.kind {
            aws.forget_denied();
        }
        self.streams.begin();
        self.time_limit.begin(deliver_for);
    }

    /// Whether the time that deliveries may take is over.
    pub fn is_time_up(&self) -> bool {
        self.time_limit.is_up()
    }

    /// Whether each record is a request of its own.
    fn sends_singly(&self, stream: &StreamName) -> bool {
        match &self.kind {
            Kind::Firehose(aws) => aws.sends_singly(stream),
            Kind::Directory(_) => false,
        }
    }

    /// One attempt at one call's worth of records.
    async fn put(&self, stream: &StreamName, records: &[Record], meters: &Meters) -> Receipt {
        match &self.kind {
            Kind::Firehose(aws) => aws.put(stream, records, meters).await,
            Kind::Directory(directory) => directory.put(stream, records, meters).await,
        }
    }

    /// Sees to newer credentials than those of a generation; `false` where that will not help.
    async fn refresh(&self, refused: u64) -> bool {
        match &self.kind {
            Kind::Firehose(aws) => aws.refresh(refused).await,
            Kind::Directory(_) => false,
        }
    }
}

/// A call is given up after this long. AWS advises patience: a call that is cut short may have been accepted, and is
/// then a repeat. <https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatch.html>
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
