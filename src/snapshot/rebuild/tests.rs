use super::*;
use crate::audience::{Change, Member, User, UserKind, Value};
use crate::event::{Computation, Identify, Landed};
use crate::mapping::StreamName;
use crate::run::{RunId, Timestamp};
use crate::snapshot::Snapshot;
use crate::stream::Place;

/// Takes a record as it would have been delivered; `value` is `None` for one who has left.
fn push(rebuild: &mut Rebuild, run: &Computation, user: &str, value: Option<i64>) {
    push_to(rebuild, &stream(), run, user, value);
}

fn push_to(
    rebuild: &mut Rebuild,
    stream: &Stream,
    run: &Computation,
    user: &str,
    value: Option<i64>,
) {
    let member = Member {
        user: User {
            kind: UserKind::UserId,
            id: user,
        },
        anonymous_id: None,
        value: Value::Integer(value.unwrap_or_default()),
        traits: "",
    };
    let action = value.map_or(Action::Leave, |_| Action::Enter);
    let mut line = Vec::new();
    Identify::new(run).render(&Change { action, member }, &mut line);
    let line = String::from_utf8(line).unwrap();
    let Landed::Ours(statement) = Landed::parse(&line).unwrap() else {
        panic!("{line}");
    };
    rebuild.push(stream, &statement).unwrap();
}

fn stream() -> Stream {
    Stream {
        place: Place::Directory("delivered".into()),
        name: StreamName::parse("members").unwrap(),
    }
}

fn run(millis: i64) -> Computation {
    let started_at = Timestamp::from_millis(millis);
    Computation {
        audience: AudienceId::new("total"),
        key: Key::new("total"),
        class: Class::Trait,
        stream: StreamName::parse("members").unwrap(),
        run: RunId::at(started_at),
        started_at,
        space_id: None,
    }
}

#[test]
fn any_number_of_runs_is_counted() {
    const RUNS: i64 = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.sqlite");
    let mut rebuild = Rebuild::new().unwrap();
    let runs: Vec<_> = (0..RUNS)
        .map(|number| run(1_795_428_000_000 + 2 * number))
        .collect();
    // Backwards, and each user in each run.
    for (number, run) in runs.iter().enumerate().rev() {
        push(&mut rebuild, run, "a", Some(number as i64 / 2));
        push(&mut rebuild, run, "b", (number % 2 == 0).then_some(1));
    }
    let restored = rebuild.write(&path, &Unsaid::default()).unwrap();
    let found = &restored.feeds[0];
    assert_eq!(
        (found.members, found.runs, found.records, found.left),
        (1, RUNS as u64, 2 * RUNS as u64, 1)
    );
    let snapshot = Snapshot::inspect(&path).unwrap().unwrap();
    let mut numbers = Vec::new();
    snapshot
        .each_run::<SnapshotError>(None, u64::MAX, |run| {
            numbers.push((
                run.id,
                run.kind,
                run.added,
                run.changed,
                run.removed,
                run.members,
            ));
            Ok(())
        })
        .unwrap();
    numbers.reverse();
    let expected: Vec<_> = (0..RUNS)
        .map(|number| {
            let run = runs[number as usize].run;
            match number {
                0 => (run, RunKind::First, 2, 0, 0, 2),
                // `a` is told again what is known.
                _ if number % 2 == 1 => (run, RunKind::Resync, 0, 0, 1, 1),
                _ => (run, RunKind::Delta, 1, 1, 0, 2),
            }
        })
        .collect();
    assert_eq!(numbers, expected);
    assert_eq!(
        snapshot.last_started_at().unwrap(),
        Some(runs[RUNS as usize - 1].started_at)
    );
}

#[test]
fn records_that_contradict_each_other_decide_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.sqlite");
    let mut rebuild = Rebuild::new().unwrap();
    let run = run(1_795_428_000_000);
    push(&mut rebuild, &run, "a", Some(1));
    push(&mut rebuild, &run, "a", Some(2));
    let error = rebuild.write(&path, &Unsaid::default()).unwrap_err();
    let words = format!(
        "the records of run {} do not agree on what they say",
        run.run
    );
    assert!(error.to_string().starts_with(&words), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_file_is_whole_without_others_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("yet/to be made/snapshot.sqlite");
    let mut rebuild = Rebuild::new().unwrap();
    assert!(rebuild.is_empty());
    push(&mut rebuild, &run(1_795_428_000_000), "a", Some(1));
    assert!(!rebuild.is_empty());
    rebuild.write(&path, &Unsaid::default()).unwrap();
    let beside = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(beside, 1);
    assert!(in_the_way(&path).is_some());
    assert!(Snapshot::open(&path).unwrap().is_some());
}

#[test]
fn what_cannot_be_added_leaves_the_snapshot_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.sqlite");
    let mut first = Rebuild::new().unwrap();
    push(&mut first, &run(1_795_428_000_000), "a", Some(1));
    first.write(&path, &Unsaid::default()).unwrap();
    let mut snapshot = Snapshot::open(&path).unwrap().unwrap();
    let feeds = |snapshot: &Snapshot| format!("{:?}", snapshot.feeds().unwrap());
    let before = feeds(&snapshot);

    let mut second = Rebuild::new().unwrap();
    let stream = Stream {
        place: Place::Directory("elsewhere".into()),
        ..stream()
    };
    let later = run(1_795_428_000_002);
    push_to(&mut second, &stream, &later, "a", Some(1));
    push_to(&mut second, &stream, &later, "b", Some(1));
    push_to(&mut second, &stream, &later, "b", Some(2));
    let error = second.add(&mut snapshot, &Unsaid::default()).unwrap_err();
    assert!(
        matches!(error, RebuildError::Contradiction { .. }),
        "{error}"
    );
    assert_eq!(feeds(&snapshot), before);
    assert_eq!(snapshot.last_run().unwrap(), 1);

    let mut known = Rebuild::new().unwrap();
    push(&mut known, &later, "a", Some(1));
    let error = known.add(&mut snapshot, &Unsaid::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the snapshot knows what was told to members in delivered/ already"
    );
    assert_eq!(feeds(&snapshot), before);
}
