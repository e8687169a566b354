//! `init`: a project to start from.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::output::Output;
use super::{Exit, Refusal, project};
use crate::snapshot::{RunLock, Snapshot, in_the_way};

const CONFIG: &str = "audience-sync.toml";
const SNAPSHOT: &str = "snapshot.sqlite";
/// What is written, by its place in the project.
const FILES: [(&str, &str); 2] = [
    (CONFIG, include_str!("init/audience-sync.toml")),
    ("schedules/orders.toml", include_str!("init/orders.toml")),
];

pub(super) fn run(output: &Output, dir: &Path) -> anyhow::Result<Exit> {
    let is_there = dir.join(CONFIG).exists();
    let taken = FILES
        .iter()
        .find(|(name, text)| is_there || is_taken(&dir.join(name), text));
    if let Some((name, _)) = taken {
        return Err(Refusal::usage(format!(
            "there is a project already: {}\n\nhint: nothing was changed; `audience-sync check` shows what it does",
            dir.join(name).display()
        ))
        .into());
    }
    // Without the configuration there is no project, so it comes last: what an attempt that is cut short leaves is in
    // the way of no other.
    let (config, others) = FILES.split_at(1);
    write(dir, others)?;
    let is_new = make_snapshot(&dir.join(SNAPSHOT))?;
    write(dir, config)?;
    let names = FILES.iter().map(|(name, _)| *name);
    for name in names.chain(is_new.then_some(SNAPSHOT)) {
        let path = dir.join(name);
        if output.json {
            output.line(&serde_json::json!({ "created": path }))?;
        } else {
            output.text(format_args!("created {}", path.display()))?;
        }
    }
    output.note("\nnext: name your database and your query in them, then type `audience-sync check` and `audience-sync sync --dry-run`");
    Ok(Exit::Success)
}

/// Makes an empty snapshot, unless there is one or was one: nobody has been told anything yet. Returns whether it did.
fn make_snapshot(path: &Path) -> anyhow::Result<bool> {
    let unusable = || project::unusable(path);
    let lock = RunLock::take(path, "init").with_context(unusable)?;
    let is_new = lock.last_run().is_none() && in_the_way(path).is_none();
    if is_new {
        drop(Snapshot::create(path).with_context(unusable)?);
    }
    Ok(is_new)
}

/// Whether something else is in a file's place. What an attempt that was cut short has written is not.
pub(super) fn is_taken(path: &Path, text: &str) -> bool {
    path.exists() && fs::read(path).ok().as_deref() != Some(text.as_bytes())
}

/// Writes new files below a directory, and refuses to replace one. The last is the first of them, the configuration:
/// without it there is no project, and nothing that a crash leaves is in the way of the next attempt.
pub(super) fn write(dir: &Path, files: &[(&str, &str)]) -> anyhow::Result<()> {
    for (name, text) in files.iter().rev() {
        let path = dir.join(name);
        let written = fs::create_dir_all(path.parent().unwrap_or(dir)).and_then(|()| {
            if path.exists() && !is_taken(&path, text) {
                return Ok(());
            }
            write_whole(&path, text)
        });
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Writes a new file beside its place, from where it appears whole or not at all.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let unfinished = unfinished(path);
    let mut file = File::create(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    if path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(unfinished, path)
}

pub(super) const UNFINISHED: &str = ".unfinished";

/// Where a file is until it is whole.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(UNFINISHED);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_written_is_a_configuration() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &FILES).unwrap();
        let config = Config::load(&folder.path().join("audience-sync.toml")).unwrap();
        assert_eq!(config.audiences().count(), 1);
    }

    /// The settings in comments are there to be used.
    #[test]
    fn what_is_in_comments_is_a_configuration_too() {
        let folder = tempfile::tempdir().unwrap();
        let uncommented = FILES.map(|(name, text)| {
            let lines = text.lines().map(|line| match line.strip_prefix("# ") {
                Some(setting) if setting.contains(" = ") || setting.starts_with('[') => setting,
                _ => line,
            });
            let text: Vec<_> = lines
                .filter(|line| *line != "directory = \"delivered\"")
                .collect();
            (
                name,
                text.join("\n").replace("\"...\"", "\"order_completed\""),
            )
        });
        let files = uncommented
            .each_ref()
            .map(|(name, text)| (*name, text.as_str()));
        write(folder.path(), &files).unwrap();
        let config = Config::load(&folder.path().join("audience-sync.toml")).unwrap();
        assert_eq!(config.audiences().count(), 2);
    }
}
