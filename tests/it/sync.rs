//! First syncs, deltas, and what is delivered.

use serde_json::json;

use crate::support::{Project, truth};

const MEMBERS: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

#[test]
fn a_first_sync_is_full_and_later_ones_are_deltas() {
    let project = Project::new(MEMBERS);
    project.shop(
        "CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a'), ('b'), ('b')",
    );
    let first = project.sync();
    assert_eq!(
        (
            &first["kind"],
            &first["outcome"],
            &first["members"],
            &first["added"],
            &first["delivered"]
        ),
        (
            &json!("first"),
            &json!("delivered"),
            &json!(2),
            &json!(2),
            &json!(2)
        )
    );
    assert_eq!(project.sync()["outcome"], "unchanged");

    project.shop("DELETE FROM members WHERE user_id = 'a'; INSERT INTO members VALUES ('c')");
    let delta = project.sync();
    assert_eq!(
        (
            &delta["kind"],
            &delta["added"],
            &delta["removed"],
            &delta["records"]
        ),
        (&json!("delta"), &json!(1), &json!(1), &json!(2))
    );
    let records = project.delivered();
    assert_eq!(records.len(), 4);
    let values: Vec<_> = truth(&records)
        .into_iter()
        .map(|((user, _), value)| (user, value))
        .collect();
    assert_eq!(
        values,
        [
            ("a".into(), json!(false)),
            ("b".into(), json!(true)),
            ("c".into(), json!(true))
        ]
    );
}

/// Programs read these fields in this order; they are only ever added to.
#[test]
fn the_fields_of_a_report_are_frozen() {
    let project = Project::new(MEMBERS);
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a')");
    let line = project.succeed(&["sync", "--json"]).stdout;
    let bytes = project.delivered()[0].to_string().len() + 1;
    let report: serde_json::Value = serde_json::from_str(&line).unwrap();
    let (run, seconds) = (report["run"].as_str().unwrap(), &report["seconds"]);
    assert_eq!(
        line,
        format!(
            r#"{{"audience":"members","destination":"main","stream":"members","run":"{run}","kind":"first","outcome":"delivered","members":1,"added":1,"removed":0,"changed":0,"held":0,"held_added":0,"held_changed":0,"delivered":1,"undelivered":0,"skipped_rows":0,"records":1,"requests":1,"retries":0,"bytes":{bytes},"billed_bytes":5120,"seconds":{seconds}}}"#
        ) + "\n"
    );
    assert!(seconds.is_f64());
    assert_eq!(
        project.delivered()[0]["context"]["personas"]["computation_run_id"],
        run
    );
}

#[test]
fn a_computed_trait_is_sent_when_it_changes_and_null_when_it_is_gone() {
    let project = Project::new(
        r#"
[[computed_trait]]
name = "Total Revenue"
source = "shop"
query = "SELECT user_id, total AS value FROM members"
"#,
    );
    project.shop(
        "CREATE TABLE members (user_id TEXT, total);
         INSERT INTO members VALUES ('a', 1), ('b', 1.5), ('c', 'gold'), ('d', NULL)",
    );
    assert_eq!(project.sync()["added"], 3);
    assert_eq!(project.sync()["outcome"], "unchanged");
    project.shop(
        "UPDATE members SET total = 1.0 WHERE user_id = 'a'; UPDATE members SET total = NULL WHERE user_id = 'b';
         DELETE FROM members WHERE user_id = 'c'; UPDATE members SET total = 0 WHERE user_id = 'd'",
    );
    let line = project.sync();
    assert_eq!(
        (
            &line["members"],
            &line["added"],
            &line["changed"],
            &line["removed"]
        ),
        (&json!(2), &json!(1), &json!(1), &json!(2))
    );
    assert_eq!(project.sync()["outcome"], "unchanged");
    let records = project.delivered();
    assert_eq!(records.len(), 7);
    assert_eq!(
        records[3]["context"]["personas"]["computation_class"],
        "trait"
    );
    let values: Vec<_> = truth(&records).into_values().collect();
    assert_eq!(values, [json!(1.0), json!(null), json!(null), json!(0)]);
}

#[test]
fn extra_traits_are_sent_on_entering_only() {
    let project = Project::new(
        r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT email, user_id, age FROM members"
traits = ["age", "email"]
guard = false
"#,
    );
    project.shop("CREATE TABLE members (user_id TEXT, email TEXT, age); INSERT INTO members VALUES ('a', 'a@x', 30)");
    project.sync();
    // They are no reason to send anything.
    project.shop("UPDATE members SET age = 31");
    assert_eq!(project.sync()["outcome"], "unchanged");
    project.shop("DELETE FROM members");
    project.sync();
    let traits: Vec<_> = project
        .delivered()
        .iter()
        .map(|record| record["traits"].to_string())
        .collect();
    // The map of serde_json sorts its keys, so that the order is only seen in the bytes.
    assert_eq!(traits[1], r#"{"members":false}"#);
    let file = std::fs::read_to_string(&crate::support::files(&project.path("delivered"))[0])
        .unwrap()
        + &std::fs::read_to_string(&crate::support::files(&project.path("delivered"))[1]).unwrap();
    assert!(
        file.contains(r#""traits":{"members":true,"email":"a@x","age":30}"#),
        "{file}"
    );
}

#[test]
fn a_user_who_leaves_is_named_by_the_ids_that_the_stream_was_last_told() {
    let project = Project::new(
        r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, anonymous_id FROM members"
guard = false

[[computed_trait]]
name = "Total"
source = "shop"
query = "SELECT user_id, anonymous_id, total AS value FROM members"
guard = false
"#,
    );
    project.shop(
        "CREATE TABLE members (user_id TEXT, anonymous_id TEXT, total);
         INSERT INTO members VALUES ('a', 'x', 1), ('b', NULL, 1), (NULL, 'y', 1)",
    );
    project.succeed(&["sync"]);
    // The trait is sent again, with the new id. The audience has nothing to send.
    project.shop("UPDATE members SET anonymous_id = 'later', total = 2 WHERE user_id = 'a'");
    project.succeed(&["sync"]);
    project.shop("UPDATE members SET anonymous_id = 'never sent'");
    project.shop("DELETE FROM members");
    project.succeed(&["sync"]);
    let records = project.delivered();
    assert_eq!(records.len(), 6 + 1 + 6);
    let mut left: Vec<_> = records[7..]
        .iter()
        .map(|record| {
            json!([
                record["traits"],
                record.get("userId"),
                record.get("anonymousId")
            ])
            .to_string()
        })
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            r#"[{"members":false},"a","x"]"#,
            r#"[{"members":false},"b",null]"#,
            r#"[{"members":false},null,"y"]"#,
            r#"[{"total":null},"a","later"]"#,
            r#"[{"total":null},"b",null]"#,
            r#"[{"total":null},null,"y"]"#,
        ]
    );
}

/// A person who was known by an anonymous id only, and then signs in, is a member in whatever order records arrive.
#[test]
fn a_user_who_gets_another_id_enters_later_than_they_leave() {
    let project = Project::new(
        r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, anonymous_id FROM members"
guard = false
"#,
    );
    project.shop(
        "CREATE TABLE members (user_id TEXT, anonymous_id TEXT); INSERT INTO members VALUES (NULL, 'x')",
    );
    project.sync();
    project.shop("UPDATE members SET user_id = 'a'");
    let line = project.sync();
    assert_eq!((&line["added"], &line["removed"]), (&json!(1), &json!(1)));
    let records = project.delivered();
    let time = |record: &serde_json::Value| -> chrono::DateTime<chrono::Utc> {
        record["timestamp"].as_str().unwrap().parse().unwrap()
    };
    let (left, entered) = (&records[1], &records[2]);
    assert_eq!(left["traits"], json!({"members": false}));
    assert_eq!(
        [
            &entered["userId"],
            &entered["anonymousId"],
            &entered["traits"]["members"]
        ],
        [&json!("a"), &json!("x"), &json!(true)]
    );
    assert_eq!(
        time(entered) - time(left),
        chrono::TimeDelta::milliseconds(1)
    );
    for field in ["originalTimestamp", "receivedAt"] {
        assert_eq!(entered[field], entered["timestamp"]);
    }
}

/// What a consumer knows of each stream is what that stream was told.
#[test]
fn each_stream_of_an_audience_is_reported_by_itself() {
    let project = Project::new(&format!("{MEMBERS}destinations = [\"one\", \"two\"]\n"));
    project.write(
        "audience-sync.toml",
        r#"
source.shop.sqlite = "shop.sqlite"
destination.one = { directory = "one", mapping = { identify = ["first", "second"] } }
destination.two = { directory = "two", mapping = { "*" = "all" } }
"#,
    );
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a'), ('b')");
    project.write("two", "in the way");
    let reported = |code: i32| -> Vec<serde_json::Value> {
        let ran = project.run(&["sync", "--json"]);
        assert_eq!(ran.code, code, "{ran:?}");
        let fields = |line: &serde_json::Value| {
            json!([
                line["destination"],
                line["stream"],
                line["kind"],
                line["outcome"],
                line["members"],
                line["delivered"],
                line["records"]
            ])
        };
        ran.lines().iter().map(fields).collect()
    };
    assert_eq!(
        reported(3),
        [
            json!(["one", "first", "first", "delivered", 2, 2, 2]),
            json!(["one", "second", "first", "delivered", 2, 2, 2]),
            json!(["two", "all", "first", "undelivered", 2, 0, 0]),
        ]
    );
    std::fs::remove_file(project.path("two")).unwrap();
    project.shop("INSERT INTO members VALUES ('c')");
    assert_eq!(
        reported(0),
        [
            json!(["one", "first", "delta", "delivered", 3, 1, 1]),
            json!(["one", "second", "delta", "delivered", 3, 1, 1]),
            json!(["two", "all", "resume", "delivered", 2, 2, 2]),
            json!(["two", "all", "delta", "delivered", 3, 1, 1]),
        ]
    );
    let told = |folder: &str| truth(&crate::support::records(&project.path(folder)));
    assert_eq!(told("one/first").len(), 3);
    assert_eq!(told("one/second"), told("one/first"));
    assert_eq!(told("two/all"), told("one/first"));
    // No two runs share a message id, so that each stream's records can be told apart.
    let records = crate::support::records(&project.path("one"));
    let ids: std::collections::BTreeSet<_> = records
        .iter()
        .map(|record| record["messageId"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((records.len(), ids.len()), (6, 6));
}
