//! `iam`
use super::Exit;
use super::args::Args;
use super::output::Output;
pub(super) fn run(_: &Args, _: &Output, _: Option<&str>, _: bool) -> anyhow::Result<Exit> {
    Ok(Exit::Success)
}
