//! What a person would write instead, in Python: see `by_hand.py`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step::Measured;

const REQUIREMENTS: [&str; 3] = [
    "boto3==1.44.8",
    "duckdb==1.5.5",
    "duckdb-extension-sqlite-scanner==1.5.5",
];

/// The ways to find out what has changed.
pub(crate) const DIFFS: [(&str, &str); 3] = [
    ("except", "sqlite3, EXCEPT both ways"),
    ("sets", "two sets"),
    ("duckdb", "DuckDB, full join"),
];

/// A Python with what they need.
pub(crate) struct ByHand {
    python: PathBuf,
}

impl ByHand {
    /// In a virtual environment, made where there is none yet; or why that is impossible.
    pub(crate) fn prepare() -> Result<Self, String> {
        let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("by-hand-venv");
        let (python, made) = (environment.join("bin/python"), environment.join("made-of"));
        let requirements = REQUIREMENTS.join(" ");
        if fs::read_to_string(&made).is_ok_and(|made| made == requirements) {
            return Ok(Self { python });
        }
        succeed(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&environment),
        )?;
        let install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ];
        succeed(Command::new(&python).args(install).args(REQUIREMENTS))?;
        fs::write(made, requirements).map_err(|error| error.to_string())?;
        Ok(Self { python })
    }

    pub(crate) fn step(&self, name: &str, folder: &Path, url: &str) -> anyhow::Result<Measured> {
        let mut step = Command::new(&self.python);
        step.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/sync/by_hand.py"))
            .arg(name)
            .arg(folder)
            .arg(url);
        Measured::of(step)
    }
}

/// The last line of what a program complains about is the reason.
fn succeed(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let reason = complaint.lines().next_back().unwrap_or("it failed");
    Err(format!("{command:?}: {reason}"))
}
