//! The members that a stream has accepted, read in order for a merge.

use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator as _;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, Rows, ToSql, params};

use super::SnapshotError;
use super::doubt::has_doubts;
use super::overlay::has_overlay;
use crate::audience::{Class, Member, MemberBuf, User, UserKind, Value, ValueBuf, traits_hash};
use crate::diff::{Agreement, Found, Members};

/// The members of one feed, in the order of users. What the view `membership` gives, without looking up every member in
/// the overlay.
pub struct Delivered<'s> {
    connection: &'s Connection,
    feed: Option<i64>,
    members: Side<'s>,
    overlay: Option<Side<'s>>,
    current: Current,
    agreement: Agreement,
}

/// Which table the current row is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    Member,
    Overlay,
    /// Both have the user: the overlay is right.
    Both,
}

/// One of the two tables.
struct Side<'s> {
    rows: Rows<'s>,
    columns: Columns,
    has_begun: bool,
    is_over: bool,
    current: MemberBuf,
    traits_hash: Option<i64>,
}

/// What is read of each member beside the user and the anonymous id. There are millions, so no more than needed.
#[derive(Debug, Clone, Copy)]
struct Columns {
    value: bool,
    agreement: bool,
    /// Where it is, if it is read.
    traits_hash: Option<usize>,
}

/// The statements that read the members of a feed.
pub(super) struct SelectMembers<'c> {
    connection: &'c Connection,
    feed: Option<i64>,
    members: CachedStatement<'c>,
    overlay: Option<CachedStatement<'c>>,
    columns: Columns,
}

impl<'c> SelectMembers<'c> {
    /// `None` is a feed that no plan has made yet. It has no members. Extra traits are compared where `refresh` says so.
    pub(super) fn of(
        connection: &'c Connection,
        feed: Option<i64>,
        class: Class,
        refresh: bool,
    ) -> Result<Self, SnapshotError> {
        let agreement = has_doubts(connection, feed)?;
        let value = class == Class::Trait || agreement;
        let members = match (agreement, refresh, value) {
            (true, _, _) => ORDERED_WITH_DOUBTS,
            (false, true, _) => {
                "SELECT user, anonymous_id, value, traits_hash FROM member WHERE feed = ?1 ORDER BY user"
            }
            (false, false, true) => {
                "SELECT user, anonymous_id, value FROM member WHERE feed = ?1 ORDER BY user"
            }
            (false, false, false) => {
                "SELECT user, anonymous_id FROM member WHERE feed = ?1 ORDER BY user"
            }
        };
        let overlay = !agreement && has_overlay(connection, feed)?;
        let overlay = overlay.then(|| {
            connection.prepare_cached(
                "SELECT user, anonymous_id, value, since, traits_hash FROM overlay WHERE feed = ?1 ORDER BY user",
            )
        });
        Ok(Self {
            connection,
            feed,
            members: connection.prepare_cached(members)?,
            overlay: overlay.transpose()?,
            columns: Columns {
                value,
                agreement,
                traits_hash: refresh.then_some(if agreement { 5 } else { 3 }),
            },
        })
    }

    /// Those of a query that gives users in order, with `traits_hash` as its fourth column where `refresh` says so.
    pub(super) fn from_query(
        connection: &'c Connection,
        feed: Option<i64>,
        query: &str,
        refresh: bool,
    ) -> Result<Self, SnapshotError> {
        Ok(Self {
            connection,
            feed,
            members: connection.prepare_cached(query)?,
            overlay: None,
            columns: Columns {
                value: true,
                agreement: false,
                traits_hash: refresh.then_some(3),
            },
        })
    }

    pub(super) fn read(&mut self) -> Result<Delivered<'_>, SnapshotError> {
        let members = Side::new(self.members.query([self.feed])?, self.columns);
        let overlay = match &mut self.overlay {
            Some(overlay) => {
                let mut overlay = Side::new(
                    overlay.query([self.feed])?,
                    Columns {
                        value: true,
                        traits_hash: self.columns.traits_hash.map(|_| 4),
                        ..self.columns
                    },
                );
                overlay.advance()?;
                Some(overlay)
            }
            None => None,
        };
        Ok(Delivered {
            connection: self.connection,
            feed: self.feed,
            members,
            overlay,
            current: Current::Member,
            agreement: Agreement::Known,
        })
    }
}

/// The members, with the users whose stream may have been told something else, be they members or not.
const ORDERED_WITH_DOUBTS: &str = "
    SELECT user, anonymous_id, value, 1,
           EXISTS (SELECT 1 FROM doubt WHERE doubt.feed = ?1 AND doubt.user = membership.user), traits_hash
    FROM membership WHERE feed = ?1
    UNION ALL
    SELECT user, anonymous_id, NULL, 0, 1, NULL FROM doubt
    WHERE feed = ?1
      AND NOT EXISTS (SELECT 1 FROM membership WHERE membership.feed = ?1 AND membership.user = doubt.user)
    ORDER BY user";

impl<'s> Side<'s> {
    fn new(rows: Rows<'s>, columns: Columns) -> Self {
        Self {
            rows,
            columns,
            has_begun: false,
            is_over: false,
            current: MemberBuf::default(),
            traits_hash: None,
        }
    }

    /// Moves to the next row, which is kept: a merge asks for it when the row is no more.
    fn advance(&mut self) -> Result<(), SnapshotError> {
        let Some(row) = self.rows.next()? else {
            self.is_over = true;
            return Ok(());
        };
        let (kind, id) = user(row.get_ref(0)?)?;
        // A damaged index could give them in another order, and a merge would then let members leave.
        if self.has_begun && (User { kind, id }) <= self.current.user() {
            return Err(SnapshotError::OutOfOrder);
        }
        self.has_begun = true;
        self.current.kind = kind;
        self.current.id.clear();
        self.current.id.push_str(id);
        // Most members have none, and this is done for each of them.
        if row.get_ref(1)? != ValueRef::Null || self.current.anonymous_id.is_some() {
            self.current.anonymous_id = row.get(1)?;
        }
        if self.columns.value {
            self.current.value = row.get::<_, SqlValueBuf>(2)?.0;
        }
        if let Some(column) = self.columns.traits_hash {
            self.traits_hash = row.get(column)?;
        }
        Ok(())
    }

    fn row(&self) -> &Row<'s> {
        self.rows.get().expect("it is only asked for what there is")
    }
}

impl Delivered<'_> {
    /// How many there are.
    pub fn count(&self) -> Result<u64, SnapshotError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT members FROM feed WHERE number = ?1")?;
        let count = statement.query_row([self.feed], |row| row.get::<_, i64>(0));
        let count = count.optional()?.unwrap_or_default();
        u64::try_from(count).map_err(|_| SnapshotError::Unknown("number of members"))
    }

    /// Looks up a user of the source, wherever the cursor is.
    pub fn find(&self, now: Member<'_>) -> Result<Option<Found>, SnapshotError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT anonymous_id, value, traits_hash FROM membership WHERE feed = ?1 AND user = ?2",
        )?;
        let found = statement.query_row(params![self.feed, SqlUser(now.user)], |row| {
            Ok(Found {
                member: MemberBuf {
                    kind: now.user.kind,
                    id: now.user.id.to_owned(),
                    anonymous_id: row.get(0)?,
                    value: row.get::<_, SqlValueBuf>(1)?.0,
                    traits: String::new(),
                },
                has_other_traits: self.compares_traits()
                    && row.get::<_, Option<i64>>(2)? != Some(traits_hash(now.traits)),
            })
        });
        Ok(found.optional()?)
    }

    const fn compares_traits(&self) -> bool {
        self.members.columns.traits_hash.is_some()
    }

    fn side(&self) -> &Side<'_> {
        match (&self.overlay, self.current) {
            (Some(overlay), Current::Overlay | Current::Both) => overlay,
            _ => &self.members,
        }
    }

    /// Moves to the next user; `false` at the end.
    fn advance_both(&mut self) -> Result<bool, SnapshotError> {
        use std::cmp::Ordering::{Equal, Greater, Less};

        if self.current != Current::Overlay {
            self.members.advance()?;
        }
        let Some(overlay) = &mut self.overlay else {
            return Ok(!self.members.is_over);
        };
        if self.current != Current::Member {
            overlay.advance()?;
        }
        let order = match (self.members.is_over, overlay.is_over) {
            (true, true) => return Ok(false),
            (false, true) => Less,
            (true, false) => Greater,
            (false, false) => self.members.current.user().cmp(&overlay.current.user()),
        };
        self.current = match order {
            Less => Current::Member,
            Equal => Current::Both,
            Greater => Current::Overlay,
        };
        Ok(true)
    }

    fn has_left(&self) -> Result<bool, SnapshotError> {
        Ok(self.current != Current::Member && self.side().row().get_ref(3)? == ValueRef::Null)
    }
}

fn agreement(row: &Row<'_>) -> Result<Agreement, SnapshotError> {
    Ok(match (row.get(3)?, row.get(4)?) {
        (false, _) => Agreement::Phantom,
        (true, true) => Agreement::InDoubt,
        (true, false) => Agreement::Known,
    })
}

impl Members for Delivered<'_> {
    type Error = SnapshotError;

    fn advance(&mut self) -> Result<bool, SnapshotError> {
        while self.advance_both()? {
            if self.has_left()? {
                continue;
            }
            if self.members.columns.agreement {
                self.agreement = agreement(self.members.row())?;
            }
            return Ok(true);
        }
        Ok(false)
    }

    fn current(&self) -> Member<'_> {
        self.side().current.as_member()
    }

    fn user(&self) -> User<'_> {
        self.side().current.user()
    }

    fn value(&self) -> Value<'_> {
        self.side().current.value.as_value()
    }

    fn agreement(&self) -> Agreement {
        self.agreement
    }

    fn has_other_traits(&self, now: &impl Members) -> bool {
        self.compares_traits() && self.side().traits_hash != Some(traits_hash(now.current().traits))
    }
}

/// Whether a user is a member of a feed now.
pub(super) fn is_member(
    connection: &Connection,
    feed: i64,
    user: User<'_>,
) -> Result<bool, SnapshotError> {
    Ok(connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM membership WHERE feed = ?1 AND user = ?2)")?
        .query_row(params![feed, SqlUser(user)], |row| row.get(0))?)
}

/// A user as a column: TEXT for a user id, a BLOB for an anonymous id. SQLite sorts them as [`User`] does.
pub(super) struct SqlUser<'a>(pub(super) User<'a>);

impl ToSql for SqlUser<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let bytes = self.0.id.as_bytes();
        Ok(ToSqlOutput::Borrowed(match self.0.kind {
            UserKind::UserId => ValueRef::Text(bytes),
            UserKind::AnonymousId => ValueRef::Blob(bytes),
        }))
    }
}

pub(super) fn user(column: ValueRef<'_>) -> Result<(UserKind, &str), SnapshotError> {
    let (kind, bytes) = match column {
        ValueRef::Text(bytes) => (UserKind::UserId, bytes),
        ValueRef::Blob(bytes) => (UserKind::AnonymousId, bytes),
        _ => return Err(SnapshotError::Unknown("kind of user")),
    };
    let id = std::str::from_utf8(bytes).map_err(|_| SnapshotError::Unknown("kind of user"))?;
    Ok((kind, id))
}

pub(super) struct SqlValue<'a>(pub(super) Value<'a>);

impl ToSql for SqlValue<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::True => ValueRef::Null,
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Integer(integer) => ValueRef::Integer(integer),
            Value::Real(real) => ValueRef::Real(real),
        }))
    }
}

pub(super) struct SqlValueBuf(pub(super) ValueBuf);

impl FromSql for SqlValueBuf {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Self(match value {
            ValueRef::Null => ValueBuf::True,
            ValueRef::Text(_) => ValueBuf::Text(value.as_str()?.to_owned()),
            ValueRef::Integer(integer) => ValueBuf::Integer(integer),
            ValueRef::Real(real) => ValueBuf::Real(real),
            ValueRef::Blob(_) => return Err(FromSqlError::InvalidType),
        }))
    }
}
