//! The addresses of pages: what stands for what in them, which server they name, and how people see them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;

use crate::audience::Audience;

/// What stands for itself in a path and in a query. <https://www.rfc-editor.org/rfc/rfc3986#section-2.3>
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// An address in which `{key}` and `{id}` stand for those of an audience.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

/// Why a text can be no address of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    #[error("must be an http or https address with a host, and without a user or password")]
    NoAddress,
    #[error("must be https: plain http is for localhost, 127.0.0.1 and [::1]")]
    Readable,
    #[error("has braces around something else than `key` or `id`")]
    Placeholder,
    #[error("leads to another server than its source, which has the headers")]
    OtherServer,
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, BadAddress> {
        let template = Self(text.to_owned());
        address(&template.filled("key", "id")?)?;
        Ok(template)
    }

    /// The address of one audience. What it says itself begins where the source's address ends, as links of a page do.
    pub(super) fn of(&self, audience: &Audience) -> Result<Url, BadAddress> {
        self.with(
            audience.url.as_deref(),
            audience.key.as_str(),
            audience.id.as_str(),
        )
    }

    /// Whether it can be used with what an audience says.
    pub fn check(&self, own: &str) -> Result<(), BadAddress> {
        self.with(Some(own), "key", "id").map(|_| ())
    }

    fn with(&self, own: Option<&str>, key: &str, id: &str) -> Result<Url, BadAddress> {
        let source = address(&self.filled(key, id)?)?;
        let Some(own) = own else { return Ok(source) };
        let own = Self(own.to_owned()).filled(key, id)?;
        let joined = source.join(&own).map_err(|_| BadAddress::NoAddress)?;
        match joined.origin() == source.origin() {
            true => address(joined.as_str()),
            false => Err(BadAddress::OtherServer),
        }
    }

    fn filled(&self, key: &str, id: &str) -> Result<String, BadAddress> {
        let encoded = |text| utf8_percent_encode(text, RESERVED).to_string();
        let filled = self.0.replace("{key}", &encoded(key));
        let filled = filled.replace("{id}", &encoded(id));
        match filled.contains(['{', '}']) {
            true => Err(BadAddress::Placeholder),
            false => Ok(filled),
        }
    }
}

fn address(text: &str) -> Result<Url, BadAddress> {
    let mut url = Url::parse(text).map_err(|_| BadAddress::NoAddress)?;
    url.set_fragment(None);
    must_be_usable(&url)?;
    Ok(url)
}

/// Refuses what is no http, holds a password, or could be read on its way.
pub(super) fn must_be_usable(url: &Url) -> Result<(), BadAddress> {
    let is_http = matches!(url.scheme(), "http" | "https");
    if !is_http || !url.has_host() || !url.username().is_empty() || url.password().is_some() {
        return Err(BadAddress::NoAddress);
    }
    match url.scheme() == "https" || is_this_machine(url) {
        true => Ok(()),
        false => Err(BadAddress::Readable),
    }
}

fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = |it: std::net::IpAddr| it.is_loopback();
    host == "localhost" || address.parse().is_ok_and(is_loopback)
}

/// Without the query, in which cursors, ids and keys may be.
pub(super) fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.into()
}

/// The same address with another cursor. What else is asked stays as it is written: there are several ways to write it, of
/// which servers may know one.
pub(super) fn with_cursor(first: &Url, parameter: &str, cursor: &str) -> Url {
    let encoded = |text| utf8_percent_encode(text, RESERVED).to_string();
    let is_other = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        percent_decode_str(name).decode_utf8_lossy() != parameter
    };
    let pairs = first.query().unwrap_or_default().split('&');
    let mut query: Vec<String> = pairs
        .filter(|pair| !pair.is_empty())
        .filter(is_other)
        .map(str::to_owned)
        .collect();
    query.push(format!("{}={}", encoded(parameter), encoded(cursor)));
    let mut url = first.clone();
    url.set_query(Some(&query.join("&")));
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_filled_and_joined() {
        let check = |source: &str, own: Option<&str>, expected: Result<&str, BadAddress>| {
            let template = Template::parse(source);
            let url = template.and_then(|it| it.with(own, "big_spenders", "aud/1 ü"));
            let url = url.as_ref().map(Url::as_str).map_err(|error| *error);
            assert_eq!(url, expected, "{source} {own:?}");
        };
        check(
            "https://x/a/{key}?of={id}#f",
            None,
            Ok("https://x/a/big_spenders?of=aud%2F1%20%C3%BC"),
        );
        check(
            "https://x/a/",
            Some("{key}"),
            Ok("https://x/a/big_spenders"),
        );
        check("https://x/a/b", Some("c?d=1"), Ok("https://x/a/c?d=1"));
        check("https://x/a/b", Some("/c"), Ok("https://x/c"));
        check("https://x/", Some("https://x:443/c"), Ok("https://x/c"));
        check(
            "https://x/",
            Some("https://y/c"),
            Err(BadAddress::OtherServer),
        );
        check("https://x/", Some("//y/c"), Err(BadAddress::OtherServer));
        check(
            "https://x/",
            Some("http://x/c"),
            Err(BadAddress::OtherServer),
        );
        check("https://x/{name}", None, Err(BadAddress::Placeholder));
        check("https://x/", Some("{"), Err(BadAddress::Placeholder));
        check("http://x/", None, Err(BadAddress::Readable));
        check("http://127.0.0.1:8/", None, Ok("http://127.0.0.1:8/"));
        check("http://[::1]:8/", None, Ok("http://[::1]:8/"));
        check("http://localhost/", None, Ok("http://localhost/"));
        check("http://localhost.x/", None, Err(BadAddress::Readable));
        check("https://u:p@x/", None, Err(BadAddress::NoAddress));
        check("ftp://x/", None, Err(BadAddress::NoAddress));
        check("x/a", None, Err(BadAddress::NoAddress));
    }

    #[test]
    fn a_cursor_takes_the_place_of_the_one_before() {
        let first = Url::parse("https://x/a?limit=10&cursor=0&q=a%20b+c&flag").unwrap();
        let next = with_cursor(&first, "cursor", "b c&d");
        assert_eq!(
            next.as_str(),
            "https://x/a?limit=10&q=a%20b+c&flag&cursor=b%20c%26d"
        );
        assert_eq!(shown(&next), "https://x/a");
    }
}
