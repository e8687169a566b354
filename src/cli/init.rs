//! `init`: a project to start from.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

use super::output::Output;
use super::{Exit, Refusal};

/// What is written, by its place in the project.
const FILES: [(&str, &str); 2] = [
    (
        "audience-sync.toml",
        include_str!("init/audience-sync.toml"),
    ),
    ("schedules/orders.toml", include_str!("init/orders.toml")),
];

pub(super) fn run(output: &Output, dir: &Path) -> anyhow::Result<Exit> {
    if let Some((name, _)) = FILES.iter().find(|(name, _)| dir.join(name).exists()) {
        return Err(Refusal::usage(format!(
            "there is a project already: {}\n\nhint: nothing was changed; `audience-sync check` shows what it does",
            dir.join(name).display()
        ))
        .into());
    }
    write(dir, &FILES)?;
    for (name, _) in FILES {
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

/// Writes new files below a directory, and refuses to replace one.
pub(super) fn write(dir: &Path, files: &[(&str, &str)]) -> anyhow::Result<()> {
    for (name, text) in files {
        let path = dir.join(name);
        let written = fs::create_dir_all(path.parent().unwrap_or(dir))
            .and_then(|()| File::create_new(&path))
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
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
