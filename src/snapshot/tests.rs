mod many_runs;

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use super::members::SelectMembers;
use super::*;
use crate::audience::{
    Action, DestinationName, Guard, Member, MemberBuf, User, UserKind, Value, ValueBuf,
};
use crate::batch::Lines;
use crate::bill::Foreseen;
use crate::diff::{self, Agreement, Follower, Members, Scope};
use crate::event::Computation;
use crate::mapping::StreamName;
use crate::run::{Counts, Outcome, RunId, RunKind, Timestamp};
use crate::stream::{Place, Stream};

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("snapshot.sqlite")
    }

    fn open(&self) -> Snapshot {
        Snapshot::create(&self.path()).unwrap()
    }
}

fn planning(millis: i64) -> Planning {
    planning_for(millis, "s")
}

pub(super) fn planning_for(millis: i64, stream: &str) -> Planning {
    let started_at = Timestamp::from_millis(millis);
    let name = StreamName::parse(stream).unwrap();
    Planning {
        computation: Computation {
            audience: AudienceId::new("members"),
            key: Key::new("members"),
            class: Class::Trait,
            stream: name.clone(),
            run: RunId::at(started_at),
            started_at,
            space_id: None,
        },
        stream: Stream {
            place: Place::Directory("delivered".into()),
            name,
        },
        destination: DestinationName::new("main"),
        name: "Members".to_owned(),
        kind: RunKind::Delta,
        scope: Scope::Changes,
        refresh: false,
        guard: Some(Guard::default()),
        approval: None,
    }
}

/// Counts each chunk as a call, and each of its lines as a record.
fn weigh(lines: &Lines) -> Foreseen {
    let unpacked = Counts {
        requests: 1,
        records: lines.count() as u64,
        ..Counts::default()
    };
    Foreseen {
        unpacked,
        ..Foreseen::default()
    }
}

/// Members as `(user, value)`; a user that starts with `~` has only an anonymous id.
struct List<'a>(&'a [(&'a str, i64)], usize);

impl Members for List<'_> {
    type Error = Infallible;

    fn advance(&mut self) -> Result<bool, Infallible> {
        self.1 += 1;
        Ok(self.1 <= self.0.len())
    }

    fn current(&self) -> Member<'_> {
        let (id, value) = self.0[self.1 - 1];
        let user = match id.strip_prefix('~') {
            Some(id) => User {
                kind: UserKind::AnonymousId,
                id,
            },
            None => User {
                kind: UserKind::UserId,
                id,
            },
        };
        Member {
            user,
            anonymous_id: None,
            value: Value::Integer(value),
            traits: "",
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the source failed")]
    Source,
}

impl From<Infallible> for Failure {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Merges, and fails at the end where `fails` says so.
fn merge<'a>(
    members: &'a [(&'a str, i64)],
    fails: bool,
) -> impl FnOnce(Vec<Delivered<'_>>, &mut [Journal<'_>]) -> Result<Decided, Failure> {
    move |delivered, journals| {
        let follow = |delivered| Follower::new(delivered, Scope::Changes);
        let followers: Result<Vec<_>, _> = delivered.into_iter().map(follow).collect();
        let tallies = diff::merge(&mut List(members, 0), &mut followers?, |feed, change| {
            journals[feed].push(&change).map_err(Failure::from)
        })?;
        if fails {
            return Err(Failure::Source);
        }
        Ok(Decided {
            tallies,
            skipped_rows: 0,
            watermark: Watermark::NotModified,
        })
    }
}

pub(super) fn plan(snapshot: &mut Snapshot, millis: i64, members: &[(&str, i64)]) -> Plan {
    plan_for(snapshot, millis, &["s"], members).remove(0)
}

/// One plan for each of these streams, from one reading.
pub(super) fn plan_for(
    snapshot: &mut Snapshot,
    millis: i64,
    streams: &[&str],
    members: &[(&str, i64)],
) -> Vec<Plan> {
    let plannings = streams.iter().zip((millis..).step_by(2));
    let plannings: Vec<_> = plannings
        .map(|(stream, millis)| planning_for(millis, stream))
        .collect();
    snapshot.plan(&plannings, merge(members, false)).unwrap()
}

pub(super) const ALL: Credit = Credit {
    chunks: 99,
    bytes: usize::MAX,
};

/// Settles the one chunk of a run: which entries the stream accepts, and which are dead.
fn settle(snapshot: &mut Snapshot, run: &JournaledRun, accepted: &[bool], dead: &[usize]) {
    let chunks = snapshot.settle(run, &[], -1, ALL).unwrap();
    assert_eq!(chunks.len(), 1);
    let settled = settled(chunks.into_iter().next().unwrap(), accepted, dead);
    snapshot.settle(run, &[settled], -1, Credit::NONE).unwrap();
}

/// The stream accepts everything.
pub(super) fn settle_all(snapshot: &mut Snapshot, run: &JournaledRun) {
    let accept = |chunk: Chunk| settled(chunk.clone(), &vec![true; chunk.count], &[]);
    let chunks = snapshot.settle(run, &[], -1, ALL).unwrap();
    let settled: Vec<Settled> = chunks.into_iter().map(accept).collect();
    snapshot.settle(run, &settled, -1, Credit::NONE).unwrap();
}

pub(super) fn settled(chunk: Chunk, accepted: &[bool], dead: &[usize]) -> Settled {
    let dead = dead.iter().map(|position| Dead {
        position: *position,
        code: Some("InvalidRecord".to_owned()),
        reason: "too strange".to_owned(),
    });
    Settled {
        chunk,
        accepted: accepted.to_vec(),
        maybe_accepted: Vec::new(),
        dead: dead.collect(),
    }
}

/// The members as `user=value`, and how many changes wait.
fn state(snapshot: &Snapshot) -> (Vec<String>, u64) {
    let waiting = snapshot.waiting().unwrap();
    (
        members_of(snapshot, 1),
        waiting.iter().map(|run| run.waiting).sum(),
    )
}

pub(super) fn members_of(snapshot: &Snapshot, feed: i64) -> Vec<String> {
    let members = "SELECT user, anonymous_id, value FROM membership WHERE feed = ?1 ORDER BY user";
    let mut members =
        SelectMembers::from_query(&snapshot.connection, Some(feed), members, false).unwrap();
    let mut delivered = members.read().unwrap();
    let mut members = Vec::new();
    while delivered.advance().unwrap() {
        let MemberBuf {
            kind, id, value, ..
        } = owned(&delivered.current());
        let sign = if kind == UserKind::AnonymousId {
            "~"
        } else {
            ""
        };
        let ValueBuf::Integer(value) = value else {
            panic!("{value:?}")
        };
        members.push(format!("{sign}{id}={value}"));
    }
    members
}

fn owned(member: &Member<'_>) -> MemberBuf {
    let Value::Integer(value) = member.value else {
        panic!("{:?}", member.value)
    };
    MemberBuf {
        kind: member.user.kind,
        id: member.user.id.to_owned(),
        value: ValueBuf::Integer(value),
        ..MemberBuf::default()
    }
}

#[track_caller]
fn check(snapshot: &Snapshot, members: &[&str], waiting: u64) {
    assert_eq!(
        state(snapshot),
        (
            members.iter().map(|member| (*member).to_owned()).collect(),
            waiting
        )
    );
}

fn rows(snapshot: &Snapshot) -> Vec<i64> {
    ["feed", "run", "chunk", "dead"]
        .map(|table| {
            let count = format!("SELECT count(*) FROM {table}");
            snapshot
                .connection
                .query_row(&count, [], |row| row.get(0))
                .unwrap()
        })
        .into()
}

#[test]
fn a_plan_that_fails_leaves_nothing() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let many: Vec<String> = (0..1_200).map(|n| format!("user_{n:04}")).collect();
    let many: Vec<(&str, i64)> = many.iter().map(|id| (id.as_str(), 1)).collect();
    let error = snapshot
        .plan(&[planning(1)], merge(&many, true))
        .unwrap_err();
    assert!(matches!(error, Failure::Source), "{error:?}");
    assert_eq!(rows(&snapshot), [0; 4]);
    plan(&mut snapshot, 1, &many);
    assert_eq!(rows(&snapshot), [1, 1, 3, 0]);
    check(&snapshot, &[], 1_200);
}

#[test]
fn members_are_what_was_accepted_and_never_what_was_sent() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let first = plan(&mut snapshot, 1, &[("a", 1), ("b", 2), ("c", 3), ("~x", 4)]);
    settle(&mut snapshot, &first.run, &[true, false, true, true], &[]);
    check(&snapshot, &["a=1", "c=3", "~x=4"], 1);
    // What is left comes back with what is known of it, also after a restart.
    drop(snapshot);
    let mut snapshot = folder.open();
    let run = snapshot.waiting().unwrap().remove(0);
    let chunk = snapshot.settle(&run, &[], -1, ALL).unwrap().remove(0);
    assert_eq!(chunk.accepted, [true, false, true, true]);
    settle(&mut snapshot, &run, &[true; 4], &[]);
    check(&snapshot, &["a=1", "b=2", "c=3", "~x=4"], 0);
    assert!(snapshot.settle(&run, &[], -1, ALL).unwrap().is_empty());

    let second = plan(&mut snapshot, 3, &[("a", 1), ("b", 5), ("~x", 4)]);
    let chunks = snapshot.settle(&second.run, &[], -1, ALL).unwrap();
    let actions: Vec<Vec<Action>> = chunks
        .iter()
        .map(|chunk| {
            chunk::changes(&chunk.entries)
                .map(|change| change.unwrap().action)
                .collect()
        })
        .collect();
    assert_eq!(actions, [[Action::Change], [Action::Leave]]);
    let settled: Vec<_> = chunks
        .into_iter()
        .map(|chunk| settled(chunk, &[true], &[]))
        .collect();
    snapshot
        .settle(&second.run, &settled, -1, Credit::NONE)
        .unwrap();
    check(&snapshot, &["a=1", "b=5", "~x=4"], 0);
}

#[test]
fn each_stream_is_told_and_remembered_by_itself() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let plans = plan_for(&mut snapshot, 1, &["s", "t"], &[("a", 1), ("b", 2)]);
    settle(&mut snapshot, &plans[0].run, &[true, true], &[]);
    settle(&mut snapshot, &plans[1].run, &[false, true], &[]);
    assert_eq!(members_of(&snapshot, 1), ["a=1", "b=2"]);
    assert_eq!(members_of(&snapshot, 2), ["b=2"]);
    // What `t` was not told waits for `t` only.
    let waiting = snapshot.waiting().unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].stream.name.as_str(), "t");
    settle(&mut snapshot, &plans[1].run, &[true, true], &[]);

    // A third one gets everyone, and the others nothing.
    let plans = plan_for(&mut snapshot, 9, &["s", "t", "u"], &[("a", 1), ("b", 2)]);
    let planned: Vec<_> = plans.iter().map(|plan| plan.run.waiting).collect();
    assert_eq!(planned, [0, 0, 2]);
    let has_accepted: Vec<_> = plans.iter().map(|plan| plan.run.has_accepted).collect();
    assert_eq!(has_accepted, [true, true, false]);
}

#[test]
fn what_may_have_been_accepted_is_decided_about_until_a_record_id_is_back() {
    use Agreement::{InDoubt, Known, Phantom};

    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(&mut snapshot, 1, &[("a", 1), ("b", 2), ("c", 3)]).run;
    let chunk = snapshot.settle(&run, &[], -1, ALL).unwrap().remove(0);
    let part = Settled {
        maybe_accepted: vec![false, true, false],
        ..settled(chunk, &[true, false, true], &[1])
    };
    snapshot.settle(&run, &[part], -1, Credit::NONE).unwrap();
    let expected = |known: &[(&str, Agreement)]| {
        let known = known.iter().map(|(id, it)| ((*id).to_owned(), *it));
        known.collect::<Vec<_>>()
    };
    let seen = expected(&[("a", Known), ("b", Phantom), ("c", Known)]);
    assert_eq!(agreements(&snapshot), seen);

    // The source changes back before the stream has answered: `b` must still hear of it.
    let planned = plan(&mut snapshot, 3, &[("a", 1), ("c", 4)]);
    assert_eq!(
        (
            planned.tally.added,
            planned.tally.removed,
            planned.run.waiting
        ),
        (0, 1, 2)
    );
    let chunks = snapshot.settle(&planned.run, &[], -1, ALL).unwrap();
    // `c` changes, and that may have been accepted.
    let mut parts: Vec<_> = chunks
        .into_iter()
        .map(|chunk| settled(chunk, &[true], &[]))
        .collect();
    (parts[0].accepted[0], parts[0].dead) =
        (false, settled(parts[0].chunk.clone(), &[], &[0]).dead);
    parts[0].maybe_accepted = vec![true];
    snapshot
        .settle(&planned.run, &parts, -1, Credit::NONE)
        .unwrap();
    let seen = expected(&[("a", Known), ("c", InDoubt)]);
    assert_eq!(agreements(&snapshot), seen);

    let planned = plan(&mut snapshot, 5, &[("a", 1), ("c", 3)]);
    assert_eq!(planned.run.waiting, 1);
    settle_all(&mut snapshot, &planned.run);
    let seen = expected(&[("a", Known), ("c", Known)]);
    assert_eq!(agreements(&snapshot), seen);
}

/// What is refused by the process that has planned it was surely not accepted. Of a process that died, nobody knows.
#[test]
fn a_refused_line_leaves_a_doubt_only_after_an_interruption() {
    for is_interrupted in [false, true] {
        let mut snapshot = Snapshot::empty().unwrap();
        let mut run = plan(&mut snapshot, 1, &[("a", 1), ("b", 2)]).run;
        snapshot.reopen(std::slice::from_ref(&run)).unwrap();
        if is_interrupted {
            run = snapshot.waiting().unwrap().remove(0);
        }
        settle(&mut snapshot, &run, &[true, false], &[1]);
        let agreements = agreements(&snapshot).into_iter();
        let phantoms = agreements.filter(|(_, agreement)| *agreement == Agreement::Phantom);
        assert_eq!(phantoms.count(), usize::from(is_interrupted));
    }
}

/// How well the stream is known to agree about each user of a plan's cursor.
fn agreements(snapshot: &Snapshot) -> Vec<(String, Agreement)> {
    let mut members =
        SelectMembers::of(&snapshot.connection, Some(1), Class::Trait, false).unwrap();
    let mut delivered = members.read().unwrap();
    let mut agreements = Vec::new();
    while delivered.advance().unwrap() {
        agreements.push((
            delivered.current().user.id.to_owned(),
            delivered.agreement(),
        ));
    }
    agreements
}

#[test]
fn the_dead_are_no_members_and_in_nobodys_way() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(&mut snapshot, 1, &[("a", 1), ("b", 2)]).run;
    settle(&mut snapshot, &run, &[false, false], &[1]);
    check(&snapshot, &[], 1);
    // It is not sent again with what waits beside it.
    let chunks = snapshot.settle(&run, &[], -1, ALL).unwrap();
    assert_eq!(chunks[0].dead, [1]);
    // Found dead again, it counts once.
    settle(&mut snapshot, &run, &[true, false], &[1]);
    check(&snapshot, &["a=1"], 0);
    assert_eq!(rows(&snapshot), [1, 1, 1, 1]);
    // The next run decides it anew.
    let tally = plan(&mut snapshot, 3, &[("a", 1), ("b", 2)]).tally;
    assert_eq!((tally.added, tally.removed), (1, 0));
}

#[test]
fn a_later_run_with_the_same_change_makes_it_no_second_member() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    // Both are planned before either is delivered, as no run of ours does.
    let first = plan(&mut snapshot, 1, &[("a", 1)]).run;
    let second = plan(&mut snapshot, 3, &[("a", 1)]).run;
    settle(&mut snapshot, &first, &[true], &[]);
    settle(&mut snapshot, &second, &[true], &[]);
    check(&snapshot, &["a=1"], 0);
}

#[test]
fn held_removals_are_not_in_the_journal() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(&mut snapshot, 1, &[("a", 1), ("b", 2)]).run;
    settle(&mut snapshot, &run, &[true; 2], &[]);
    let held = plan(&mut snapshot, 3, &[]);
    assert_eq!(
        (
            held.held.as_ref().unwrap().removals,
            held.tally.removed,
            held.run.waiting
        ),
        (2, 2, 0)
    );
    check(&snapshot, &["a=1", "b=2"], 0);
    assert!(snapshot.settle(&held.run, &[], -1, ALL).unwrap().is_empty());
}

#[test]
fn a_dry_run_writes_nothing_and_plans_after_what_waits() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(&mut snapshot, 1, &[("a", 1), ("b", 2), ("c", 3), ("~x", 4)]).run;
    settle(&mut snapshot, &run, &[true; 4], &[]);
    snapshot.finish(&run, Outcome::Delivered).unwrap();
    // `a` waits to leave, `b` to change, `d` to enter.
    plan(&mut snapshot, 3, &[("b", 5), ("c", 3), ("d", 6), ("~x", 4)]);
    drop(snapshot);

    let bytes = fs::read(folder.path()).unwrap();
    let mut snapshot = Snapshot::inspect(&folder.path()).unwrap().unwrap();
    let mut dry_run = |members: &[(&str, i64)]| {
        let plans = snapshot.dry_run(&[planning(5)], &[&weigh], merge(members, false));
        let plan = plans.unwrap().remove(0);
        let diff::Tally {
            members,
            delivered,
            added,
            changed,
            removed,
            ..
        } = plan.tally;
        assert_eq!(plan.run.waiting, added + changed + removed);
        assert_eq!(plan.estimate.unwrap().unpacked.records, plan.run.waiting);
        [members, delivered, added, changed, removed]
    };
    assert_eq!(
        dry_run(&[("b", 5), ("c", 3), ("d", 6), ("~x", 4)]),
        [4, 4, 0, 0, 0]
    );
    assert_eq!(
        dry_run(&[("a", 1), ("b", 2), ("c", 3), ("~x", 4)]),
        [4, 4, 1, 1, 1]
    );
    let failed = snapshot.dry_run(&[planning(5)], &[&weigh], merge(&[("a", 1)], true));
    assert!(matches!(failed, Err(Failure::Source)));
    assert_eq!(rows(&snapshot), [1, 2, 3, 0]);
    drop(snapshot);
    assert!(fs::read(folder.path()).unwrap() == bytes);
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1);
}

#[test]
fn a_dry_run_weighs_the_chunks_that_a_plan_writes() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    // Some chunks are full of entries, and some of bytes.
    let ids: Vec<String> = (0..1_300)
        .map(|n| format!("{n:05}{}", "x".repeat(if n < 1_200 { 0 } else { 100_000 })))
        .collect();
    let members: Vec<(&str, i64)> = ids.iter().map(|id| (&**id, 1)).collect();
    let sizes = Mutex::new(Vec::new());
    let count = |lines: &Lines| {
        sizes.lock().unwrap().push(lines.count() as i64);
        weigh(lines)
    };
    let dry_run = |snapshot: &mut Snapshot, members| {
        let plans = snapshot.dry_run(&[planning(3)], &[&count], merge(members, false));
        let estimate = plans.unwrap().remove(0).estimate.unwrap();
        let mut sizes = std::mem::take(&mut *sizes.lock().unwrap());
        sizes.retain(|size| *size > 0);
        sizes.sort_unstable();
        (sizes, estimate.unpacked.records)
    };
    let written = |snapshot: &Snapshot, run: i64| {
        let sql = "SELECT count FROM chunk WHERE run = ?1 ORDER BY count";
        let mut statement = snapshot.connection.prepare(sql).unwrap();
        let counts = statement.query_map([run], |row| row.get(0)).unwrap();
        counts.map(Result::unwrap).collect::<Vec<i64>>()
    };

    let (sizes, records) = dry_run(&mut snapshot, &members);
    assert_eq!(records, 1_300);
    let run = plan(&mut snapshot, 3, &members).run;
    assert_eq!(sizes, written(&snapshot, run.number));
    assert!(
        sizes.len() > 10 && sizes[sizes.len() - 1] == 500,
        "{sizes:?}"
    );
    while let Some(chunk) = snapshot.settle(&run, &[], -1, Credit::ONE).unwrap().pop() {
        let all = vec![true; chunk.count];
        let settled = settled(chunk, &all, &[]);
        snapshot.settle(&run, &[settled], -1, Credit::NONE).unwrap();
    }

    // 600 leave and one enters. Who is held is not counted.
    let changed = [&[("00000a", 1)], &members[600..]].concat();
    assert_eq!(dry_run(&mut snapshot, &changed).1, 1);
    let run = plan(&mut snapshot, 5, &changed).run;
    assert_eq!((run.held, written(&snapshot, run.number)), (600, vec![1]));
}

#[test]
fn a_dry_run_knows_that_the_dead_are_not_delivered() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let members = [("a", 1), ("b", 2), ("c", 3)];
    let run = plan(&mut snapshot, 1, &members).run;
    // `b` is dead, and `c` waits.
    settle(&mut snapshot, &run, &[true, false, false], &[1]);
    let tried = snapshot
        .dry_run(&[planning(3)], &[&weigh], merge(&members, false))
        .unwrap()
        .remove(0);
    assert_eq!((tried.tally.delivered, tried.tally.added), (2, 1));
    settle(&mut snapshot, &run, &[true, false, true], &[]);
    let planned = plan(&mut snapshot, 3, &members);
    assert_eq!(tried.tally, planned.tally);
}

#[test]
fn a_run_that_failed_is_remembered_with_its_reason_or_not_at_all() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let stop =
        "CREATE TEMP TRIGGER stop BEFORE UPDATE ON run BEGIN SELECT RAISE(ABORT, 'stopped'); END";
    snapshot.connection.execute_batch(stop).unwrap();
    let failed = snapshot.fail(&[planning(1)], "no such table");
    assert!(failed.is_err());
    assert_eq!(snapshot.last_started_at().unwrap(), None);
    snapshot
        .connection
        .execute_batch("DROP TRIGGER stop")
        .unwrap();
    snapshot.fail(&[planning(1)], "no such table").unwrap();
    assert!(snapshot.last_started_at().unwrap().is_some());
}

#[test]
fn what_is_no_snapshot_of_ours_is_refused_and_stays_as_it_is() {
    let check = |prepare: &dyn Fn(&PathBuf), words: &str| {
        let folder = Folder::new();
        prepare(&folder.path());
        let bytes = fs::read(folder.path()).unwrap();
        for error in [
            Snapshot::open(&folder.path()).err().unwrap(),
            Snapshot::inspect(&folder.path()).err().unwrap(),
        ] {
            let error = crate::causes::in_one_line(&error);
            assert!(error.contains(words), "{error}");
        }
        assert!(fs::read(folder.path()).unwrap() == bytes);
        assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1);
    };
    let sql =
        |path: &PathBuf, sql: &str| Connection::open(path).unwrap().execute_batch(sql).unwrap();
    check(
        &|path| {
            drop(Snapshot::create(path).unwrap());
            sql(path, "PRAGMA user_version = 99");
        },
        "the snapshot is of version 99, and this audience-sync reads version 1",
    );
    let foreign = "the file is a SQLite database, but not a snapshot of audience-sync";
    check(
        &|path| sql(path, "CREATE TABLE orders (user_id TEXT)"),
        foreign,
    );
    check(&|path| sql(path, "PRAGMA user_version = 1"), foreign);
    check(
        &|path| fs::write(path, "user_id\n".repeat(500)).unwrap(),
        "file is not a database",
    );
}

#[test]
fn only_the_owner_reads_the_snapshot() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    plan(&mut snapshot, 1, &[("a", 1)]);
    let modes: Vec<_> = ["", "-wal", "-shm"]
        .iter()
        .map(|ending| {
            let path = folder.0.path().join(format!("snapshot.sqlite{ending}"));
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        })
        .collect();
    assert_eq!(modes, [0o600; 3]);
}

#[test]
fn looking_at_a_snapshot_that_is_not_there_makes_none() {
    let folder = Folder::new();
    assert!(Snapshot::inspect(&folder.path()).unwrap().is_none());
    assert!(!folder.path().exists());
}

/// A run of two changes, of which the second is dead.
pub(super) fn with_a_letter(snapshot: &mut Snapshot) -> JournaledRun {
    let run = plan(snapshot, 1, &[("a", 1), ("b", 2)]).run;
    settle(snapshot, &run, &[true, false], &[1]);
    run
}

fn letters(snapshot: &Snapshot) -> Vec<String> {
    let mut letters = Vec::new();
    snapshot
        .each_dead_letter(|letter| {
            let LetterContent::Change(_, change) = letter.content else {
                panic!("it is a change");
            };
            letters.push(format!("{}: {}", change.member.user.id, letter.reason));
            Ok::<_, SnapshotError>(())
        })
        .unwrap();
    letters
}

#[test]
fn a_letter_that_is_sent_again_goes_alone_and_is_a_member_once_it_is_accepted() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = with_a_letter(&mut snapshot);
    check(&snapshot, &["a=1"], 0);
    assert_eq!(letters(&snapshot), ["b: too strange"]);
    assert_eq!(snapshot.requeue_dead_letters().unwrap(), 1);
    assert!(letters(&snapshot).is_empty());
    check(&snapshot, &["a=1"], 1);
    assert_eq!(told_about(&snapshot, "b"), ["waits"]);
    let chunks = snapshot.settle(&run, &[], -1, ALL).unwrap();
    assert_eq!((chunks.len(), chunks[0].count), (1, 1));
    settle_all(&mut snapshot, &run);
    check(&snapshot, &["a=1", "b=2"], 0);
    assert_eq!(told_about(&snapshot, "b"), ["delivered"]);
    assert_eq!(snapshot.requeue_dead_letters().unwrap(), 0);
}

#[test]
fn a_letter_of_a_chunk_that_still_waits_is_sent_again_once() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(&mut snapshot, 1, &[("a", 1), ("b", 2)]).run;
    settle(&mut snapshot, &run, &[false, false], &[1]);
    assert_eq!(snapshot.requeue_dead_letters().unwrap(), 1);
    let chunks = snapshot.settle(&run, &[], -1, ALL).unwrap();
    let lines = chunks.iter().map(|chunk| (chunk.count, &*chunk.dead));
    assert_eq!(lines.collect::<Vec<_>>(), [(2, &[1][..]), (1, &[][..])]);
}

/// What the history says of each change of a user.
fn told_about(snapshot: &Snapshot, id: &str) -> Vec<&'static str> {
    let changes = snapshot.changes_of(id).unwrap();
    let state = |change: &ChangeEntry| match change.state {
        ChangeState::Delivered(_) => "delivered",
        ChangeState::Waiting => "waits",
        ChangeState::Dead(_) => "dead",
    };
    changes.iter().map(state).collect()
}

#[test]
fn a_later_plan_takes_the_letters_of_its_feed_and_of_no_other() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    with_a_letter(&mut snapshot);
    let mut others = planning(3);
    others.computation.audience = AudienceId::new("others");
    snapshot.plan(&[others], merge(&[], false)).unwrap();
    let elsewhere = planning_for(5, "elsewhere");
    snapshot.plan(&[elsewhere], merge(&[], false)).unwrap();
    assert_eq!(letters(&snapshot).len(), 1);
    // A plan that comes to nothing decides about nobody.
    let failed = snapshot.plan(&[planning(7)], merge(&[], true));
    assert!(failed.is_err());
    assert_eq!(letters(&snapshot).len(), 1);
    let tally = plan(&mut snapshot, 9, &[("a", 1), ("b", 2)]).tally;
    assert_eq!(tally.added, 1);
    assert!(letters(&snapshot).is_empty());
    assert_eq!(snapshot.requeue_dead_letters().unwrap(), 0);
}

#[test]
fn a_letter_is_kept_however_old_until_it_is_superseded_or_dropped() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    with_a_letter(&mut snapshot);
    let prune = |snapshot: &mut Snapshot| {
        let later = Timestamp::from_millis(Timestamp::now().millis() + 1_000);
        snapshot.prune(later, Duration::ZERO, || true).unwrap();
    };
    prune(&mut snapshot);
    assert_eq!(letters(&snapshot), ["b: too strange"]);
    assert_eq!(rows(&snapshot), [1, 1, 0, 1]);
    assert_eq!(snapshot.drop_dead_letters().unwrap(), 1);
    assert!(letters(&snapshot).is_empty());
    let run = plan(&mut snapshot, 5, &[("a", 1), ("b", 2)]).run;
    settle(&mut snapshot, &run, &[true], &[]);
    prune(&mut snapshot);
    assert_eq!(rows(&snapshot), [1, 2, 0, 0]);
    check(&snapshot, &["a=1", "b=2"], 0);
}
