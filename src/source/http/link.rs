//! `Link` headers: where the next page is. <https://www.rfc-editor.org/rfc/rfc8288#section-3>

/// A header that is no list of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its Link header is no list of links")]
pub(super) struct Malformed;

/// The first target whose relation is `next`.
pub(super) fn next(header: &str) -> Result<Option<&str>, Malformed> {
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        if rest.is_empty() {
            return Ok(None);
        }
        let behind = rest.strip_prefix('<').ok_or(Malformed)?;
        let (target, behind) = behind.split_once('>').ok_or(Malformed)?;
        let (parameters, behind) = parameters(behind);
        if parameters.iter().any(is_next) {
            return Ok(Some(target.trim()));
        }
        rest = behind;
    }
}

/// A relation may be one of several: `rel="next last"`.
fn is_next((name, value): &(&str, &str)) -> bool {
    let mut relations = value.split_ascii_whitespace();
    name.eq_ignore_ascii_case("rel") && relations.any(|it| it.eq_ignore_ascii_case("next"))
}

/// The parameters of one link, and what stands behind its comma. Commas and semicolons may stand in quotes.
fn parameters(text: &str) -> (Vec<(&str, &str)>, &str) {
    let mut parameters = Vec::new();
    let (mut begin, mut is_quoted, mut is_escaped) = (0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b';' | b',' if !is_quoted => {
                parameters.extend(parameter(&text[begin..at]));
                begin = at + 1;
                if byte == b',' {
                    return (parameters, &text[begin..]);
                }
            }
            _ => {}
        }
    }
    parameters.extend(parameter(&text[begin..]));
    (parameters, "")
}

fn parameter(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once('=')?;
    // Single quotes are none, and yet are written.
    Some((name.trim(), value.trim().trim_matches(['"', '\''])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        let check = |header: &str, expected: Option<&str>| {
            assert_eq!(next(header), Ok(expected), "{header}");
        };
        check("</2>; rel='next'; title=\"nächste\"", Some("/2"));
        check(" , </1>; rel=prev, ,</2>; rel=next", Some("/2"));
        check("<https://x/2>; rel=\"next\"", Some("https://x/2"));
        check("</a?page=2>;rel=next", Some("/a?page=2"));
        check(
            "<https://x/1>; rel=\"prev\", <https://x/3>; title=\"a, <b>; rel=next\"; REL=\"Next\"",
            Some("https://x/3"),
        );
        check("<https://x/9>; rel=\"last next\"", Some("https://x/9"));
        check(
            "<https://x/1,2>; rel=prev, <https://x/3,4>; rel=next",
            Some("https://x/3,4"),
        );
        check("<https://x/1>; title=\"\\\"; rel=next\"", None);
        check("<https://x/2>; rel=\"nextish\"", None);
        check("<https://x/2>; rel=prev", None);
        check("", None);
        for malformed in [
            "https://x/2; rel=next",
            "<https://x/2",
            "</1>; rel=prev, /2; rel=next",
        ] {
            assert_eq!(next(malformed), Err(Malformed), "{malformed}");
        }
    }
}
