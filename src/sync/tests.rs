//! Which way a plan takes, and that each leads to the truth.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _};
use tempfile::TempDir;

use super::*;
use crate::audience::{Class, Guard};
use crate::event::CallType;
use crate::firehose::Directory;
use crate::mapping::{Pattern, StreamName};
use crate::snapshot::Snapshot;
use crate::source::Sqlite;

struct Shop {
    folder: TempDir,
    project: Project,
    snapshot: Handle,
    keyed: Keyed,
}

const QUERY: &str = "SELECT id AS user_id FROM users";

impl Shop {
    fn new(setup: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.sqlite");
        Connection::open(&path)
            .unwrap()
            .execute_batch(setup)
            .unwrap();
        let (shop, main) = (SourceName::new("shop"), DestinationName::new("main"));
        let source = Source::Sqlite(Sqlite {
            name: shop.clone(),
            path,
        });
        let mapping = Mapping {
            rows: vec![(
                Pattern::Type(CallType::Identify),
                vec![StreamName::parse("members").unwrap()],
            )],
            ..Mapping::default()
        };
        let directory = Directory::new(folder.path().join("delivered"));
        let destination = Destination::directory(main.clone(), false, directory);
        let project = Project {
            sources: [(shop.clone(), source)].into(),
            destinations: [(main.clone(), Outlet::new(destination, mapping))].into(),
            space_id: None,
            history: Duration::MAX,
        };
        let audience = Audience {
            id: AudienceId::new("members"),
            key: Key::new("members"),
            key_is_explicit: false,
            name: "Members".to_owned(),
            class: Class::Audience,
            source: shop,
            query: QUERY.to_owned(),
            destinations: vec![main],
            guard: None,
            traits: Vec::new(),
            changes: None,
        };
        Self {
            snapshot: Handle::new(Snapshot::open(&folder.path().join("snapshot.sqlite")).unwrap()),
            keyed: Keyed {
                key: audience.key.clone(),
                audience,
            },
            project,
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn connection(&self) -> Connection {
        Connection::open(self.path("shop.sqlite")).unwrap()
    }

    fn write(&self, sql: &str) {
        self.connection().execute_batch(sql).unwrap();
    }

    async fn run(&self, request: Request) -> Report {
        let runner = Runner {
            project: &self.project,
            snapshot: &self.snapshot,
            stop: Stop::new(),
            progress: Progress::default(),
        };
        let mut reports = runner.run(&self.keyed, request).await.unwrap();
        reports.pop().unwrap()
    }

    async fn sync(&self) -> Report {
        self.run(Request::default()).await
    }

    /// Waits until nothing of the source is young any more.
    fn grow_old(&self) {
        let source = &self.project.sources[&self.keyed.audience.source];
        let deadline = Instant::now() + Duration::from_secs(10);
        while source.fingerprint().is_none() {
            assert!(Instant::now() < deadline, "the source is in doubt for ever");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Whether a sync would read the source: it cannot while it is locked.
    async fn reads(&self, request: Request) -> bool {
        let writer = self.connection();
        writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let report = self
            .run(Request {
                dry_run: true,
                ..request
            })
            .await;
        writer.execute_batch("ROLLBACK").unwrap();
        report.outcome == Outcome::Failed
    }

    fn remember(&self, sql: &str) {
        let snapshot = Connection::open(self.path("snapshot.sqlite")).unwrap();
        snapshot.execute_batch(sql).unwrap();
    }

    /// When the source was last read.
    fn planned_at(&self) -> Option<i64> {
        let snapshot = Connection::open(self.path("snapshot.sqlite")).unwrap();
        let planned_at =
            snapshot.query_row("SELECT planned_at FROM audience", [], |row| row.get(0));
        planned_at.optional().unwrap()
    }

    /// Whom a consumer takes for a member.
    fn downstream(&self) -> BTreeSet<String> {
        let mut lines = Vec::new();
        gather(&self.path("delivered"), &mut lines);
        let parse = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let mut records: Vec<_> = lines.iter().map(parse).collect();
        records.sort_by_key(|record| record["timestamp"].as_str().unwrap().to_owned());
        let mut members = BTreeSet::new();
        for record in records {
            let user = record["userId"].as_str().unwrap().to_owned();
            match record["traits"]["members"] == true {
                true => members.insert(user),
                false => members.remove(&user),
            };
        }
        members
    }

    fn truth(&self) -> BTreeSet<String> {
        let connection = self.connection();
        let mut statement = connection.prepare(QUERY).unwrap();
        let users = statement.query_map([], |row| row.get(0)).unwrap();
        users.map(Result::unwrap).collect()
    }
}

fn gather(folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, lines);
        } else {
            lines.extend(fs::read_to_string(path).unwrap().lines().map(str::to_owned));
        }
    }
}

const USERS: &str =
    "CREATE TABLE users (id TEXT, age); INSERT INTO users VALUES ('a', 1), ('b', 2), (NULL, 3)";

/// What a report says, apart from which run it is and how long it took.
fn said(report: &Report) -> String {
    let mut said = serde_json::to_value(report).unwrap();
    said["run"].take();
    said["seconds"].take();
    said.to_string()
}

#[tokio::test]
async fn an_unchanged_source_is_not_read_again_and_reported_as_if_it_were() {
    let shop = Shop::new(USERS);
    shop.grow_old();
    assert_eq!(shop.sync().await.outcome, Outcome::Delivered);
    assert!(!shop.reads(Request::default()).await);
    let short = shop.sync().await;
    let foreseen = shop
        .run(Request {
            dry_run: true,
            ..Request::default()
        })
        .await;
    assert!(!shop.reads(Request::default()).await);

    shop.remember("UPDATE audience SET planned_from = NULL");
    assert!(shop.reads(Request::default()).await);
    let seen = shop
        .run(Request {
            dry_run: true,
            ..Request::default()
        })
        .await;
    let long = shop.sync().await;
    assert_eq!(said(&short), said(&long));
    assert_eq!(said(&foreseen), said(&seen));
    assert_eq!(
        (short.outcome, short.members, short.skipped_rows),
        (Outcome::Unchanged, 2, 1)
    );
    let runs = "SELECT group_concat(kind || outcome || members || skipped_rows || (finished_at IS NULL), ' ') FROM run";
    let snapshot = Connection::open(shop.path("snapshot.sqlite")).unwrap();
    let runs: String = snapshot.query_row(runs, [], |row| row.get(0)).unwrap();
    assert_eq!(
        runs,
        "firstdelivered210 deltaunchanged210 deltaunchanged210"
    );
}

#[tokio::test]
async fn a_source_that_was_young_when_it_was_read_is_read_again() {
    let shop = Shop::new(USERS);
    shop.sync().await;
    shop.grow_old();
    assert!(shop.reads(Request::default()).await);
    shop.sync().await;
    assert!(!shop.reads(Request::default()).await);
}

#[tokio::test]
async fn what_was_asked_for_or_left_open_is_read() {
    let mut shop = Shop::new(USERS);
    shop.grow_old();
    shop.sync().await;
    for request in [
        Request {
            resync: true,
            ..Request::default()
        },
        Request {
            approve: true,
            ..Request::default()
        },
    ] {
        assert!(shop.reads(request).await, "{request:?}");
    }
    for open in [
        "UPDATE run SET outcome = 'failed'",
        "UPDATE run SET outcome = NULL",
        "UPDATE run SET held = 1",
        "UPDATE run SET dead = 1",
        "UPDATE run SET planned = planned + 1",
        "INSERT INTO unsettled VALUES (1, 'a', 'members', NULL)",
        "UPDATE audience SET planned_by = NULL",
    ] {
        let copy = shop.path("copy.sqlite");
        shop.remember(&format!("VACUUM INTO '{}'", copy.display()));
        let snapshot = Connection::open(&copy).unwrap();
        snapshot.execute_batch(open).unwrap();
        drop(snapshot);
        let original = std::mem::replace(
            &mut shop.snapshot,
            Handle::new(Snapshot::open(&copy).unwrap()),
        );
        assert!(shop.reads(Request::default()).await, "{open}");
        shop.snapshot = original;
        fs::remove_file(copy).unwrap();
    }
    assert!(!shop.reads(Request::default()).await);
    let other = |change: fn(&mut Audience)| {
        let mut keyed = shop.keyed.clone();
        change(&mut keyed.audience);
        keyed
    };
    let others = [
        other(|audience| audience.query.push(' ')),
        other(|audience| audience.query = "SELECT id AS user_id, age FROM users".to_owned()),
        other(|audience| audience.class = Class::Trait),
    ];
    for keyed in others {
        shop.keyed = keyed;
        assert!(shop.reads(Request::default()).await);
    }
}

#[tokio::test]
async fn what_is_held_is_decided_anew_from_a_source_that_has_not_changed() {
    let mut shop = Shop::new(USERS);
    shop.keyed.audience.guard = Some(Guard::default());
    shop.sync().await;
    shop.write("DELETE FROM users");
    shop.grow_old();
    assert_eq!(shop.sync().await.held, 2);
    assert_eq!(shop.sync().await.held, 2);
    shop.keyed.audience.guard = None;
    assert_eq!(shop.sync().await.removed, 2);
    assert!(!shop.reads(Request::default()).await);
    assert_eq!(shop.downstream(), shop.truth());
}

#[tokio::test]
async fn a_query_that_reads_the_clock_is_asked_every_time() {
    let mut shop = Shop::new(USERS);
    shop.keyed.audience.query = "SELECT id FROM users WHERE date('now') > '1997-01-01'".to_owned();
    shop.grow_old();
    shop.sync().await;
    assert!(shop.reads(Request::default()).await);
}

/// Whatever is done to a source between two syncs, in whatever way it is kept, and with whatever times its files have.
#[tokio::test]
async fn whatever_happens_to_a_source_the_next_sync_finds_it() {
    let shop = Shop::new("CREATE TABLE users (id TEXT); CREATE TABLE other (x)");
    let mut random = fastrand::Rng::with_seed(7);
    let mut open: Option<Connection> = None;
    let (mut short, mut saved) = (0, false);
    for round in 0..150 {
        for _ in 0..random.usize(0..3) {
            let writer = open.take().unwrap_or_else(|| shop.connection());
            writer.pragma_update(None, "synchronous", "off").unwrap();
            let user = random.u8(0..20);
            let sql = match random.u8(0..12) {
                0..3 => format!("INSERT INTO users VALUES ('user {user:02}')"),
                // In its place: no page is added, and in WAL mode the first one is left alone.
                3..6 => format!(
                    "UPDATE users SET id = 'user {user:02}' WHERE rowid = (SELECT max(rowid) FROM users)"
                ),
                6 => format!("DELETE FROM users WHERE id > 'user {user:02}'"),
                7 => "PRAGMA journal_mode = wal".to_owned(),
                8 => "PRAGMA journal_mode = delete".to_owned(),
                9 => "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
                10 => "VACUUM".to_owned(),
                _ => "BEGIN; INSERT INTO other VALUES (1); ROLLBACK".to_owned(),
            };
            writer.execute_batch(&sql).unwrap();
            match random.u8(0..6) {
                0..3 => open = Some(writer),
                3 => drop(writer),
                // As a backup is taken, and put back.
                4 => {
                    writer
                        .execute_batch("PRAGMA journal_mode = delete")
                        .unwrap();
                    drop(writer);
                    fs::copy(shop.path("shop.sqlite"), shop.path("saved")).unwrap();
                    saved = true;
                }
                _ if saved => {
                    writer
                        .execute_batch("PRAGMA journal_mode = delete")
                        .unwrap();
                    drop(writer);
                    put_back(&shop, random.bool());
                }
                _ => {}
            }
        }
        if random.bool() {
            shop.grow_old();
        }
        let before = shop.planned_at();
        let report = shop.sync().await;
        assert!(
            matches!(report.outcome, Outcome::Delivered | Outcome::Unchanged),
            "{report:?}"
        );
        assert_eq!(shop.downstream(), shop.truth(), "round {round}");
        short += usize::from(before.is_some() && shop.planned_at() == before);
    }
    assert!(short > 20, "{short}");
}

fn put_back(shop: &Shop, in_its_place: bool) {
    let (path, saved) = (shop.path("shop.sqlite"), shop.path("saved"));
    let modified = path.metadata().unwrap().modified().unwrap();
    if in_its_place {
        fs::write(&path, fs::read(&saved).unwrap()).unwrap();
    } else {
        fs::copy(&saved, shop.path("copy")).unwrap();
        fs::rename(shop.path("copy"), &path).unwrap();
    }
    let file = File::options().write(true).open(&path).unwrap();
    file.set_times(FileTimes::new().set_modified(modified))
        .unwrap();
}
