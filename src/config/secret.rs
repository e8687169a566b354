//! Secrets by reference: the configuration says where one is, never what it is.
//!
//! The reference is kept and resolved only by a command that needs the value, so that a configuration can be loaded,
//! printed and checked in without any. Whatever stands in the file in place of a reference may be the secret itself:
//! no message repeats it, not even a key.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::{env, fs};

use super::Root;
use super::document::Item;
use super::error::{ConfigError, Location, nearest};
use crate::secret::Secret;

const FORM: &str = "write { env = \"NAME\" } or { file = \"PATH\" }";

/// Where a secret is.
#[derive(Debug, Clone)]
pub struct SecretRef {
    pub from: SecretSource,
    pub at: Location,
    /// What a message calls it, such as `` `secret_id` in [destination.main] ``.
    what: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The name of an environment variable.
    Env(String),
    File(PathBuf),
}

impl SecretRef {
    /// Reads the secret. An error names the variable or the file, and no value.
    pub fn resolve(&self) -> Result<Secret, ConfigError> {
        self.resolve_in(|name| env::var_os(name))
    }

    fn resolve_in(
        &self,
        variable: impl FnOnce(&str) -> Option<OsString>,
    ) -> Result<Secret, ConfigError> {
        let (value, place) = match &self.from {
            SecretSource::Env(name) => {
                let place = format!("the environment variable {name}");
                let value = variable(name).ok_or_else(|| {
                    self.error(format!("{place} is not set"))
                        .hint(format!("set {name} where audience-sync runs"))
                })?;
                (value.into_encoded_bytes(), place)
            }
            SecretSource::File(path) => {
                let place = format!("the file {}", path.display());
                let value = fs::read(path).map_err(|error| {
                    let problem = match error.kind() {
                        ErrorKind::NotFound => format!("{place} does not exist"),
                        _ => format!("{place} cannot be read: {error}"),
                    };
                    self.error(problem).hint(
                        "write the secret into it, readable by the user who runs audience-sync",
                    )
                })?;
                (value, place)
            }
        };
        let mut value =
            String::from_utf8(value).map_err(|_| self.error(format!("{place} is not UTF-8")))?;
        if matches!(self.from, SecretSource::File(_)) && value.ends_with('\n') {
            value.pop();
            if value.ends_with('\r') {
                value.pop();
            }
        }
        if value.is_empty() {
            let problem = self.error(format!("{place} is empty"));
            return Err(problem.hint("put the secret there, or remove the key"));
        }
        Ok(Secret::new(value))
    }

    fn error(&self, problem: String) -> ConfigError {
        ConfigError::new(format!("{} is not there: {problem}", self.what)).at(self.at.clone())
    }

    pub(super) fn read(item: &Item<'_>, root: &Root) -> Result<Self, ConfigError> {
        let Ok(table) = item.table("") else {
            let refused = item.error("must not be written inline");
            return Err(refused.hint(FORM));
        };
        let entries = table.items();
        let stranger = entries
            .iter()
            .find(|(key, _)| !["env", "file"].contains(key));
        if let Some((key, entry)) = stranger {
            let refused = ConfigError::new(format!("{} has an unknown key", item.what()));
            let hint = match nearest(key, ["env", "file"].into_iter()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => FORM.to_owned(),
            };
            return Err(refused.at(entry.location()).hint(hint));
        }
        let [(key, entry)] = entries.as_slice() else {
            return Err(item.error("must have either `env` or `file`").hint(FORM));
        };
        let Ok(text) = entry.text() else {
            return Err(item
                .error(format!("must have a string for `{key}`"))
                .hint(FORM));
        };
        let from = if *key == "env" {
            if !is_variable_name(text) {
                let refused = item.error("must have the name of an environment variable for `env`");
                return Err(refused.hint("such as { env = \"AUDIENCE_SYNC_SECRET_ID\" }"));
            }
            SecretSource::Env(text.to_owned())
        } else {
            let path = entry.path().map_err(|_| {
                item.error("must have the path of a file for `file`")
                    .hint(FORM)
            })?;
            SecretSource::File(root.join(path))
        };
        Ok(Self {
            from,
            at: item.location(),
            what: item.what().to_owned(),
        })
    }
}

/// Letters, digits and `_`, not beginning with a digit: what every shell can set.
fn is_variable_name(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && text
            .bytes()
            .next()
            .is_some_and(|byte| !byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(from: SecretSource) -> SecretRef {
        SecretRef {
            from,
            at: Location {
                file: "a.toml".into(),
                line: 4,
                column: 1,
            },
            what: "`secret_id` in [destination.main]".to_owned(),
        }
    }

    fn check(from: SecretSource, variable: Option<&[u8]>, expected: Result<&str, &str>) {
        use std::os::unix::ffi::OsStringExt;
        let variable = variable.map(|value| OsString::from_vec(value.to_owned()));
        let secret = reference(from).resolve_in(|_| variable);
        let secret = secret
            .map(|secret| secret.expose().to_owned())
            .map_err(|error| error.to_string());
        assert_eq!(secret, expected.map(str::to_owned).map_err(str::to_owned));
    }

    #[test]
    fn a_variable_is_taken_as_it_is() {
        let check =
            |value: Option<&[u8]>, expected| check(SecretSource::Env("ID".into()), value, expected);
        check(Some(b"hunter2"), Ok("hunter2"));
        check(Some(b" hunter2\n"), Ok(" hunter2\n"));
        let real = reference(SecretSource::Env("PATH".into()))
            .resolve()
            .unwrap();
        assert_eq!(Some(real.expose()), env::var("PATH").ok().as_deref());
        check(
            None,
            Err(
                "`secret_id` in [destination.main] is not there: the environment variable ID is not set\n  --> a.toml:4:1\n\nhint: set ID where audience-sync runs",
            ),
        );
        check(
            Some(b""),
            Err(
                "`secret_id` in [destination.main] is not there: the environment variable ID is empty\n  --> a.toml:4:1\n\nhint: put the secret there, or remove the key",
            ),
        );
        check(
            Some(b"hunter2\xff"),
            Err(
                "`secret_id` in [destination.main] is not there: the environment variable ID is not UTF-8\n  --> a.toml:4:1",
            ),
        );
    }

    #[test]
    fn a_file_loses_one_newline() {
        let path = env::temp_dir().join(format!("audience-sync-secret-{}", std::process::id()));
        let check = |value: &[u8], expected: Result<&str, &str>| {
            fs::write(&path, value).unwrap();
            let secret = reference(SecretSource::File(path.clone())).resolve();
            let shown = path.display().to_string();
            let secret = secret
                .map(|secret| secret.expose().to_owned())
                .map_err(|error| error.to_string().replace(&shown, "PATH"));
            assert_eq!(secret, expected.map(str::to_owned).map_err(str::to_owned));
        };
        check(b"hunter2", Ok("hunter2"));
        check(b"hunter2\n", Ok("hunter2"));
        check(b"hunter2\r\n", Ok("hunter2"));
        check(b"hunter2\n\n", Ok("hunter2\n"));
        check(b"hunter2\r", Ok("hunter2\r"));
        check(b" hunter2 \n", Ok(" hunter2 "));
        check(
            b"\n",
            Err(
                "`secret_id` in [destination.main] is not there: the file PATH is empty\n  --> a.toml:4:1\n\nhint: put the secret there, or remove the key",
            ),
        );
        check(
            b"",
            Err(
                "`secret_id` in [destination.main] is not there: the file PATH is empty\n  --> a.toml:4:1\n\nhint: put the secret there, or remove the key",
            ),
        );
        check(
            b"hunter2\xff",
            Err(
                "`secret_id` in [destination.main] is not there: the file PATH is not UTF-8\n  --> a.toml:4:1",
            ),
        );
        fs::remove_file(&path).unwrap();
        let missing = reference(SecretSource::File("/nowhere/secret".into()));
        assert_eq!(
            missing.resolve().unwrap_err().to_string(),
            "`secret_id` in [destination.main] is not there: the file /nowhere/secret does not exist\n  --> a.toml:4:1\n\nhint: write the secret into it, readable by the user who runs audience-sync"
        );
    }
}
