//! A Firehose on loopback, in a process of its own, that does as little as HTTP allows: it counts the records of a call
//! and gives back as many record IDs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Stdio};
use std::thread;

use anyhow::Context as _;

pub(crate) struct Endpoint {
    pub url: String,
    process: Child,
    input: Option<ChildStdin>,
}

impl Endpoint {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut process = crate::myself()?
            .arg("endpoint")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the endpoint does not start")?;
        let input = process.stdin.take();
        let said = process.stdout.take().context("it has an output")?;
        let mut url = String::new();
        BufReader::new(said).read_line(&mut url)?;
        Ok(Self {
            url: url.trim().to_owned(),
            process,
            input,
        })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Its input ends, and it with it: so it does when this process is killed.
        self.input = None;
        drop(self.process.wait());
    }
}

/// Says where it is, and serves until its input ends.
#[expect(clippy::print_stdout, reason = "whoever started it reads its address")]
pub(crate) fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Answers the calls of one connection until it is closed.
fn answer(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let answers: Vec<Vec<u8>> = (0..=500).map(accepted).collect();
    let mut buffer = vec![0; 1 << 20];
    let mut filled = 0;
    loop {
        let head = loop {
            let mut ends = buffer[..filled].windows(4);
            if let Some(end) = ends.position(|end| end == b"\r\n\r\n") {
                break end + 4;
            }
            filled += some(stream.read(&mut buffer[filled..]).ok()?)?;
        };
        let length = content_length(&buffer[..head])?;
        buffer.resize(buffer.len().max(head + length), 0);
        while filled < head + length {
            filled += some(stream.read(&mut buffer[filled..]).ok()?)?;
        }
        // Base64 has no braces: there is one around the call, and one around each record.
        let body = &buffer[head..head + length];
        let braces = body.iter().filter(|byte| **byte == b'{').count();
        stream.write_all(answers.get(braces - 1)?).ok()?;
        filled = 0;
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?.to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1)?;
    length.split("\r\n").next()?.parse().ok()
}

fn some(read: usize) -> Option<usize> {
    (read > 0).then_some(read)
}

fn accepted(records: usize) -> Vec<u8> {
    let entries = vec![r#"{"RecordId":"0123456789abcdef"}"#; records].join(",");
    let body =
        format!(r#"{{"FailedPutCount":0,"Encrypted":false,"RequestResponses":[{entries}]}}"#);
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}
