//! Logs on standard error. Only our own: libraries below us log requests, and a request to STS holds the external ID.

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::args::{Args, Command, LogFormat};

/// Starts logging for a command: with the time for one that stays.
pub(super) fn start(args: &Args) {
    let filter = Targets::new().with_target("audience_sync", level(args.verbose));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    let started = match (args.log_format, matches!(args.command, Command::Run { .. })) {
        (LogFormat::Json, _) => registry.with(layer.json().flatten_event(true)).try_init(),
        (LogFormat::Text, true) => registry
            .with(layer.with_ansi(super::output::is_watched()))
            .try_init(),
        (LogFormat::Text, false) => registry
            .with(layer.with_ansi(super::output::is_watched()).without_time())
            .try_init(),
    };
    // Only a second start can fail, and then the first one serves.
    drop(started);
}

/// The level by `-v`, or the one word of `RUST_LOG` where that asks for more.
fn level(verbose: u8) -> LevelFilter {
    let by_flag = match verbose {
        0 => Level::INFO,
        1 => Level::DEBUG,
        _ => Level::TRACE,
    };
    let by_variable = std::env::var("RUST_LOG")
        .ok()
        .and_then(|level| level.parse::<Level>().ok());
    by_variable
        .map_or(by_flag, |level| level.max(by_flag))
        .into()
}
