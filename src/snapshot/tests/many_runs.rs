//! No command's time grows with the number of runs: 35 days of 200 audiences that are synced every 5 minutes are 2 million.
//! SQLite's steps are counted, and not seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const FEEDS: i64 = 200;
const FEW: i64 = 60 * FEEDS;
const MANY: i64 = 2_000_000;

/// A snapshot with this many runs, one each 2 ms. By its number, a feed was unchanged in all runs after its first one, or
/// its source failed in all of them, or its stream refused a record in all of them.
fn with_runs(folder: &Folder, runs: i64) -> Snapshot {
    let snapshot = folder.open();
    let connection = &snapshot.connection;
    let indexes =
        "SELECT group_concat(sql, ';'), group_concat('DROP INDEX ' || name, ';') FROM sqlite_schema
                   WHERE tbl_name = 'run' AND type = 'index' AND sql IS NOT NULL";
    let (create, drop): (String, String) = connection
        .query_row(indexes, [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    // An index that is made of all rows at once takes a fraction of the time.
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous = off;
             BEGIN;
             {drop};
             INSERT INTO stream (number, directory, name, has_accepted) VALUES (1, 'delivered', 's', 1);
             WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < {FEEDS})
             INSERT INTO audience (number, id, key, class, name) SELECT n + 1, 'a' || n, 'a' || n, 'trait', 'A' || n FROM n;
             INSERT INTO feed (number, audience, stream, destination, planned_by, planned_at)
             SELECT number, number, 1, 'main', 'query', 1 FROM audience;
             WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < {runs})
             INSERT INTO run (number, id, feed, audience_id, stream, destination, kind, started_at, at, finished_at,
                              outcome, planned, dead)
             SELECT n + 1, printf('0195f3c2-0000-7000-8000-%012d', n), n % {FEEDS} + 1, 'a' || (n % {FEEDS}), 1, 'main',
                    'delta', n * 2, n * 2, n * 2,
                    CASE iif(n < {FEEDS}, 0, n % {FEEDS} % 3) WHEN 0 THEN 'unchanged' WHEN 1 THEN 'failed' ELSE 'undelivered' END,
                    is_dead, is_dead
             FROM (SELECT n, n >= {FEEDS} AND n % {FEEDS} % 3 = 2 AS is_dead FROM n);
             {create};
             UPDATE life SET last_run = {runs}, last_started_at = {runs} * 2, clock_seen = {runs} * 2;
             COMMIT;"
        ))
        .unwrap();
    snapshot
}

fn planning_of(feed: i64, millis: i64) -> Planning {
    let mut planning = planning(millis);
    planning.computation.audience = AudienceId::new(format!("a{feed}"));
    planning.computation.key = Key::new(format!("a{feed}"));
    planning
}

/// How many steps SQLite takes for what commands do, by its name.
fn steps(runs: i64) -> Vec<(String, u64)> {
    let folder = Folder::new();
    let mut snapshot = with_runs(&folder, runs);
    let counted = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&counted);
    let each_step = move || {
        count.fetch_add(1, Ordering::Relaxed);
        false
    };
    let connection = &mut snapshot.connection;
    connection.progress_handler(1, Some(each_step)).unwrap();
    let mut all = Vec::new();
    let mut note = |what: String| all.push((what, counted.swap(0, Ordering::Relaxed)));

    assert_eq!(snapshot.feeds().unwrap().len(), FEEDS as usize);
    note("the list of feeds".to_owned());
    for audience in [None, Some("a0"), Some("a1"), Some("a2")] {
        let (id, mut runs) = (audience.map(AudienceId::new), 0);
        let each = |_| {
            runs += 1;
            Ok::<_, SnapshotError>(())
        };
        snapshot.each_run(id.as_ref(), 50, each).unwrap();
        assert_eq!(runs, 50);
        note(format!("the newest runs of {audience:?}"));
    }
    assert!(snapshot.waiting().unwrap().is_empty());
    note("what waits".to_owned());
    assert_eq!(snapshot.known_feeds().unwrap().len(), FEEDS as usize);
    note("the feeds that are known".to_owned());
    snapshot
        .prune(Timestamp::from_millis(runs * 2), Duration::MAX, || true)
        .unwrap();
    note("a prune of nothing".to_owned());
    for feed in 0..3 {
        let planning = planning_of(feed, runs * 2 + 2 * feed);
        let last = snapshot.last_plan(&planning.computation.audience, &planning.stream);
        assert!(last.unwrap().is_some());
        note(format!("the last plan of feed {feed}"));
        let plannings = [planning];
        let plan = snapshot
            .plan(&plannings, merge(&[], false))
            .unwrap()
            .remove(0);
        snapshot.reopen(std::slice::from_ref(&plan.run)).unwrap();
        snapshot.finish(&plan.run, Outcome::Unchanged).unwrap();
        note(format!("an unchanged run of feed {feed}"));
        let plannings = [planning_of(feed, runs * 2 + 100 + 2 * feed)];
        snapshot.fail(&plannings, "no such table").unwrap();
        note(format!("a failed run of feed {feed}"));
    }
    all
}

#[test]
fn nothing_takes_more_steps_after_2_million_runs() {
    for ((what, few), (_, many)) in steps(FEW).into_iter().zip(steps(MANY)) {
        assert!(
            many <= few + few / 10 + 20,
            "{what}: {many} steps after {MANY} runs, {few} after {FEW}"
        );
    }
}

/// Else they would be looked at again by each prune.
#[test]
fn old_runs_that_failed_are_dropped_though_none_has_succeeded_since() {
    let folder = Folder::new();
    let mut snapshot = with_runs(&folder, FEW);
    let now = Timestamp::from_millis(FEW * 2);
    snapshot.prune(now, Duration::ZERO, || true).unwrap();
    let left = |feed: i64| {
        let numbers =
            "SELECT group_concat(number || outcome, ' ') FROM run WHERE feed = ?1 AND planned = 0";
        let left = snapshot
            .connection
            .query_row(numbers, [feed], |row| row.get::<_, String>(0));
        left.unwrap()
    };
    // The last run of each feed, and the last one that did not fail.
    assert_eq!(left(1), "11801unchanged");
    assert_eq!(left(2), "2unchanged 11802failed");
    let planning = planning_of(1, FEW * 2);
    let last = snapshot.last_plan(&planning.computation.audience, &planning.stream);
    assert!(last.unwrap().is_some());
}
