//! Where members come from. A source gives them in strictly ascending order, once each, and in constant memory.
//!
//! Order is verified, never trusted, and the end is only reached when everything was read without an error: a source
//! that fails, ends early or comes out of order decides nothing.

mod adbc;
mod ahead;
mod arrow;
mod expect;
mod files;
mod http;
mod interrupt;
mod json;
mod peek;
mod row;
mod rows;
mod sort;
mod sqlite;
mod stamp;

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::audience::{Audience, MAX_ID_BYTES, MemberBuf, SourceName};
use crate::diff::Members;
use crate::run::Timestamp;

pub use adbc::Adbc;
pub(crate) use adbc::{has_password, is_password};
pub use ahead::MembersAhead;
pub use files::Files;
pub(crate) use files::{ADD_FORMAT, BadPattern, check_pattern};
pub use http::{AnswerFormat, BadAddress, Http, Pointer, Template, Total};
pub(crate) use http::{is_credential, unfit_header};
pub use interrupt::Interrupt;
pub use peek::{Fault, Order, Peek, Seen};
pub use rows::{Dialect, Format, Text};
pub use sort::SortError;
pub use sqlite::{Sqlite, check_syntax, check_syntax_of_changes};

/// What a source is asked about an audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Who is a member.
    Members,
    /// Who may have entered or left since, and whether each of them is a member now.
    Changes { since: Timestamp },
}

impl Question {
    /// Since long ago. Compiles as the changes since any other time do.
    pub const ANY_CHANGES: Self = Self::Changes {
        since: Timestamp::from_millis(0),
    };

    /// How its query is called.
    pub(crate) const fn query(self) -> &'static str {
        match self {
            Self::Members => "query",
            Self::Changes { .. } => "change query",
        }
    }
}

/// Where a change query takes the time that it is asked about: in UTC, as SQLite's `CURRENT_TIMESTAMP` writes it.
pub const SINCE: &str = ":since";

/// Why a source gave no members.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The query can never work as it is written: a mistake in the configuration.
    #[error("the {} of {audience:?} cannot run on source `{source_name}`: {reason}", question.query())]
    Query {
        question: Question,
        audience: String,
        source_name: SourceName,
        reason: String,
    },
    /// There is no such file.
    #[error("source `{source_name}`: there is no database at {}", path.display())]
    Missing {
        source_name: SourceName,
        path: PathBuf,
    },
    /// A file of no bytes is a database without tables: an export that broke off, and no mistake in the query.
    #[error("source `{source_name}`: the file {} is empty", path.display())]
    Empty {
        source_name: SourceName,
        path: PathBuf,
    },
    /// Nor is one that ends inside a page: SQLite would read zeros for what is missing, and an empty database from a few
    /// bytes.
    #[error("source `{source_name}`: the file {} is cut off after {bytes} bytes", path.display())]
    CutOff {
        source_name: SourceName,
        path: PathBuf,
        bytes: u64,
    },
    /// Locked, damaged, or a query that failed while it ran.
    #[error("source `{source_name}` ({}) could not be read", path.display())]
    Unreadable {
        source_name: SourceName,
        path: PathBuf,
        #[source]
        cause: rusqlite::Error,
    },
    /// A column holds what can never be an id or a value.
    #[error("the {} of {audience:?} gives {found} in column `{column}`, which takes {expected}", question.query())]
    WrongType {
        question: Question,
        audience: String,
        column: String,
        found: &'static str,
        expected: &'static str,
    },
    /// Nobody can tell which of two rows is the later one.
    #[error(
        "the change query of {audience:?} says of one user both that they are a member and that they are not\n\n\
         hint: let it give one row a user: what they are now"
    )]
    Contradiction { audience: String },
    /// What came is not what it should be: a file that ends inside a row, a column that is not there, an answer that is
    /// none.
    #[error("source `{source_name}`: {place}: {problem}")]
    Broken {
        source_name: SourceName,
        /// Such as `exports/a.csv, row 3`.
        place: String,
        /// In words, with the way out.
        problem: String,
    },
    /// The source is not to be believed, by a rule of `expect`.
    #[error(
        "source `{source_name}` is not to be believed: {problem}\n\nhint: nothing is decided from it; see what fills it, or change `expect`"
    )]
    Unexpected {
        source_name: SourceName,
        problem: String,
    },
    /// Of a source that does not sort.
    #[error(transparent)]
    Sort(#[from] SortError),
    #[error("source `{source_name}`: asked to stop")]
    Interrupted { source_name: SourceName },
    /// The order that was asked for is not the one that came: the database is damaged, or sorts in its own way.
    #[error("source `{source_name}` gave members out of order")]
    OutOfOrder { source_name: SourceName },
}

impl SourceError {
    fn broken(source: &SourceName, place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Broken {
            source_name: source.clone(),
            place: place.into(),
            problem: problem.into(),
        }
    }

    fn unexpected(source: &SourceName, problem: impl Into<String>) -> Self {
        Self::Unexpected {
            source_name: source.clone(),
            problem: problem.into(),
        }
    }

    fn interrupted(source: &SourceName) -> Self {
        Self::Interrupted {
            source_name: source.clone(),
        }
    }

    /// Whether the configuration is wrong, and not the source.
    pub const fn is_configuration(&self) -> bool {
        matches!(self, Self::Query { .. })
    }

    /// Whether it is the change query that is wrong.
    pub const fn is_about_changes(&self) -> bool {
        let Self::Query { question, .. } = self else {
            return false;
        };
        matches!(question, Question::Changes { .. })
    }
}

/// Rows that are left out, by reason. They never stop an audience.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    pub null: u64,
    pub empty: u64,
    pub not_utf8: u64,
    pub too_long: u64,
    pub nul: u64,
    pub infinite: u64,
    /// No rows: extra traits that are infinite or not UTF-8, and go as null.
    pub traits: u64,
}

impl Skipped {
    pub const fn total(&self) -> u64 {
        self.null + self.empty + self.not_utf8 + self.too_long + self.nul + self.infinite
    }

    /// How many for which reason.
    fn reasons(&self) -> [(u64, String); 6] {
        [
            (self.null, "with a NULL id".to_owned()),
            (self.empty, "with an empty id".to_owned()),
            (self.not_utf8, "with text that is not UTF-8".to_owned()),
            (
                self.too_long,
                format!("with an id over {MAX_ID_BYTES} bytes"),
            ),
            (self.nul, "with a NUL in the id".to_owned()),
            (self.infinite, "with an infinite number".to_owned()),
        ]
    }

    /// Such as `2 with a NULL id, 1 with an empty id`.
    pub fn explain(&self) -> String {
        let reasons = self.reasons();
        let named = reasons.iter().filter(|(count, _)| *count > 0);
        named
            .map(|(count, reason)| format!("{count} {reason}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// What a source was when it was read. The same again means that nothing has changed, and no other says anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_text(self) -> String {
        self.0
    }
}

/// Why nobody can tell what a source is, or that its members are the same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("the query uses more than the file, such as the clock")]
    NotOfTheFile,
    #[error("a journal lies beside the source: somebody writes, or died while writing")]
    Journal,
    #[error("the source was written to a moment ago")]
    Young,
    #[error("the source was written to while it was read")]
    Written,
    #[error("nothing can be seen of the source without reading it")]
    Unseen,
}

/// A digest of parts, none of which can be taken for the end of the one before.
fn digest<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let bytes = digest.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A source as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Sqlite(Sqlite),
    Files(Files),
    Adbc(Adbc),
    Http(Http),
}

impl Source {
    /// Sees whether the query of an audience can run, without running it.
    pub fn check(&self, audience: &Audience) -> Result<(), SourceError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.check(audience),
            Self::Files(files) => files.check(audience),
            Self::Adbc(adbc) => adbc.check(audience),
            Self::Http(http) => http.check(audience),
        }
    }

    /// Whether the change query of an audience tells of anybody at all, since 1970. A first row is enough.
    pub fn tells_of_anybody(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
    ) -> Result<bool, SourceError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.tells_of_anybody(audience, interrupt),
            // Nobody asks these what has changed.
            Self::Files(_) | Self::Adbc(_) | Self::Http(_) => Ok(true),
        }
    }

    /// What decides the members of an audience beside what the source holds: how it is asked, and by whom.
    pub fn definition(&self, audience: &Audience) -> String {
        let definition = match self {
            Self::Sqlite(sqlite) => sqlite.definition(audience),
            Self::Files(files) => files.definition(audience),
            Self::Adbc(adbc) => adbc.definition(audience),
            Self::Http(http) => http.definition(audience),
        };
        // Extra traits of those who stay are looked at by one, and not by the other.
        match audience.refresh {
            true => definition + " with refresh",
            false => definition,
        }
    }

    /// What the source is now, as far as an audience is asked of it.
    pub fn fingerprint(&self, audience: &Audience) -> Result<Fingerprint, Doubt> {
        match self {
            Self::Sqlite(sqlite) => sqlite.fingerprint(),
            Self::Files(files) => files.fingerprint(audience),
            Self::Adbc(_) | Self::Http(_) => Err(Doubt::Unseen),
        }
    }

    /// Whether it is asked itself if it is what it was, at the same time as for its members.
    pub const fn tells_whether_it_changed(&self) -> bool {
        matches!(self, Self::Http(_))
    }

    /// When it was brought up to date last.
    pub fn updated_at(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
    ) -> Result<Timestamp, SourceError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.updated_at(audience, interrupt),
            Self::Files(files) => files.updated_at(audience),
            Self::Adbc(adbc) => adbc.updated_at(audience, interrupt),
            Self::Http(http) => http.updated_at(),
        }
    }

    /// Whether nobody can write to it while it is read.
    pub fn keeps_writers_waiting(&self) -> bool {
        match self {
            Self::Sqlite(sqlite) => sqlite.keeps_writers_waiting(),
            Self::Files(_) | Self::Adbc(_) | Self::Http(_) => false,
        }
    }

    /// Opens the source and hands its members to `use_members`, in order. An interrupted one fails as an unreadable one
    /// does.
    pub fn read<T, E: From<SourceError>>(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
        use_members: impl FnOnce(&mut MembersAhead) -> Result<T, E>,
    ) -> Result<T, E> {
        use_members(&mut self.start(audience, &[Question::Members], None, interrupt))
    }

    /// The same, for whoever uses them later: the query runs already, and a few of its members are read. Several questions
    /// are asked of one moment, one after another: what is given comes to an end as often as there are questions. A source
    /// that [tells whether it changed](Self::tells_whether_it_changed) does so where the fingerprint is `known` that it
    /// had: then see first whether all is [as before](MembersAhead::is_as_before).
    pub fn start(
        &self,
        audience: &Audience,
        questions: &[Question],
        known: Option<&str>,
        interrupt: &Interrupt,
    ) -> MembersAhead {
        ahead::start(self, audience, questions, known, interrupt)
    }

    /// The same, on this thread: each question's members by themselves, for as long as `use_members` wants more.
    fn ask_here(
        &self,
        audience: &Audience,
        questions: &[Question],
        known: Option<&str>,
        interrupt: &Interrupt,
        use_members: &mut UseMembers<'_>,
    ) -> Result<Given, SourceError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.ask(audience, questions, interrupt, use_members)?,
            Self::Files(files) => files.ask(audience, interrupt, use_members)?,
            Self::Adbc(adbc) => adbc.ask(audience, interrupt, use_members)?,
            Self::Http(http) => return http.ask(audience, known, interrupt, use_members),
        }
        Ok(Given::Members)
    }
}

/// Members as a source gives them, and what is known of the reading at their end.
pub(crate) trait Answer: Members<Error = SourceError> {
    /// Rows that were left out.
    fn skipped(&self) -> Skipped;

    /// What the source is of which all members are read by now; `None` where that is in doubt.
    fn read_from(&self) -> Option<Fingerprint>;
}

/// What a source gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// Its members, to whoever uses them.
    Members,
    /// Word that it is what it was, and so are they.
    AsBefore,
}

/// Takes the members of a question; `false` where it wants no more.
type UseMembers<'u> = dyn FnMut(&mut dyn Answer) -> Result<bool, SourceError> + 'u;

/// Whether `next` replaces `current`, where both are the same user: the greater row wins, so that the choice does not
/// depend on the order in which a database gives them.
fn is_greater(next: &MemberBuf, current: &MemberBuf) -> bool {
    use crate::audience::ValueBuf::{Integer, Real, Text, True};
    use std::cmp::Ordering;

    let by_value = match (&next.value, &current.value) {
        (Text(a), Text(b)) => a.cmp(b),
        (Integer(a), Integer(b)) => a.cmp(b),
        (Real(a), Real(b)) => a.total_cmp(b),
        // As SQLite sorts: numbers before text.
        (Text(_), _) => Ordering::Greater,
        (_, Text(_)) => Ordering::Less,
        (Integer(a), Real(b)) => (*a as f64).total_cmp(b).then(Ordering::Less),
        (Real(a), Integer(b)) => a.total_cmp(&(*b as f64)).then(Ordering::Greater),
        (True, _) | (_, True) => Ordering::Equal,
    };
    by_value
        .then_with(|| next.anonymous_id.cmp(&current.anonymous_id))
        .then_with(|| next.traits.cmp(&current.traits))
        .is_gt()
}
