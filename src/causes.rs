//! Errors as people read them: what went wrong, and why.

use std::borrow::Cow;
use std::error::Error;

/// An error and its causes, in one line; below it the hint of the first of them that has one.
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut hint) = without_hint(error);
    let mut previous = text.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let (reason, way_out) = without_hint(error);
        hint = hint.or(way_out);
        // Some repeat their cause, and some causes say the same again with a number before it.
        if !text.ends_with(&reason) && !reason.ends_with(&previous) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        previous = reason;
        cause = error.source();
    }
    match hint {
        Some(hint) => text + HINT + &hint,
        None => text,
    }
}

const HINT: &str = "\n\nhint: ";

fn without_hint(error: &(dyn Error + 'static)) -> (String, Option<String>) {
    let text = error.to_string();
    match text.split_once(HINT) {
        Some((what, hint)) => (what.to_owned(), Some(hint.to_owned())),
        None => (text, None),
    }
}

/// Text of other people's that is safe on a terminal: no control character reaches it, and no line is broken.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    Cow::Owned(text.chars().map(escaped).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_printed() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text), expected);
        check("grüße \u{1f600}", "grüße \u{1f600}");
        check("a\nb\u{1b}[31m", "a\\nb\\u{1b}[31m");
        check("", "");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Reason(&'static str, #[source] Option<Box<Reason>>);

    #[test]
    fn nothing_is_said_twice() {
        let error = |reasons: &[&'static str]| {
            let nested = reasons
                .iter()
                .rev()
                .fold(None, |cause, reason| Some(Box::new(Reason(reason, cause))));
            in_one_line(&*nested.unwrap())
        };
        assert_eq!(error(&["cannot read"]), "cannot read");
        assert_eq!(
            error(&["cannot read", "it is locked"]),
            "cannot read: it is locked"
        );
        assert_eq!(
            error(&["cannot read: it is locked", "it is locked"]),
            "cannot read: it is locked"
        );
        assert_eq!(
            error(&["it is locked", "Error code 5: it is locked"]),
            "it is locked"
        );
        assert_eq!(
            error(&[
                "cannot read",
                "it is locked\n\nhint: wait",
                "by another\n\nhint: no"
            ]),
            "cannot read: it is locked: by another\n\nhint: wait"
        );
    }
}
