//! PostgreSQL on this machine, and the ADBC drivers that PyPI has.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::venv::{environment, is_skipped, succeed};
use super::wait::within;

const REQUIREMENTS: [&str; 2] = [
    "adbc-driver-postgresql==1.13.0",
    "adbc-driver-sqlite==1.13.0",
];
pub(crate) const SKIP: &str = "AUDIENCE_SYNC_SKIP_ADBC";
const HINT: &str = "this test needs PostgreSQL 15 or later (`apt-get install postgresql`); AUDIENCE_SYNC_SKIP_ADBC=1 skips it";

pub(crate) const PASSWORD: &str = "pass/word-of-the-warehouse";
pub(crate) const PASSWORD_IN_URI: &str = "pass%2Fword-of-the-warehouse";

/// The server ends when its input does, and with it the folder: also where a test process is killed.
const RUN: &str = r#"
"$@" > "$FOLDER/log" 2>&1 < /dev/null &
server=$!
read -r _
kill -QUIT $server
wait $server
rm -rf "$FOLDER"
"#;

/// One server. Its databases sort as people do, and not by bytes.
pub(crate) struct Postgres {
    folder: PathBuf,
    script: Child,
    input: Option<ChildStdin>,
}

/// One database of it.
pub(crate) struct Database<'p> {
    server: &'p Postgres,
    name: String,
}

/// Where drivers are: `VIRTUAL_ENV` of whoever looks for them. `None` where the environment asks to skip what needs them.
pub(crate) fn drivers() -> Option<PathBuf> {
    let is_skipped = is_skipped(SKIP, "it needs PostgreSQL, or drivers of PyPI");
    (!is_skipped).then(|| environment("adbc-venv", &REQUIREMENTS, SKIP))
}

/// The newest version that Debian has installed, or the one of `PATH`.
fn programs() -> PathBuf {
    let versions = Path::new("/usr/lib/postgresql")
        .read_dir()
        .into_iter()
        .flatten();
    let folders = versions.flatten().map(|version| version.path().join("bin"));
    let newest = folders.filter(|bin| bin.join("postgres").exists()).max();
    newest.unwrap_or_else(|| {
        let mut config = Command::new("pg_config");
        PathBuf::from(succeed(config.arg("--bindir"), HINT).trim_end())
    })
}

/// A program of PostgreSQL, as somebody else than root: it refuses to run as root.
fn program(name: &str) -> Command {
    let program = programs().join(name);
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(program);
    command
}

fn is_root() -> bool {
    succeed(Command::new("id").arg("-u"), "").trim_end() == "0"
}

impl Postgres {
    /// The server of all tests that do it no harm.
    pub(crate) fn shared() -> &'static Self {
        static SERVER: OnceLock<Postgres> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    pub(crate) fn start() -> Self {
        let folder: TempDir = tempfile::tempdir().unwrap();
        if is_root() {
            succeed(
                Command::new("chown").arg("postgres").arg(folder.path()),
                HINT,
            );
        }
        // The script removes it.
        let folder = folder.keep();
        let password = folder.join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let data = folder.join("data");
        succeed(
            program("initdb")
                .current_dir(&folder)
                .args(["--no-sync", "--username=postgres", "--auth=scram-sha-256"])
                .args(["--encoding=UTF8", "--locale=C.UTF-8"])
                .args(["--locale-provider=icu", "--icu-locale=und"])
                .arg(format!("--pwfile={}", password.display()))
                .arg(&data),
            HINT,
        );
        let server = program("postgres");
        let mut script = Command::new("sh")
            .args(["-c", RUN, "sh"])
            .arg(server.get_program())
            .args(server.get_args())
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&folder)
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .env("FOLDER", &folder)
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let postgres = Self {
            input: script.stdin.take(),
            script,
            folder,
        };
        within(
            Duration::from_secs(60),
            "PostgreSQL takes connections",
            || {
                let mut probe = program("pg_isready");
                let probe = probe.arg("--quiet").arg("-h").arg(&postgres.folder);
                probe.current_dir("/").status().unwrap().success()
            },
        );
        postgres
    }

    /// A new database.
    pub(crate) fn database(&self) -> Database<'_> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("warehouse_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let first = Database {
            server: self,
            name: "postgres".to_owned(),
        };
        first.sql(&format!("CREATE DATABASE {name}"));
        Database { server: self, name }
    }
}

impl Database<'_> {
    /// Runs statements, and returns what they print.
    pub(crate) fn sql(&self, sql: &str) -> String {
        succeed(&mut self.psql(sql), HINT)
    }

    /// Prints what statements do.
    pub(crate) fn psql(&self, sql: &str) -> Command {
        let mut psql = program("psql");
        psql.current_dir("/")
            .arg("-h")
            .arg(&self.server.folder)
            .args(["-U", "postgres", "-d", &self.name])
            .args(["-v", "ON_ERROR_STOP=1", "-q", "-t", "-A", "-X", "-c", sql])
            .env("PGPASSWORD", PASSWORD);
        psql
    }

    /// How it is reached, password and all.
    pub(crate) fn uri(&self) -> String {
        self.uri_as("postgres", PASSWORD_IN_URI)
    }

    pub(crate) fn uri_as(&self, role: &str, password: &str) -> String {
        let folder = self.server.folder.display();
        format!(
            "postgresql://{role}:{password}@/{}?host={folder}",
            self.name
        )
    }

    /// Kills the process that serves whoever runs a query that holds this text.
    pub(crate) fn kill_the_one_who_runs(&self, text: &str) {
        let pid = self.sql(&format!(
            "SELECT pid FROM pg_stat_activity WHERE query LIKE '%{text}%' AND pid <> pg_backend_pid()"
        ));
        succeed(Command::new("kill").args(["-9", pid.trim()]), HINT);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its input ends, and it with it.
        self.input = None;
        drop(self.script.wait());
    }
}
