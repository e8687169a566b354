//! `snapshot create`: an empty snapshot, of which nobody was told anything yet.

use crate::cli::args::CreateArgs;
use crate::cli::output::Output;
use crate::cli::{Exit, Refusal, project};
use crate::config::Config;
use crate::snapshot::in_the_way;

pub(super) fn run(config: &Config, output: &Output, args: &CreateArgs) -> anyhow::Result<Exit> {
    let lock = project::lock(config, "snapshot create", false)?;
    if let Some(file) = in_the_way(&config.snapshot) {
        return Err(Refusal::usage(format!(
            "there is something at {} already\n\nhint: nothing was changed; `audience-sync snapshot list` shows a snapshot",
            file.display()
        ))
        .into());
    }
    drop(project::create_snapshot(config, &lock, args.anew)?);
    let path = &config.snapshot;
    if output.json {
        output.line(&serde_json::json!({ "created": path }))?;
    } else {
        output.text(format_args!("created {}", path.display()))?;
    }
    Ok(Exit::Success)
}
