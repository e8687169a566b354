//! The stream that a file is of, by the name that Firehose gives it.

use crate::mapping::StreamName;

/// Reads `<stream>-<version>-YYYY-MM-DD-HH-MM-SS-<random>`, with any ending behind a dot; `None` for another name.
/// <https://docs.aws.amazon.com/firehose/latest/dev/s3-object-name.html>
pub fn stream_of(file_name: &str) -> Option<StreamName> {
    // From behind: a stream may be named like that itself.
    let dashes = file_name.rmatch_indices('-');
    let mut streams = dashes.filter_map(|(dash, _)| {
        let (stream, rest) = file_name.split_at(dash);
        is_rest(&rest[1..])
            .then(|| StreamName::parse(stream))
            .flatten()
    });
    streams.next()
}

/// Whether this is `<version>-YYYY-MM-DD-HH-MM-SS-<random>`, with or without an ending.
fn is_rest(rest: &str) -> bool {
    let mut parts = rest.splitn(8, '-');
    let mut is_number = |lengths: std::ops::RangeInclusive<usize>| {
        parts.next().is_some_and(|part| {
            lengths.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let has_version = is_number(1..=20);
    let has_time = [4, 2, 2, 2, 2, 2]
        .into_iter()
        .all(|length| is_number(length..=length));
    let random = parts.next().and_then(|part| part.split('.').next());
    let is_random = |random: &str| {
        !random.is_empty()
            && random
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    has_version && has_time && random.is_some_and(is_random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_tells_its_stream() {
        let check = |name: &str, stream: Option<&str>| {
            assert_eq!(
                stream_of(name).as_ref().map(StreamName::as_str),
                stream,
                "{name}"
            );
        };
        let rest = "1-2026-11-23-10-00-00-0195f3c2-0000-7000-8000-000000000000";
        check(&format!("members-{rest}"), Some("members"));
        check(&format!("members-{rest}.gz"), Some("members"));
        check(&format!("a-b_c.d-{rest}.json.gz"), Some("a-b_c.d"));
        check(&format!("-{rest}"), None);
        check(&format!("a b-{rest}"), None);
        check("members-12-2026-11-23-10-00-00-AbC09", Some("members"));
        // A stream that is named like a file.
        check(&format!("s-{rest}-{rest}"), Some(&format!("s-{rest}")));
        check(rest, None);
        check("members-1-2026-11-23-10-00-00-", None);
        check("members-1-2026-11-23-10-00-.gz", None);
        check("members-x-2026-11-23-10-00-00-r", None);
        check("members.jsonl", None);
        check("", None);
        check("é-1-2026-11-23-10-00-00-r", None);
    }
}
