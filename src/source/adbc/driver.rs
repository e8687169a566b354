//! Finds drivers where other clients of ADBC find them, and connects by them.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use adbc_core::error::{Error, Status};
use adbc_core::options::{AdbcVersion, InfoCode, OptionConnection, OptionDatabase, OptionValue};
use adbc_core::{Connection as _, Database as _, Driver as _, LOAD_FLAG_DEFAULT};
use adbc_driver_manager::{ManagedConnection, ManagedDriver};
use arrow_array::cast::AsArray as _;
use arrow_array::{Array as _, RecordBatch};

use super::Adbc;
use super::words::Words;
use crate::source::SourceError;

/// The option that other clients take for the name of the function that a driver begins with.
const ENTRYPOINT: &str = "entrypoint";

/// What options of a connection, and not of a database, begin with.
const OF_CONNECTION: &str = "adbc.connection.";

/// What files of drivers begin with.
const PREFIX: &str = "adbc_driver_";

impl Adbc {
    /// Loads the driver. Nothing is connected to.
    pub(super) fn load(&self) -> Result<ManagedDriver, SourceError> {
        let driver = &self.driver;
        let found = self.load_as(driver).or_else(|error| {
            let by_file = (!is_path(driver)).then(|| self.load_as(&format!("{PREFIX}{driver}")));
            by_file.and_then(Result::ok).ok_or(error)
        });
        found.map_err(|error| self.broken(format!("driver `{driver}`"), self.why_missing(&error)))
    }

    /// By the current version of ADBC, or else by the first.
    fn load_as(&self, name: &str) -> Result<ManagedDriver, Error> {
        let entrypoint = self.options.get(ENTRYPOINT).map(String::as_bytes);
        let load = |version| {
            let places = Some(places(name));
            ManagedDriver::load_from_name(name, entrypoint, version, LOAD_FLAG_DEFAULT, places)
        };
        load(AdbcVersion::V110).or_else(|error| match error.status {
            Status::NotImplemented => load(AdbcVersion::V100),
            _ => Err(error),
        })
    }

    fn why_missing(&self, error: &Error) -> String {
        let name = self.driver.trim_start_matches(PREFIX);
        let folder = "or let ADBC_DRIVER_PATH name the folder that it is in";
        if is_path(&self.driver) {
            let words = Words::of(self, error).text;
            return format!("{words}\n\nhint: name the driver's file or manifest, {folder}");
        }
        let problem = match error.status {
            Status::NotFound => match tried(error) {
                Some(tried) => format!("it cannot be loaded: {tried}"),
                None => "there is no such driver".to_owned(),
            },
            _ => Words::of(self, error).text,
        };
        format!(
            "{problem}\n\nhint: install it with `pip install adbc-driver-{name}` or `dbc install {name}`, {folder}"
        )
    }

    pub(super) fn connect(&self) -> Result<ManagedConnection, SourceError> {
        let mut driver = self.load()?;
        let secrets = self.secrets.iter();
        let secrets = secrets.map(|(name, secret)| (name.as_str(), secret.expose()));
        let options = self.options.iter();
        let all = options
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .filter(|(name, _)| *name != ENTRYPOINT)
            .chain(secrets);
        let (of_connection, of_database): (Vec<_>, Vec<_>) =
            all.partition(|(name, _)| name.starts_with(OF_CONNECTION));
        let of_database = of_database
            .into_iter()
            .map(|(name, text)| (OptionDatabase::from(name), OptionValue::from(text)));
        let of_connection = of_connection
            .into_iter()
            .map(|(name, text)| (OptionConnection::from(name), OptionValue::from(text)));
        driver
            .new_database_with_opts(of_database)
            .and_then(|database| database.new_connection_with_opts(of_connection))
            .map_err(|error| {
                let said = Words::of(self, &error).text;
                self.broken("no connection".to_owned(), said)
            })
    }
}

/// Whether a driver is named by its file or manifest.
fn is_path(driver: &str) -> bool {
    driver.contains(['/', '\\']) || Path::new(driver).extension().is_some()
}

/// What went wrong with a file that is there.
fn tried(error: &Error) -> Option<String> {
    let details = error.details.iter().flatten();
    let mut lines = details.flat_map(|(_, text)| {
        let text = String::from_utf8_lossy(text).into_owned();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    let is_there = |line: &String| !line.contains("No such file") && !line.starts_with("NotFound");
    let line = lines.find(is_there)?;
    let line = line.trim_start_matches("Internal: Error with dynamic library: ");
    Some(line.split(" (sqlstate").next().unwrap_or(line).to_owned())
}

/// Where `pip` puts a driver, besides where every client looks.
fn places(name: &str) -> Vec<PathBuf> {
    let package = format!("{PREFIX}{}", name.trim_start_matches(PREFIX));
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    let roots = env::var_os("VIRTUAL_ENV")
        .map(PathBuf::from)
        .into_iter()
        .chain(home)
        .chain([PathBuf::from("/usr/local"), PathBuf::from("/usr")]);
    roots.flat_map(|root| packages(&root, &package)).collect()
}

/// `lib/python3.11/site-packages/adbc_driver_postgresql` below a folder, for whichever Pythons there are.
fn packages(root: &Path, package: &str) -> Vec<PathBuf> {
    let Ok(pythons) = root.join("lib").read_dir() else {
        return Vec::new();
    };
    let is_python = |name: &OsStr| name.as_encoded_bytes().starts_with(b"python3");
    let pythons = pythons.flatten().filter(|it| is_python(&it.file_name()));
    let mut found: Vec<PathBuf> = pythons
        .flat_map(|python| {
            ["site-packages", "dist-packages"].map(|kind| python.path().join(kind).join(package))
        })
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

/// Whose database it is, where the driver says so.
pub(super) fn vendor(connection: &ManagedConnection) -> Option<String> {
    told(connection, InfoCode::VendorName)
}

/// Such as `PostgreSQL 15.12, by ADBC PostgreSQL Driver 1.13.0`.
pub(super) fn about(connection: &ManagedConnection) -> String {
    let both = |name, version| {
        let parts = [told(connection, name), told(connection, version)];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join(" "))
    };
    let vendor = both(InfoCode::VendorName, InfoCode::VendorVersion);
    let driver = both(InfoCode::DriverName, InfoCode::DriverVersion);
    format!(
        "{}, by {}",
        vendor.as_deref().unwrap_or("a database without a name"),
        driver.as_deref().unwrap_or("a driver without a name")
    )
}

/// What a driver says of itself, or of the database.
fn told(connection: &ManagedConnection, code: InfoCode) -> Option<String> {
    let codes = [code].into();
    let mut batches = connection.get_info(Some(codes)).ok()?.flatten();
    batches.find_map(|batch| text_of(&batch))
}

/// The first text of a column `info_value`, which is of one type or another in each row.
fn text_of(batch: &RecordBatch) -> Option<String> {
    let values = batch.column_by_name("info_value")?;
    let values = values.as_union_opt()?;
    let text = (0..values.len())
        .map(|row| values.value(row))
        .find_map(|value| {
            let text = value.as_string_opt::<i32>()?.clone();
            let bytes = arrow_array::BinaryArray::from(text);
            Some(bytes.value(0).to_owned())
        })?;
    String::from_utf8(text).ok()
}
