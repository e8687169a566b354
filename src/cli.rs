//! The command line: one file a command, and what they share.
//!
//! Standard output is data, and only written here; progress, logs and hints go to standard error. Errors end up as
//! `error: what`, a blank line and `hint: the way out`.

mod args;
mod bill;
mod check;
mod demo;
mod held;
mod iam;
mod init;
mod log;
mod output;
mod progress;
mod project;
mod retire;
mod run;
mod send;
mod signals;
mod snapshot;
mod streams;
mod sync;
mod users;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use crate::config::ConfigError;
use args::{Args, Command};
use output::Output;

/// How a command ended. The worst of several wins, in the order of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All delivered, or nothing to do.
    Success,
    /// A run failed.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// Something is not delivered: it is in the journal, or dead. For `send`, lines were refused.
    Undelivered,
    /// Removals are held by the guard.
    Held,
    /// Another run holds the snapshot.
    Busy,
}

impl Exit {
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Undelivered => 3,
            Self::Held => 4,
            Self::Busy => 5,
        }
    }

    /// The worse of two: 2, 1, 3, 4, 5, 0.
    #[must_use]
    pub fn or_worse(self, other: Self) -> Self {
        let worst_first = [
            Self::Usage,
            Self::Failed,
            Self::Undelivered,
            Self::Held,
            Self::Busy,
            Self::Success,
        ];
        let rank = |exit| worst_first.iter().position(|known| *known == exit);
        if rank(other) < rank(self) {
            other
        } else {
            self
        }
    }
}

/// Something that ends a command with a code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Refusal {
    exit: Exit,
    message: String,
}

impl Refusal {
    fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            message: message.into(),
        }
    }
}

/// Runs a command line, and tells how it ended.
pub fn run(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(command_line) {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() {
                Exit::Usage.code()
            } else {
                Exit::Success.code()
            };
            // Nothing can be said if that cannot be.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    log::start(&args);
    let output = Output::new(args.json, args.log_format);
    let exit = match execute(&args, &output) {
        Ok(exit) => exit,
        Err(error) if is_broken_pipe(&error) => Exit::Success,
        Err(error) => {
            output.error(&error);
            exit_of(&error)
        }
    };
    ExitCode::from(exit.code())
}

fn execute(args: &Args, output: &Output) -> anyhow::Result<Exit> {
    match &args.command {
        Command::Demo { dir } => demo::run(output, dir),
        Command::Init { dir } => init::run(output, dir),
        Command::Sync(sync) => sync::sync(args, output, sync),
        Command::Resync(resync) => sync::resync(args, output, resync),
        Command::Retire(retire) => retire::run(args, output, retire),
        Command::Run {
            accept_old_snapshot,
        } => run::run(args, output, *accept_old_snapshot),
        Command::Check { sources } => check::run(args, output, *sources),
        Command::Snapshot { command } => snapshot::run(args, output, command),
        Command::Send(send) => send::run(args, output, send),
        Command::Iam {
            destination,
            show_secrets,
        } => iam::run(args, output, destination.as_deref(), *show_secrets),
    }
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return refusal.exit;
    }
    if error.downcast_ref::<ConfigError>().is_some() {
        return Exit::Usage;
    }
    Exit::Failed
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The runtime for commands that deliver.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_several_codes_wins() {
        let all = [
            Exit::Success,
            Exit::Busy,
            Exit::Held,
            Exit::Undelivered,
            Exit::Failed,
            Exit::Usage,
        ];
        for (rank, worse) in all.iter().enumerate() {
            for better in &all[..=rank] {
                assert_eq!(worse.or_worse(*better), *worse);
                assert_eq!(better.or_worse(*worse), *worse);
            }
        }
        assert_eq!(all.map(Exit::code), [0, 5, 4, 3, 1, 2]);
    }
}
