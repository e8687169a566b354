//! A year and a half of real orders, day by day: what is downstream is the truth after each of them.
//!
//! Through the library and not the binary, as 1,092 runs are too many processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use audience_sync::audience::{
    Audience, AudienceId, Changes, Class, DestinationName, Key, SourceName,
};
use audience_sync::event::CallType;
use audience_sync::firehose::{Destination, Directory};
use audience_sync::mapping::{Mapping, Pattern, StreamName};
use audience_sync::progress::Progress;
use audience_sync::run::Outcome;
use audience_sync::snapshot::{Handle, Snapshot};
use audience_sync::source::{Source, Sqlite};
use audience_sync::stop::Stop;
use audience_sync::stream::Place;
use audience_sync::sync::{Keyed, Outlet, Project, Request, Runner, Streams};
use chrono::{Days, NaiveDate};
use serde_json::{Value, json};

use crate::support::{ORDERS, records};

const MEMBERS: &str = "SELECT DISTINCT user_id FROM orders
    WHERE on_day > (SELECT date(day, '-30 days') FROM today) AND on_day <= (SELECT day FROM today)";
const REVENUE: &str = "SELECT user_id, sum(cents) AS value FROM orders
    WHERE on_day > (SELECT date(day, '-180 days') FROM today) AND on_day <= (SELECT day FROM today) GROUP BY user_id";

pub(crate) struct Order<'a> {
    pub user: &'a str,
    pub day: NaiveDate,
    pub cents: i64,
}

pub(crate) fn orders() -> Vec<Order<'static>> {
    let order = |line: &'static str| {
        let mut fields = line.split(',');
        Order {
            user: fields.next().unwrap(),
            day: fields.next().unwrap().parse().unwrap(),
            cents: fields.nth(1).unwrap().replace('.', "").parse().unwrap(),
        }
    };
    ORDERS.lines().skip(1).map(order).collect()
}

/// What each user is, by user and key. Who was something and is not any more has `false` or `null`.
pub(crate) type Truth<'a> = BTreeMap<(&'a str, &'static str), Value>;

/// Moves the truth on to a day, and counts what has changed.
pub(crate) fn move_on<'a>(truth: &mut Truth<'a>, orders: &[Order<'a>], day: NaiveDate) -> usize {
    let (month, half_year) = (day - Days::new(30), day - Days::new(180));
    let mut today = Truth::new();
    for order in orders.iter().filter(|order| order.day <= day) {
        if order.day > month {
            today.insert((order.user, "members"), json!(true));
        }
        if order.day > half_year {
            let revenue = today.entry((order.user, "revenue")).or_insert(json!(0));
            *revenue = json!(revenue.as_i64().unwrap() + order.cents);
        }
    }
    for (user, key) in truth.keys() {
        let gone = if *key == "members" {
            json!(false)
        } else {
            json!(null)
        };
        today.entry((user, key)).or_insert(gone);
    }
    let changes = today
        .iter()
        .filter(|(user, value)| truth.get(*user) != Some(*value));
    let changes = changes.count();
    *truth = today;
    changes
}

pub(crate) fn audience(key: &str, class: Class, query: &str) -> Keyed {
    let audience = Audience {
        id: AudienceId::new(key),
        key: Key::new(key),
        key_is_explicit: false,
        name: key.to_owned(),
        class,
        source: SourceName::new("shop"),
        query: query.to_owned(),
        files: None,
        url: None,
        columns: Default::default(),
        destinations: vec![DestinationName::new("main")],
        guard: None,
        traits: Vec::new(),
        changes: None,
        expect: Default::default(),
        refresh: false,
    };
    Keyed {
        key: audience.key.clone(),
        audience,
    }
}

fn sqlite(folder: &Path) -> Source {
    Source::Sqlite(Sqlite {
        name: SourceName::new("shop"),
        path: folder.join("shop.sqlite"),
    })
}

/// With a source `shop`, and a directory to deliver to.
pub(crate) fn project(folder: &Path, source: Source) -> Project {
    let (shop, main) = (SourceName::new("shop"), DestinationName::new("main"));
    let mapping = Mapping {
        rows: vec![(
            Pattern::Type(CallType::Identify),
            vec![StreamName::parse("members").unwrap()],
        )],
        ..Mapping::default()
    };
    let directory = Directory::new(folder.join("delivered"));
    let outlet = Outlet::new(
        Destination::directory(main.clone(), false, directory),
        Place::Directory("delivered".into()),
        mapping,
    );
    Project {
        sources: [(shop, source)].into(),
        destinations: [(main, outlet)].into(),
        audiences: Vec::new(),
        space_id: None,
        history: std::time::Duration::MAX,
    }
}

/// What a consumer knows: the latest value by user and key, in whatever order records arrive.
#[derive(Default)]
pub(crate) struct Downstream {
    latest: BTreeMap<(String, String), (String, Value)>,
    message_ids: BTreeSet<String>,
}

impl Downstream {
    /// Takes the files that have arrived, and counts their records.
    pub(crate) fn take(&mut self, delivered: &Path) -> usize {
        let records = records(delivered);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        for record in &records {
            assert!(
                self.message_ids.insert(text(&record["messageId"])),
                "{record}"
            );
            for (key, value) in record["traits"].as_object().unwrap() {
                let said = (text(&record["timestamp"]), value.clone());
                let place = (text(&record["userId"]), key.clone());
                if let Some(before) = self.latest.insert(place, said.clone()) {
                    assert!(before.0 < said.0, "{record}");
                    assert_ne!(before.1, said.1, "{record}");
                }
            }
        }
        if !records.is_empty() {
            fs::remove_dir_all(delivered).unwrap();
        }
        records.len()
    }

    #[track_caller]
    pub(crate) fn is(&self, truth: &Truth<'_>, day: NaiveDate) {
        assert_eq!(self.latest.len(), truth.len(), "{day}");
        // Both are in order of user and key.
        for (found, expected) in self.latest.iter().zip(truth) {
            let ((user, key), (_, value)) = found;
            assert_eq!(
                ((user.as_str(), key.as_str()), value),
                (*expected.0, expected.1),
                "{day}"
            );
        }
    }
}

#[tokio::test]
async fn real_orders_leave_the_truth_downstream_after_every_day() {
    let folder = tempfile::tempdir().unwrap();
    let (orders, delivered) = (orders(), folder.path().join("delivered"));
    let mut shop = rusqlite::Connection::open(folder.path().join("shop.sqlite")).unwrap();
    fill(&mut shop, &orders);

    let (project, keyed) = (
        project(folder.path(), sqlite(folder.path())),
        [
            audience("members", Class::Audience, MEMBERS),
            audience("revenue", Class::Trait, REVENUE),
        ],
    );
    let snapshot = Handle::new(Snapshot::create(&folder.path().join("snapshot.sqlite")).unwrap());
    let streams = Streams::resolve(&project, &[]).unwrap();
    let runner = Runner::new(
        &project,
        &snapshot,
        &streams,
        Stop::new(),
        Progress::default(),
    );
    let sync = async || {
        let mut records = 0;
        for keyed in &keyed {
            for report in runner.run(keyed, &Request::default()).await.unwrap() {
                assert!(
                    matches!(report.outcome, Outcome::Delivered | Outcome::Unchanged),
                    "{report:?}"
                );
                records += report.counts.records as usize;
            }
        }
        records
    };

    let (mut truth, mut downstream, mut total) = (Truth::new(), Downstream::default(), 0);
    let (first, last) = ("1997-01-01".parse().unwrap(), "1998-06-30".parse().unwrap());
    for day in NaiveDate::iter_days(&first).take_while(|day| *day <= last) {
        shop.execute("UPDATE today SET day = ?1", [day.to_string()])
            .unwrap();
        let changes = move_on(&mut truth, &orders, day);
        assert_eq!(sync().await, changes, "{day}");
        assert_eq!(downstream.take(&delivered), changes, "{day}");
        downstream.is(&truth, day);
        assert_eq!(sync().await, 0, "{day}");
        assert_eq!(downstream.take(&delivered), 0, "{day}");
        total += changes;
    }
    assert_eq!((orders.len(), total), (6_919, 21_322));
}

/// Who ordered today, and whose orders have become too old: the query tells what each day changes.
const CHANGES: &str = "SELECT DISTINCT user_id, EXISTS (SELECT 1 FROM orders AS other WHERE other.user_id = orders.user_id
        AND other.on_day > date(day, '-30 days') AND other.on_day <= day) AS is_member
    FROM orders JOIN today ON on_day IN (day, date(day, '-30 days')) WHERE :since IS NOT NULL";

#[tokio::test]
async fn real_orders_told_by_their_changes_leave_the_truth_downstream_after_every_day() {
    let folder = tempfile::tempdir().unwrap();
    let (orders, delivered) = (orders(), folder.path().join("delivered"));
    let mut shop = rusqlite::Connection::open(folder.path().join("shop.sqlite")).unwrap();
    fill(&mut shop, &orders);
    let project = project(folder.path(), sqlite(folder.path()));
    let mut keyed = audience("members", Class::Audience, MEMBERS);
    keyed.audience.changes = Some(Changes {
        query: CHANGES.to_owned(),
        reconcile: std::time::Duration::MAX,
    });
    let snapshot = Handle::new(Snapshot::create(&folder.path().join("snapshot.sqlite")).unwrap());
    let streams = Streams::resolve(&project, &[]).unwrap();
    let runner = Runner::new(
        &project,
        &snapshot,
        &streams,
        Stop::new(),
        Progress::default(),
    );
    let (mut truth, mut downstream) = (Truth::new(), Downstream::default());
    let (first, last) = ("1997-01-01".parse().unwrap(), "1997-12-31".parse().unwrap());
    for day in NaiveDate::iter_days(&first).take_while(|day| *day <= last) {
        shop.execute("UPDATE today SET day = ?1", [day.to_string()])
            .unwrap();
        move_on(&mut truth, &orders, day);
        truth.retain(|(_, key), _| *key == "members");
        let reports = runner.run(&keyed, &Request::default()).await.unwrap();
        let members = truth.values().filter(|value| **value == json!(true));
        assert_eq!(reports[0].members, Some(members.count() as u64), "{day}");
        downstream.take(&delivered);
        downstream.is(&truth, day);
    }
    let last = rusqlite::Connection::open(folder.path().join("snapshot.sqlite")).unwrap();
    let everyone_was_read_once =
        "SELECT reconciled_at <= (SELECT min(started_at) FROM run) FROM feed";
    assert_eq!(
        last.query_row(everyone_was_read_once, [], |row| row.get(0)),
        Ok(true)
    );
}

fn fill(shop: &mut rusqlite::Connection, orders: &[Order<'_>]) {
    // Nothing here needs to outlive a power cut.
    shop.pragma_update(None, "synchronous", "off").unwrap();
    let transaction = shop.transaction().unwrap();
    transaction
        .execute_batch(
            "CREATE TABLE today (day TEXT); INSERT INTO today VALUES ('');
             CREATE TABLE orders (user_id TEXT, on_day TEXT, cents INTEGER);
             CREATE INDEX by_user ON orders (user_id, on_day, cents)",
        )
        .unwrap();
    for Order { user, day, cents } in orders {
        transaction
            .execute(
                "INSERT INTO orders VALUES (?1, ?2, ?3)",
                rusqlite::params![user, day.to_string(), cents],
            )
            .unwrap();
    }
    transaction.commit().unwrap();
}
