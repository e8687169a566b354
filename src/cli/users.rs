//! The users that a command line names: one by one, and in a file.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::Refusal;
use super::args::UserOptions;
use crate::audience::MAX_ID_BYTES;
use crate::diff::UserIds;
use crate::lines::{self, LineError};

/// They are held in memory, unlike an audience.
const MAX_USERS: usize = 1_000_000;
const MAX_BYTES: usize = 64 << 20;

/// `None` where no option names users.
pub(super) fn read(options: &UserOptions) -> Result<Option<UserIds>, Refusal> {
    if options.named.is_empty() && options.from.is_none() {
        return Ok(None);
    }
    let mut users = Users::default();
    for id in &options.named {
        if id.trim().is_empty() {
            return Err(Refusal::usage(
                "`--user` needs an id, and this one is empty",
            ));
        }
        users.push("`--user`", id)?;
    }
    match options.from.as_deref() {
        None => {}
        Some(path) if path == Path::new("-") => {
            users.read("standard input", &mut io::stdin().lock())?;
        }
        Some(path) => {
            let name = path.display();
            let file = File::open(path).map_err(|error| unreadable(&name, &error))?;
            users.read(&name, &mut BufReader::new(file))?;
        }
    }
    Ok(Some(UserIds::new(users.ids)))
}

fn unreadable(name: &dyn Display, error: &dyn Display) -> Refusal {
    Refusal::usage(format!(
        "cannot read the users in {name}: {error}\n\nhint: `--users-from` takes a file with one id a line, or `-`"
    ))
}

#[derive(Default)]
struct Users {
    ids: Vec<Box<str>>,
    bytes: usize,
}

impl Users {
    /// Takes each line that is not blank.
    fn read(&mut self, name: impl Display, input: &mut impl BufRead) -> Result<(), Refusal> {
        let before = self.ids.len();
        for number in 1_u64.. {
            let place = || format!("line {number} of {name}");
            let Some(line) = lines::next_line(input) else {
                break;
            };
            let line = line.map_err(|error| match error {
                LineError::TooLong => too_long(place()),
                LineError::NotUtf8 => Refusal::usage(format!("{} is not UTF-8", place())),
                LineError::Io(error) => unreadable(&name, &error),
            })?;
            // As programs on Windows write lines, and the first one.
            let text = line.strip_suffix('\r').unwrap_or(&line);
            let text = text
                .strip_prefix('\u{feff}')
                .filter(|_| number == 1)
                .unwrap_or(text);
            if !text.trim().is_empty() {
                self.push(place(), text)?;
            }
        }
        match self.ids.len() > before {
            true => Ok(()),
            false => Err(Refusal::usage(format!("{name} names no users"))),
        }
    }

    fn push(&mut self, place: impl Display, id: &str) -> Result<(), Refusal> {
        if id.len() > MAX_ID_BYTES {
            return Err(too_long(place));
        }
        if id.contains('\0') {
            return Err(Refusal::usage(format!(
                "{place} holds a NUL, which no id does"
            )));
        }
        self.bytes += id.len();
        if self.ids.len() == MAX_USERS || self.bytes > MAX_BYTES {
            return Err(Refusal::usage(format!(
                "these are more than {MAX_USERS} users, or more than {MAX_BYTES} bytes of ids\n\n\
                 hint: name them in several commands, or leave `--user` and `--users-from` out to send everyone again"
            )));
        }
        self.ids.push(id.into());
        Ok(())
    }
}

fn too_long(place: impl Display) -> Refusal {
    Refusal::usage(format!(
        "{place} is longer than an id may be ({MAX_ID_BYTES} bytes)\n\nhint: write one id a line, or one after each `--user`"
    ))
}
