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
            r#"{{"audience":"members","destination":"main","run":"{run}","kind":"first","outcome":"delivered","members":1,"added":1,"removed":0,"changed":0,"held":0,"delivered":1,"undelivered":0,"skipped_rows":0,"records":1,"requests":1,"retries":0,"bytes":{bytes},"billed_bytes":5120,"seconds":{seconds}}}"#
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
fn who_leaves_is_known_by_the_ids_they_entered_with() {
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
    project.shop("UPDATE members SET anonymous_id = 'later', total = 2 WHERE user_id = 'a'");
    project.succeed(&["sync"]);
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
            r#"[{"total":null},"a","x"]"#,
            r#"[{"total":null},"b",null]"#,
            r#"[{"total":null},null,"y"]"#,
        ]
    );
}

#[test]
fn an_audience_goes_to_each_of_its_destinations() {
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
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let seen = |ran: &crate::support::Ran| -> Vec<String> {
        let fields = |line: &serde_json::Value| {
            ["destination", "kind", "outcome"]
                .map(|field| line[field].as_str().unwrap().to_owned())
                .join(" ")
        };
        ran.lines().iter().map(fields).collect()
    };
    assert_eq!(seen(&ran), ["one first delivered", "two first undelivered"]);
    // Two changes, each a record in two streams.
    assert_eq!(
        (&ran.lines()[0]["delivered"], &ran.lines()[0]["records"]),
        (&json!(2), &json!(4))
    );
    std::fs::remove_file(project.path("two")).unwrap();
    let ran = project.succeed(&["sync", "--json"]);
    assert_eq!(
        seen(&ran),
        [
            "one delta unchanged",
            "two resume delivered",
            "two delta unchanged"
        ]
    );
    let records = |folder: &str| crate::support::records(&project.path(folder)).len();
    assert_eq!(
        (
            records("one/first"),
            records("one/second"),
            records("two/all")
        ),
        (2, 2, 2)
    );
}
