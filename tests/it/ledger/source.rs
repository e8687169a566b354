//! What the source says, in every round: the truth that everything downstream is held against.

use std::collections::HashMap;

use fastrand::Rng;
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::support::Project;

/// An audience, or a computed trait, of which so many users may ever be members.
pub(super) struct Audience {
    pub key: &'static str,
    users: usize,
    is_trait: bool,
    /// Further settings.
    settings: &'static str,
}

const OFF: &str = "guard = false";
/// What it told the journal has, whoever is killed; everyone is read where that is in doubt.
const TOLD: &str = "
    changes = \"SELECT user_id, user_id IN (SELECT user_id FROM guarded) AS is_member FROM told WHERE at > :since\"
    reconcile = \"2s\"";

/// The audience whose removals the guard may hold.
pub(super) const GUARDED: &str = "guarded";

pub(super) const AUDIENCES: [Audience; 4] = [
    Audience {
        key: WITH_REFUSED,
        users: 30,
        is_trait: false,
        settings: OFF,
    },
    Audience {
        key: "large",
        users: 3_000,
        is_trait: false,
        settings: OFF,
    },
    Audience {
        key: GUARDED,
        users: 300,
        is_trait: false,
        settings: TOLD,
    },
    Audience {
        key: "score",
        users: 400,
        is_trait: true,
        settings: OFF,
    },
];

/// Users whose records Firehose may find fault with; they are in every audience.
pub(super) const POISON: &str = "poison";
const POISONED: usize = 2;
/// A user whose records one stream refuses in every call, for as long as the world lasts. Only one audience has such a
/// user: a stream that refuses the only lines of several audiences looks like one that is out of order.
pub(super) const REFUSED: &str = "refused";
const WITH_REFUSED: &str = "small";

impl Audience {
    fn user(&self, number: usize) -> String {
        match number {
            ..POISONED => format!("{POISON}-{number}"),
            POISONED if self.key == WITH_REFUSED => REFUSED.to_owned(),
            _ => format!("u{number:05}"),
        }
    }

    /// What is said of who is no member.
    fn gone(&self) -> Value {
        match self.is_trait {
            true => Value::Null,
            false => json!(false),
        }
    }

    /// What is said of a member.
    fn value(&self, dice: &mut Rng) -> Value {
        match (self.is_trait, dice.bool()) {
            (false, _) => json!(true),
            (true, false) => json!(dice.i32(-9..1_000)),
            (true, true) => json!(format!("grade {}", dice.alphabetic())),
        }
    }

    fn table(&self) -> String {
        let key = self.key;
        format!("CREATE TABLE {key} (user_id TEXT PRIMARY KEY, value) WITHOUT ROWID;")
    }

    fn schedule(&self) -> String {
        let (key, settings) = (self.key, self.settings);
        let (kind, columns) = match self.is_trait {
            true => ("computed_trait", "user_id, value"),
            false => ("audience", "user_id"),
        };
        format!(
            "[[{kind}]]\nname = \"{key}\"\nsource = \"shop\"\n\
             query = \"SELECT {columns} FROM {key}\"\n{settings}\n"
        )
    }
}

pub(super) fn schedule() -> String {
    AUDIENCES.iter().map(Audience::schedule).collect()
}

pub(super) struct Source {
    connection: Connection,
    /// By audience and user, what was so since which round.
    history: HashMap<(&'static str, String), Vec<(usize, Value)>>,
}

impl Source {
    pub(super) fn new(project: &Project) -> Self {
        let connection = project.shop_connection();
        let tables: String = AUDIENCES.iter().map(Audience::table).collect();
        // It is not the source that crashes.
        let setup = format!(
            "PRAGMA synchronous = off; {tables}
             CREATE TABLE told (user_id TEXT PRIMARY KEY, at TEXT) WITHOUT ROWID;
             CREATE INDEX by_time ON told (at);"
        );
        connection.execute_batch(&setup).unwrap();
        Self {
            connection,
            history: HashMap::new(),
        }
    }

    /// Users enter, leave and change their values.
    pub(super) fn change(&mut self, round: usize, dice: &mut Rng) {
        let mut changes = Vec::new();
        for audience in &AUDIENCES {
            for number in self.chosen(audience, dice) {
                let user = audience.user(number);
                let leaves = self.is_member(audience, &user) && !(audience.is_trait && dice.bool());
                let value = match leaves {
                    true => audience.gone(),
                    false => audience.value(dice),
                };
                changes.push((audience, user, value));
            }
        }
        let transaction = self.connection.unchecked_transaction().unwrap();
        for (audience, user, value) in &changes {
            write(&transaction, audience, user, value);
        }
        transaction.commit().unwrap();
        for (audience, user, value) in changes {
            let history = self.history.entry((audience.key, user)).or_default();
            history.push((round, value));
        }
    }

    /// Whose membership changes: nobody's, a few, some, or at once most of those who are members, or are not.
    fn chosen(&self, audience: &Audience, dice: &mut Rng) -> Vec<usize> {
        let users = audience.users;
        let count = match dice.u8(..100) {
            ..30 => 0,
            30..70 => dice.usize(1..6),
            70..86 => dice.usize(5..users / 4),
            mass => {
                let leaves = mass < 93;
                let is_chosen =
                    |number: &usize| self.is_member(audience, &audience.user(*number)) == leaves;
                let all: Vec<_> = (0..users).filter(is_chosen).collect();
                return all.into_iter().filter(|_| dice.u8(..10) < 7).collect();
            }
        };
        let mut chosen = dice.choose_multiple(0..users, count);
        // The user whose records are refused enters and leaves meanwhile.
        if audience.key == WITH_REFUSED && !chosen.contains(&POISONED) && dice.u8(..3) == 0 {
            chosen.push(POISONED);
        }
        chosen
    }

    fn is_member(&self, audience: &Audience, user: &str) -> bool {
        let now = self.said(audience.key, user, usize::MAX);
        now.is_some_and(|value| !is_gone(value))
    }

    /// What was so in a round; `None` of users that nobody had heard of by then.
    pub(super) fn said(&self, key: &'static str, user: &str, round: usize) -> Option<&Value> {
        let history = self.history.get(&(key, user.to_owned()))?;
        let until = history.partition_point(|(since, _)| *since <= round);
        Some(&history[until.checked_sub(1)?].1)
    }

    pub(super) fn members(&self, key: &str) -> impl Iterator<Item = (&str, &Value)> {
        let truth = self.truth().filter(move |(audience, ..)| *audience == key);
        let members = truth.filter(|(_, _, value)| !is_gone(value));
        members.map(|(_, user, value)| (user, value))
    }

    /// What is so now, of everybody who was ever a member of anything.
    pub(super) fn truth(&self) -> impl Iterator<Item = (&'static str, &str, &Value)> {
        self.history.iter().map(|((key, user), history)| {
            let (_, now) = history.last().expect("a history begins with something");
            (*key, user.as_str(), now)
        })
    }
}

/// Whether some stream may find fault with the user's records.
pub(super) fn is_blamed(user: &str) -> bool {
    user.starts_with(POISON) || user == REFUSED
}

/// Whether this is what is said of who is no member.
pub(super) fn is_gone(value: &Value) -> bool {
    *value == Value::Null || *value == Value::Bool(false)
}

fn write(connection: &Connection, audience: &Audience, user: &str, value: &Value) {
    let key = audience.key;
    if audience.settings == TOLD {
        connection
            .prepare_cached("INSERT OR REPLACE INTO told VALUES (?1, current_timestamp)")
            .unwrap()
            .execute([user])
            .unwrap();
    }
    if is_gone(value) {
        let sql = format!("DELETE FROM {key} WHERE user_id = ?1");
        connection
            .prepare_cached(&sql)
            .unwrap()
            .execute([user])
            .unwrap();
        return;
    }
    let sql = format!("INSERT OR REPLACE INTO {key} VALUES (?1, ?2)");
    let mut insert = connection.prepare_cached(&sql).unwrap();
    match value.as_i64() {
        Some(integer) => insert.execute(params![user, integer]).unwrap(),
        None => insert.execute(params![user, value.as_str()]).unwrap(),
    };
}
