//! How an answer is written.

use crate::source::rows::{Format, Text};

/// The formats of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerFormat {
    /// One document.
    Json,
    /// A row after another.
    Rows(Text),
}

impl AnswerFormat {
    pub const NAMES: [&'static str; 5] = [JSON, "jsonl", "ndjson", "csv", "tsv"];

    pub fn parse(name: &str) -> Option<Self> {
        match Format::parse(name) {
            Some(Format::Text(text)) => Some(Self::Rows(text)),
            Some(Format::Parquet) => None,
            None => name.eq_ignore_ascii_case(JSON).then_some(Self::Json),
        }
    }

    pub const fn is_csv(self) -> bool {
        matches!(self, Self::Rows(text) if Format::Text(text).is_csv())
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Rows(text) => Format::Text(text).name(),
        }
    }

    /// What servers call it. `None` where the content type says nothing of members.
    pub(super) fn of_content_type(content_type: &str) -> Option<Self> {
        match &*essence(content_type) {
            "application/json" | "text/json" => Some(Self::Json),
            "application/jsonl"
            | "application/json-lines"
            | "application/jsonlines"
            | "application/ndjson"
            | "application/x-jsonl"
            | "application/x-jsonlines"
            | "application/x-ndjson"
            | "application/x-json-stream" => Some(Self::Rows(Text::JsonLines)),
            "text/csv" | "application/csv" => Some(Self::Rows(Text::Csv)),
            "text/tab-separated-values" => Some(Self::Rows(Text::Tsv)),
            other if other.ends_with("+json") => Some(Self::Json),
            _ => None,
        }
    }

    /// What a server is asked for, where it can give several.
    pub(super) const fn accept(format: Option<Self>) -> &'static str {
        match format {
            None => "application/json, application/x-ndjson, text/csv;q=0.9, */*;q=0.1",
            Some(Self::Json) => "application/json, */*;q=0.1",
            Some(Self::Rows(Text::JsonLines)) => "application/x-ndjson, */*;q=0.1",
            Some(Self::Rows(_)) => "text/csv, */*;q=0.1",
        }
    }
}

const JSON: &str = "json";

/// Whether people are meant to read it: an error, or a form to log in.
pub(super) fn is_html(content_type: &str) -> bool {
    matches!(
        &*essence(content_type),
        "text/html" | "application/xhtml+xml"
    )
}

/// The encoding of its text, where that is not UTF-8.
pub(super) fn other_charset(content_type: &str) -> Option<&str> {
    let parameters = content_type.split(';').skip(1);
    let mut named = parameters.filter_map(|parameter| parameter.split_once('='));
    let (_, charset) = named.find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))?;
    let charset = charset.trim().trim_matches('"');
    let known = ["utf-8", "utf8", "us-ascii", "ascii"];
    let is_known = known
        .iter()
        .any(|known| known.eq_ignore_ascii_case(charset));
    (!is_known).then_some(charset)
}

/// Without its parameters.
fn essence(content_type: &str) -> String {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_known_by_its_names() {
        for name in AnswerFormat::NAMES {
            assert!(AnswerFormat::parse(name).is_some(), "{name}");
        }
        assert_eq!(AnswerFormat::parse("JSON"), Some(AnswerFormat::Json));
        assert_eq!(AnswerFormat::parse("parquet"), None);
        assert_eq!(
            AnswerFormat::parse("ndjson").map(AnswerFormat::name),
            Some("jsonl")
        );
    }

    #[test]
    fn a_content_type_tells_the_format() {
        let check = |content_type: &str, expected: Option<&str>| {
            let expected = expected.and_then(AnswerFormat::parse);
            assert_eq!(
                AnswerFormat::of_content_type(content_type),
                expected,
                "{content_type}"
            );
        };
        check("application/json", Some("json"));
        check("Application/JSON; charset=utf-8", Some("json"));
        check("application/vnd.api+json", Some("json"));
        check("application/x-ndjson", Some("ndjson"));
        check("text/csv;header=present", Some("csv"));
        check("text/tab-separated-values", Some("tsv"));
        check("text/plain", None);
        check("application/octet-stream", None);
        check("", None);
        assert_eq!(
            other_charset("text/csv; header=present; charset=\"UTF-8\""),
            None
        );
        assert_eq!(other_charset("text/csv; Charset=latin-1"), Some("latin-1"));
        assert!(is_html("text/html; charset=utf-8"));
        assert!(!is_html("text/csv"));
    }
}
