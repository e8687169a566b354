//! Firehose, STS, IAM and S3 as moto plays them: somebody else's idea of AWS, on this machine.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tempfile::TempDir;

const REQUIREMENT: &str = "moto[server]==5.2.5";
const SKIP: &str = "AUDIENCE_SYNC_SKIP_MOTO";

/// One server with a stream into S3. It ends when it is dropped.
pub(crate) struct Moto {
    pub url: String,
    server: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    folder: TempDir,
}

/// A request that was made to it.
pub(crate) struct Request {
    pub authorization: String,
    pub body: String,
}

impl Moto {
    /// `None` where the environment asks to skip it.
    pub(crate) fn start(role: &str, external_id: &str, stream: &str) -> Option<Self> {
        if std::env::var_os(SKIP).is_some_and(|value| value == "1") {
            skipped();
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut server = Command::new(python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/play_aws.py"))
            .args([role, external_id, stream])
            .env("MOTO_ENABLE_RECORDING", "true")
            .env("MOTO_RECORDER_FILEPATH", folder.path().join("requests"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It logs every request.
            .stderr(File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let output = BufReader::new(server.stdout.take().unwrap());
        let mut moto = Self {
            url: String::new(),
            input: server.stdin.take(),
            server,
            output,
            folder,
        };
        moto.url = moto.line();
        Some(moto)
    }

    /// What it prints next.
    fn line(&mut self) -> String {
        let mut line = String::new();
        if self.output.read_line(&mut line).unwrap() == 0 {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
            panic!("moto has ended:\n{log}");
        }
        line.trim_end().to_owned()
    }

    /// Where all objects in S3 are, as files.
    pub(crate) fn objects(&mut self) -> PathBuf {
        let folder = self.folder.path().join("objects");
        let mut input = self.input.as_ref().unwrap();
        writeln!(input, "{}", folder.display()).unwrap();
        self.line();
        folder
    }

    /// Every request so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let recorded = fs::read_to_string(self.folder.path().join("requests")).unwrap();
        let requests = recorded
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        requests
            .map(|request| {
                let body = BASE64_STANDARD.decode(text(&request["body"])).unwrap();
                Request {
                    authorization: text(&request["headers"]["Authorization"]),
                    body: String::from_utf8_lossy(&body).into_owned(),
                }
            })
            .collect()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // Its input ends, and it with it.
        self.input = None;
        drop(self.server.wait());
    }
}

#[expect(clippy::print_stderr, reason = "a test that did not run says so")]
fn skipped() {
    eprintln!("skipped, because {SKIP} is 1: moto plays AWS in this test");
}

/// The interpreter of a virtual environment with moto in it, made where there is none yet.
fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let environment = target.join("moto-venv");
    let (python, made) = (environment.join("bin/python"), environment.join("made-of"));
    // One test makes it, and the others wait.
    let lock = File::create(target.join("moto-venv.lock")).unwrap();
    lock.lock().unwrap();
    if fs::read_to_string(&made).is_ok_and(|made| made == REQUIREMENT) {
        return python;
    }
    if let Err(error) = fs::remove_dir_all(&environment) {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    let mut venv = Command::new("python3");
    succeed(venv.args(["-m", "venv"]).arg(&environment));
    let mut pip = Command::new(&python);
    let pip = pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    succeed(pip.arg(REQUIREMENT));
    fs::write(made, REQUIREMENT).unwrap();
    python
}

fn succeed(command: &mut Command) {
    let hint = format!("this test needs python3 and PyPI; {SKIP}=1 skips it");
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("cannot start {command:?}: {error}\n\nhint: {hint}"),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {stderr}\n\nhint: {hint}"
    );
}
