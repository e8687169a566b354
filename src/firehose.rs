//! Delivers records to streams: to Amazon Data Firehose, or to files laid out as Firehose lays them out.
//!
//! A call has no single outcome. Its [`Receipt`] names the records that were delivered, and says by a [`Refusal`] what
//! to do about the others: try again, renew the credentials, leave them to somebody who must act, or find the one
//! whose content is to blame. [`Destination::deliver`] does it, and is the only place that tries again. The SDK's own
//! retries are off: it neither sees refused records inside a 200 nor drops expired credentials.

mod aimd;
mod aws;
mod credentials;
mod deliver;
mod directory;
mod foresee;
mod https_only;
mod meter;
mod pacing;
mod pulse;
mod refusals;

use std::time::Duration;

use crate::audience::DestinationName;
use crate::batch::Record;
use crate::bill::PRICE_PER_GB;
use crate::mapping::StreamName;

pub use aws::{Api, Aws, AwsSettings};
pub use credentials::Role;
pub use deliver::{Blamed, Delivery, Ended};
pub use directory::Directory;
pub use https_only::{PLAIN_HTTP_HINT, endpoint_host, is_loopback, is_private};
pub use meter::{Meter, Meters};
use pacing::Pacing;
pub use pacing::Quota;
pub use pulse::Pulse;

/// What one call delivered, and why it did not deliver the rest.
#[must_use]
#[derive(Debug, Default)]
pub struct Receipt {
    /// Indices of the records that have a record ID, or are on disk.
    pub delivered: Vec<usize>,
    /// How many of the others Firehose itself has refused for now: it had too much.
    pub refused: usize,
    /// Others that it has refused with a code that AWS does not document, by their first line.
    pub strange: Vec<(usize, String)>,
    /// An answer did not come, or was a failure of the server's: some of the others may have been accepted.
    pub is_lost: bool,
    /// Never absent when something is not delivered.
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

    /// Nothing is known of any record.
    fn lost(refusal: Refusal) -> Self {
        Self {
            is_lost: true,
            ..Self::none(refusal)
        }
    }
}

/// Why records were not delivered, named by what happens next.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// The same records may be delivered later.
    Retry(String),
    /// The credentials, of this generation, are not accepted any more: new ones, and the same records at once.
    Refresh { reason: String, refused: u64 },
    /// Nothing reaches this stream until somebody acts. The records stay in the journal.
    Park(Parked),
    /// The content of some record is to blame, and nothing says of which: halves of the call find it.
    Bisect { code: String, message: String },
}

/// What somebody must act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    pub problem: String,
    pub hint: Option<String>,
}

impl std::fmt::Display for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem)?;
        self.hint
            .iter()
            .try_for_each(|hint| write!(f, "\n\nhint: {hint}"))
    }
}

/// The region of whoever names none.
pub const DEFAULT_REGION: &str = "us-west-2";

/// A destination that is ready to take records.
#[derive(Debug)]
pub struct Destination {
    pub name: DestinationName,
    /// Several lines in one record.
    pub pack: bool,
    /// Dollars.
    price_per_gb: f64,
    pacing: Pacing,
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
            pacing: Pacing::new(aws.quota()),
            kind: Kind::Firehose(Box::new(aws)),
        }
    }

    pub fn directory(name: DestinationName, pack: bool, directory: Directory) -> Self {
        Self {
            name,
            pack,
            price_per_gb: PRICE_PER_GB,
            pacing: Pacing::new(Quota::NONE),
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
