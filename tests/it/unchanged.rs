//! A source that has not changed is not read, and whatever changes is found.

use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::support::{Project, Ran, truth, within};

const MEMBERS: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
guard = false

[[audience]]
name = "Recent"
source = "shop"
query = "SELECT user_id FROM members WHERE date('now') > '1997-01-01'"
guard = false
"#;

const UNREAD: &str = "the source was not modified";

/// Waits until nothing that is kept of the source is young.
fn grow_old(project: &Project) {
    use std::os::unix::fs::MetadataExt as _;

    let is_old = |name: &str| {
        let Ok(file) = project.path(name).metadata() else {
            return true;
        };
        let changed = Duration::new(file.ctime() as u64, file.ctime_nsec() as u32);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap() > changed + Duration::from_millis(2_100)
    };
    within(Duration::from_secs(20), "the source is old", || {
        is_old("shop.sqlite") && is_old("shop.sqlite-wal")
    });
}

/// Why not all of what is asked for is known already.
const BY_THE_CLOCK: &str = "what the source was when it was read is not known: the query uses more than the file, such as the clock";
const UNKNOWN: &str =
    "everyone is read, since what the source was when that was done last is not known";
const YOUNG: &str = "everyone is read, since the source was written to a moment ago";
const CHANGED: &str = "everyone is read, since the source was modified";

/// How often each of them is said.
fn reasons(ran: &Ran) -> [usize; 5] {
    let said = |why: &str| ran.stderr.matches(why).count();
    [UNREAD, BY_THE_CLOCK, UNKNOWN, YOUNG, CHANGED].map(said)
}

fn outcomes(ran: &Ran) -> Vec<serde_json::Value> {
    let lines = ran.lines();
    let said = lines.iter().map(|line| {
        json!([
            line["outcome"],
            line["members"],
            line["added"],
            line["removed"]
        ])
    });
    said.collect()
}

#[track_caller]
fn check(journal_mode: &str) {
    let project = Project::new(MEMBERS);
    let shop = project.shop_connection();
    shop.pragma_update(None, "journal_mode", journal_mode)
        .unwrap();
    shop.execute_batch(
        "CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a'), ('b')",
    )
    .unwrap();
    grow_old(&project);
    project.succeed(&["sync"]);
    for command in [
        &["sync", "--json", "-v"][..],
        &["sync", "--json", "-v", "--dry-run"],
    ] {
        let before = project.contents();
        let ran = project.succeed(command);
        let outcome = match command.len() {
            3 => "unchanged",
            _ => "planned",
        };
        assert_eq!(
            outcomes(&ran),
            [json!([outcome, 2, 0, 0]), json!([outcome, 2, 0, 0])]
        );
        // One of the two reads the clock.
        assert_eq!(reasons(&ran), [1, 1, 1, 0, 0], "{ran:?}");
        assert_eq!(before == project.contents(), outcome == "planned");
    }
    // In its place, and right after it was found unchanged.
    shop.execute_batch("UPDATE members SET user_id = 'c' WHERE user_id = 'a'")
        .unwrap();
    let changed = json!(["delivered", 2, 1, 1]);
    let ran = project.succeed(&["sync", "--json", "-v"]);
    assert_eq!(outcomes(&ran), [changed.clone(), changed.clone()]);
    assert_eq!(reasons(&ran), [0, 1, 1, 1, 0], "{ran:?}");
    // What was read is young: it is read again, now and when it is old.
    shop.execute_batch("UPDATE members SET user_id = 'd' WHERE user_id = 'c'")
        .unwrap();
    let ran = project.succeed(&["sync", "--json"]);
    assert_eq!(outcomes(&ran), [changed.clone(), changed]);
    grow_old(&project);
    let again = || reasons(&project.succeed(&["sync", "-v"]));
    assert_eq!(again(), [0, 1, 2, 0, 0]);
    assert_eq!(again(), [1, 1, 1, 0, 0]);
    // The same members, in another file.
    shop.execute_batch("CREATE TABLE other (x)").unwrap();
    grow_old(&project);
    assert_eq!(again(), [0, 1, 1, 0, 1]);
    let truth: Vec<_> = truth(&project.delivered())
        .into_iter()
        .filter(|((_, key), value)| key == "members" && *value == json!(true))
        .map(|((user, _), _)| user)
        .collect();
    assert_eq!(truth, ["b", "d"]);
}

#[test]
fn an_unchanged_file_is_not_read_and_every_change_of_it_is_found() {
    check("delete");
}

#[test]
fn a_journal_that_is_kept_after_its_transaction_is_no_reason_to_read() {
    check("persist");
}

#[test]
fn an_unchanged_log_is_not_read_and_every_change_in_it_is_found() {
    check("wal");
}
