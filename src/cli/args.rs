//! What can be typed.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

/// Keeps Amazon Data Firehose told who is in your audiences.
///
/// Reads the members of each audience, compares them with what Firehose has accepted, and delivers one
/// Segment-compatible Identify call for each user who entered or left.
#[derive(Debug, Parser)]
#[command(name = "audience-sync", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 all delivered or nothing to do, 1 a run failed, 2 usage or configuration,
3 something is not delivered, 4 the guard holds something, 5 another run holds the snapshot.

New here? Type `audience-sync demo`."
)]
pub(super) struct Args {
    /// The configuration file; its directory is the project.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "AUDIENCE_SYNC_CONFIG",
        default_value = "audience-sync.toml"
    )]
    pub config: PathBuf,

    /// Print one JSON object a line instead of tables.
    #[arg(long, global = true)]
    pub json: bool,

    /// How logs are written to standard error.
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Log more; twice for still more. No level prints secrets.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// A first sync, a day later a delta, on real orders, with no AWS account.
    Demo {
        /// The project to make; an existing demo moves on by another day.
        #[arg(default_value = "audience-sync-demo")]
        dir: PathBuf,
    },
    /// Write a commented configuration and a schedule to start from; overwrites nothing.
    Init {
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Run these audiences now, or all of them.
    Sync(SyncArgs),
    /// Send everyone again: true for every member, false for every user delivered earlier and gone since.
    Resync(ResyncArgs),
    /// End an audience: false (of a trait: null) to everyone who was told otherwise, then its key is refused for good.
    Retire(RetireArgs),
    /// Stay, and sync by the cron schedules.
    Run {
        /// Go on from a snapshot that is older than the last run: what was told since is not in it.
        #[arg(long)]
        accept_old_snapshot: bool,
    },
    /// Read everything and print what would run where; no network without `--sources`.
    Check {
        /// Also connect to each source, run each query for a few rows, and print their types, order, time and the
        /// first problems. Nothing is decided or written.
        #[arg(long)]
        sources: bool,
    },
    /// See what Firehose has accepted, and why.
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Send Segment calls, one JSON object a line, through the same mapping and writer.
    Send(SendArgs),
    /// Print the IAM permission policy and trust policy for these settings, ready to paste.
    Iam {
        /// One destination; all of them without it.
        destination: Option<String>,
        /// Print the external IDs instead of YOUR_SECRET_ID.
        #[arg(long)]
        show_secrets: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct SyncArgs {
    /// Keys, ids or names; all audiences without one.
    #[arg(value_name = "AUDIENCE")]
    pub audiences: Vec<String>,
    #[command(flatten)]
    pub options: RunOptions,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResyncArgs {
    /// Keys, ids or names.
    #[arg(value_name = "AUDIENCE", required = true)]
    pub audiences: Vec<String>,
    /// Only at streams of this name.
    #[arg(long, value_name = "STREAM")]
    pub stream: Option<String>,
    #[command(flatten)]
    pub users: UserOptions,
    #[command(flatten)]
    pub options: RunOptions,
}

#[derive(Debug, clap::Args)]
pub(super) struct UserOptions {
    /// Only this user, by user id or anonymous id. May be given several times.
    #[arg(long = "user", value_name = "USER")]
    pub named: Vec<String>,
    /// Only the users of this file, one id a line, at most a million; `-` is standard input.
    #[arg(long = "users-from", value_name = "FILE")]
    pub from: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RetireArgs {
    /// A key, id or name that the snapshot knows; a schedule need not name it any more.
    pub audience: String,
    /// Only at streams of this name, to which the audience does not map any more; its key goes on elsewhere.
    #[arg(long, value_name = "STREAM")]
    pub stream: Option<String>,
    /// Refuse the key no longer. The next sync tells every member true again.
    #[arg(long, conflicts_with = "stream")]
    pub undo: bool,
    /// Wait while another run holds the snapshot.
    #[arg(long)]
    pub wait: bool,
    /// Go on from a snapshot that is older than the last run: what was told since is not in it.
    #[arg(long)]
    pub accept_old_snapshot: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunOptions {
    /// Decide and print the plan; write and send nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Also deliver what the guard holds, if it is no more than was shown when it was last held, or than N changes.
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true)]
    pub approve: Option<Option<u64>>,
    /// Wait while another run holds the snapshot.
    #[arg(long)]
    pub wait: bool,
    /// Go on from a snapshot that is older than the last run: what was told since is not in it.
    #[arg(long)]
    pub accept_old_snapshot: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Make an empty snapshot: nobody has been told anything yet.
    Create(CreateArgs),
    /// Every audience and stream: members, last sync, pending, held.
    List,
    /// The members that a stream has accepted, and since when.
    Show {
        /// A key, id or name.
        audience: String,
    },
    /// Every audience and trait of one user, and why: each change, its run, stream and messageId.
    User {
        /// A user id or an anonymous id.
        user: String,
    },
    /// The history of runs, newest first.
    Runs {
        /// A key, id or name.
        audience: Option<String>,
        /// At most this many.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// What a stream will not accept, and why.
    Dead(DeadArgs),
    /// Make a lost snapshot anew from the records that were delivered.
    ///
    /// With several destinations, once for each of them: the first one makes the snapshot, the others add to it.
    Rebuild(RebuildArgs),
    /// Compare what landed with what the snapshot says was delivered.
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// Although the lock file names a run of a snapshot that is gone: everyone is told everything again, and those who
    /// have left since are never told so.
    #[arg(long)]
    pub anew: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DeadArgs {
    /// Send them again, once the reason is mended.
    #[arg(long)]
    pub retry: bool,
    /// Forget them.
    #[arg(long, conflicts_with = "retry")]
    pub drop: bool,
    /// Wait while another run holds the snapshot.
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RebuildArgs {
    #[command(flatten)]
    pub landing: LandingArgs,
    /// Wait while another run holds the snapshot.
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    pub landing: LandingArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct LandingArgs {
    /// A folder with what landed: of a directory destination, or objects of S3, gzip or not. May be given several times.
    #[arg(long, value_name = "DIR", required = true)]
    pub from: Vec<PathBuf>,
    /// The destination whose place it is. Required where there are several.
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,
    /// Only what was delivered to this stream.
    #[arg(long, value_name = "NAME")]
    pub stream: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct SendArgs {
    /// A file of JSON lines; standard input without it, or for `-`.
    pub file: Option<PathBuf>,
    /// Only to this destination; without it, to every one whose mapping fits.
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,
    /// Wait while another run holds the snapshot.
    #[arg(long)]
    pub wait: bool,
    /// Go on from a snapshot that is older than the last run: what was told since is not in it.
    #[arg(long)]
    pub accept_old_snapshot: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
