//! A project in a temporary directory, and what arrived from it.

pub(crate) mod duckdb;
pub(crate) mod endpoint;
pub(crate) mod moto;
pub(crate) mod postgres;
pub(crate) mod venv;
mod wait;
pub(crate) mod web;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub(crate) use wait::within;

/// The real orders that the demo uses too.
pub(crate) const ORDERS: &str = include_str!("../../src/cli/demo/cdnow-orders.csv");

/// A project with one source `shop`, and unless it is told otherwise a directory for a destination.
pub(crate) struct Project {
    folder: TempDir,
    /// Set in the environment of every command, which is otherwise empty.
    pub variables: BTreeMap<String, String>,
    /// Whether the first command that needs a snapshot has yet to make an empty one.
    needs_snapshot: Cell<bool>,
}

/// Commands that do not make a snapshot and need one.
const NEED_A_SNAPSHOT: [&str; 4] = ["sync", "resync", "run", "send"];

/// How a command ended and what it printed.
#[derive(Debug)]
pub(crate) struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub(crate) const CONFIG: &str = r#"
[source.shop]
sqlite = "shop.sqlite"

[destination.main]
directory = "delivered"

[destination.main.mapping]
identify = "members"
"#;

impl Project {
    /// Nothing but the directory.
    pub(crate) fn empty() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            variables: BTreeMap::new(),
            needs_snapshot: Cell::new(true),
        }
    }

    /// As it is after `init`, but nobody has made a snapshot.
    pub(crate) fn without_snapshot(self) -> Self {
        self.needs_snapshot.set(false);
        self
    }

    /// With [`CONFIG`] and one schedule.
    pub(crate) fn new(schedule: &str) -> Self {
        let project = Self::empty();
        project.write("audience-sync.toml", CONFIG);
        project.write("schedules/main.toml", schedule);
        project
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Runs statements on the source.
    pub(crate) fn shop(&self, sql: &str) {
        self.shop_connection().execute_batch(sql).unwrap();
    }

    pub(crate) fn shop_connection(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path("shop.sqlite")).unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let writes = arguments.iter().any(|name| NEED_A_SNAPSHOT.contains(name))
            && !arguments.contains(&"--dry-run");
        if writes && self.needs_snapshot.replace(false) {
            // It fails where the configuration does, which the command itself reports.
            drop(ended(
                self.plain_command(&["snapshot", "create"]).spawn().unwrap(),
            ));
        }
        self.plain_command(arguments)
    }

    fn plain_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_audience-sync"));
        self.like(command.args(arguments));
        command
    }

    /// Makes a program run where and as the commands do.
    pub(crate) fn like<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .current_dir(self.folder.path())
            .env_clear()
            .envs(&self.variables)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        ended(self.command(arguments).spawn().unwrap())
    }

    /// Runs a command with this on its standard input.
    pub(crate) fn pipe(&self, arguments: &[&str], input: impl Into<Vec<u8>>) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.into());
        // A command that refuses its configuration does not read to the end.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let ran = ended(child);
        writer.join().unwrap();
        ran
    }

    /// Starts a command that stays.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let output = tempfile::tempdir().unwrap();
        let file = |name: &str| File::create(output.path().join(name)).unwrap();
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped());
        command.stdout(file("stdout")).stderr(file("stderr"));
        Running {
            child: command.spawn().unwrap(),
            output,
        }
    }

    /// Runs a command that must end with 0.
    #[track_caller]
    pub(crate) fn succeed(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        ran
    }

    /// Runs `sync --json` and returns its only line.
    #[track_caller]
    pub(crate) fn sync(&self) -> Value {
        let lines = self.succeed(&["sync", "--json"]).lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    }

    /// Every file of the project with its bytes: the same before and after a command that writes nothing.
    pub(crate) fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = files(self.folder.path());
        files
            .into_iter()
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }

    /// Every record in the directory destination, in the order of its timestamps.
    pub(crate) fn delivered(&self) -> Vec<Value> {
        records(&self.path("delivered"))
    }
}

/// A command that goes on, until it is told to end or the test does.
pub(crate) struct Running {
    pub child: Child,
    output: TempDir,
}

impl Running {
    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(self.output.path().join("stdout")).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.output.path().join("stderr")).unwrap()
    }

    /// Sends a signal: `TERM`, `INT`.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ran {
        let mut code = None;
        eventually("the command ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        Ran {
            code: code.and_then(|code| code.code()).unwrap_or(-1),
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either fails when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits until something is so, or fails.
#[track_caller]
pub(crate) fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    within(Duration::from_secs(20), what, is_so);
}

/// Every line of the files below a folder as it was written, in the order of its bytes.
pub(crate) fn raw_lines(folder: &Path) -> Vec<String> {
    let mut lines: Vec<String> = files(folder)
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    lines.sort();
    lines
}

/// Waits for a command to end.
pub(crate) fn ended(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// Standard output as JSON lines.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// A line has these fields and no others: programs rely on them.
#[track_caller]
pub(crate) fn assert_fields(line: &Value, expected: &[&str]) {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    let mut found: Vec<_> = line.as_object().unwrap().keys().collect();
    found.sort_unstable();
    assert_eq!(found, expected);
}

/// Every record in the files below a folder, in the order of timestamps.
pub(crate) fn records(folder: &Path) -> Vec<Value> {
    // What is still being written lies there.
    let incoming = folder.join(".incoming");
    let mut records: Vec<Value> = files(folder)
        .iter()
        .filter(|file| !file.starts_with(&incoming))
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            assert!(
                text.ends_with('\n'),
                "{} ends inside a line",
                file.display()
            );
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect::<Vec<Value>>()
        })
        .collect();
    records.sort_by_key(|record| record["timestamp"].as_str().unwrap().to_owned());
    records
}

/// Every file below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// What a consumer knows: the latest value by user and key.
pub(crate) fn truth(records: &[Value]) -> BTreeMap<(String, String), Value> {
    let mut truth = BTreeMap::new();
    for record in records {
        let user = record["userId"]
            .as_str()
            .or(record["anonymousId"].as_str())
            .unwrap();
        for (key, value) in record["traits"].as_object().unwrap() {
            truth.insert((user.to_owned(), key.clone()), value.clone());
        }
    }
    truth
}
