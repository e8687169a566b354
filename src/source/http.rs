//! Members from a server, over HTTP: a page, or one after another until there is no next one.
//!
//! A page is fetched as a whole before a row of it is read, so that one that breaks off can be fetched again and is
//! never taken for a shorter one. Members come in any order and are sorted on disk. What is not as it was said to be
//! decides nothing: a page that fails, one that leads in circles or elsewhere, another number of members than the server
//! declares.

mod address;
mod client;
mod format;
mod link;
mod page;
mod pointer;

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK};

use super::peek::{Look, Order};
use super::rows::{Dialect, Problem, Taker, columns_of};
use super::{Fingerprint, Given, Interrupt, Question, SourceError, UseMembers, digest};
use crate::audience::{Audience, SourceName};
use crate::run::Timestamp;
use crate::secret::Secret;
use address::{must_be_usable, shown, with_cursor};
use client::{Client, Page, Unfetched, text_of};
use page::{Layout, Said};

pub use address::{BadAddress, Template};
pub use format::AnswerFormat;
pub use pointer::Pointer;

/// A server that gives members as JSON, JSON lines or CSV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    pub name: SourceName,
    pub url: Template,
    pub headers: BTreeMap<String, String>,
    /// Further ones.
    pub secrets: BTreeMap<String, Secret>,
    /// `None` where each answer's content type says it.
    pub format: Option<AnswerFormat>,
    pub dialect: Dialect,
    /// By column of the result: the column of a row, or the member of an object, that is it.
    pub columns: BTreeMap<String, String>,
    /// The list of members in an answer that is JSON.
    pub items: Pointer,
    /// The next page; `None` where a `Link` header tells.
    pub next: Option<Pointer>,
    /// What takes what `next` points to; `None` where that is an address.
    pub cursor_parameter: Option<String>,
    pub total: Option<Total>,
    /// How long the server may be silent.
    pub timeout: Duration,
}

/// Where an answer declares how many members there are on all pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Total {
    At(Pointer),
    Header(String),
}

const MAX_EMPTY_PAGES: u64 = 1_000;

const NO_END: &str = "nothing says where the answer ends, so it may be cut off\n\n\
    hint: let the server send its length or chunks, or a `total` of members in a header";

/// How rows become members. Another number makes everything be read again.
const READS_ROWS_AS: &[u8] = b"1";

/// Headers that HTTP itself needs, or that say what is known already.
const OWN_HEADERS: [&str; 9] = [
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "if-modified-since",
    "if-none-match",
    "range",
    "te",
    "transfer-encoding",
];

/// Why a header cannot be sent by this name. `None` where it can.
pub(crate) fn unfit_header(name: &str) -> Option<&'static str> {
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        return Some("is no name of a header");
    };
    let is_own = OWN_HEADERS.contains(&name.as_str());
    is_own.then_some("is a header that audience-sync sets itself")
}

/// Whether what is sent by this name lets somebody in.
pub(crate) fn is_credential(header: &str) -> bool {
    let header = header.to_ascii_lowercase();
    let words = [
        "auth",
        "bearer",
        "cookie",
        "credential",
        "jwt",
        "key",
        "pass",
        "session",
        "signature",
    ];
    super::is_password(&header) || words.iter().any(|word| header.contains(word))
}

impl Http {
    /// Sees whether there is an address and what is sent with it. Nobody is asked.
    pub(super) fn check(&self, audience: &Audience) -> Result<(), SourceError> {
        self.address(audience)?;
        self.headers(audience)?;
        Ok(())
    }

    pub(super) fn definition(&self, audience: &Audience) -> String {
        let Self {
            name,
            url,
            headers,
            secrets,
            format,
            dialect,
            columns,
            items,
            next,
            cursor_parameter,
            total,
            timeout: _,
        } = self;
        let columns = columns_of(columns, audience);
        let url = url.of(audience).map(String::from).unwrap_or_default();
        // What a secret is does not leave the process, not even as a digest.
        let secrets: Vec<_> = secrets.keys().collect();
        let how = format!(
            "{headers:?} {secrets:?} {format:?} {dialect:?} {columns:?} {items:?} {next:?} {cursor_parameter:?} {total:?}"
        );
        let texts = [
            READS_ROWS_AS,
            name.as_str().as_bytes(),
            url.as_bytes(),
            how.as_bytes(),
            audience.class.as_str().as_bytes(),
        ];
        let traits = audience.traits.iter().map(String::as_bytes);
        digest(texts.into_iter().chain(traits))
    }

    /// The configuration lets nobody ask.
    pub(super) fn updated_at(&self) -> Result<Timestamp, SourceError> {
        let problem = "a server tells no time";
        Err(SourceError::unexpected(&self.name, problem))
    }

    /// Where the members were read from something that had this fingerprint, and it has it still, there are none to use.
    pub(super) fn ask(
        &self,
        audience: &Audience,
        known: Option<&str>,
        interrupt: &Interrupt,
        use_members: &mut UseMembers<'_>,
    ) -> Result<Given, SourceError> {
        let columns = columns_of(&self.columns, audience);
        let mut taker = Taker::new(audience, &columns, interrupt);
        let Some(pages) = self.read(audience, known, interrupt, &mut taker)? else {
            return Ok(Given::AsBefore);
        };
        let read_from = pages.end(&mut taker)?;
        use_members(&mut taker.finish(|| read_from.clone())?)?;
        Ok(Given::Members)
    }

    /// Looks at the first members, which may be on several pages.
    pub(super) fn peek(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
        look: &mut Look,
    ) -> Result<(), SourceError> {
        look.comes(Order::Here);
        let columns = columns_of(&self.columns, audience);
        let mut taker = Taker::new(audience, &columns, interrupt).looking(look);
        match self.read(audience, None, interrupt, &mut taker)? {
            Some(pages) if pages.is_over => pages.end(&mut taker).map(drop),
            _ => Ok(()),
        }
    }

    /// Reads pages until there is no next one, or whoever takes them has enough. `None` where all is what it was.
    fn read(
        &self,
        audience: &Audience,
        known: Option<&str>,
        interrupt: &Interrupt,
        taker: &mut Taker<'_>,
    ) -> Result<Option<Pages<'_>>, SourceError> {
        let first = self.address(audience)?;
        let headers = self.headers(audience)?;
        let client = Client::new(first.clone(), headers, self.timeout, interrupt);
        let client = client.map_err(|error| self.unfetched(shown(&first), error))?;
        let mut pages = Pages::new(self, first);
        loop {
            let etag = known.filter(|_| pages.number == 1);
            let fetched = client.fetch(&pages.at, etag, &pages.called());
            let fetched = fetched.map_err(|error| self.unfetched(pages.place(0), error))?;
            let Some(page) = fetched else { return Ok(None) };
            if !pages.read(page, taker)? {
                return Ok(Some(pages));
            }
        }
    }

    fn address(&self, audience: &Audience) -> Result<Url, SourceError> {
        let url = self.url.of(audience);
        url.map_err(|bad| self.misconfigured(audience, format!("its `url` {bad}")))
    }

    /// Everything that is sent to the server.
    fn headers(&self, audience: &Audience) -> Result<HeaderMap, SourceError> {
        let mut headers = HeaderMap::new();
        headers.insert(
            ACCEPT,
            HeaderValue::from_static(AnswerFormat::accept(self.format)),
        );
        let texts = self
            .headers
            .iter()
            .map(|(name, text)| (name, text.as_str()));
        let secrets = self
            .secrets
            .iter()
            .map(|(name, secret)| (name, secret.expose()));
        for (name, value) in texts.chain(secrets) {
            let unfit = || {
                let reason = format!(
                    "header `{name}` has a value that no header can have\n\n\
                     hint: it may hold a newline, or a letter beyond ASCII"
                );
                self.misconfigured(audience, reason)
            };
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unfit())?;
            let mut value = HeaderValue::from_str(value).map_err(|_| unfit())?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(headers)
    }

    fn misconfigured(&self, audience: &Audience, reason: String) -> SourceError {
        SourceError::Query {
            question: Question::Members,
            audience: audience.name.clone(),
            source_name: self.name.clone(),
            reason,
        }
    }

    fn unfetched(&self, place: String, error: Unfetched) -> SourceError {
        match error {
            Unfetched::Interrupted => self.interrupted(),
            Unfetched::Failed(failure) => self.broken(place, failure.problem),
        }
    }

    fn interrupted(&self) -> SourceError {
        SourceError::interrupted(&self.name)
    }

    fn broken(&self, place: String, problem: String) -> SourceError {
        SourceError::broken(&self.name, place, problem)
    }

    fn format_of(&self, page: &Page) -> Result<AnswerFormat, Problem> {
        let content_type = text_of(&page.headers, CONTENT_TYPE).unwrap_or_default();
        if format::is_html(content_type) {
            return Err(Problem::Overall(
                "an HTML page came, and no members\n\n\
                 hint: a login, or an error; see `url` and `headers`"
                    .to_owned(),
            ));
        }
        let format = self.format.or(AnswerFormat::of_content_type(content_type));
        let format = format.ok_or_else(|| {
            Problem::Overall(
                "its content type names no format\n\n\
                 hint: add format = \"json\", \"jsonl\" or \"csv\" to the source"
                    .to_owned(),
            )
        })?;
        let AnswerFormat::Rows(_) = format else {
            return Ok(format);
        };
        let points = self.next.is_some() || matches!(self.total, Some(Total::At(_)));
        if points || self.items != Pointer::default() {
            return Err(Problem::Overall(
                "it is no JSON document, in which `items`, `next` and `total` could point to something".to_owned(),
            ));
        }
        // Whoever is written otherwise would be skipped as not UTF-8, and look gone.
        if let Some(charset) = format::other_charset(content_type) {
            let charset = charset.escape_debug();
            return Err(Problem::Overall(format!(
                "it is written as {charset}\n\nhint: let the server write UTF-8"
            )));
        }
        Ok(format)
    }
}

/// Where a header says that the next page is.
fn linked(page: &Page) -> Result<Option<String>, Problem> {
    for header in page.headers.get_all(LINK) {
        let text = String::from_utf8_lossy(header.as_bytes());
        let next = link::next(&text).map_err(|malformed| {
            Problem::Overall(format!(
                "{malformed}, so nobody knows whether there is a next page"
            ))
        })?;
        if let Some(next) = next {
            return Ok(Some(next.to_owned()));
        }
    }
    Ok(None)
}

/// The pages of an audience, of which one is read after another.
struct Pages<'h> {
    http: &'h Http,
    first: Url,
    /// The one that is read.
    at: Url,
    number: u64,
    /// A page that was read before, to see whether one leads back to it: the last one whose number is a power of two.
    landmark: Url,
    has_next: bool,
    /// All of them are read.
    is_over: bool,
    /// As the last page declared that did.
    total: Option<u64>,
    etag: Option<String>,
    /// How many rows there were up to the last page, and how many pages before it gave none.
    rows: u64,
    empty_pages: u64,
}

impl<'h> Pages<'h> {
    fn new(http: &'h Http, first: Url) -> Self {
        Self {
            http,
            at: first.clone(),
            number: 1,
            landmark: first.clone(),
            first,
            has_next: false,
            is_over: false,
            total: None,
            etag: None,
            rows: 0,
            empty_pages: 0,
        }
    }

    /// What the log calls the page.
    fn called(&self) -> String {
        format!("source `{}`: {}", self.http.name, self.place(0))
    }

    fn place(&self, row: u64) -> String {
        // The address of a further page is the server's, and may hold an id.
        let page = format!("{}, page {}", shown(&self.first), self.number);
        match row {
            0 => page,
            row => format!("{page}, row {row}"),
        }
    }

    /// Reads a page and goes on to the next one; `false` where there is none, or no need for one.
    fn read(&mut self, mut page: Page, taker: &mut Taker<'_>) -> Result<bool, SourceError> {
        let said = match self.take(&mut page, taker) {
            Ok(said) => said,
            Err(Problem::Enough) => return Ok(false),
            Err(problem) => return Err(self.problem(problem, taker.rows)),
        };
        let rows = taker.taken;
        tracing::debug!("{}: {rows} rows so far", self.called());
        self.must_go_on(rows)?;
        self.has_next |= said.has_next;
        self.total = said.total.or(self.total);
        self.etag = match page.was_redirected {
            true => None,
            false => page.etag().map(str::to_owned),
        };
        let next = self
            .next(&page, &said)
            .map_err(|problem| self.problem(problem, 0))?;
        self.is_over = next.is_none();
        next.map(|next| self.go_on_to(next)).transpose()?;
        Ok(!self.is_over)
    }

    fn take(&self, page: &mut Page, taker: &mut Taker<'_>) -> Result<Said, Problem> {
        let format = self.http.format_of(page)?;
        let declared = self.declared(page)?;
        if !taker.begin(self.place(0), format.name()) {
            return Err(Problem::Enough);
        }
        let end_is_certain = page.end_is_certain;
        let mut input = page.open()?;
        let said = match format {
            AnswerFormat::Rows(format) => {
                taker.end_is_certain = end_is_certain;
                taker.read(format, &self.http.dialect, &mut input)?;
                if !end_is_certain && self.http.total.is_none() {
                    return Err(Problem::Overall(NO_END.to_owned()));
                }
                Said::default()
            }
            AnswerFormat::Json => {
                let layout = Layout {
                    items: &self.http.items,
                    next: self.http.next.as_ref(),
                    total: match &self.http.total {
                        Some(Total::At(pointer)) => Some(pointer),
                        _ => None,
                    },
                };
                page::read(input, layout, taker)?
            }
        };
        Ok(Said {
            total: said.total.or(declared),
            ..said
        })
    }

    /// The total that a header declares.
    fn declared(&self, page: &Page) -> Result<Option<u64>, Problem> {
        let Some(Total::Header(name)) = &self.http.total else {
            return Ok(None);
        };
        let Some(value) = page.headers.get(name) else {
            return Ok(None);
        };
        let count = value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let no_count = || Problem::Overall(format!("its header `{name}` is no count"));
        count.map(Some).ok_or_else(no_count)
    }

    fn next(&self, page: &Page, said: &Said) -> Result<Option<Url>, Problem> {
        let elsewhere = |what: &str| {
            Problem::Overall(format!(
                "it leads to {what} as the next page\n\n\
                 hint: let `url` name the server that gives all of them"
            ))
        };
        let (next, cursor) = match &self.http.next {
            None => (linked(page)?, None),
            Some(_) => (said.next.clone(), self.http.cursor_parameter.as_deref()),
        };
        let Some(next) = next else { return Ok(None) };
        if let Some(parameter) = cursor {
            return Ok(Some(with_cursor(&self.first, parameter, &next)));
        }
        let mut url = page
            .url
            .join(&next)
            .map_err(|_| elsewhere("what is no address"))?;
        url.set_fragment(None);
        if url.origin() != self.first.origin() {
            return Err(elsewhere("another server"));
        }
        must_be_usable(&url).map_err(|_| elsewhere("an address with a password"))?;
        Ok(Some(url))
    }

    fn go_on_to(&mut self, next: Url) -> Result<(), SourceError> {
        if self.number.is_power_of_two() {
            self.landmark = self.at.clone();
        }
        if next == self.landmark {
            let problem = "it leads back to a page that was read before\n\n\
                 hint: see whether `next` and `cursor_parameter` are what the server means by them";
            return Err(self.http.broken(self.place(0), problem.to_owned()));
        }
        self.at = next;
        self.number += 1;
        Ok(())
    }

    /// Ends what would have no end: cursors that go on, and no members come.
    fn must_go_on(&mut self, rows: u64) -> Result<(), SourceError> {
        match rows == self.rows {
            true => self.empty_pages += 1,
            false => self.empty_pages = 0,
        }
        self.rows = rows;
        if self.empty_pages <= MAX_EMPTY_PAGES {
            return Ok(());
        }
        let problem = format!(
            "there are no members on {MAX_EMPTY_PAGES} pages in a row\n\n\
             hint: see whether `items` and `next` are what the server means by them"
        );
        Err(self.http.broken(self.place(0), problem))
    }

    /// When all pages are read: whether they are all, and what they were read from.
    fn end(self, taker: &mut Taker<'_>) -> Result<Option<Fingerprint>, SourceError> {
        let odd = taker.end_of_objects();
        if let Some(odd) = odd.map_err(|problem| self.problem(problem, 0))? {
            tracing::warn!("{}: {odd}", self.called());
        }
        let rows = taker.taken;
        let broken = |problem: String| Err(self.http.broken(shown(&self.first), problem));
        match (&self.http.total, self.total) {
            (Some(_), None) => {
                return broken("no page declares a total\n\nhint: see `total`".to_owned());
            }
            (Some(_), Some(total)) if total != rows => {
                return broken(format!(
                    "it has {rows} members, and declares {total}\n\n\
                     hint: they may have changed while they were read; the next run reads them again"
                ));
            }
            _ => {}
        }
        if self.http.next.is_some() && !self.has_next && self.http.total.is_none() {
            tracing::warn!(
                "source `{}`: no page has anything at `next`. hint: see whether it is the right pointer; with `total` a \
                 page that is missing is found out",
                self.http.name
            );
        }
        // A total beside the page is not what its `ETag` is of.
        let is_beside = matches!(self.http.total, Some(Total::Header(_)));
        let etag = self.etag.filter(|_| self.number == 1 && !is_beside);
        Ok(etag.map(Fingerprint))
    }

    fn problem(&self, problem: Problem, row: u64) -> SourceError {
        let broken = |row: u64, problem: String| self.http.broken(self.place(row), problem);
        match problem {
            Problem::Source(error) => error,
            Problem::Stopped | Problem::Enough => self.http.interrupted(),
            Problem::Here(problem) => broken(row, problem),
            Problem::Overall(problem) => broken(0, problem),
            Problem::Empty => broken(0, "the answer is empty".to_owned()),
            Problem::CutOff => broken(row, "the answer ends inside it".to_owned()),
            Problem::Io(error) => broken(row, error.to_string()),
        }
    }
}
