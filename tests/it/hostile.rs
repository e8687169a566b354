//! Ids and values that people do not expect arrive as valid JSON, or are skipped and explained.

use rusqlite::params;
use serde_json::json;

use crate::support::Project;

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, email FROM members"
traits = ["email"]
guard = false
"#;

#[test]
fn hostile_ids_arrive_as_they_are_or_are_skipped() {
    let project = Project::new(SCHEDULE);
    let shop = project.shop_connection();
    shop.execute_batch("CREATE TABLE members (user_id, email)")
        .unwrap();
    let good = [
        "\"quoted\"",
        "back\\slash",
        "two\nlines\r",
        "tab\t\u{1}\u{7f}",
        "👩‍👩‍👧‍👦",
        "é",
        "e\u{301}",
        "\u{2028}\u{feff}",
        "'; DROP TABLE members; --",
        " ",
        "null",
        "</script>",
        "\u{10ffff}",
        "0",
        "-0",
    ];
    let huge = "x".repeat(5 << 20);
    for id in good.into_iter().chain(["nul\0", "", &huge]) {
        shop.execute("INSERT INTO members VALUES (?1, ?1)", [id])
            .unwrap();
    }
    shop.execute(
        "INSERT INTO members VALUES (NULL, 1), (CAST(x'c328' AS TEXT), 1)",
        params![],
    )
    .unwrap();

    let ran = project.succeed(&["sync", "--json"]);
    let line = &ran.lines()[0];
    assert_eq!(
        (&line["members"], &line["delivered"], &line["skipped_rows"]),
        (&json!(good.len()), &json!(good.len()), &json!(5))
    );
    assert!(
        ran.stderr.contains(
            "\"Members\": skipped 5 rows: 1 with a NULL id, 1 with an empty id, 1 with text that is not UTF-8, \
             1 with an id over 1024 bytes, 1 with a NUL in the id"
        ),
        "{ran:?}"
    );
    let records = project.delivered();
    for id in good {
        let record = records
            .iter()
            .find(|record| record["userId"] == id)
            .unwrap();
        assert_eq!(record["traits"], json!({"members": true, "email": id}));
    }
    assert_eq!(project.sync()["outcome"], "unchanged");
    project.shop("DELETE FROM members");
    assert_eq!(project.sync()["delivered"], good.len());
    assert_eq!(project.delivered().len(), 2 * good.len());
}

#[test]
fn a_record_over_the_limit_is_dead_and_in_nobodys_way() {
    let project = Project::new(SCHEDULE);
    let shop = project.shop_connection();
    shop.execute_batch(
        "CREATE TABLE members (user_id, email); INSERT INTO members VALUES ('a', 1), ('c', 3)",
    )
    .unwrap();
    shop.execute(
        "INSERT INTO members VALUES ('b', ?1)",
        ["x".repeat(1_100_000)],
    )
    .unwrap();
    for (added, delivered) in [(3, 2), (1, 0)] {
        let ran = project.run(&["sync", "--json"]);
        let lines = ran.lines();
        assert_eq!((ran.code, lines.len()), (3, 1), "{ran:?}");
        assert_eq!(
            (
                &lines[0]["outcome"],
                &lines[0]["added"],
                &lines[0]["delivered"],
                &lines[0]["undelivered"]
            ),
            (
                &json!("undelivered"),
                &json!(added),
                &json!(delivered),
                &json!(1)
            )
        );
        assert!(
            ran.stderr
                .contains("1 can never be delivered: over 1024000 bytes"),
            "{ran:?}"
        );
        assert!(!ran.stderr.contains("they stay in the journal"), "{ran:?}");
    }
    // Each run decides it anew, and none of them keeps its megabyte.
    let size = || {
        std::fs::metadata(project.path("snapshot.sqlite"))
            .unwrap()
            .len()
    };
    let before = size();
    for _ in 0..5 {
        project.run(&["sync"]);
    }
    assert!(size() < before + 100_000, "{before} {}", size());
    project.shop("UPDATE members SET email = 2 WHERE user_id = 'b'");
    assert_eq!(project.sync()["delivered"], 1);
    assert_eq!(project.delivered().len(), 3);
}

/// As a crash leaves it: a record that no attempt has found too long yet.
#[test]
fn a_dead_record_in_the_journal_does_not_keep_the_next_plan_away() {
    let project = Project::new(SCHEDULE);
    let shop = project.shop_connection();
    shop.execute_batch(
        "CREATE TABLE members (user_id, email); INSERT INTO members VALUES ('a', 1)",
    )
    .unwrap();
    shop.execute(
        "INSERT INTO members VALUES ('b', ?1)",
        ["x".repeat(1_100_000)],
    )
    .unwrap();
    project.write("delivered", "in the way");
    assert_eq!(project.run(&["sync"]).code, 3);
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    snapshot
        .execute_batch("DELETE FROM dead; UPDATE run SET dead = 0")
        .unwrap();
    drop(snapshot);
    std::fs::remove_file(project.path("delivered")).unwrap();
    project.shop("UPDATE members SET email = 2; INSERT INTO members VALUES ('c', 3)");
    let ran = project.run(&["sync", "--json"]);
    let seen: Vec<_> = ran
        .lines()
        .iter()
        .map(|line| {
            json!([
                line["kind"],
                line["outcome"],
                line["delivered"],
                line["undelivered"]
            ])
        })
        .collect();
    assert_eq!(
        seen,
        [
            json!(["resume", "undelivered", 1, 1]),
            json!(["delta", "delivered", 2, 0])
        ]
    );
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(project.sync()["outcome"], "unchanged");
}
