//! DuckDB, whose library is its own ADBC driver. PyPI has it as a part of Python only, so it comes from npm.

use std::env::consts::{ARCH, DLL_PREFIX, DLL_SUFFIX, OS};
use std::path::{Path, PathBuf};
use std::process::Command;

use adbc_core::options::{AdbcVersion, OptionDatabase};
use adbc_core::{Connection as _, Database as _, Driver as _, Statement as _};
use adbc_driver_manager::ManagedDriver;

use super::postgres::SKIP;
use super::venv::{is_skipped, made_once, succeed};

const VERSION: &str = "1.5.6-r.1";

/// Its library.
pub(crate) struct DuckDb(PathBuf);

impl DuckDb {
    /// `None` where the environment asks to skip what needs drivers.
    pub(crate) fn library() -> Option<Self> {
        if is_skipped(SKIP, "it needs a library of npm") {
            return None;
        }
        let os = if OS == "macos" { "darwin" } else { OS };
        let processor = if ARCH == "x86_64" { "x64" } else { "arm64" };
        let package = format!("@duckdb/node-bindings-{os}-{processor}");
        let of = format!("{package}@{VERSION}");
        let folder = made_once("duckdb", &of, |folder| {
            let mut npm = Command::new("npm");
            let npm = npm.args(["install", "--silent", "--prefix"]);
            let hint = format!("this test needs npm; {SKIP}=1 skips it");
            succeed(npm.arg(folder).arg(&of), &hint);
        });
        let file = format!("{DLL_PREFIX}duckdb{DLL_SUFFIX}");
        Some(Self(folder.join("node_modules").join(package).join(file)))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Runs a statement on a database in a file.
    pub(crate) fn sql(&self, file: &Path, sql: &str) {
        let entrypoint = Some(b"duckdb_adbc_init".as_slice());
        let mut driver =
            ManagedDriver::load_dynamic_from_filename(&self.0, entrypoint, AdbcVersion::V100)
                .unwrap();
        let path = (
            OptionDatabase::Other("path".to_owned()),
            file.to_str().unwrap().into(),
        );
        let database = driver.new_database_with_opts([path]).unwrap();
        let mut connection = database.new_connection().unwrap();
        let mut statement = connection.new_statement().unwrap();
        statement.set_sql_query(sql).unwrap();
        statement.execute_update().unwrap();
    }
}
