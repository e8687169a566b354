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
//! **Plan, deliver, remember.** Each phase ends in a durable fact. [`sync`] is this story in code.
//!
//! The unit is the *feed*: one audience at one [`stream`]. Each feed has its own members, journal, history, dead letters,
//! guard and report, and no feed knows of another. A stream is told apart by its place: region, endpoint, account and
//! name, or directory and name. [`stream::resolve`] finds the remembered stream that a configured one is. A feed that the
//! snapshot does not know yet gets a first run, beside the deltas of the others.
//!
//! For each feed:
//!
//! 1. What an earlier run left in its journal is delivered first. Only this feed waits for that; the others go on.
//! 2. [`diff::merge`] walks the source and the feed's members side by side, both in byte order, in constant memory. An
//!    audience's source is read once, with a [`Follower`](diff::Follower) for each of its feeds. Each
//!    [`Change`](audience::Change) goes to the journal, in chunks, in one transaction with the run itself. The guard then
//!    has exact numbers, and takes back what it holds. A dry run makes the same decisions and writes nothing.
//! 3. [`deliver`](mod@deliver) has a dispatcher for each stream. It takes chunks from the journal, renders them to lines
//!    and sends them. A chunk is as many records as one call carries. What all streams have in flight is bounded, so a
//!    crash repeats no more than that.
//! 4. When all of a chunk's records have their record IDs, the chunk leaves the journal and its changes reach the feed's
//!    members, in one transaction.
//!
//! Why the journal comes first, and not only a snapshot moved on afterwards: a run sends `true` for a user and dies
//! before it remembers that. Then the user leaves. The next run sees the user neither in the source nor in the
//! snapshot, decides nothing, and downstream says `true` for ever. From the journal it repeats the `true`, and then
//! decides the `false`.
//!
//! **Lines that are refused.** A line that keeps failing leaves its call and goes to the slow lane, where
//! [`retry`](firehose::Destination::retry) tries it alone, beside everything else, until it is accepted or dead. If the
//! stream accepts other lines, the line is to blame; if not, the stream is. A dead letter holds up nothing, and the next
//! plan of its feed decides about its user anew. An internal error, or no answer, may hide that a line was accepted. If
//! such a line is given up, the snapshot keeps a *doubt*: each plan of the feed sends what is true about that user now,
//! until a record ID comes back.
//!
//! **Many audiences.** All feeds of one command or tick go through the phases together. While one source is merged, the
//! next ones are read already. Plans share a transaction for up to a second, each with a savepoint of its own. Small
//! chunks of several runs share a call. So many small audiences cost what their records cost, and not a round trip and a
//! wait for the disk each. A stream that is missing is waited for once, for all of them.
//!
//! **Few changes** among many members do not rewrite the members: they wait in an overlay until compacting is worth it,
//! and the view `membership` is both together.
//!
//! **Shorter ways to the same plan** are taken where the last plans left nothing open. If the source was not modified, its
//! members are those of the last plans. If an audience has a change query, [`diff::follow`] looks up the users that it
//! reports, and now and then everyone is read to see what it did not report. If anything is unclear, everyone is read.
//!
//! **The lock and the run number.** One process at a time holds the [`RunLock`](snapshot::RunLock), a file beside the
//! snapshot that the kernel locks. Each writing transaction first sees that this file is still in its place, and that the
//! snapshot still has this process's random token: of two processes, the one whose lock file was removed gives up. The
//! file also holds the number of the last run, written after the plan is on disk and before its first record is sent. A
//! snapshot that does not know that run is a backup, or a new one, and is refused: it does not know what was told since.
//!
//! **Time.** A run begins at least 2 ms after the last one that the snapshot knows, even when the clock stepped back, so
//! the latest timestamp downstream is the truth. The history's age is judged by the real clock, in a column of its own.
//!
//! **`run`** stays. [`schedule::Clock`] is asked each second which schedules fell due since it was last asked, so a
//! machine that slept or a clock that was set back is nothing special. The lock is held for a run only. Sources that
//! failed and journals that were left are tried again by themselves, after 1, 2, 4 and at most 30 minutes.
//!
//! # Where things are, in reading order
//!
//! The core is plain data and pure rules: no I/O, no `async`, no clock, no configuration.
//!
//! | module | what it is for |
//! |---|---|
//! | [`audience`] | members, users, values, changes, the guard; [`audience::keys`] freezes keys |
//! | [`diff`] | what has changed between the source and each feed's members |
//! | [`event`] | the Identify of a change, its message id, calls that people send, and what landed, read back |
//! | [`mapping`] | which streams an event goes to |
//! | [`stream`] | a delivery stream, told apart by its place; which remembered stream a configured one is |
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
//! | [`snapshot`] | members, journal and history of each feed in one SQLite file, behind its own thread; the lock |
//! | [`firehose`] | delivers records, tries again, renews credentials; the only one that knows AWS |
//! | [`landed`] | what landed downstream: files, unzipped, line by line |
//! | [`lines`], [`secret`], [`causes`], [`disk`] | lines of bounded length; a text that nobody may see; errors in one line; files that outlive a power cut |
//!
//! Then what ties them together, and the shells.
//!
//! | module | what it is for |
//! |---|---|
//! | [`deliver`](mod@deliver) | carries chunks from the journal to a stream, and the receipts back |
//! | [`sync`] | the runs of one command or tick, feed by feed |
//! | [`send`] | Segment calls from a file or a pipe |
//! | [`progress`], [`stop`] | how far a run is; the wish to end it |
//! | [`config`] | the project's files as typed values, checked as a whole |
//! | [`schedule`] | which schedules fell due, and when what failed is tried again |
//! | [`cli`] | a file a command; the only one that prints |
//!
//! # What must stay true
//!
//! - Nothing is sent that is not in the journal on disk, and nothing leaves the journal without a record ID.
//! - The snapshot says what each stream has accepted. Users about whom a stream may have been told something else are
//!   planned again in every run of that feed.
//! - Nothing that happens to one feed is a reason to send, or not to send, anything in another.
//! - A source's end is only reached when everything was read: a merge that fails leaves no trace.
//! - Order is verified, never trusted. Users compare as bytes, in SQLite and here.
//! - The same change is the same bytes for ever: what a record says is frozen with its run, and the encoding of a chunk
//!   has a number. Tests freeze both.
//! - The watermark of a source is only of what was read: the source was at rest before, and the same afterwards; or the
//!   answer itself tells its version.
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
