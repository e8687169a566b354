//! `snapshot create`: an empty snapshot, of which nobody was told anything yet.

use anyhow::Context as _;

use crate::cli::args::CreateArgs;
use crate::cli::output::Output;
use crate::cli::{Exit, Refusal, project};
use crate::config::Config;
use crate::snapshot::{Snapshot, in_the_way};

pub(super) fn run(config: &Config, output: &Output, args: &CreateArgs) -> anyhow::Result<Exit> {
    let lock = project::lock(config, "snapshot create", false)?;
    if let Some(file) = in_the_way(&config.snapshot) {
        return Err(Refusal::usage(format!(
            "there is something at {} already\n\nhint: nothing was changed; `audience-sync snapshot list` shows a snapshot",
            file.display()
        ))
        .into());
    }
    if let Some(run) = lock.last_run().filter(|_| !args.anew) {
        return Err(Refusal::usage(format!(
            "the snapshot at {} is gone, and run {run} of it has told people something\n\n\
             hint: {}`audience-sync snapshot create --anew` begins with nothing, and users who have left since are never \
             told so",
            config.snapshot.display(),
            project::make_anew(config)
        ))
        .into());
    }
    let mut snapshot =
        Snapshot::create(&config.snapshot).with_context(|| project::unusable(&config.snapshot))?;
    if let Some(run) = lock.last_run() {
        snapshot.go_on_from(run)?;
    }
    let path = &config.snapshot;
    if output.json {
        output.line(&serde_json::json!({ "created": path }))?;
    } else {
        output.text(format_args!("created {}", path.display()))?;
    }
    Ok(Exit::Success)
}
