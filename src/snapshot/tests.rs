use std::cell::RefCell;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use tempfile::TempDir;

use super::members::SelectMembers;
use super::*;
use crate::audience::{Action, Change, Guard, Member, MemberBuf, User, UserKind, Value, ValueBuf};
use crate::batch::Lines;
use crate::bill::Foreseen;
use crate::diff::{self, Members, Scope};
use crate::event::Computation;
use crate::mapping::StreamName;
use crate::run::{Counts, Outcome, RunId, RunKind};

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("snapshot.sqlite")
    }

    fn open(&self) -> Snapshot {
        Snapshot::open(&self.path()).unwrap()
    }
}

fn planning(millis: i64, streams: &[&str]) -> Planning {
    let started_at = Timestamp::from_millis(millis);
    Planning {
        computation: Computation {
            audience: AudienceId::new("members"),
            key: Key::new("members"),
            class: Class::Trait,
            destination: DestinationName::new("main"),
            run: RunId::at(started_at),
            started_at,
            space_id: None,
        },
        name: "Members".to_owned(),
        kind: RunKind::Delta,
        streams: streams
            .iter()
            .map(|name| StreamName::parse(name).unwrap())
            .collect(),
        guard: Some(Guard::default()),
        approve: false,
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

type Merged = Result<(diff::Tally, u64), Failure>;

/// Merges, and fails at the end where `fails` says so.
fn merge<'a>(
    members: &'a [(&'a str, i64)],
    fails: bool,
) -> impl FnOnce(&mut Delivered<'_>, &mut Journal<'_>) -> Merged {
    move |delivered, journal| {
        let each = |change: Change<'_>| journal.push(&change).map_err(Failure::from);
        let tally = diff::merge(&mut List(members, 0), delivered, Scope::Changes, each)?;
        if fails {
            Err(Failure::Source)
        } else {
            Ok((tally, 0))
        }
    }
}

pub(super) fn plan(
    snapshot: &mut Snapshot,
    millis: i64,
    streams: &[&str],
    members: &[(&str, i64)],
) -> Plan {
    snapshot
        .plan(&planning(millis, streams), merge(members, false))
        .unwrap()
}

/// Settles every chunk of a run: for each stream, which entries it accepts.
const ALL: Credit = Credit {
    chunks: 9,
    bytes: usize::MAX,
};

fn settle(snapshot: &mut Snapshot, run: &JournaledRun, accepted: &[&[bool]], dead: &[usize]) {
    let chunks = snapshot.settle(run, &[], -1, ALL).unwrap();
    assert_eq!(chunks.len(), 1);
    let settled = settled(chunks.into_iter().next().unwrap(), accepted, dead);
    snapshot.settle(run, &[settled], -1, Credit::NONE).unwrap();
}

/// Every stream accepts everything.
pub(super) fn settle_all(snapshot: &mut Snapshot, run: &JournaledRun) {
    let all = Credit {
        chunks: 99,
        bytes: usize::MAX,
    };
    let accept = |chunk: Chunk| Settled {
        accepted: vec![vec![true; chunk.count]; run.streams.len()],
        chunk,
        dead: Vec::new(),
    };
    let chunks = snapshot.settle(run, &[], -1, all).unwrap();
    let settled: Vec<Settled> = chunks.into_iter().map(accept).collect();
    snapshot.settle(run, &settled, -1, Credit::NONE).unwrap();
}

fn settled(chunk: Chunk, accepted: &[&[bool]], dead: &[usize]) -> Settled {
    let dead = dead.iter().map(|position| Dead {
        position: *position,
        reason: "too long".to_owned(),
        stream: None,
        doubtful: Vec::new(),
    });
    Settled {
        chunk,
        accepted: accepted.iter().map(|stream| stream.to_vec()).collect(),
        dead: dead.collect(),
    }
}

/// The members as `user=value`, and how many changes wait.
fn state(snapshot: &Snapshot) -> (Vec<String>, u64) {
    let members =
        "SELECT user, anonymous_id, value FROM membership WHERE audience = ?1 ORDER BY user";
    let mut members = SelectMembers::from_query(&snapshot.connection, members).unwrap();
    let mut delivered = members.read(Some(1)).unwrap();
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
    let waiting = snapshot.waiting().unwrap();
    (members, waiting.iter().map(|run| run.waiting).sum())
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
    [
        "audience",
        "run",
        "chunk",
        "delivered",
        "partly_delivered",
        "dead",
    ]
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
        .plan(&planning(1, &["s"]), merge(&many, true))
        .unwrap_err();
    assert!(matches!(error, Failure::Source), "{error:?}");
    assert_eq!(rows(&snapshot), [0; 6]);
    plan(&mut snapshot, 1, &["s"], &many);
    assert_eq!(rows(&snapshot), [1, 1, 3, 0, 0, 0]);
    check(&snapshot, &[], 1_200);
}

#[test]
fn members_are_what_was_accepted_and_never_what_was_sent() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let first = plan(
        &mut snapshot,
        1,
        &["s"],
        &[("a", 1), ("b", 2), ("c", 3), ("~x", 4)],
    );
    settle(
        &mut snapshot,
        &first.run,
        &[&[true, false, true, true]],
        &[],
    );
    check(&snapshot, &["a=1", "c=3", "~x=4"], 1);
    // What is left comes back with what is known of it, also after a restart.
    drop(snapshot);
    let mut snapshot = folder.open();
    let run = snapshot.waiting().unwrap().remove(0);
    let chunk = snapshot.settle(&run, &[], -1, ALL).unwrap().remove(0);
    assert_eq!(chunk.accepted, [[true, false, true, true]]);
    settle(&mut snapshot, &run, &[&[true; 4]], &[]);
    check(&snapshot, &["a=1", "b=2", "c=3", "~x=4"], 0);
    assert!(snapshot.settle(&run, &[], -1, ALL).unwrap().is_empty());

    let second = plan(&mut snapshot, 2, &["s"], &[("a", 1), ("b", 5), ("~x", 4)]);
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
        .map(|chunk| settled(chunk, &[&[true]], &[]))
        .collect();
    snapshot
        .settle(&second.run, &settled, -1, Credit::NONE)
        .unwrap();
    check(&snapshot, &["a=1", "b=5", "~x=4"], 0);
}

#[test]
fn a_change_is_delivered_when_every_stream_has_it() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(
        &mut snapshot,
        1,
        &["s", "t"],
        &[("a", 1), ("b", 2), ("c", 3)],
    )
    .run;
    settle(
        &mut snapshot,
        &run,
        &[&[true, true, false], &[true, false, false]],
        &[],
    );
    check(&snapshot, &["a=1"], 2);
    settle(
        &mut snapshot,
        &run,
        &[&[true, true, false], &[true, true, true]],
        &[],
    );
    check(&snapshot, &["a=1", "b=2"], 1);
    settle(&mut snapshot, &run, &[&[true; 3], &[true; 3]], &[]);
    check(&snapshot, &["a=1", "b=2", "c=3"], 0);
    assert_eq!(rows(&snapshot), [1, 1, 1, 1, 0, 0]);
}

#[test]
fn the_dead_are_no_members_and_in_nobodys_way() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(&mut snapshot, 1, &["s", "t"], &[("a", 1), ("b", 2)]).run;
    settle(
        &mut snapshot,
        &run,
        &[&[true, false], &[false, false]],
        &[1],
    );
    check(&snapshot, &[], 1);
    // Found dead again, it counts once.
    settle(&mut snapshot, &run, &[&[true, false], &[true, false]], &[1]);
    check(&snapshot, &["a=1"], 0);
    assert_eq!(rows(&snapshot), [1, 1, 1, 1, 0, 1]);
    // The next run decides it anew.
    let tally = plan(&mut snapshot, 2, &["s", "t"], &[("a", 1), ("b", 2)]).tally;
    assert_eq!((tally.added, tally.removed), (1, 0));
}

#[test]
fn a_later_run_with_the_same_change_makes_it_no_second_member() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    // Both are planned before either is delivered, as no run of ours does.
    let first = plan(&mut snapshot, 1, &["s"], &[("a", 1)]).run;
    let second = plan(&mut snapshot, 2, &["s"], &[("a", 1)]).run;
    settle(&mut snapshot, &first, &[&[true]], &[]);
    settle(&mut snapshot, &second, &[&[true]], &[]);
    check(&snapshot, &["a=1"], 0);
}

#[test]
fn held_removals_are_not_in_the_journal() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(&mut snapshot, 1, &["s"], &[("a", 1), ("b", 2)]).run;
    settle(&mut snapshot, &run, &[&[true; 2]], &[]);
    let held = plan(&mut snapshot, 2, &["s"], &[]);
    assert_eq!(
        (
            held.held.as_ref().unwrap().count,
            held.tally.removed,
            held.run.waiting
        ),
        (2, 2, 0)
    );
    check(&snapshot, &["a=1", "b=2"], 0);
    assert!(snapshot.settle(&held.run, &[], -1, ALL).unwrap().is_empty());
}

/// Their ids are kept no longer than those that were sent.
#[test]
fn whom_a_run_held_is_forgotten_with_its_chunks() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(&mut snapshot, 1, &["s"], &[("a", 1)]).run;
    settle(&mut snapshot, &run, &[&[true]], &[]);
    plan(&mut snapshot, 2, &["s"], &[]);
    let sample = |snapshot: &Snapshot| {
        let hold = snapshot.audiences().unwrap().remove(0).hold.unwrap();
        (hold.count, hold.of, hold.sample)
    };
    let held = vec![HeldUser::UserId("a".to_owned())];
    snapshot.prune(Timestamp::from_millis(2)).unwrap();
    assert_eq!(sample(&snapshot), (1, 1, held));
    snapshot.prune(Timestamp::from_millis(3)).unwrap();
    assert_eq!(sample(&snapshot), (1, 1, Vec::new()));
}

#[test]
fn a_rehearsal_writes_nothing_and_plans_after_what_waits() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(
        &mut snapshot,
        1,
        &["s"],
        &[("a", 1), ("b", 2), ("c", 3), ("~x", 4)],
    )
    .run;
    settle(&mut snapshot, &run, &[&[true; 4]], &[]);
    snapshot.finish(&run, Outcome::Delivered).unwrap();
    // `a` waits to leave, `b` to change, `d` to enter.
    plan(
        &mut snapshot,
        2,
        &["s"],
        &[("b", 5), ("c", 3), ("d", 6), ("~x", 4)],
    );
    drop(snapshot);

    let bytes = fs::read(folder.path()).unwrap();
    let mut snapshot = Snapshot::inspect(&folder.path()).unwrap().unwrap();
    let mut rehearse = |members: &[(&str, i64)]| {
        let plan = snapshot
            .rehearse(&planning(3, &["s", "t"]), &weigh, merge(members, false))
            .unwrap();
        let diff::Tally {
            members,
            delivered,
            added,
            changed,
            removed,
            ..
        } = plan.tally;
        assert_eq!(plan.run.waiting, added + changed + removed);
        assert_eq!(plan.foreseen.unwrap().unpacked.records, plan.run.waiting);
        [members, delivered, added, changed, removed]
    };
    assert_eq!(
        rehearse(&[("b", 5), ("c", 3), ("d", 6), ("~x", 4)]),
        [4, 4, 0, 0, 0]
    );
    assert_eq!(
        rehearse(&[("a", 1), ("b", 2), ("c", 3), ("~x", 4)]),
        [4, 4, 1, 1, 1]
    );
    let failed = snapshot.rehearse(&planning(3, &["s"]), &weigh, merge(&[("a", 1)], true));
    assert!(matches!(failed, Err(Failure::Source)));
    assert_eq!(rows(&snapshot), [1, 2, 3, 1, 0, 0]);
    drop(snapshot);
    assert!(fs::read(folder.path()).unwrap() == bytes);
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1);
}

#[test]
fn a_rehearsal_weighs_the_chunks_that_a_plan_writes() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    // Some chunks are full of entries, and some of bytes.
    let ids: Vec<String> = (0..1_300)
        .map(|n| format!("{n:05}{}", "x".repeat(if n < 1_200 { 0 } else { 100_000 })))
        .collect();
    let members: Vec<(&str, i64)> = ids.iter().map(|id| (&**id, 1)).collect();
    let sizes = RefCell::new(Vec::new());
    let count = |lines: &Lines| {
        sizes.borrow_mut().push(lines.count() as i64);
        weigh(lines)
    };
    let rehearse = |snapshot: &mut Snapshot, members| {
        let plan = snapshot.rehearse(&planning(3, &["s"]), &count, merge(members, false));
        let foreseen = plan.unwrap().foreseen.unwrap();
        let mut sizes = sizes.take();
        sizes.retain(|size| *size > 0);
        sizes.sort_unstable();
        (sizes, foreseen.unpacked.records)
    };
    let written = |snapshot: &Snapshot, run: i64| {
        let sql = "SELECT count FROM chunk WHERE run = ?1 ORDER BY count";
        let mut statement = snapshot.connection.prepare(sql).unwrap();
        let counts = statement.query_map([run], |row| row.get(0)).unwrap();
        counts.map(Result::unwrap).collect::<Vec<i64>>()
    };

    let (sizes, records) = rehearse(&mut snapshot, &members);
    assert_eq!(records, 1_300);
    let run = plan(&mut snapshot, 3, &["s"], &members).run;
    assert_eq!(sizes, written(&snapshot, run.number));
    assert!(
        sizes.len() > 10 && sizes[sizes.len() - 1] == 500,
        "{sizes:?}"
    );
    while let Some(chunk) = snapshot.settle(&run, &[], -1, Credit::ONE).unwrap().pop() {
        let all = vec![true; chunk.count];
        let settled = settled(chunk, &[&all], &[]);
        snapshot.settle(&run, &[settled], -1, Credit::NONE).unwrap();
    }

    // 600 leave and one enters. Who is held is not counted.
    let changed = [&[("00000a", 1)], &members[600..]].concat();
    assert_eq!(rehearse(&mut snapshot, &changed).1, 1);
    let run = plan(&mut snapshot, 4, &["s"], &changed).run;
    assert_eq!((run.held, written(&snapshot, run.number)), (600, vec![1]));
}

#[test]
fn a_rehearsal_foresees_that_the_dead_are_not_delivered() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let members = [("a", 1), ("b", 2), ("c", 3)];
    let run = plan(&mut snapshot, 1, &["s"], &members).run;
    // `b` is dead, and `c` waits.
    settle(&mut snapshot, &run, &[&[true, false, false]], &[1]);
    let rehearsed = snapshot
        .rehearse(&planning(2, &["s"]), &weigh, merge(&members, false))
        .unwrap();
    assert_eq!((rehearsed.tally.delivered, rehearsed.tally.added), (2, 1));
    settle(&mut snapshot, &run, &[&[true, false, true]], &[]);
    let planned = plan(&mut snapshot, 2, &["s"], &members);
    assert_eq!(rehearsed.tally, planned.tally);
}

#[test]
fn a_run_that_failed_is_remembered_with_its_reason_or_not_at_all() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let stop =
        "CREATE TEMP TRIGGER stop BEFORE UPDATE ON run BEGIN SELECT RAISE(ABORT, 'stopped'); END";
    snapshot.connection.execute_batch(stop).unwrap();
    let failed = snapshot.fail(&planning(1, &["s"]), "no such table");
    assert!(failed.is_err());
    assert_eq!(snapshot.last_started_at().unwrap(), None);
    snapshot
        .connection
        .execute_batch("DROP TRIGGER stop")
        .unwrap();
    snapshot
        .fail(&planning(1, &["s"]), "no such table")
        .unwrap();
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
            drop(Snapshot::open(path).unwrap());
            sql(path, "PRAGMA user_version = 99");
        },
        "the snapshot is of version 99, and this audience-sync knows versions up to 5",
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
    plan(&mut snapshot, 1, &["s"], &[("a", 1)]);
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

/// A run of two changes, of which the second stream refuses one and has the other; the first stream has both.
fn with_a_letter(snapshot: &mut Snapshot) -> JournaledRun {
    let run = plan(snapshot, 1, &["s", "t"], &[("a", 1), ("b", 2)]).run;
    let chunk = snapshot.settle(&run, &[], -1, ALL).unwrap().remove(0);
    let mut settled = settled(chunk, &[&[true, true], &[true, false]], &[1]);
    settled.dead[0].stream = Some(1);
    snapshot.settle(&run, &[settled], -1, Credit::NONE).unwrap();
    run
}

fn letters(snapshot: &Snapshot) -> Vec<String> {
    let mut letters = Vec::new();
    snapshot
        .each_dead_letter(|letter| {
            let LetterContent::Change(_, change) = letter.content else {
                panic!("it is a change");
            };
            let stream = letter.stream.map_or("none", StreamName::as_str);
            letters.push(format!("{} at {stream}", change.member.user.id));
            Ok::<_, SnapshotError>(())
        })
        .unwrap();
    letters
}

#[test]
fn a_letter_that_is_revived_goes_to_the_stream_that_refused_it_and_to_no_other() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = with_a_letter(&mut snapshot);
    check(&snapshot, &["a=1"], 0);
    assert_eq!(letters(&snapshot), ["b at t"]);
    assert_eq!(snapshot.revive_dead_letters().unwrap(), 1);
    assert!(letters(&snapshot).is_empty());
    check(&snapshot, &["a=1"], 1);
    let chunks = snapshot.settle(&run, &[], -1, ALL).unwrap();
    assert_eq!(chunks[0].accepted, [[true, true], [true, false]]);
    settle(&mut snapshot, &run, &[&[true, true], &[true, true]], &[]);
    check(&snapshot, &["a=1", "b=2"], 0);
    assert_eq!(rows(&snapshot), [1, 1, 1, 1, 0, 0]);
    assert_eq!(snapshot.revive_dead_letters().unwrap(), 0);
}

/// A dead entry beside others that wait is not sent again with them.
#[test]
fn what_is_dead_is_told_to_whoever_takes_the_chunk_again() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    let run = plan(&mut snapshot, 1, &["s"], &[("a", 1), ("b", 2)]).run;
    let chunk = snapshot.settle(&run, &[], -1, ALL).unwrap().remove(0);
    let mut settled = settled(chunk, &[&[false, false]], &[1]);
    settled.dead[0].stream = Some(0);
    snapshot.settle(&run, &[settled], -1, Credit::NONE).unwrap();
    check(&snapshot, &[], 1);
    let chunks = snapshot.settle(&run, &[], -1, ALL).unwrap();
    assert_eq!(chunks[0].dead, [1]);
    settle(&mut snapshot, &run, &[&[true, false]], &[]);
    check(&snapshot, &["a=1"], 0);
    assert_eq!(letters(&snapshot), ["b at s"]);
}

#[test]
fn a_later_plan_takes_the_letters_of_its_audience_and_of_no_other() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    with_a_letter(&mut snapshot);
    let mut others = planning(2, &["s"]);
    others.computation.audience = AudienceId::new("others");
    snapshot.plan(&others, merge(&[], false)).unwrap();
    let mut elsewhere = planning(3, &["s"]);
    elsewhere.computation.destination = DestinationName::new("elsewhere");
    snapshot.plan(&elsewhere, merge(&[], false)).unwrap();
    assert_eq!(letters(&snapshot), ["b at t"]);
    // A plan that comes to nothing decides about nobody.
    let failed = snapshot.plan(&planning(4, &["s"]), merge(&[], true));
    assert!(failed.is_err());
    assert_eq!(letters(&snapshot), ["b at t"]);
    let tally = plan(&mut snapshot, 5, &["s", "t"], &[("a", 1), ("b", 2)]).tally;
    assert_eq!(tally.added, 1);
    assert!(letters(&snapshot).is_empty());
    assert_eq!(snapshot.revive_dead_letters().unwrap(), 0);
}

#[test]
fn a_letter_is_kept_however_old_until_it_is_superseded() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    with_a_letter(&mut snapshot);
    snapshot.prune(Timestamp::from_millis(9)).unwrap();
    assert_eq!(letters(&snapshot), ["b at t"]);
    let run = plan(&mut snapshot, 4, &["s"], &[("a", 1), ("b", 2)]).run;
    settle(&mut snapshot, &run, &[&[true]], &[]);
    snapshot.prune(Timestamp::from_millis(3)).unwrap();
    assert_eq!(rows(&snapshot), [1, 2, 1, 1, 0, 0]);
}

/// How far each user of a plan's cursor can be relied on.
fn standings(snapshot: &Snapshot) -> Vec<(String, diff::Standing)> {
    let mut members = SelectMembers::of(&snapshot.connection, Some(1), Class::Trait).unwrap();
    let mut delivered = members.read(Some(1)).unwrap();
    let mut standings = Vec::new();
    while delivered.advance().unwrap() {
        standings.push((delivered.current().user.id.to_owned(), delivered.standing()));
    }
    standings
}

#[test]
fn a_user_of_whom_one_stream_has_a_letter_is_unsettled_until_all_have_the_same() {
    use diff::Standing::{Settled, Stranger};

    let folder = Folder::new();
    let mut snapshot = folder.open();
    with_a_letter(&mut snapshot);
    let seen = standings(&snapshot);
    assert_eq!(
        seen,
        [("a".to_owned(), Settled), ("b".to_owned(), Stranger)]
    );
    // The source has changed back, and the first stream must hear of it.
    let planned = plan(&mut snapshot, 2, &["s", "t"], &[("a", 1)]);
    assert_eq!((planned.tally.removed, planned.tally.delivered), (1, 1));
    settle(&mut snapshot, &planned.run, &[&[true], &[true]], &[]);
    assert_eq!(standings(&snapshot), [("a".to_owned(), Settled)]);
    let planned = plan(&mut snapshot, 3, &["s", "t"], &[("a", 1)]);
    assert_eq!(planned.run.waiting, 0);
}

/// A stream that had a `true` and has the `false` is as right as one that never heard of the user.
#[test]
fn a_stream_that_hears_the_truth_is_settled_whatever_another_one_refuses() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    with_a_letter(&mut snapshot);
    let planned = plan(&mut snapshot, 2, &["s", "t"], &[("a", 1)]);
    let chunk = snapshot
        .settle(&planned.run, &[], -1, ALL)
        .unwrap()
        .remove(0);
    let mut settled = settled(chunk, &[&[true], &[false]], &[0]);
    settled.dead[0].stream = Some(1);
    snapshot
        .settle(&planned.run, &[settled], -1, Credit::NONE)
        .unwrap();
    assert_eq!(standings(&snapshot).len(), 1);
}

#[test]
fn a_letter_that_may_have_been_accepted_unsettles_its_user() {
    let folder = Folder::new();
    let mut snapshot = folder.open();
    for (doubtful, count) in [(vec![], 0), (vec![0], 1)] {
        let run = plan(&mut snapshot, 1, &["s"], &[("a", 1)]).run;
        let chunk = snapshot.settle(&run, &[], -1, ALL).unwrap().remove(0);
        let mut settled = settled(chunk, &[&[false]], &[0]);
        (settled.dead[0].stream, settled.dead[0].doubtful) = (Some(0), doubtful);
        snapshot.settle(&run, &[settled], -1, Credit::NONE).unwrap();
        assert_eq!(standings(&snapshot).len(), count);
    }
}
