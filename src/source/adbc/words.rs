//! What a driver says when something is wrong, in one line and without anything secret.
//!
//! Drivers repeat the address that they were given, or a part of it, and databases repeat values of rows.

use adbc_core::error::Error;
use arrow_schema::ArrowError;

use super::Adbc;
use crate::secret::Secret;

/// What went wrong, in the words of the driver.
pub(super) struct Words {
    pub(super) text: String,
    /// Five letters and digits, of which the first two are a class; empty where the driver gives none.
    pub(super) state: String,
}

/// The class of errors that a row is to blame for.
const OF_DATA: &str = "22";

impl Words {
    pub(super) fn of(adbc: &Adbc, error: &Error) -> Self {
        let state = error.sqlstate.map(|byte| u8::try_from(byte).unwrap_or(0));
        let state = String::from_utf8_lossy(&state);
        let state = match state.trim_matches(['\0', '0']) {
            "" => "",
            _ => &state,
        };
        let text = heard(adbc, &error.message);
        Self {
            text: match state.starts_with(OF_DATA) {
                true => without_quotes(&text),
                false => text,
            },
            state: state.to_owned(),
        }
    }

    /// While rows come.
    pub(super) fn of_rows(adbc: &Adbc, error: &ArrowError) -> Self {
        let message = error.to_string();
        let said = message.split_once("Producer error: ");
        let text = heard(adbc, said.map_or(&message, |(_, said)| said));
        Self {
            text: without_quotes(&text),
            state: String::new(),
        }
    }
}

/// A message without secrets, cut to what it says; all of it for those who ask for more.
fn heard(adbc: &Adbc, message: &str) -> String {
    let hidden = adbc.redact(message);
    tracing::debug!("source `{}`: the driver says: {hidden}", adbc.name);
    essence(&hidden)
}

/// What stands before the query, which drivers repeat, in one line.
fn essence(message: &str) -> String {
    let ends = ["\nLINE ", "\nQuery was", "\nquery: ", " SQLSTATE: "];
    let end = ends.iter().filter_map(|end| message.find(end)).min();
    let message = &message[..end.unwrap_or(message.len())];
    let begin = [
        "ERROR:",
        "FATAL:",
        "[libpq] ",
        "[SQLite] ",
        "Failed to connect: ",
    ];
    let begins = begin
        .iter()
        .filter_map(|begin| Some(message.find(begin)? + begin.len()));
    let message = &message[begins.max().unwrap_or(0)..];
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ")
}

/// With dots in place of what stands in quotes: a value of a row, which may be a user.
fn without_quotes(text: &str) -> String {
    let without = |text: String, quote: char| {
        let parts = text.split(quote).enumerate();
        let shown = parts.map(|(place, part)| if place % 2 == 0 { part } else { "..." });
        shown.collect::<Vec<_>>().join(&quote.to_string())
    };
    ['"', '\''].into_iter().fold(text.to_owned(), without)
}

/// Everything in an address that must not be seen: all of it, and the passwords in it, as they are written and as they
/// are meant, and their parts, since a driver that misreads an address repeats a part.
pub(super) fn hidden_in(address: &Secret) -> Vec<Secret> {
    let text = address.expose();
    let mut hidden = vec![text.to_owned()];
    for password in passwords(text) {
        hidden.push(decoded(password));
        hidden.extend(password.split(PUNCTUATION).map(str::to_owned));
        hidden.push(password.to_owned());
    }
    // The longest first: a part of another one must not hide it from being found.
    hidden.sort_by_key(|text| std::cmp::Reverse(text.len()));
    hidden.retain(|text| text.len() >= SHORTEST_HIDDEN);
    hidden.into_iter().map(Secret::new).collect()
}

/// Letters that are anywhere.
const SHORTEST_HIDDEN: usize = 3;

const PUNCTUATION: [char; 8] = ['/', '?', '#', '@', ':', '&', '=', ' '];

/// Whether somebody has written a password into an address.
pub(crate) fn has_password(address: &str) -> bool {
    passwords(address).next().is_some()
}

/// Whether what is called so is one.
pub(crate) fn is_password(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words = ["password", "passwd", "pwd", "passphrase", "secret", "token"];
    words.iter().any(|word| name.contains(word))
}

/// Between the first colon and the last `@`, and behind names such as `password=`.
fn passwords(address: &str) -> impl Iterator<Item = &str> {
    let behind = address
        .split_once("://")
        .map_or(address, |(_, behind)| behind);
    let of_user = behind
        .rsplit_once('@')
        .and_then(|(user, _)| user.split_once(':'))
        .map(|(_, password)| password);
    let named = address
        .split(['?', '&', ';', ' ', '\t', '\n'])
        .filter_map(|part| part.split_once('='))
        .filter(|(name, _)| is_password(name))
        .map(|(_, value)| value.trim_matches(['\'', '"']));
    of_user
        .into_iter()
        .chain(named)
        .filter(|text| !text.is_empty())
}

/// Without `%41`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_found_wherever_it_stands() {
        let check = |address: &str, expected: &[&str]| {
            let found: Vec<&str> = passwords(address).collect();
            assert_eq!(found, expected, "{address}");
        };
        check("postgresql://reader:hunter2@db/shop", &["hunter2"]);
        check("postgresql://reader:hunt/er@2@db/shop", &["hunt/er@2"]);
        check("reader:hunter2@account/db", &["hunter2"]);
        check("postgresql://db/shop?user=x&password=hunter2", &["hunter2"]);
        check("host=db password='hunter2' dbname=shop", &["hunter2"]);
        check("postgresql://reader@db:5432/shop", &[]);
        check("host=db user=reader", &[]);
        check("file:shop.db?mode=ro", &[]);
    }

    #[test]
    fn what_a_driver_repeats_of_an_address_is_hidden() {
        let hidden = hidden_in(&Secret::new("postgresql://reader:hunt/er%402@db/shop"));
        let said = "no port \"hunt\", nor er%402, nor hunt/er@2, at db";
        let redact = |text: String, secret: &Secret| secret.redact(&text);
        let shown = hidden.iter().fold(said.to_owned(), redact);
        assert_eq!(shown, "no port \"***\", nor ***, nor ***, at db");
    }

    #[test]
    fn words_are_cut_to_what_they_say() {
        let check = |message, expected| assert_eq!(essence(message), expected);
        check(
            "[libpq] Failed to prepare query: ERROR:  column \"nope\" does not exist\nLINE 1: SELECT nope\n               ^\n\n\
             Query was: SELECT nope. SQLSTATE: 42703",
            "column \"nope\" does not exist",
        );
        check(
            "[SQLite] Failed to prepare query: no such column: nope\nquery: SELECT nope",
            "Failed to prepare query: no such column: nope",
        );
        check(
            "[libpq] Failed:\n\tis it running?\n",
            "Failed: is it running?",
        );
        assert_eq!(
            without_quotes("invalid input for type integer: \"ada\""),
            "invalid input for type integer: \"...\""
        );
        assert_eq!(without_quotes("no 'ada' here"), "no '...' here");
    }
}
