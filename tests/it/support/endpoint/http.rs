//! As much of HTTP/1.1 as the SDK speaks: requests with a length, on connections that are kept.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::net::TcpStream;

use chrono::{DateTime, Utc};
use serde_json::Value;

pub(super) struct Request {
    /// Names in lower case.
    headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// All of a request, of which the last byte stays on the connection until it is [finished](Self::finish): to close
    /// a connection on which something waits to be read is to reset it. `None` where the other side has closed.
    pub(super) fn read(mut connection: &TcpStream) -> io::Result<Option<Self>> {
        let Some(headers) = take_head(connection)? else {
            return Ok(None);
        };
        let mut body = vec![0; length(&headers)];
        let last = body.len() - 1;
        connection.read_exact(&mut body[..last])?;
        let is_whole = connection.peek(&mut body[last..])? == 1;
        Ok(is_whole.then_some(Self { headers, body }))
    }

    /// The head and half of the body.
    pub(super) fn read_half(mut connection: &TcpStream) -> io::Result<()> {
        let headers = take_head(connection)?.unwrap_or_default();
        let mut half = vec![
            0;
            headers
                .get("content-length")
                .map_or(0, |_| length(&headers) / 2)
        ];
        connection.read_exact(&mut half)
    }

    /// Takes the last byte.
    pub(super) fn finish(mut connection: &TcpStream) -> io::Result<()> {
        connection.read_exact(&mut [0])
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

/// The headers, and not a byte more than the head is taken from the connection.
fn take_head(mut connection: &TcpStream) -> io::Result<Option<BTreeMap<String, String>>> {
    let mut piece = [0; 8_192];
    let count = connection.peek(&mut piece)?;
    if let Some((length, headers)) = head(&piece[..count]) {
        connection.read_exact(&mut piece[..length])?;
        return Ok(Some(headers));
    }
    // It comes in parts.
    let mut read = Vec::new();
    let mut byte = [0];
    while connection.read(&mut byte)? == 1 {
        read.extend(byte);
        if read.ends_with(b"\r\n\r\n") {
            return Ok(head(&read).map(|(_, headers)| headers));
        }
    }
    Ok(None)
}

fn length(headers: &BTreeMap<String, String>) -> usize {
    headers["content-length"].parse().unwrap()
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
