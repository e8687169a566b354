//! A server of members on this machine, which answers as a test says: whole, in pieces, broken off, or not at all.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

/// What somebody asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    end: End,
}

/// How an answer ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Where its length says.
    Length,
    /// With a last chunk.
    Chunks,
    /// With the connection, and nothing says that it was all.
    Close,
    /// After so many bytes of the length that was promised.
    BreakOff(usize),
    /// Never: it does not even begin.
    Silence,
}

impl Reply {
    pub(crate) fn new(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type", content_type.to_owned())],
            body: body.into(),
            end: End::Length,
        }
    }

    pub(crate) fn json(body: &Value) -> Self {
        Self::new("application/json", body.to_string())
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::new("text/plain", "the server says user_1 and hunter2")
        }
    }

    /// One page of several, by a cursor that is the place of its first member: `{"data": [...], "paging": {...}}`.
    pub(crate) fn page(request: &Request, members: &[Value], size: usize) -> Self {
        let cursor = request.query.get("cursor");
        let begin: usize = cursor.map_or(0, |cursor| cursor.parse().unwrap());
        let end = members.len().min(begin + size);
        let next = (end < members.len()).then(|| end.to_string());
        Self::json(&json!({
            "paging": { "total": members.len(), "cursor": next },
            "data": members[begin..end],
        }))
    }

    pub(crate) fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header, value.into()));
        self
    }

    pub(crate) fn in_chunks(self) -> Self {
        let end = End::Chunks;
        Self { end, ..self }
    }

    pub(crate) fn until_closed(self) -> Self {
        let end = End::Close;
        Self { end, ..self }
    }

    pub(crate) fn broken_off(self, after: usize) -> Self {
        let end = End::BreakOff(after);
        Self { end, ..self }
    }

    pub(crate) fn silent() -> Self {
        let end = End::Silence;
        Self {
            end,
            ..Self::status(200)
        }
    }

    /// Whether the connection can be used again.
    fn send(&self, mut connection: &TcpStream) -> bool {
        let mut head = format!("HTTP/1.1 {} Status\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut bytes = Vec::new();
        match self.end {
            End::Length | End::BreakOff(_) => {
                head.push_str(&format!("content-length: {}\r\n\r\n", self.body.len()));
                let end = match self.end {
                    End::BreakOff(after) => after,
                    _ => self.body.len(),
                };
                bytes.extend(&self.body[..end]);
            }
            End::Chunks => {
                head.push_str("transfer-encoding: chunked\r\n\r\n");
                for chunk in self.body.chunks(7_000) {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            }
            End::Close => {
                head.push_str("connection: close\r\n\r\n");
                bytes.extend(&self.body);
            }
            End::Silence => {
                // Until whoever asked has gone.
                drop(connection.read(&mut [0]));
                return false;
            }
        }
        let sent = connection.write_all(&[head.as_bytes(), &bytes].concat());
        sent.is_ok() && matches!(self.end, End::Length | End::Chunks)
    }
}

type Answer = Box<dyn Fn(&Request) -> Reply + Send + Sync>;

struct Shared {
    answer: Mutex<Arc<Answer>>,
    requests: Mutex<Vec<Request>>,
    is_closed: AtomicBool,
}

pub(crate) struct Web {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Web {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            answer: Mutex::new(Arc::new(Box::new(answer))),
            requests: Mutex::default(),
            is_closed: AtomicBool::new(false),
        });
        let listening = thread::spawn({
            let shared = Arc::clone(&shared);
            move || listen(&listener, &shared)
        });
        Self {
            address,
            shared,
            listening: Some(listening),
        }
    }

    /// From now on it answers like this.
    pub(crate) fn answer(&self, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        *self.shared.answer.lock().unwrap() = Arc::new(Box::new(answer));
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What was asked for since somebody looked last.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.shared.requests.lock().unwrap())
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
        // It waits for somebody.
        drop(TcpStream::connect(self.address));
        self.listening.take().unwrap().join().unwrap();
    }
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut serving = Vec::new();
    for connection in listener.incoming() {
        if shared.is_closed.load(Ordering::Relaxed) {
            break;
        }
        let connection = connection.unwrap();
        let kept = connection.try_clone().unwrap();
        let shared = Arc::clone(shared);
        serving.push((kept, thread::spawn(move || serve(&connection, &shared))));
    }
    for (connection, thread) in serving {
        // Whoever asked may have gone already.
        drop(connection.shutdown(Shutdown::Both));
        thread.join().unwrap();
    }
}

fn serve(connection: &TcpStream, shared: &Shared) {
    while let Some(request) = read(connection) {
        let answer = Arc::clone(&shared.answer.lock().unwrap());
        shared.requests.lock().unwrap().push(request.clone());
        if !answer(&request).send(connection) {
            break;
        }
    }
    drop(connection.shutdown(Shutdown::Both));
}

/// The head of a request, which has no body.
fn read(mut connection: &TcpStream) -> Option<Request> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.extend(byte);
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&head).unwrap();
    assert_eq!(request.method, Some("GET"));
    let target = request.path.unwrap();
    let url = reqwest::Url::parse(&format!("http://x{target}")).unwrap();
    let header = |it: &httparse::Header<'_>| {
        let value = String::from_utf8(it.value.to_owned()).unwrap();
        (it.name.to_ascii_lowercase(), value)
    };
    Some(Request {
        path: url.path().to_owned(),
        query: url.query_pairs().into_owned().collect(),
        headers: request.headers.iter().map(header).collect(),
    })
}
