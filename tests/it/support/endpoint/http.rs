//! As much of HTTP/1.1 as the SDK speaks: requests with a length, on connections that are kept.

use std::collections::BTreeMap;
use std::io::{self, Read};

use chrono::{DateTime, Utc};
use serde_json::Value;

pub(super) struct Request {
    /// Names in lower case.
    headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// `None` where the other side has closed.
    pub(super) fn read(connection: &mut impl Read) -> io::Result<Option<Self>> {
        let mut read = Vec::new();
        let mut piece = [0; 65_536];
        loop {
            let count = connection.read(&mut piece)?;
            if count == 0 {
                return Ok(None);
            }
            read.extend_from_slice(&piece[..count]);
            let Some((length, headers)) = head(&read) else {
                continue;
            };
            let mut body = read.split_off(length);
            let total: usize = headers["content-length"].parse().unwrap();
            let missing = (total - body.len()) as u64;
            connection.take(missing).read_to_end(&mut body)?;
            return Ok((body.len() == total).then_some(Self { headers, body }));
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The body as a form.
    pub(super) fn form(&self) -> BTreeMap<String, String> {
        let body = std::str::from_utf8(&self.body).unwrap();
        let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(name, value)| (decoded(name), decoded(value)))
            .collect()
    }
}

/// The length of the head and its headers, once all of it is there.
fn head(read: &[u8]) -> Option<(usize, BTreeMap<String, String>)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(read).unwrap() else {
        return None;
    };
    let headers = request.headers.iter().map(|header| {
        let value = String::from_utf8_lossy(header.value).into_owned();
        (header.name.to_ascii_lowercase(), value)
    });
    Some((length, headers.collect()))
}

/// Text of a form: `a%20b` is `a b`.
fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(decoded).unwrap()
}

pub(super) struct Response {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Response {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            content_type: "application/x-amz-json-1.1",
            body: body.to_string(),
        }
    }

    pub(super) fn xml(status: u16, body: String) -> Self {
        Self {
            status,
            content_type: "text/xml",
            body,
        }
    }

    pub(super) fn to_bytes(&self, now: DateTime<Utc>) -> Vec<u8> {
        let Self {
            status,
            content_type,
            body,
        } = self;
        format!(
            "HTTP/1.1 {status} Scripted\r\ndate: {}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
            now.format("%a, %d %b %Y %H:%M:%S GMT"),
            body.len()
        )
        .into_bytes()
    }
}
