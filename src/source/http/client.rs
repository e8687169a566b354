//! Fetches pages: whole, or not at all. One that breaks off is fetched again, so nothing is read of it before its end.

use std::fmt::Display;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use chrono::{DateTime, Utc};
use flate2::bufread::MultiGzDecoder;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, IF_NONE_MATCH, LINK,
    LOCATION, RETRY_AFTER, TRANSFER_ENCODING,
};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode, Url};
use tempfile::SpooledTempFile;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use super::address::must_be_usable;
use crate::causes::in_one_line;
use crate::source::Interrupt;
use crate::source::rows::BUFFER;

/// How often a page is asked for again,
const RETRIES: usize = 4;
/// after how long at first, which doubles,
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// and how long a server may ask to be left alone.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

const MAX_REDIRECTS: u32 = 10;

/// A page up to this size stays in memory.
const BYTES_IN_MEMORY: usize = 1 << 20;

const USER_AGENT: &str = concat!("audience-sync/", env!("CARGO_PKG_VERSION"));

/// All of a page, as it came.
pub(super) struct Page {
    /// Where it was in the end,
    pub(super) url: Url,
    /// and whether that is somewhere else.
    pub(super) was_redirected: bool,
    pub(super) headers: HeaderMap,
    body: SpooledTempFile,
    /// Whether HTTP itself says where it ends. Otherwise nobody can tell a page from one that was cut off.
    pub(super) end_is_certain: bool,
    interrupt: Interrupt,
}

/// Why there is no page.
#[derive(Debug)]
pub(super) enum Unfetched {
    Interrupted,
    Failed(Failure),
}

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) problem: String,
    remedy: Remedy,
}

/// What helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// Nothing that is done here.
    Nothing,
    /// To ask again, after a while,
    AskAgain,
    /// or after this one.
    AskAgainAfter(Duration),
}

impl Failure {
    fn for_good(problem: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            remedy: Remedy::Nothing,
        }
    }

    /// The connection was not made, broke off, or was silent for too long.
    fn of_connection(error: reqwest::Error) -> Self {
        let remedy = match error.is_builder() {
            true => Remedy::Nothing,
            false => Remedy::AskAgain,
        };
        Self {
            problem: in_one_line(&error.without_url()),
            remedy,
        }
    }

    fn of_disk(error: &io::Error) -> Self {
        let folder = std::env::temp_dir();
        Self::for_good(format!(
            "a temporary file could not be written in {}: {error}\n\n\
             hint: let TMPDIR name a folder with room for the largest page",
            folder.display()
        ))
    }
}

/// Asks one server, and whom it redirects to.
pub(super) struct Client<'c> {
    runtime: Runtime,
    http: reqwest::Client,
    /// The address that the configuration names.
    named: Url,
    /// For the server that it names, and for nobody else.
    headers: HeaderMap,
    interrupt: &'c Interrupt,
    is_over: Arc<Notify>,
}

impl<'c> Client<'c> {
    pub(super) fn new(
        named: Url,
        headers: HeaderMap,
        timeout: Duration,
        interrupt: &'c Interrupt,
    ) -> Result<Self, Unfetched> {
        let mut http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(timeout)
            .read_timeout(timeout);
        // Plain http stays on this machine: a proxy, which the environment may name, could be another one.
        if named.scheme() == "http" {
            http = http.no_proxy();
        }
        let http = http
            .build()
            .map_err(|error| Unfetched::Failed(Failure::of_connection(error)))?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Unfetched::Failed(Failure::for_good(error.to_string())))?;
        let is_over = Arc::new(Notify::new());
        let heard = Arc::clone(&is_over);
        interrupt.end_by(move || heard.notify_one());
        Ok(Self {
            runtime,
            http,
            named,
            headers,
            interrupt,
            is_over,
        })
    }

    /// Fetches a page, several times if need be. `called` is what the log calls it. `None` where it is what it was when it
    /// had this `ETag`.
    pub(super) fn fetch(
        &self,
        url: &Url,
        etag: Option<&str>,
        called: &str,
    ) -> Result<Option<Page>, Unfetched> {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_times(RETRIES)
            .with_jitter();
        let fetch = (|| self.fetch_once(url, etag))
            .retry(pauses)
            .when(|failure: &Failure| failure.remedy != Remedy::Nothing)
            .adjust(|failure: &Failure, pause| match failure.remedy {
                Remedy::AskAgainAfter(asked) => pause.map(|_| asked),
                _ => pause,
            })
            .notify(|failure: &Failure, pause| {
                let pause =
                    humantime::format_duration(Duration::from_millis(pause.as_millis() as u64));
                tracing::info!("{called}: {}; asking again in {pause}", failure.problem);
            });
        self.runtime.block_on(async {
            if self.interrupt.is_requested() {
                return Err(Unfetched::Interrupted);
            }
            tokio::select! {
                () = self.is_over.notified() => Err(Unfetched::Interrupted),
                fetched = fetch => fetched.map_err(Unfetched::Failed),
            }
        })
    }

    /// Follows redirects by itself: the headers are secrets, and of all but a few no library knows that.
    async fn fetch_once(&self, url: &Url, etag: Option<&str>) -> Result<Option<Page>, Failure> {
        let mut at = url.clone();
        // An `ETag` is of one address.
        let mut etag = etag;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.http.get(at.clone());
            if at.origin() == self.named.origin() {
                request = request.headers(self.headers.clone());
            }
            request = request.header(ACCEPT_ENCODING, "gzip");
            if let Some(etag) = etag {
                request = request.header(IF_NONE_MATCH, etag);
            }
            let response = request.send().await.map_err(Failure::of_connection)?;
            if etag.take().is_some() && response.status() == StatusCode::NOT_MODIFIED {
                match response.headers().contains_key(LINK) {
                    // A page that is what it was may lead to another one that it did not lead to.
                    true => continue,
                    false => return Ok(None),
                }
            }
            match redirected(&at, &response)? {
                Some(next) => at = next,
                None => {
                    let page = receive(at, response, url, self.interrupt.clone());
                    return page.await.map(Some);
                }
            }
        }
        Err(Failure::for_good(format!(
            "it was redirected {MAX_REDIRECTS} times, and would be again\n\n\
             hint: a server that asks for a login does so; see `headers`"
        )))
    }
}

fn redirected(at: &Url, response: &Response) -> Result<Option<Url>, Failure> {
    use StatusCode as Status;

    if !matches!(
        response.status(),
        Status::MOVED_PERMANENTLY
            | Status::FOUND
            | Status::SEE_OTHER
            | Status::TEMPORARY_REDIRECT
            | Status::PERMANENT_REDIRECT
    ) {
        return Ok(None);
    }
    let location = text_of(response.headers(), LOCATION)
        .ok_or_else(|| Failure::for_good("it was redirected to nowhere"))?;
    let next = at.join(location);
    let next = next.map_err(|_| Failure::for_good("it was redirected to what is no address"))?;
    must_be_usable(&next).map_err(|bad| {
        // A path may be of a user, or of who asks.
        let origin = next.origin().ascii_serialization();
        Failure::for_good(format!("it was redirected to {origin}, which {bad}"))
    })?;
    Ok(Some(next))
}

async fn receive(
    at: Url,
    mut response: Response,
    asked: &Url,
    interrupt: Interrupt,
) -> Result<Page, Failure> {
    if response.status() != StatusCode::OK {
        return Err(refusal(response.status(), response.headers()));
    }
    let headers = std::mem::take(response.headers_mut());
    if let Some(other) = text_of(&headers, CONTENT_ENCODING)
        && !["gzip", "x-gzip", "identity"]
            .iter()
            .any(|it| it.eq_ignore_ascii_case(other))
    {
        return Err(Failure::for_good(
            "it is compressed, and not as gzip, which alone was asked for",
        ));
    }
    let mut body = SpooledTempFile::new(BYTES_IN_MEMORY);
    while let Some(chunk) = response.chunk().await.map_err(Failure::of_connection)? {
        body.write_all(&chunk)
            .map_err(|error| Failure::of_disk(&error))?;
    }
    let has_end = [CONTENT_LENGTH, TRANSFER_ENCODING]
        .iter()
        .any(|it| headers.contains_key(it));
    Ok(Page {
        end_is_certain: has_end || response.version() >= reqwest::Version::HTTP_2,
        was_redirected: at != *asked,
        url: at,
        headers,
        body,
        interrupt,
    })
}

/// A status that is no page. What the server says beside it is not shown: it may be about people.
fn refusal(status: StatusCode, headers: &HeaderMap) -> Failure {
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "\n\nhint: see `headers`: a token may be missing, have expired, or not be for this"
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => "\n\nhint: see `url`",
        _ => "",
    };
    let asked = text_of(headers, RETRY_AFTER).and_then(|text| pause_of(text, Utc::now()));
    let passes = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
    ) || status.is_server_error();
    let remedy = match asked {
        _ if !passes => Remedy::Nothing,
        None => Remedy::AskAgain,
        Some(asked) if asked <= LONGEST_PAUSE => Remedy::AskAgainAfter(asked),
        Some(asked) => {
            let asked = humantime::format_duration(asked);
            return Failure::for_good(format!(
                "HTTP {status}, and not to be asked again for {asked}"
            ));
        }
    };
    Failure {
        problem: format!("HTTP {status}{hint}"),
        remedy,
    }
}

/// In seconds, or until a time. <https://www.rfc-editor.org/rfc/rfc9110#field.retry-after>
fn pause_of(retry_after: &str, now: DateTime<Utc>) -> Option<Duration> {
    if let Ok(seconds) = retry_after.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = DateTime::parse_from_rfc2822(retry_after).ok()?;
    let seconds = (until.to_utc() - now).num_seconds();
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

pub(super) fn text_of(
    headers: &HeaderMap,
    name: impl reqwest::header::AsHeaderName,
) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

impl Page {
    pub(super) fn etag(&self) -> Option<&str> {
        text_of(&self.headers, ETAG)
    }

    /// What it holds, unpacked. Whether it is packed is seen by itself: servers keep files that are, and do not always say
    /// so.
    pub(super) fn open(&mut self) -> io::Result<Box<dyn Read + '_>> {
        self.body.seek(SeekFrom::Start(0))?;
        let mut first = Vec::new();
        Read::by_ref(&mut self.body)
            .take(BYTE_ORDER_MARK.len() as u64)
            .read_to_end(&mut first)?;
        let begin = match first == BYTE_ORDER_MARK {
            true => first.len() as u64,
            false => 0,
        };
        self.body.seek(SeekFrom::Start(begin))?;
        let heard = Heard {
            input: &mut self.body,
            interrupt: &self.interrupt,
        };
        let plain = BufReader::with_capacity(BUFFER, heard);
        Ok(match first.starts_with(&GZIP) {
            true => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(plain))),
            false => Box::new(plain),
        })
    }
}

/// What gzip begins with, and no text does.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What some servers put in front of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Ends with an error once somebody asks for the end: between two rows there may be much that is not wanted.
struct Heard<'h, R> {
    input: R,
    interrupt: &'h Interrupt,
}

impl<R: Read> Read for Heard<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.interrupt.is_requested() {
            true => Err(io::Error::other("asked to stop")),
            false => self.input.read(buffer),
        }
    }
}

impl Display for Unfetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interrupted => f.write_str("asked to stop"),
            Self::Failed(failure) => f.write_str(&failure.problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_heard_where_there_are_no_rows() {
        let interrupt = Interrupt::default();
        let mut heard = Heard {
            input: io::repeat(b' '),
            interrupt: &interrupt,
        };
        assert_eq!(heard.read(&mut [0; 8]).unwrap(), 8);
        interrupt.interrupt();
        assert!(heard.read(&mut [0; 8]).is_err());
    }

    #[test]
    fn a_pause_is_in_seconds_or_until_a_time() {
        let now = "2026-11-24T10:00:00Z".parse().unwrap();
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(
                pause_of(text, now),
                expected.map(Duration::from_secs),
                "{text}"
            );
        };
        check("0", Some(0));
        check("120", Some(120));
        check("Tue, 24 Nov 2026 10:00:30 GMT", Some(30));
        check("Tue, 24 Nov 2026 09:00:00 GMT", Some(0));
        check("soon", None);
        check("-1", None);
    }

    #[test]
    fn a_status_tells_whether_to_ask_again() {
        let check = |status: u16, retry_after: Option<&'static str>, expected: Remedy| {
            let mut headers = HeaderMap::new();
            if let Some(text) = retry_after {
                headers.insert(RETRY_AFTER, text.parse().unwrap());
            }
            let failure = refusal(StatusCode::from_u16(status).unwrap(), &headers);
            assert_eq!(failure.remedy, expected, "{failure:?}");
        };
        check(429, None, Remedy::AskAgain);
        check(
            503,
            Some("3"),
            Remedy::AskAgainAfter(Duration::from_secs(3)),
        );
        check(503, Some("3600"), Remedy::Nothing);
        check(408, None, Remedy::AskAgain);
        check(401, Some("3"), Remedy::Nothing);
        check(404, None, Remedy::Nothing);
        check(204, None, Remedy::Nothing);
    }
}
