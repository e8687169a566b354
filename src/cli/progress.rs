//! Shows how far a run is: a bar on a terminal, elsewhere a log line now and then.

use std::fmt;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio::task::JoinHandle;

use super::output::{count, is_watched};
use crate::progress::{Progress, Step};

/// Shows progress until it is dropped.
pub(super) struct Shown {
    task: JoinHandle<()>,
    bar: ProgressBar,
}

/// How often something is logged where there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(15);

/// Begins to show progress on standard error.
pub(super) fn show(progress: Progress) -> Shown {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    let watched = is_watched();
    let drawn = bar.clone();
    let task = tokio::spawn(async move {
        let mut logged = Instant::now();
        let mut shown = Step::Idle;
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            let step = progress.step();
            if watched {
                draw(&drawn, &step, &shown);
            } else if logged.elapsed() >= LOG_EVERY {
                logged = Instant::now();
                log(&step);
            }
            shown = step;
        }
    });
    Shown { task, bar }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}

fn draw(bar: &ProgressBar, step: &Step, shown: &Step) {
    match step {
        Step::Idle => {}
        Step::Planning { audience, read } => {
            if !matches!(shown, Step::Planning { audience: before, .. } if before == audience) {
                bar.reset();
                bar.set_style(style("{spinner} {msg}: read {human_pos} members, {rate}"));
                bar.set_message(audience.clone());
            }
            bar.set_position(*read);
        }
        Step::Delivering {
            audience,
            delivered,
            of,
        } => {
            if !matches!(shown, Step::Delivering { audience: before, .. } if before == audience) {
                bar.reset();
                bar.set_style(style(
                    "{bar:30} {msg}: {human_pos} of {human_len}, {rate}, {eta} left",
                ));
                bar.set_message(audience.clone());
            }
            bar.set_length(*of);
            bar.set_position(*delivered);
        }
        Step::Landing { read } => {
            if !matches!(shown, Step::Landing { .. }) {
                bar.reset();
                bar.set_style(style("{spinner} read {human_pos} records, {rate}"));
            }
            bar.set_position(*read);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates here are valid");
    // indicatif's own rate has four decimals.
    style.with_key(
        "rate",
        |state: &ProgressState, text: &mut dyn fmt::Write| {
            // The bar would go on without it.
            write!(text, "{}/s", count(state.per_sec() as u64)).unwrap_or_default();
        },
    )
}

fn log(step: &Step) {
    match step {
        Step::Idle => {}
        Step::Planning { audience, read } => {
            tracing::info!("{audience}: read {} members", count(*read))
        }
        Step::Delivering {
            audience,
            delivered,
            of,
        } => {
            tracing::info!(
                "{audience}: delivered {} of {}",
                count(*delivered),
                count(*of)
            );
        }
        Step::Landing { read } => tracing::info!("read {} records", count(*read)),
    }
}
