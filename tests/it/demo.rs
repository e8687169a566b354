//! The demo: two days of a shop, with nothing set up.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{ORDERS, Project, ended};

/// Who has ordered between two days, both of them included. Days as text sort by time.
fn ordered(from: &str, to: &str) -> BTreeSet<&'static str> {
    let rows = ORDERS.lines().skip(1).map(|line| line.split(','));
    rows.filter_map(|mut row| {
        let (customer, day) = (row.next()?, row.next()?);
        (from..=to).contains(&day).then_some(customer)
    })
    .collect()
}

fn counts(line: &Value) -> [u64; 3] {
    ["members", "added", "removed"].map(|field| line[field].as_u64().unwrap())
}

fn of_orders(lines: &[Value]) -> Vec<&Value> {
    lines
        .iter()
        .filter(|line| line["audience"] == "order_completed_last_30days")
        .collect()
}

#[test]
fn its_numbers_are_those_of_the_orders() {
    let project = Project::empty();
    let first = ordered("1997-03-02", "1997-04-01");
    let second = ordered("1997-03-03", "1997-04-02");
    let third = ordered("1997-03-04", "1997-04-03");
    let moved = |before: &BTreeSet<_>, after: &BTreeSet<_>| {
        [
            after.len() as u64,
            after.difference(before).count() as u64,
            before.difference(after).count() as u64,
        ]
    };
    assert_eq!(first.len(), 926);
    assert_eq!(moved(&first, &second)[1..], [4, 36]);

    let lines = project.succeed(&["demo", "shop", "--json"]).lines();
    assert_eq!(lines.len(), 6, "{lines:?}");
    let orders = of_orders(&lines);
    assert_eq!(
        [&orders[0]["kind"], &orders[1]["kind"]],
        [&json!("first"), &json!("delta")]
    );
    assert_eq!(counts(orders[0]), [926, 926, 0]);
    assert_eq!(counts(orders[1]), moved(&first, &second));
    for line in &lines {
        assert_eq!(line["outcome"], "delivered", "{line}");
        assert_eq!(line["undelivered"], 0);
    }
    // Again: another day.
    let lines = project.succeed(&["demo", "shop", "--json"]).lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(counts(of_orders(&lines)[0]), moved(&second, &third));
}

/// The indented lines that follow the one that says to look around.
fn printed(stdout: &str) -> Vec<String> {
    let (_, after) = stdout.split_once("Look around:").unwrap();
    let commands = after.lines().filter_map(|line| line.strip_prefix("  "));
    commands
        .map(|line| line.split("   ").next().unwrap().to_owned())
        .collect()
}

/// With a directory whose name a shell would take apart, below one that is yet to be made.
#[test]
fn what_it_says_to_type_works() {
    let project = Project::empty();
    let ran = project.succeed(&["demo", "not yet/it's here"]);
    for words in [
        "1997-04-01: the first sync",
        "1997-04-02: a day later",
        "30 days after the last order",
        "\"order_completed_last_30days\":false",
    ] {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
    let file = ran.stdout.split_once("It lies in ").unwrap().1;
    let file = file.lines().next().unwrap();
    assert!(project.path(file).is_file(), "{file}");

    let commands = printed(&ran.stdout);
    assert_eq!(commands.len(), 6, "{commands:?}");
    // One after another, as somebody would.
    let mut sh = Command::new("sh");
    let script = format!("set -e\n{}\n", commands.join("\n"));
    let ran = ended(project.like(&mut sh).args(["-c", &script]).spawn().unwrap());
    assert_eq!(ran.code, 0, "{script}: {ran:?}");
    assert!(ran.stdout.contains("1997-04-03: another day"), "{ran:?}");
    assert!(ran.stdout.contains("unchanged"), "{ran:?}");
}

#[test]
fn a_directory_that_is_somebody_elses_is_left_alone() {
    let notes = Project::empty();
    notes.write("notes.txt", "mine");
    let shop = Project::empty();
    shop.shop("CREATE TABLE orders (user_id TEXT)");
    shop.write("audience-sync.toml", "# mine");
    let dated = Project::empty();
    dated.shop("CREATE TABLE calendar (today TEXT); INSERT INTO calendar VALUES ('2026-11-23')");
    let empty = Project::empty();
    empty.write("shop.sqlite", "");
    let text = Project::empty();
    text.write(
        "shop.sqlite",
        "no database at all, but long enough to look at",
    );
    for project in [notes, shop, dated, empty, text] {
        let before = project.contents();
        let ran = project.run(&["demo", "."]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(
            ran.stderr.contains("hint: `audience-sync demo DIR`"),
            "{ran:?}"
        );
        assert_eq!(project.contents(), before);
    }
    let project = Project::empty();
    project.write("file", "mine");
    assert_eq!(project.run(&["demo", "file"]).code, 2);
}

/// As a crash leaves it: without a shop, there is no demo yet.
#[test]
fn a_demo_that_was_cut_short_is_begun_again() {
    let whole = Project::empty();
    whole.succeed(&["demo", "."]);
    let project = Project::empty();
    for name in ["schedules/orders.toml", "schedules/winback.toml"] {
        let text = std::fs::read_to_string(whole.path(name)).unwrap();
        project.write(name, &text);
    }
    project.write(".audience-sync.toml.unfinished", "# half of");
    project.write(".shop.sqlite.unfinished", "SQLite fo");
    let lines = project.succeed(&["demo", ".", "--json"]).lines();
    assert_eq!(counts(of_orders(&lines)[0]), [926, 926, 0]);
    assert!(!project.path(".shop.sqlite.unfinished").exists());

    for (name, text) in [
        ("schedules/mine.toml", ""),
        ("audience-sync.toml", "# mine"),
        ("notes", ""),
    ] {
        let taken = Project::empty();
        taken.write(name, text);
        let before = taken.contents();
        let ran = taken.run(&["demo", "."]);
        assert!(
            ran.code == 2 && ran.stderr.contains("is not empty, and not a demo"),
            "{ran:?}"
        );
        assert!(taken.contents() == before);
    }
}
