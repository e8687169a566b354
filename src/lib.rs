//! audience-sync keeps Amazon Data Firehose told who is in your audiences. This page is for whoever changes it; the
//! README is for whoever runs it.
//!
//! # How a run flows
//!
//! ```text
//! source ───ordered members──┐
//!                            ├─ diff ── plan ──> journal ──> deliver ──> Firehose
//! snapshot ─ordered members──┘     (one transaction)  │         │
//!                                                     └ remember <─ record IDs
//! ```
//!
//! **Plan, deliver, remember**, and each phase ends in a durable fact. [`sync`] tells it as a story:
//!
//! 1. What an earlier run left in the journal is delivered first.
//! 2. [`diff::merge`] walks the source and the snapshot side by side, both in byte order, in constant memory. Each
//!    [`Change`](audience::Change) goes to the journal, in chunks, in one transaction with the run itself. The guard
//!    then sees exact numbers, and a dry run is the same code rolled back.
//! 3. [`deliver`](mod@deliver) takes chunks from the journal, renders them to lines and sends them. A chunk is as many
//!    records as one call carries.
//! 4. When all of a chunk's records have their record IDs, the chunk leaves the journal and its changes reach the
//!    members, in one transaction. A record whose content Firehose will not have becomes a dead letter, and is in the
//!    way of nothing.
//!
//! All audiences of one command or tick go through each phase together: what earlier runs left, the plans, the delivery.
//! While one source is merged, the next ones are read already; plans share a transaction for up to a second, each with
//! a savepoint of its own; chunks of several runs are under way at once, small ones in one call, and destinations do
//! not wait for each other. So many small audiences cost what their records cost, and not a round trip and a wait for
//! the disk each. What stands still, such as a stream that is missing, stands still once for all of them.
//!
//! Few changes among many members do not rewrite the members: who has moved waits beside them until it is worth it, and
//! the view `membership` is both.
//!
//! There are two shorter ways to the same plan, taken where the last one left nothing open. Where the source is what it was
//! when everyone was read, so are its members. Where an audience has a change query, whoever it tells of is looked up by
//! [`diff::follow`], and now and then everyone is read to see what it did not tell. Whatever is in doubt is read.
//!
//! Why the journal comes first, and not only a snapshot moved on afterwards: a run sends `true` for a user and dies
//! before it remembers that. Then the user leaves. The next run sees the user neither in the source nor in the
//! snapshot, decides nothing, and downstream says `true` for ever. From the journal it repeats the `true`, and then
//! decides the `false`.
//!
//! # Where things are, in reading order
//!
//! The core is plain data and pure rules: no I/O, no `async`, no clock, no configuration.
//!
//! | module | what it is for |
//! |---|---|
//! | [`audience`] | members, users, values, changes, the guard; [`audience::keys`] freezes keys |
//! | [`diff`] | what has changed between two ordered lists |
//! | [`event`] | the Identify of a change, its message id, calls that people send, and what landed, read back |
//! | [`mapping`] | which streams an event goes to |
//! | [`stream`] | a delivery stream, told apart by its place |
//! | [`batch`] | lines as records, records as calls, within AWS's limits |
//! | [`bill`] | what a delivery would be charged, packed and not |
//! | [`run`](mod@run) | a run's id, time, kind, outcome and counts |
//! | [`policy`] | the statements of IAM that a stream and a role need |
//!
//! The edges do not know each other.
//!
//! | module | what it is for |
//! |---|---|
//! | [`source`] | reads members from databases, files and servers, and sorts those that come in no order; the only one beside the snapshot that knows SQL |
//! | [`snapshot`] | members, journal and history in one SQLite file, behind its own thread |
//! | [`firehose`] | delivers records, tries again, renews credentials; the only one that knows AWS |
//! | [`landed`] | what landed downstream: files, unzipped, line by line |
//! | [`lines`], [`secret`], [`causes`], [`disk`] | lines of bounded length; a text that nobody may see; errors in one line; files that outlive a power cut |
//!
//! Then what ties them together, and the shells.
//!
//! | module | what it is for |
//! |---|---|
//! | [`deliver`](mod@deliver) | carries chunks of runs from the journal to a destination, and the receipts back |
//! | [`sync`] | the runs of one command or tick |
//! | [`send`] | Segment calls from a file or a pipe |
//! | [`progress`], [`stop`] | how far a run is; the wish to end it |
//! | [`config`] | the project's files as typed values, checked as a whole |
//! | [`schedule`] | calls at the times that crontab lines name |
//! | [`cli`] | a file a command; the only one that prints |
//!
//! # What must stay true
//!
//! - Nothing is sent that is not in the journal on disk, and nothing leaves the journal without a record ID.
//! - The snapshot says what every stream was told. Of whom some stream may have been told otherwise, each plan decides
//!   anew until it has not.
//! - A source's end is only reached when everything was read: a merge that fails leaves no trace.
//! - Order is verified, never trusted. Users compare as bytes, in SQLite and here.
//! - The same change is the same bytes for ever: what a record says is frozen with its run, and the encoding of a chunk
//!   has a number. Tests freeze both.
//! - What a source was is remembered of nothing but what was read: it was old before, and the same afterwards; or it
//!   was said in the answer itself.
//! - No handle on a source is closed while a connection may be open: POSIX would take SQLite's locks away.
//! - Memory does not grow with an audience.
//! - A record holds lines of one run only: its bytes and its bill are that run's.
//! - Retries have one owner, [`firehose::Destination`].
//! - A secret is a [`secret::Secret`] from the first byte read, and logs come from our own modules only.

pub mod audience;
pub mod batch;
pub mod bill;
pub mod causes;
pub mod cli;
pub mod config;
pub mod deliver;
pub mod diff;
pub mod disk;
pub mod event;
pub mod firehose;
pub mod landed;
#[cfg(test)]
mod laws;
pub mod lines;
pub mod mapping;
pub mod policy;
pub mod progress;
pub mod run;
pub mod schedule;
pub mod secret;
pub mod send;
pub mod snapshot;
pub mod source;
pub mod stop;
pub mod stream;
pub mod sync;
