//! The members that Firehose has accepted: read in order for a merge, changed as chunks are delivered.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Rows, ToSql, params};

use super::SnapshotError;
use crate::audience::{Action, Change, Class, Member, MemberBuf, User, UserKind, Value, ValueBuf};
use crate::diff::{Members, Standing};

/// The members of one audience at one destination, in the order of users.
pub struct Delivered<'s> {
    connection: &'s Connection,
    audience: Option<i64>,
    rows: Rows<'s>,
    class: Class,
    current: MemberBuf,
    has_begun: bool,
    standing: Standing,
    /// Whether the rows tell the standing.
    tells_standing: bool,
}

pub(super) const ORDERED: &str =
    "SELECT user, anonymous_id, value FROM member WHERE audience = ?1 ORDER BY user";

/// The same with whom the streams may have been told different things, be they members or not.
const ORDERED_WITH_UNSETTLED: &str = "
    SELECT user, anonymous_id, value, 1,
           EXISTS (SELECT 1 FROM unsettled WHERE unsettled.audience = ?1 AND unsettled.user = member.user)
    FROM member WHERE audience = ?1
    UNION ALL
    SELECT user, max(anonymous_id), NULL, 0, 1 FROM unsettled
    WHERE audience = ?1
      AND NOT EXISTS (SELECT 1 FROM member WHERE member.audience = ?1 AND member.user = unsettled.user)
    GROUP BY user
    ORDER BY user";

/// How the members of an audience are read: the second half costs something, and there is seldom need of it.
pub(super) fn ordered(
    connection: &Connection,
    audience: Option<i64>,
) -> Result<&'static str, SnapshotError> {
    Ok(match has_unsettled(connection, audience)? {
        true => ORDERED_WITH_UNSETTLED,
        false => ORDERED,
    })
}

pub(super) fn has_unsettled(
    connection: &Connection,
    audience: Option<i64>,
) -> Result<bool, SnapshotError> {
    let mut statement =
        connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM unsettled WHERE audience = ?1)")?;
    Ok(statement.query_row([audience], |row| row.get(0))?)
}

impl<'s> Delivered<'s> {
    pub(super) fn new(
        connection: &'s Connection,
        audience: Option<i64>,
        rows: Rows<'s>,
        class: Class,
    ) -> Self {
        let tells_standing = rows
            .as_ref()
            .is_some_and(|statement| statement.column_count() > 3);
        Self {
            connection,
            audience,
            rows,
            class,
            current: MemberBuf::default(),
            has_begun: false,
            standing: Standing::Settled,
            tells_standing,
        }
    }

    /// How many there are.
    pub fn count(&self) -> Result<u64, SnapshotError> {
        self.audience
            .map_or(Ok(0), |audience| member_count(self.connection, audience))
    }

    /// The member that a user is, whatever they are read up to.
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
}

/// How many members an audience has at a destination.
pub(super) fn member_count(connection: &Connection, audience: i64) -> Result<u64, SnapshotError> {
    let mut statement =
        connection.prepare_cached("SELECT count(*) FROM membership WHERE audience = ?1")?;
    let count: i64 = statement.query_row([audience], |row| row.get(0))?;
    Ok(count as u64)
}

impl Members for Delivered<'_> {
    type Error = SnapshotError;

    fn advance(&mut self) -> Result<bool, SnapshotError> {
        let Some(row) = self.rows.next()? else {
            return Ok(false);
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
        if self.class == Class::Trait {
            self.current.value = row.get::<_, SqlValueBuf>(2)?.0;
        }
        if self.tells_standing {
            self.standing = match (row.get(3)?, row.get(4)?) {
                (false, _) => Standing::Stranger,
                (true, true) => Standing::Unsettled,
                (true, false) => Standing::Settled,
            };
        }
        Ok(true)
    }

    fn current(&self) -> Member<'_> {
        self.current.as_member()
    }

    fn standing(&self) -> Standing {
        self.standing
    }
}

/// Changes members as Firehose accepts what was decided about them. Applying a change twice is applying it once.
pub(super) struct Apply<'c> {
    put: CachedStatement<'c>,
    remove: CachedStatement<'c>,
    audience: i64,
    run: i64,
}

impl<'c> Apply<'c> {
    pub(super) fn new(
        connection: &'c Connection,
        audience: i64,
        run: i64,
    ) -> Result<Self, SnapshotError> {
        Ok(Self {
            // Who is a member already stays known by the identifiers that they entered with: those leave with them.
            put: connection.prepare_cached(
                "INSERT INTO member (audience, user, anonymous_id, value, since) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (audience, user) DO UPDATE SET value = excluded.value, since = excluded.since",
            )?,
            remove: connection.prepare_cached("DELETE FROM member WHERE audience = ?1 AND user = ?2")?,
            audience,
            run,
        })
    }

    pub(super) fn apply(&mut self, change: &Change<'_>) -> Result<(), SnapshotError> {
        let Change { action, member } = change;
        let user = SqlUser(member.user);
        match action {
            Action::Enter | Action::Change => {
                let value = SqlValue(member.value);
                self.put.execute(params![
                    self.audience,
                    user,
                    member.anonymous_id,
                    value,
                    self.run
                ])?;
            }
            // They are members with this value already, since an earlier run.
            Action::Repeat => {}
            Action::Leave => {
                self.remove.execute(params![self.audience, user])?;
            }
        }
        Ok(())
    }
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
