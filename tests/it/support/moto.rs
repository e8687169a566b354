//! Firehose, STS, IAM and S3 as moto plays them: somebody else's idea of AWS, on this machine.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tempfile::TempDir;

use super::venv::{environment, is_skipped};

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
        if is_skipped(SKIP, "moto plays AWS in this test") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut server =
            Command::new(environment("moto-venv", &[REQUIREMENT], SKIP).join("bin/python"))
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
