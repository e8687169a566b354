//! Which way a plan takes, and that each leads to the truth.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use rusqlite::{Connection, OptionalExtension as _};
use tempfile::TempDir;

use super::*;
use crate::audience::{AudienceId, Changes, Class, Guard};
use crate::diff::UserIds;
use crate::event::CallType;
use crate::firehose::Directory;
use crate::mapping::{Pattern, StreamName};
use crate::snapshot::Snapshot;
use crate::source::{Interrupt, Sqlite};
use crate::stream::Place;

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
        let place = Place::Directory("delivered".into());
        let project = Project {
            sources: [(shop.clone(), source)].into(),
            destinations: [(main.clone(), Outlet::new(destination, place, mapping))].into(),
            audiences: Vec::new(),
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
            files: None,
            url: None,
            columns: Default::default(),
            destinations: vec![main],
            guard: None,
            traits: Vec::new(),
            changes: None,
            expect: Default::default(),
            refresh: false,
        };
        Self {
            snapshot: Handle::new(
                Snapshot::create(&folder.path().join("snapshot.sqlite")).unwrap(),
            ),
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
        let streams = Streams::resolve(&self.project, &[]).unwrap();
        let (stop, progress) = (Stop::new(), Progress::default());
        let runner = Runner::new(&self.project, &self.snapshot, &streams, stop, progress);
        let mut reports = runner.run(&self.keyed, &request).await.unwrap();
        reports.pop().unwrap()
    }

    async fn sync(&self) -> Report {
        self.run(Request::default()).await
    }

    fn set_modified(&self, at: SystemTime) {
        let path = self.path("shop.sqlite");
        let file = File::options().write(true).open(path).unwrap();
        file.set_times(FileTimes::new().set_modified(at)).unwrap();
    }

    /// Waits until nothing of the source is young any more.
    fn grow_old(&self) {
        let source = &self.project.sources[&self.keyed.audience.source];
        let deadline = Instant::now() + Duration::from_secs(10);
        while source.fingerprint(&self.keyed.audience).is_err() {
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

    /// What the snapshot knows of the audience.
    fn known<T: rusqlite::types::FromSql>(&self, column: &str) -> Option<T> {
        let snapshot = Connection::open(self.path("snapshot.sqlite")).unwrap();
        let known = snapshot.query_row(&format!("SELECT {column} FROM feed"), [], |row| row.get(0));
        known.optional().unwrap().flatten()
    }

    fn remember(&self, sql: &str) {
        let snapshot = Connection::open(self.path("snapshot.sqlite")).unwrap();
        snapshot.execute_batch(sql).unwrap();
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
        let mut statement = connection.prepare(&self.keyed.audience.query).unwrap();
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

    shop.remember("UPDATE feed SET planned_from = NULL");
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
        (Outcome::Unchanged, Some(2), 1)
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
    // However slow this machine is, an hour from now is not over.
    shop.set_modified(SystemTime::now() + Duration::from_secs(3_600));
    shop.sync().await;
    assert_eq!(shop.known::<String>("planned_from"), None);
    shop.set_modified(SystemTime::now() - Duration::from_secs(3_600));
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
            scope: Scope::Everyone,
            ..Request::default()
        },
        Request {
            approval: Some(Approval::Shown),
            ..Request::default()
        },
    ] {
        assert!(shop.reads(request.clone()).await, "{request:?}");
    }
    for open in [
        "UPDATE run SET outcome = 'failed'",
        "UPDATE run SET outcome = NULL",
        "UPDATE run SET held = 1",
        "UPDATE run SET dead = 1",
        "UPDATE run SET planned = planned + 1",
        "INSERT INTO doubt VALUES (1, 'a', NULL)",
        "UPDATE feed SET planned_by = NULL",
    ] {
        let copy = shop.path("copy.sqlite");
        shop.remember(&format!("VACUUM INTO '{}'", copy.display()));
        let snapshot = Connection::open(&copy).unwrap();
        snapshot.execute_batch(open).unwrap();
        drop(snapshot);
        let original = std::mem::replace(
            &mut shop.snapshot,
            Handle::new(Snapshot::open(&copy).unwrap().unwrap()),
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
        other(|audience| audience.traits = vec!["id".to_owned()]),
        // Nothing is known of the traits that were told.
        other(|audience| audience.refresh = true),
        other(|audience| {
            audience.changes = Some(Changes {
                query: "SELECT id AS user_id, 1 AS is_member FROM users WHERE :since > ''"
                    .to_owned(),
                reconcile: Duration::MAX,
            });
        }),
    ];
    let plain = shop.keyed.clone();
    for keyed in others {
        shop.keyed = keyed;
        assert!(shop.reads(Request::default()).await);
    }
    shop.keyed = plain;
    let name = shop.keyed.audience.source.clone();
    let path = shop.path("shop.sqlite");
    let source = |name: SourceName, path| Source::Sqlite(Sqlite { name, path });
    // The same file by another name.
    let others = [
        source(SourceName::new("other"), path.clone()),
        source(name.clone(), shop.path("link.sqlite")),
    ];
    std::os::unix::fs::symlink(&path, shop.path("link.sqlite")).unwrap();
    for other in others {
        shop.project.sources.insert(name.clone(), other);
        assert!(shop.reads(Request::default()).await);
    }
    shop.project
        .sources
        .insert(name.clone(), source(name, path));
    assert!(!shop.reads(Request::default()).await);
}

fn only(ids: &[&str]) -> Request {
    let ids = ids.iter().map(|id| (*id).into()).collect();
    Request {
        scope: Scope::Users(Arc::new(UserIds::new(ids))),
        ..Request::default()
    }
}

const WATERMARK: &str = "planned_at || ' ' || reconciled_at";

#[tokio::test]
async fn a_run_about_single_users_leaves_the_watermark_to_the_next_sync() {
    let shop = Shop::new(USERS);
    shop.grow_old();
    shop.sync().await;
    let watermark = shop.known::<String>(WATERMARK);
    assert!(watermark.is_some());
    // The source is what it was, and so are all the others.
    let report = shop.run(only(&["a"])).await;
    assert_eq!((report.delivered, report.unknown_users), (1, Some(0)));
    assert!(!shop.reads(Request::default()).await);

    shop.write("DELETE FROM users WHERE id = 'b' OR id IS NULL; INSERT INTO users VALUES ('c', 1), ('d', 1)");
    shop.grow_old();
    let report = shop.run(only(&["c"])).await;
    assert_eq!((report.added, report.removed), (1, 0));
    assert_eq!(shop.known::<String>(WATERMARK), watermark);
    // Should the source become what it was, `c` has yet to leave.
    assert_eq!(shop.known::<String>("planned_from"), None);
    assert!(shop.reads(Request::default()).await);
    let report = shop.sync().await;
    assert_eq!((report.added, report.removed), (1, 1));
    assert_eq!(shop.downstream(), shop.truth());
}

#[tokio::test]
async fn what_a_sync_left_open_is_open_after_a_run_about_single_users() {
    let shop = Shop::new(USERS);
    shop.grow_old();
    shop.sync().await;
    for open in [
        "UPDATE run SET held = 1",
        "UPDATE run SET dead = 1",
        "UPDATE run SET outcome = 'failed'",
    ] {
        shop.remember(&format!("{open} WHERE number = 1"));
        shop.run(only(&["a"])).await;
        assert!(shop.reads(Request::default()).await, "{open}");
        shop.remember("UPDATE run SET held = 0, dead = 0, outcome = 'delivered'");
        assert!(!shop.reads(Request::default()).await);
    }
    // Nor is it dropped as one that others have followed.
    shop.remember("UPDATE run SET planned = 0, at = 0");
    shop.snapshot
        .with(|snapshot| snapshot.prune(Timestamp::now(), Duration::from_secs(1), || true))
        .await
        .unwrap();
    assert!(!shop.reads(Request::default()).await);
}

#[tokio::test]
async fn a_change_query_is_asked_about_all_that_happened_since_the_last_sync() {
    let shop = told(STAMPED, CHANGES);
    shop.sync().await;
    let watermark = shop.known::<String>(WATERMARK);
    shop.write("UPDATE users SET is_member = 1 - is_member, changed_at = current_timestamp");
    let report = shop.run(only(&["a", "c"])).await;
    assert_eq!((report.added, report.removed), (1, 1));
    assert_eq!(shop.known::<String>(WATERMARK), watermark);
    let report = shop.sync().await;
    assert_eq!((report.added, report.removed, report.missed), (0, 1, None));
    assert_eq!(shop.downstream(), shop.truth());
    assert_eq!(report.members, Some(1));
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
                8 => {
                    let modes = ["delete", "persist", "truncate"];
                    format!("PRAGMA journal_mode = {}", modes[random.usize(0..3)])
                }
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
        let before = shop.known::<i64>("planned_at");
        let report = shop.sync().await;
        assert!(
            matches!(report.outcome, Outcome::Delivered | Outcome::Unchanged),
            "{report:?}"
        );
        assert_eq!(shop.downstream(), shop.truth(), "round {round}");
        short += usize::from(before.is_some() && shop.known::<i64>("planned_at") == before);
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
    shop.set_modified(modified);
}

const STAMPED: &str = "
    CREATE TABLE users (id TEXT PRIMARY KEY, is_member, changed_at TEXT DEFAULT current_timestamp);
    INSERT INTO users (id, is_member) VALUES ('a', 1), ('b', 1), ('c', 0)";

/// Asked with a change query.
fn told(setup: &str, changes: &str) -> Shop {
    let mut shop = Shop::new(setup);
    shop.keyed.audience.query = "SELECT id AS user_id FROM users WHERE is_member".to_owned();
    shop.keyed.audience.changes = Some(Changes {
        query: changes.to_owned(),
        reconcile: Duration::from_secs(3_600),
    });
    shop
}

const CHANGES: &str = "SELECT id AS user_id, is_member FROM users WHERE changed_at > :since";

/// Changes that nobody tells of are the proof that nobody was read.
#[tokio::test]
async fn a_change_query_is_followed_until_it_is_time_to_read_everyone() {
    let shop = told(STAMPED, CHANGES);
    assert_eq!(shop.sync().await.added, 2);
    let unsaid = "UPDATE users SET is_member = 0, changed_at = '1997-01-01' WHERE id = 'a'";
    shop.write(&format!(
        "{unsaid}; UPDATE users SET is_member = 1 WHERE id = 'c'"
    ));
    let followed = shop.sync().await;
    assert_eq!(
        (
            followed.members,
            followed.added,
            followed.removed,
            followed.missed
        ),
        (Some(3), 1, 0, None)
    );
    assert_eq!(followed.kind, RunKind::Delta);
    // A file that is as it was is no reason to believe that everything was told.
    shop.grow_old();
    assert_eq!(shop.sync().await.missed, None);
    assert_ne!(shop.downstream(), shop.truth());

    shop.remember("UPDATE feed SET reconciled_at = reconciled_at - 3600001");
    let foreseen = shop
        .run(Request {
            dry_run: true,
            ..Request::default()
        })
        .await;
    let reconciled = shop.sync().await;
    for report in [&foreseen, &reconciled] {
        assert_eq!(
            (report.members, report.removed, report.missed),
            (Some(2), 1, Some(1))
        );
    }
    assert_eq!(shop.downstream(), shop.truth());
    shop.write("UPDATE users SET is_member = 0, changed_at = current_timestamp WHERE id = 'b'");
    assert_eq!(
        (shop.sync().await.removed, shop.downstream()),
        (1, shop.truth())
    );
    shop.remember("UPDATE feed SET reconciled_at = reconciled_at - 3600001");
    shop.write("UPDATE users SET is_member = 1, changed_at = current_timestamp WHERE id = 'b'");
    let reconciled = shop.sync().await;
    assert_eq!((reconciled.added, reconciled.missed), (1, Some(0)));
}

#[tokio::test]
async fn a_change_query_that_tells_the_contrary_has_not_told() {
    let shop = told(STAMPED, &CHANGES.replace("is_member", "1 AS is_member"));
    shop.sync().await;
    shop.write("UPDATE users SET is_member = 0, changed_at = current_timestamp WHERE id = 'a'");
    assert_eq!(shop.sync().await.removed, 0);
    shop.remember("UPDATE feed SET reconciled_at = 0");
    let reconciled = shop.sync().await;
    assert_eq!(
        (reconciled.added, reconciled.removed, reconciled.missed),
        (0, 2, Some(2))
    );
}

/// One that says whom it is asked about makes the time a user.
#[tokio::test]
async fn a_change_query_is_asked_about_the_time_since_the_last_plan() {
    let mut shop = told(STAMPED, "SELECT :since AS user_id, 1 AS is_member");
    let in_sql = |millis: i64| {
        Timestamp::from_millis(millis)
            .to_datetime()
            .format("%Y-%m-%d %H:%M:%S")
            .to_string()
    };
    let sinces = |shop: &Shop| {
        let mut users = shop.downstream();
        users.retain(|user| user.starts_with(char::is_numeric));
        users
    };
    shop.sync().await;
    let mut expected = BTreeSet::new();
    // Plans that lie far apart, and one that cannot be delivered in between.
    for hours in 1..4 {
        let planned_at = shop.known::<i64>("planned_at").unwrap() - hours * 3_600_000;
        shop.remember(&format!("UPDATE feed SET planned_at = {planned_at}"));
        expected.insert(in_sql(planned_at - 60_000));
        // Or else it may be found unchanged, where a machine is slow.
        let touch = |what: &str| {
            let sql = format!("UPDATE users SET changed_at = '{hours} {what}' WHERE id = 'c'");
            shop.write(&sql);
        };
        touch("before");
        let (delivered, aside) = (shop.path("delivered"), shop.path("aside"));
        if hours == 2 {
            fs::rename(&delivered, &aside).unwrap();
            fs::write(&delivered, "in the way").unwrap();
            assert_eq!(shop.sync().await.outcome, Outcome::Undelivered);
            let stuck = shop.sync().await;
            assert_eq!(
                (stuck.outcome, stuck.kind),
                (Outcome::Undelivered, RunKind::Resume)
            );
            fs::remove_file(&delivered).unwrap();
            fs::rename(&aside, &delivered).unwrap();
            let planned_at = shop.known::<i64>("planned_at").unwrap();
            expected.insert(in_sql(planned_at - 60_000));
            touch("after");
        }
        assert_eq!(shop.sync().await.outcome, Outcome::Delivered);
        assert_eq!(sinces(&shop), expected);
    }
    // A query that failed decides nothing, and the next run reads everyone.
    let planned_at = shop.known::<i64>("planned_at");
    let changes = shop.keyed.audience.changes.as_mut().unwrap();
    changes.query = "SELECT :since AS user_id, abs(-9223372036854775808) AS is_member".to_owned();
    assert_eq!(shop.sync().await.removed, expected.len() as u64);
    let planned_before = shop.known::<i64>("planned_at");
    assert!(planned_before > planned_at);
    // What is written as it was changes no file.
    shop.write("UPDATE users SET changed_at = 'later' WHERE id = 'c'");
    let failed = shop.sync().await;
    assert_eq!(
        (failed.outcome, failed.misconfigured),
        (Outcome::Failed, false)
    );
    assert_eq!(shop.known::<i64>("planned_at"), planned_before);
    assert_eq!(shop.sync().await.outcome, Outcome::Unchanged);
    assert!(shop.known::<i64>("planned_at") > planned_before);
}

#[tokio::test]
async fn everyone_is_read_where_a_change_query_cannot_be_enough() {
    let shop = told(STAMPED, CHANGES);
    shop.sync().await;
    let unsaid = |is_member: u8| {
        shop.write(&format!(
            "UPDATE users SET is_member = {is_member}, changed_at = '1997-01-01' WHERE id = 'c'"
        ));
    };
    let reads = async |is_member: u8| {
        unsaid(is_member);
        let report = shop.sync().await;
        (report.added + report.removed == 1, report.missed)
    };
    assert_eq!(reads(1).await, (false, None));
    // Whoever reads everyone and does not ask the change query cannot know what it missed: that is still to be seen.
    let reasons = [
        ("UPDATE run SET outcome = 'failed'", None, false),
        ("UPDATE run SET held = 1", Some(1), true),
        ("UPDATE run SET dead = 1", None, false),
        ("UPDATE feed SET planned_by = 'other'", None, true),
        // A clock was set back.
        (
            "UPDATE feed SET planned_at = planned_at + 1000000",
            None,
            false,
        ),
        ("UPDATE feed SET planned_at = NULL", None, false),
        ("UPDATE feed SET reconciled_at = NULL", None, true),
    ];
    for (is_member, (reason, missed, is_seen)) in (1..).zip(reasons) {
        let before = shop.known::<i64>("reconciled_at");
        shop.remember(reason);
        assert_eq!(reads(is_member % 2).await, (true, missed), "{reason}");
        let after = shop.known::<i64>("reconciled_at");
        assert_eq!(before != after, is_seen, "{reason}");
        assert_eq!(reads((is_member + 1) % 2).await, (false, None), "{reason}");
        // Back to what is downstream.
        unsaid(is_member % 2);
    }
    let reconciled_at = shop.known::<i64>("reconciled_at");
    for request in [
        Request {
            approval: Some(Approval::Shown),
            ..Request::default()
        },
        Request {
            scope: Scope::Everyone,
            ..Request::default()
        },
    ] {
        unsaid(0);
        shop.run(request.clone()).await;
        assert_eq!(shop.downstream(), shop.truth());
        unsaid(1);
        shop.run(request).await;
        assert_eq!(shop.downstream(), shop.truth());
    }
    assert_eq!(shop.known::<i64>("reconciled_at"), reconciled_at);
}

/// What was told to a plan that held it must be told again, or it would count as missed.
#[tokio::test]
async fn what_is_held_was_told_and_what_was_not_told_is_missed_all_the_same() {
    let mut shop = told(
        "CREATE TABLE users (id TEXT PRIMARY KEY, is_member, changed_at TEXT DEFAULT current_timestamp);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
         INSERT INTO users (id, is_member) SELECT 'user ' || i, 1 FROM n",
        CHANGES,
    );
    shop.keyed.audience.guard = Some(Guard::default());
    shop.sync().await;
    let long_ago = |hours: i64| {
        shop.remember(&format!(
            "UPDATE feed SET planned_at = planned_at - {hours} * 3600000"
        ));
    };
    long_ago(2);
    let planned_at = shop.known::<i64>("planned_at");
    // Told of once: an hour later it lies before the last run, had that been complete.
    shop.write("UPDATE users SET is_member = 0, changed_at = datetime('now', '-1 hour') WHERE rowid <= 150");
    let held = |report: &Report| (report.outcome, report.held, report.missed);
    assert_eq!(held(&shop.sync().await), (Outcome::Held, 150, None));
    assert_eq!(shop.known::<i64>("planned_at"), planned_at);
    assert_eq!(held(&shop.sync().await), (Outcome::Held, 150, Some(0)));
    shop.write("DELETE FROM users WHERE rowid = 200");
    assert_eq!(held(&shop.sync().await), (Outcome::Held, 151, Some(1)));
    let reconciled_at = shop.known::<i64>("reconciled_at");
    let request = Request {
        approval: Some(Approval::Shown),
        ..Request::default()
    };
    assert_eq!(shop.run(request).await.removed, 151);
    assert_eq!(shop.known::<i64>("reconciled_at"), reconciled_at);
    assert!(shop.known::<i64>("planned_at") > planned_at);
    assert_eq!(held(&shop.sync().await), (Outcome::Unchanged, 0, None));
    // Of another question nothing is known, not even while its removals are held.
    shop.keyed.audience.query.push_str(" AND rowid < 160");
    shop.keyed.audience.guard = Some(Guard {
        min_removed: 1,
        ..Guard::default()
    });
    for _ in 0..2 {
        assert_eq!(held(&shop.sync().await), (Outcome::Held, 40, None));
        assert_eq!(shop.known::<i64>("planned_at"), None);
    }
    shop.keyed.audience.guard = None;
    assert_eq!(shop.sync().await.removed, 40);
    assert!(shop.known::<i64>("reconciled_at") > reconciled_at);
}

/// However long a plan takes, what is new is new since the source was read.
#[tokio::test]
async fn a_plan_is_of_no_time_that_was_to_come_when_its_source_was_read() {
    let shop = Shop::new(USERS);
    // So that it may be read before its turn.
    shop.write("PRAGMA journal_mode = wal");
    let streams = Streams::resolve(&shop.project, &[]).unwrap();
    let (stop, progress) = (Stop::new(), Progress::default());
    let runner = Runner::new(&shop.project, &shop.snapshot, &streams, stop, progress);
    let request = Request::default();
    let feeds = streams.feeds(&shop.project, std::slice::from_ref(&shop.keyed), &request);
    let known = runner.known_feeds().await.unwrap();
    // The clock was set back.
    let to_come = Timestamp::from_millis(Timestamp::now().millis() + 60_000);
    runner.shared.start_after(Some(to_come));
    let before = Timestamp::now();
    let intended = runner.intend(&feeds, &request, &known);
    let ready = intended.begin(Arc::clone(&runner.shared.turns)).await;
    let begun = Timestamp::now();
    while Timestamp::now() <= begun {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let planned = runner.plan_one(ready, &request).await.unwrap();
    assert_eq!(planned[0].report.members, Some(2));
    let planned_at = shop.known("planned_at").map(Timestamp::from_millis);
    assert!(planned_at >= Some(before) && planned_at <= Some(begun));
}

/// One that compares an integer with text tells of nobody, and would be taken for a quiet one.
#[tokio::test]
async fn a_change_query_is_asked_whether_it_tells_of_anybody_and_a_first_row_is_enough() {
    let setup = "
        CREATE TABLE users (id TEXT, is_member, changed_at INTEGER DEFAULT (unixepoch()));
        INSERT INTO users (id, is_member) VALUES ('a', 0), ('b', 1)";
    let tells = |changes: &str| {
        let shop = told(setup, changes);
        let source = &shop.project.sources[&shop.keyed.audience.source];
        source.tells_of_anybody(&shop.keyed.audience, &Interrupt::default())
    };
    assert!(!tells(CHANGES).unwrap());
    let in_seconds = CHANGES.replace(":since", "unixepoch(:since)");
    assert!(tells(&in_seconds).unwrap());
    // The second row would be one too many.
    let one = in_seconds.replace(
        "is_member FROM",
        "iif(is_member, abs(-9223372036854775808), 0) AS is_member FROM",
    );
    assert!(tells(&one).unwrap());
    assert!(tells(&one.replace("iif(is_member", "iif(NOT is_member")).is_err());
}

#[tokio::test]
async fn the_guard_holds_what_a_change_query_removes() {
    let mut shop = told(
        "CREATE TABLE users (id TEXT PRIMARY KEY, is_member, changed_at TEXT DEFAULT current_timestamp);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
         INSERT INTO users (id, is_member) SELECT 'user ' || i, 1 FROM n",
        CHANGES,
    );
    shop.keyed.audience.guard = Some(Guard::default());
    shop.sync().await;
    shop.write("UPDATE users SET is_member = 0, changed_at = current_timestamp WHERE rowid <= 300");
    let report = shop.sync().await;
    assert_eq!(
        (report.removed, report.held, report.members),
        (300, 0, Some(700))
    );
    shop.write("UPDATE users SET is_member = 0, changed_at = current_timestamp WHERE rowid <= 511");
    shop.write("INSERT INTO users (id, is_member) VALUES ('new', 1)");
    let report = shop.sync().await;
    assert_eq!(
        (report.outcome, report.added, report.removed, report.held),
        (Outcome::Held, 1, 211, 211)
    );
    assert_eq!(report.hold.as_ref().map(|held| held.of), Some(700));
    // It is held again from everyone, as those who were held need not be told of any more.
    shop.remember("UPDATE feed SET planned_at = planned_at + 100");
    assert_eq!(shop.sync().await.held, 211);
    assert_eq!(
        shop.run(Request {
            approval: Some(Approval::Shown),
            ..Request::default()
        })
        .await
        .removed,
        211
    );
    assert_eq!(shop.downstream(), shop.truth());
    shop.write("UPDATE users SET is_member = 0, changed_at = current_timestamp");
    let report = shop.sync().await;
    assert_eq!((report.members, report.held), (Some(0), 490));
}

#[tokio::test]
async fn who_leaves_by_a_change_query_is_known_by_the_ids_and_values_they_entered_with() {
    let mut shop = told(
        "CREATE TABLE users (id, other, is_member, email, changed_at TEXT DEFAULT current_timestamp);
         INSERT INTO users (id, other, is_member, email) VALUES ('a', 'x', 1, 'a@x'), (NULL, 'y', 1, NULL)",
        "SELECT id AS user_id, other AS anonymous_id, is_member, email FROM users WHERE changed_at > :since",
    );
    shop.keyed.audience.query =
        "SELECT id AS user_id, other AS anonymous_id, email FROM users WHERE is_member".to_owned();
    shop.keyed.audience.traits = vec!["email".to_owned()];
    shop.sync().await;
    shop.write(
        "UPDATE users SET is_member = 0, email = 'later', other = iif(id IS NULL, 'y', 'later')",
    );
    shop.write("INSERT INTO users (id, other, is_member, email) VALUES (4, 'z', 1, 'b@x')");
    let report = shop.sync().await;
    assert_eq!((report.added, report.removed), (1, 2));
    let mut lines = Vec::new();
    gather(&shop.path("delivered"), &mut lines);
    let seen = |line: &String| {
        let start = line
            .find("\"userId\"")
            .or(line.find("\"anonymousId\""))
            .unwrap();
        line[start..line.find(",\"context\"").unwrap()].to_owned()
    };
    let mut lines: Vec<_> = lines.iter().map(seen).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            r#""anonymousId":"y","traits":{"members":false}"#,
            r#""anonymousId":"y","traits":{"members":true,"email":null}"#,
            r#""userId":"4","anonymousId":"z","traits":{"members":true,"email":"b@x"}"#,
            r#""userId":"a","anonymousId":"x","traits":{"members":false}"#,
            r#""userId":"a","anonymousId":"x","traits":{"members":true,"email":"a@x"}"#,
        ]
    );
}

/// As long as it tells the truth, nobody can tell a change query from reading everyone.
#[tokio::test]
async fn a_change_query_that_tells_the_truth_leads_to_it() {
    let shop = told(STAMPED, CHANGES);
    let mut random = fastrand::Rng::with_seed(3);
    let (mut followed, mut reconciled) = (0, 0);
    for round in 0..150 {
        for _ in 0..random.usize(0..4) {
            let (user, is_member) = (random.u8(0..30), random.bool());
            shop.write(&format!(
                "INSERT INTO users (id, is_member) VALUES ('user {user}', {is_member})
                 ON CONFLICT (id) DO UPDATE SET is_member = excluded.is_member, changed_at = current_timestamp"
            ));
        }
        if random.u8(0..8) == 0 {
            shop.remember("UPDATE feed SET reconciled_at = 0");
        }
        let report = shop.sync().await;
        assert_eq!(shop.downstream(), shop.truth(), "round {round}");
        assert_eq!(report.members, Some(shop.truth().len() as u64));
        assert!(report.missed.is_none_or(|missed| missed == 0), "{report:?}");
        reconciled += usize::from(report.missed.is_some());
        followed += usize::from(shop.known::<i64>("reconciled_at") < shop.known("planned_at"));
    }
    assert!(followed > 80 && reconciled > 5, "{followed} {reconciled}");
}
