//! The members that Firehose has accepted, read in order for a merge.

use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator as _;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, Rows, ToSql, params};

use super::SnapshotError;
use super::moved::has_moved;
use crate::audience::{Class, Member, MemberBuf, User, UserKind, Value, ValueBuf};
use crate::diff::{Members, Standing};

/// The members of one audience at one destination, in the order of users. What the view `membership` gives, without
/// looking up every member among those who have moved.
pub struct Delivered<'s> {
    connection: &'s Connection,
    audience: Option<i64>,
    members: Side<'s>,
    moved: Option<Side<'s>>,
    current: Current,
    standing: Standing,
}

/// Whose row is the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    Member,
    Moved,
    /// Of a member who has moved: where they are now.
    Both,
}

/// Members, or who has moved.
struct Side<'s> {
    rows: Rows<'s>,
    columns: Columns,
    has_begun: bool,
    is_over: bool,
    current: MemberBuf,
}

/// What is read of each of them, beside the user and the anonymous id: it is read of millions, and so no more than needed.
#[derive(Debug, Clone, Copy)]
struct Columns {
    value: bool,
    standing: bool,
}

/// The statements that read the members of an audience.
pub(super) struct SelectMembers<'c> {
    connection: &'c Connection,
    members: CachedStatement<'c>,
    moved: Option<CachedStatement<'c>>,
    columns: Columns,
}

impl<'c> SelectMembers<'c> {
    /// `None` is an audience that nobody knows yet, and has no members.
    pub(super) fn of(
        connection: &'c Connection,
        audience: Option<i64>,
        class: Class,
    ) -> Result<Self, SnapshotError> {
        let standing = has_unsettled(connection, audience)?;
        let value = class == Class::Trait || standing;
        let members = match (standing, value) {
            (true, _) => ORDERED_WITH_UNSETTLED,
            (false, true) => {
                "SELECT user, anonymous_id, value FROM member WHERE audience = ?1 ORDER BY user"
            }
            (false, false) => {
                "SELECT user, anonymous_id FROM member WHERE audience = ?1 ORDER BY user"
            }
        };
        let moved = !standing && has_moved(connection, audience)?;
        let moved = moved.then(|| {
            connection.prepare_cached(
                "SELECT user, anonymous_id, value, since FROM moved WHERE audience = ?1 ORDER BY user",
            )
        });
        Ok(Self {
            connection,
            members: connection.prepare_cached(members)?,
            moved: moved.transpose()?,
            columns: Columns { value, standing },
        })
    }

    /// Those of a list of our own, which is in order.
    pub(super) fn from_query(
        connection: &'c Connection,
        query: &str,
    ) -> Result<Self, SnapshotError> {
        Ok(Self {
            connection,
            members: connection.prepare_cached(query)?,
            moved: None,
            columns: Columns {
                value: true,
                standing: false,
            },
        })
    }

    pub(super) fn read(&mut self, audience: Option<i64>) -> Result<Delivered<'_>, SnapshotError> {
        let members = Side::new(self.members.query([audience])?, self.columns);
        let moved = match &mut self.moved {
            Some(moved) => {
                let mut moved = Side::new(
                    moved.query([audience])?,
                    Columns {
                        value: true,
                        ..self.columns
                    },
                );
                moved.advance()?;
                Some(moved)
            }
            None => None,
        };
        Ok(Delivered {
            connection: self.connection,
            audience,
            members,
            moved,
            current: Current::Member,
            standing: Standing::Settled,
        })
    }
}

/// The members with those whom the streams may have been told different things of, be they members or not.
const ORDERED_WITH_UNSETTLED: &str = "
    SELECT user, anonymous_id, value, 1,
           EXISTS (SELECT 1 FROM unsettled WHERE unsettled.audience = ?1 AND unsettled.user = membership.user)
    FROM membership WHERE audience = ?1
    UNION ALL
    SELECT user, max(anonymous_id), NULL, 0, 1 FROM unsettled
    WHERE audience = ?1
      AND NOT EXISTS (SELECT 1 FROM membership WHERE membership.audience = ?1 AND membership.user = unsettled.user)
    GROUP BY user
    ORDER BY user";

pub(super) fn has_unsettled(
    connection: &Connection,
    audience: Option<i64>,
) -> Result<bool, SnapshotError> {
    let mut statement =
        connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM unsettled WHERE audience = ?1)")?;
    Ok(statement.query_row([audience], |row| row.get(0))?)
}

impl<'s> Side<'s> {
    fn new(rows: Rows<'s>, columns: Columns) -> Self {
        Self {
            rows,
            columns,
            has_begun: false,
            is_over: false,
            current: MemberBuf::default(),
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
            .prepare_cached("SELECT members FROM audience WHERE number = ?1")?;
        let count = statement.query_row([self.audience], |row| row.get::<_, i64>(0));
        let count = count.optional()?.unwrap_or_default();
        u64::try_from(count).map_err(|_| SnapshotError::Unknown("number of members"))
    }

    /// The member that a user is, wherever the cursor is.
    pub fn find(&self, user: User<'_>) -> Result<Option<MemberBuf>, SnapshotError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT anonymous_id, value FROM membership WHERE audience = ?1 AND user = ?2",
        )?;
        let found = statement.query_row(params![self.audience, SqlUser(user)], |row| {
            Ok(MemberBuf {
                kind: user.kind,
                id: user.id.to_owned(),
                anonymous_id: row.get(0)?,
                value: row.get::<_, SqlValueBuf>(1)?.0,
                traits: String::new(),
            })
        });
        Ok(found.optional()?)
    }

    fn side(&self) -> &Side<'_> {
        match (&self.moved, self.current) {
            (Some(moved), Current::Moved | Current::Both) => moved,
            _ => &self.members,
        }
    }

    /// Moves to whoever comes next; `false` where nobody does.
    fn advance_both(&mut self) -> Result<bool, SnapshotError> {
        use std::cmp::Ordering::{Equal, Greater, Less};

        if self.current != Current::Moved {
            self.members.advance()?;
        }
        let Some(moved) = &mut self.moved else {
            return Ok(!self.members.is_over);
        };
        if self.current != Current::Member {
            moved.advance()?;
        }
        let order = match (self.members.is_over, moved.is_over) {
            (true, true) => return Ok(false),
            (false, true) => Less,
            (true, false) => Greater,
            (false, false) => self.members.current.user().cmp(&moved.current.user()),
        };
        self.current = match order {
            Less => Current::Member,
            Equal => Current::Both,
            Greater => Current::Moved,
        };
        Ok(true)
    }

    fn has_left(&self) -> Result<bool, SnapshotError> {
        Ok(self.current != Current::Member && self.side().row().get_ref(3)? == ValueRef::Null)
    }
}

fn standing(row: &Row<'_>) -> Result<Standing, SnapshotError> {
    Ok(match (row.get(3)?, row.get(4)?) {
        (false, _) => Standing::Stranger,
        (true, true) => Standing::Unsettled,
        (true, false) => Standing::Settled,
    })
}

impl Members for Delivered<'_> {
    type Error = SnapshotError;

    fn advance(&mut self) -> Result<bool, SnapshotError> {
        while self.advance_both()? {
            if self.has_left()? {
                continue;
            }
            if self.members.columns.standing {
                self.standing = standing(self.members.row())?;
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

    fn standing(&self) -> Standing {
        self.standing
    }
}

/// Whether somebody is a member of an audience now.
pub(super) fn is_member(
    connection: &Connection,
    audience: i64,
    user: User<'_>,
) -> Result<bool, SnapshotError> {
    Ok(connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM membership WHERE audience = ?1 AND user = ?2)",
        )?
        .query_row(params![audience, SqlUser(user)], |row| row.get(0))?)
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
