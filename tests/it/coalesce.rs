//! `coalesce = true`: what one command says of a user goes in one record, and each part of it keeps what is its own.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::params;
use serde_json::{Value, json};

use crate::firehose::{TO_MEMBERS, mapped, numbers, sorted};
use crate::rebuild::lose;
use crate::support::endpoint::{Answer, Call, Endpoint, Ledger};
use crate::support::{CONFIG, Project, Ran, files, truth};

const SCHEDULE: &str = r#"
[[audience]]
name = "Buyers"
source = "shop"
query = "SELECT user_id, email FROM buyers"
traits = ["email"]
guard = false

[[computed_trait]]
name = "Spend"
source = "shop"
query = "SELECT user_id, spend AS value, email FROM buyers"
traits = ["email"]
guard = false

[[audience]]
name = "Vip"
source = "shop"
query = "SELECT user_id FROM vip"
guard = false
"#;

const KEYS: [&str; 3] = ["buyers", "spend", "vip"];
const TO_BOTH: &str = r#"identify = ["members", "copies"]"#;

fn filled(project: Project) -> Project {
    project.write("schedules/main.toml", SCHEDULE);
    project.shop(
        "CREATE TABLE buyers (user_id TEXT, email, spend);
         CREATE TABLE vip (user_id TEXT);
         INSERT INTO buyers VALUES ('a', 'a@x', 1), ('b', 'b@x', 2.5), ('c', NULL, 'three');
         INSERT INTO vip VALUES ('b'), ('d')",
    );
    project
}

fn at(endpoint: &Endpoint, settings: &str, mapping: &str) -> Project {
    filled(mapped(
        endpoint,
        &format!("coalesce = true\n{settings}"),
        mapping,
    ))
}

fn in_directory() -> Project {
    let project = Project::empty();
    let coalesce = "[destination.main]\ncoalesce = true";
    project.write(
        "audience-sync.toml",
        &CONFIG.replace("[destination.main]", coalesce),
    );
    filled(project)
}

fn parsed(record: &[u8]) -> Value {
    serde_json::from_slice(record).unwrap()
}

/// What arrived, line by line, in the order of users.
fn lines<'r>(records: impl IntoIterator<Item = &'r [u8]>) -> Vec<Value> {
    let lines = records.into_iter().flat_map(|record| {
        let lines = record.split_inclusive(|byte| *byte == b'\n');
        lines.map(parsed).collect::<Vec<_>>()
    });
    let mut lines: Vec<Value> = lines.collect();
    lines.sort_by_key(|line| line["userId"].to_string());
    lines
}

/// Whom they are about, and what they say.
fn said(lines: &[Value]) -> Vec<(&str, &Value)> {
    let said = lines
        .iter()
        .map(|line| (line["userId"].as_str().unwrap(), &line["traits"]));
    said.collect()
}

/// The message ids of the parts of a line: its own where it has one only.
fn message_ids(line: &Value) -> Vec<&str> {
    let listed = line["context"]["personas"]["coalesced"].as_array();
    let parts = listed.map_or(std::slice::from_ref(line), Vec::as_slice);
    let ids = parts.iter().map(|part| part["messageId"].as_str());
    ids.map(Option::unwrap).collect()
}

/// The snapshot has all that was decided.
#[track_caller]
fn nothing_is_left(project: &Project) {
    for line in project.succeed(&["sync", "--json"]).lines() {
        assert_eq!(line["outcome"], "unchanged");
    }
}

#[test]
fn what_a_command_says_of_a_user_goes_in_one_record() {
    for settings in ["", "pack = true", "api = \"put_record\""] {
        let endpoint = Endpoint::start();
        let project = at(&endpoint, settings, TO_MEMBERS);
        let reports = project.succeed(&["sync", "--json"]).lines();
        let counts: Vec<_> = reports
            .iter()
            .map(|report| numbers(report, ["added", "delivered", "undelivered"]))
            .collect();
        assert_eq!(counts, [[3, 3, 0], [3, 3, 0], [2, 2, 0]]);

        let ledger = endpoint.take_ledger();
        let arrived = lines(ledger.accepted_by("members"));
        let expected = [
            ("a", &json!({"buyers": true, "spend": 1, "email": "a@x"})),
            (
                "b",
                &json!({"buyers": true, "spend": 2.5, "vip": true, "email": "b@x"}),
            ),
            (
                "c",
                &json!({"buyers": true, "spend": "three", "email": null}),
            ),
            ("d", &json!({"vip": true})),
        ];
        assert_eq!(said(&arrived), expected);
        // It is the record of its first part, and lists all of them.
        let b = &arrived[1];
        let personas = &b["context"]["personas"];
        assert_eq!(personas["computation_key"], "buyers");
        assert_eq!(personas["computation_run_id"], reports[0]["run"]);
        let parts = personas["coalesced"].as_array().unwrap();
        let runs: Vec<_> = parts
            .iter()
            .map(|part| (&part["computation_key"], &part["computation_run_id"]))
            .collect();
        let expected: Vec<_> = reports
            .iter()
            .map(|report| (&report["audience"], &report["run"]))
            .collect();
        assert_eq!(runs, expected);
        // It is counted for its first part.
        let bytes = |report: &Value| numbers(report, ["bytes"])[0] > 0;
        assert_eq!(
            reports.iter().map(bytes).collect::<Vec<_>>(),
            [true, false, true]
        );
        let sent: u64 = reports
            .iter()
            .map(|report| numbers(report, ["bytes"])[0])
            .sum();
        let arrived: usize = ledger.accepted.iter().map(|(_, record)| record.len()).sum();
        assert_eq!(sent, arrived as u64);

        // Only what has changed.
        project.shop(
            "DELETE FROM vip WHERE user_id = 'b'; INSERT INTO vip VALUES ('a');
             UPDATE buyers SET spend = 9 WHERE user_id = 'b'",
        );
        project.succeed(&["sync"]);
        let ledger = endpoint.take_ledger();
        let arrived = lines(ledger.accepted_by("members"));
        let expected = [
            ("a", &json!({"vip": true})),
            ("b", &json!({"spend": 9, "vip": false, "email": "b@x"})),
        ];
        assert_eq!(said(&arrived), expected);
        nothing_is_left(&project);
        assert!(endpoint.ledger().calls.is_empty());
    }
}

#[test]
fn one_audience_alone_is_said_as_it_always_was() {
    let project = in_directory();
    project.succeed(&["sync", "Buyers"]);
    let arrived = project.delivered();
    assert_eq!(arrived.len(), 3);
    for line in &arrived {
        assert_eq!(line["traits"].as_object().unwrap().len(), 2);
        assert_eq!(line["context"]["personas"].get("coalesced"), None);
    }
    // Two at once are said together again, whoever else there is.
    project.succeed(&["resync", "Buyers"]);
    assert_eq!(project.delivered().len(), 6);
    project.succeed(&["sync", "Spend"]);
    project.succeed(&["resync", "Buyers", "Spend"]);
    assert_eq!(project.delivered().len(), 12);
}

#[test]
fn an_audience_that_fails_or_has_nothing_to_say_stops_no_other() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_MEMBERS);
    project.shop("DELETE FROM buyers WHERE user_id <> 'b'; DELETE FROM vip");
    project.succeed(&["sync"]);
    endpoint.take_ledger();
    // Nothing has changed of the first, the second fails half-way, the others go together.
    let broken = SCHEDULE.replace(
        "spend AS value",
        "abs(-9223372036854775807 - spend) AS value",
    );
    let wanted = SCHEDULE
        .rsplit_once("[[audience]]")
        .unwrap()
        .1
        .replace("Vip", "Wanted");
    project.write(
        "schedules/main.toml",
        &format!("{broken}[[audience]]{wanted}"),
    );
    project.shop("UPDATE buyers SET spend = 1");
    project.shop("INSERT INTO vip VALUES ('b')");
    let ran = project.run(&["sync", "--json"]);
    let outcomes: Vec<_> = ran
        .lines()
        .into_iter()
        .map(|line| line["outcome"].clone())
        .collect();
    assert_eq!(
        outcomes,
        ["unchanged", "failed", "delivered", "delivered"],
        "{ran:?}"
    );
    let ledger = endpoint.ledger();
    let arrived = lines(ledger.accepted_by("members"));
    assert_eq!(
        said(&arrived),
        [("b", &json!({"vip": true, "wanted": true}))]
    );
}

#[test]
fn who_is_known_by_other_identifiers_is_another_record() {
    let project = in_directory();
    let both = |name: &str| {
        format!(
            "[[audience]]\nname = \"{name}\"\nsource = \"shop\"\n\
             query = \"SELECT user_id, anonymous_id FROM {name}\"\n"
        )
    };
    project.write("schedules/main.toml", &(both("one") + &both("other")));
    project.shop(
        "CREATE TABLE one (user_id, anonymous_id);
         INSERT INTO one VALUES ('same', 'x'), ('differs', 'x'), ('has', 'x'), (NULL, 'same'), (NULL, 'has');
         CREATE TABLE other AS SELECT * FROM one;
         UPDATE other SET anonymous_id = 'y' WHERE user_id = 'differs';
         UPDATE other SET anonymous_id = NULL WHERE user_id = 'has'",
    );
    project.succeed(&["sync"]);
    let arrived = project.delivered();
    let mut told: Vec<_> = arrived
        .iter()
        .map(|line| {
            let id = |name| line[name].as_str().unwrap_or("-").to_owned();
            (
                id("userId"),
                id("anonymousId"),
                line["traits"].as_object().unwrap().len(),
            )
        })
        .collect();
    told.sort();
    let expected = [
        ("-", "has", 2),
        ("-", "same", 2),
        ("differs", "x", 1),
        ("differs", "y", 1),
        ("has", "-", 1),
        ("has", "x", 1),
        ("same", "x", 2),
    ];
    assert_eq!(
        told,
        expected.map(|(user, other, parts)| (user.to_owned(), other.to_owned(), parts))
    );
}

/// Users of two audiences who enter and leave, more of them than go in one round, and in chunks of other users each.
#[test]
fn a_large_delivery_says_everything_of_everybody_once() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_MEMBERS);
    let fill = |modulus: u32, count: u32| {
        format!(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {count})
             SELECT printf('u%06d', i) AS user_id, 'e' AS email, i AS spend FROM n WHERE i % {modulus} = 0"
        )
    };
    let tables = |buyers: &str, vip: &str| {
        format!(
            "DELETE FROM buyers; DELETE FROM vip;
             INSERT INTO buyers {buyers}; INSERT INTO vip SELECT user_id FROM ({vip})"
        )
    };
    project.shop(&tables(&fill(2, 10_000), &fill(3, 12_000)));
    project.succeed(&["sync"]);
    let check = |is_buyer: &dyn Fn(usize) -> Option<bool>,
                 is_vip: &dyn Fn(usize) -> Option<bool>| {
        let ledger = endpoint.take_ledger();
        let arrived = lines(ledger.accepted_by("members"));
        let expected = (0..14_000).filter_map(|user| {
            let mut traits = BTreeMap::new();
            if let Some(buys) = is_buyer(user) {
                traits.insert("buyers", json!(buys));
                traits.insert("spend", if buys { json!(user) } else { Value::Null });
                if buys {
                    traits.insert("email", json!("e"));
                }
            }
            traits.extend(is_vip(user).map(|is_vip| ("vip", json!(is_vip))));
            (!traits.is_empty()).then(|| (format!("u{user:06}"), json!(traits)))
        });
        let expected: Vec<_> = expected.collect();
        let found: Vec<_> = said(&arrived)
            .into_iter()
            .map(|(user, traits)| (user.to_owned(), traits.clone()))
            .collect();
        assert!(found == expected);
        // Those of one call go to it together: no round is smaller than it need be.
        assert!(
            ledger.calls.len() <= expected.len().div_ceil(500) + 4,
            "{}",
            ledger.calls.len()
        );
    };
    let fits = |modulus: usize, count: usize| {
        move |user: usize| user.is_multiple_of(modulus) && user < count
    };
    let entered = |fits: &dyn Fn(usize) -> bool, user| fits(user).then_some(true);
    let (buys, is_vip) = (fits(2, 10_000), fits(3, 12_000));
    check(&|user| entered(&buys, user), &|user| entered(&is_vip, user));

    project.shop(&tables(&fill(3, 14_000), &fill(2, 9_000)));
    project.succeed(&["sync"]);
    let (buys_now, is_vip_now) = (fits(3, 14_000), fits(2, 9_000));
    let moved = |before: bool, now: bool| (before != now).then_some(now);
    check(&|user| moved(buys(user), buys_now(user)), &|user| {
        moved(is_vip(user), is_vip_now(user))
    });
    nothing_is_left(&project);
}

/// Records of many parts are long: what fits into calls is counted in lines and bytes, not in changes.
#[test]
fn a_record_of_many_audiences_costs_no_more_calls_than_its_bytes() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_MEMBERS);
    let audience = |number| {
        format!(
            "[[audience]]\nname = \"a{number:03}\"\nsource = \"shop\"\nquery = \"SELECT user_id FROM vip\"\n"
        )
    };
    let schedule: String = (0..100).map(audience).collect();
    project.write("schedules/main.toml", &schedule);
    project.shop(
        "DELETE FROM vip;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 800)
         INSERT INTO vip SELECT printf('u%03d', i) FROM n",
    );
    project.succeed(&["sync"]);
    let ledger = endpoint.take_ledger();
    let bytes: usize = ledger.accepted.iter().map(|(_, record)| record.len()).sum();
    assert_eq!(ledger.accepted.len(), 800);
    let full = bytes.div_ceil(4 << 20);
    assert!(
        ledger.calls.len() <= full + 1,
        "{} of {full}",
        ledger.calls.len()
    );
    nothing_is_left(&project);
}

/// A chunk of each audience is in memory at a time, and two where users enter and leave.
#[test]
fn chunks_that_are_in_memory_together_are_small() {
    let project = in_directory();
    let audience = |number| {
        format!(
            "[[audience]]\nname = \"a{number:03}\"\nsource = \"shop\"\ntraits = [\"email\"]\n\
             query = \"SELECT user_id, email FROM buyers\"\n"
        )
    };
    let schedule: String = (0..40).map(audience).collect();
    project.write("schedules/main.toml", &schedule);
    project.shop(
        "DELETE FROM buyers;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)
         INSERT INTO buyers SELECT printf('u%03d', i), printf('%.*c', 7000, 'x'), 1 FROM n",
    );
    project.succeed(&["sync"]);
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    let largest = "SELECT max(length(entries)) FROM chunk";
    let bytes: usize = snapshot
        .query_row(largest, [], |row| row.get::<_, i64>(0))
        .unwrap() as usize;
    assert!(bytes <= (4 << 20) / 40 + 8_000, "{bytes}");
    assert_eq!(project.delivered().len(), 60);
}

#[test]
fn a_crash_repeats_at_most_what_sixteen_calls_carry() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_MEMBERS);
    project.shop(
        "DELETE FROM buyers; DELETE FROM vip;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO vip SELECT printf('u%05d', i) FROM n;
         INSERT INTO buyers SELECT user_id, 'e', 1 FROM vip",
    );
    let mut calls = 0;
    endpoint.script(move |_| {
        calls += 1;
        match calls {
            30.. => Answer::AcceptAndHang,
            _ => Answer::Accept,
        }
    });
    let running = project.start(&["sync"]);
    endpoint.wait_until(|ledger| ledger.accepted.len() >= 15_000);
    running.signal("KILL");
    assert_eq!(running.end().code, -1);
    endpoint.wait_until_idle();
    let before = endpoint.take_ledger();
    endpoint.accept_everything();
    project.succeed(&["sync"]);
    let after = endpoint.ledger();
    let known: BTreeSet<&[u8]> = before.accepted_by("members").into_iter().collect();
    let again = after.accepted_by("members");
    let repeated = again
        .iter()
        .filter(|record| known.contains(*record))
        .count();
    assert_eq!(known.len() + again.len() - repeated, 20_000);
    assert!((1..=8_000).contains(&repeated), "{repeated}");
}

#[test]
fn a_crash_repeats_the_same_records_and_loses_nothing() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_BOTH);
    endpoint.answer([Answer::AcceptAndHang, Answer::AcceptAndHang]);
    let running = project.start(&["sync"]);
    endpoint.wait_until(|ledger| ledger.accepted.len() == 8);
    running.signal("KILL");
    assert_eq!(running.end().code, -1);
    let before = endpoint.take_ledger();

    // One of them alone brings the others along.
    let reports = project.succeed(&["sync", "Vip", "--json"]).lines();
    let kinds: Vec<_> = reports
        .iter()
        .map(|line| (&line["audience"], &line["kind"]))
        .collect();
    let resume = json!("resume");
    let expected = [
        (&json!("buyers"), &resume),
        (&json!("spend"), &resume),
        (&json!("vip"), &resume),
        (&json!("vip"), &json!("delta")),
    ];
    assert_eq!(kinds, expected);
    let after = endpoint.ledger();
    for stream in ["members", "copies"] {
        assert_eq!(
            sorted(after.accepted_by(stream)),
            sorted(before.accepted_by(stream))
        );
    }
    nothing_is_left(&project);
}

/// Five parts, of which one is longer than its share of a record. Whichever of the two records is delivered first, the other
/// one stays what it was.
#[test]
fn what_shares_a_record_does_not_depend_on_what_was_delivered() {
    for refused in ["p2\":true", "p0\":true"] {
        let endpoint = Endpoint::start();
        let project = at(&endpoint, "", TO_MEMBERS);
        let part = |(number, length): (usize, usize)| {
            format!(
                "[[audience]]\nname = \"p{number}\"\nsource = \"shop\"\ntraits = [\"t{number}\"]\n\
                 query = \"SELECT 'u' AS user_id, printf('%.*c', {length}, 'x') AS t{number}\"\n"
            )
        };
        let lengths = [150_000, 150_000, 300_000, 150_000, 204_000];
        let schedule: String = lengths.into_iter().enumerate().map(part).collect();
        project.write("schedules/main.toml", &schedule);
        endpoint.script(move |call| {
            let records = call.records.iter().enumerate();
            let refused = records.filter(|(_, record)| {
                let traits = parsed(record)["traits"].to_string();
                traits.contains(refused)
            });
            let refused = refused.map(|(index, _)| index).collect();
            Answer::Refuse(refused, "ServiceUnavailableException")
        });
        let running = project.start(&["sync"]);
        endpoint.wait_until(|ledger| ledger.calls.len() >= 3);
        running.signal("TERM");
        assert_eq!(running.end().code, 3);
        let before = endpoint.take_ledger();
        let traits = |record: &[u8]| parsed(record)["traits"].as_object().unwrap().len();
        let sizes: BTreeSet<_> = before.calls[0]
            .records
            .iter()
            .map(|record| traits(record))
            .collect();
        assert_eq!(sizes, [2, 8].into());

        endpoint.accept_everything();
        project.succeed(&["sync"]);
        let (first, last) = (before.accepted_by("members"), endpoint.ledger());
        let both = sorted(first.into_iter().chain(last.accepted_by("members")));
        assert_eq!(
            both,
            sorted(before.calls[0].records.iter().map(Vec::as_slice))
        );
    }
}

#[test]
fn a_stream_that_is_missing_is_told_the_same_later_and_the_other_goes_on() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_BOTH);
    endpoint.script(|call| match &*call.stream {
        "copies" => Answer::error(400, "ResourceNotFoundException"),
        _ => Answer::Accept,
    });
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    for report in ran.lines() {
        assert_eq!(report["outcome"], "undelivered");
        assert_eq!(numbers(&report, ["delivered"]), [0]);
        assert!(
            report["error"]
                .as_str()
                .unwrap()
                .contains("no stream `copies`"),
            "{report}"
        );
    }
    let before = endpoint.take_ledger();
    assert_eq!(before.accepted_by("members").len(), 4);

    endpoint.accept_everything();
    project.succeed(&["sync"]);
    let after = endpoint.ledger();
    assert_eq!(after.accepted_by("members").len(), 0);
    assert_eq!(
        sorted(after.accepted_by("copies")),
        sorted(before.accepted_by("members"))
    );
}

#[test]
fn a_part_of_a_line_that_cannot_be_read_is_named() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_MEMBERS);
    endpoint.script(|_| Answer::denied());
    assert_eq!(project.run(&["sync"]).code, 3);
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    let entries: Vec<u8> = snapshot
        .query_row("SELECT entries FROM chunk WHERE run = 2", [], |row| {
            row.get(0)
        })
        .unwrap();
    let email = b"\"b@x\"";
    let from = entries.windows(5).position(|bytes| bytes == email).unwrap();
    let mut damaged = entries;
    damaged[from] = b'x';
    snapshot
        .execute(
            "UPDATE chunk SET entries = ?1 WHERE run = 2",
            params![damaged],
        )
        .unwrap();
    drop(snapshot);
    endpoint.accept_everything();
    endpoint.take_ledger();
    let ran = project.run(&["sync"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("chunk 0 of run 2 cannot be read"),
        "{ran:?}"
    );
    assert!(endpoint.ledger().calls.is_empty());
}

fn will_not_have(word: &'static str) -> impl FnMut(&Call) -> Answer + Send {
    let is_bad = move |record: &Vec<u8>| String::from_utf8_lossy(record).contains(word);
    move |call| match call.records.iter().any(is_bad) {
        true => Answer::error(400, "ValidationException"),
        false => Answer::Accept,
    }
}

fn letters(project: &Project) -> Vec<Value> {
    project.succeed(&["snapshot", "dead", "--json"]).lines()
}

/// Each line of a user that Firehose would not have.
fn refused(ledger: &Ledger, user: &str) -> Vec<Vec<u8>> {
    let records = ledger.calls.iter().flat_map(|call| &call.records);
    let mut known = BTreeSet::new();
    records
        .filter(|record| parsed(record)["userId"] == user && known.insert(*record))
        .cloned()
        .collect()
}

#[test]
fn a_line_that_is_refused_is_taken_apart_and_each_part_is_its_own_dead_letter() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_MEMBERS);
    endpoint.script(will_not_have("\"b\""));
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let counts: Vec<_> = ran
        .lines()
        .iter()
        .map(|report| numbers(report, ["delivered", "undelivered"]))
        .collect();
    assert_eq!(counts, [[2, 1], [2, 1], [1, 1]]);
    let ledger = endpoint.take_ledger();
    let refused = refused(&ledger, "b");
    let (line, parts) = refused.split_first().unwrap();
    let dead = letters(&project);
    let ids: Vec<_> = dead
        .iter()
        .map(|letter| letter["messageId"].as_str().unwrap())
        .collect();
    assert_eq!(ids, message_ids(&parsed(line)));
    let alone: Vec<_> = parts
        .iter()
        .map(|part| parsed(part)["messageId"].clone())
        .collect();
    assert_eq!(alone, ids);
    assert_eq!(
        dead.iter()
            .map(|letter| &letter["audience"])
            .collect::<Vec<_>>(),
        KEYS
    );

    // Sent again as they were.
    endpoint.accept_everything();
    project.succeed(&["snapshot", "dead", "--retry"]);
    assert_eq!(endpoint.take_ledger().accepted_by("members"), parts);
    assert_eq!(letters(&project).len(), 0);
    nothing_is_left(&project);
}

#[test]
fn a_part_that_was_decided_anew_is_not_sent_again_with_the_others() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_MEMBERS);
    endpoint.script(will_not_have("\"b\""));
    assert_eq!(project.run(&["sync"]).code, 3);
    // One of them is not true any more.
    project.shop("DELETE FROM vip WHERE user_id = 'b'");
    project.succeed(&["sync", "Vip"]);
    endpoint.accept_everything();
    endpoint.take_ledger();
    project.succeed(&["snapshot", "dead", "--retry"]);
    let ledger = endpoint.take_ledger();
    let arrived = lines(ledger.accepted_by("members"));
    let expected = [
        ("b", &json!({"buyers": true, "email": "b@x"})),
        ("b", &json!({"spend": 2.5, "email": "b@x"})),
    ];
    assert_eq!(said(&arrived), expected);
    nothing_is_left(&project);
}

#[test]
fn a_part_that_is_refused_keeps_no_other_part() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_BOTH);
    endpoint.script(will_not_have("\"spend\":2.5"));
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let reports = ran.lines();
    let counts = reports
        .iter()
        .map(|report| numbers(report, ["delivered", "undelivered"]));
    assert_eq!(counts.collect::<Vec<_>>(), [[3, 0], [2, 1], [2, 0]]);
    let ledger = endpoint.take_ledger();
    for stream in ["members", "copies"] {
        let arrived = lines(ledger.accepted_by(stream));
        let of_b: Vec<_> = arrived
            .iter()
            .filter(|line| line["userId"] == "b")
            .collect();
        let keys = of_b
            .iter()
            .map(|line| &line["context"]["personas"]["computation_key"]);
        assert_eq!(keys.collect::<Vec<_>>(), ["buyers", "vip"]);
    }
    let keys: Vec<_> = letters(&project)
        .iter()
        .map(|letter| letter["audience"].clone())
        .collect();
    assert_eq!(keys, ["spend"]);
}

/// One call is accepted without a word, and then Firehose will not have what was in it. Whatever is decided anew meanwhile.
#[test]
fn no_other_bytes_come_under_a_message_id_that_may_have_arrived() {
    for anew in KEYS {
        let endpoint = Endpoint::start();
        let project = at(&endpoint, "", TO_MEMBERS);
        let mut first = true;
        endpoint.script(move |_| match std::mem::take(&mut first) {
            true => Answer::AcceptAndClose,
            false => Answer::error(400, "ValidationException"),
        });
        assert_eq!(project.run(&["sync"]).code, 3);
        endpoint.accept_everything();
        project.succeed(&["sync", anew]);
        project.succeed(&["snapshot", "dead", "--retry"]);
        nothing_is_left(&project);

        let ledger = endpoint.ledger();
        let mut records: BTreeMap<String, &[u8]> = BTreeMap::new();
        let mut parts: BTreeMap<String, usize> = BTreeMap::new();
        for record in ledger.accepted_by("members") {
            let line = parsed(record);
            let id = line["messageId"].as_str().unwrap().to_owned();
            assert!(*records.entry(id).or_insert(record) == record);
            for id in message_ids(&line) {
                *parts.entry(id.to_owned()).or_default() += 1;
            }
        }
        // A part comes once more at most, under the id that it was listed with.
        assert!(parts.values().all(|times| *times <= 2));
        let shown = shown(&project).len();
        assert_eq!(shown, 8);
    }
}

#[test]
fn who_may_have_been_told_in_a_shared_record_is_told_what_is_so_now() {
    let endpoint = Endpoint::start();
    let project = at(&endpoint, "", TO_MEMBERS);
    project.shop("DELETE FROM vip; DELETE FROM buyers WHERE user_id <> 'b'");
    project.succeed(&["sync"]);
    endpoint.take_ledger();
    project.shop("INSERT INTO vip VALUES ('b'); UPDATE buyers SET spend = 9");
    let mut first = true;
    endpoint.script(move |_| match std::mem::take(&mut first) {
        true => Answer::AcceptAndClose,
        false => Answer::error(400, "ValidationException"),
    });
    assert_eq!(project.run(&["sync"]).code, 3);
    project.shop("DELETE FROM vip; UPDATE buyers SET spend = 2.5");
    endpoint.accept_everything();
    endpoint.take_ledger();
    project.succeed(&["sync"]);
    let ledger = endpoint.take_ledger();
    let arrived = lines(ledger.accepted_by("members"));
    let traits = json!({"spend": 2.5, "vip": false, "email": "b@x"});
    assert_eq!(said(&arrived), [("b", &traits)]);
    nothing_is_left(&project);
}

/// A directory in which two commands have said things together, and one has not.
fn with_a_past() -> Project {
    let project = in_directory();
    project.succeed(&["sync"]);
    project.shop(
        "DELETE FROM buyers WHERE user_id = 'a'; INSERT INTO buyers VALUES ('e', 'e@x', 0.1);
         INSERT INTO vip VALUES ('a'), ('e'), (char(10) || '\"');
         UPDATE buyers SET spend = -0.0 WHERE user_id = 'c'",
    );
    project.succeed(&["sync"]);
    project.shop("DELETE FROM vip WHERE user_id = 'd'");
    project.succeed(&["sync", "Vip"]);
    project
}

fn shown(project: &Project) -> Vec<Value> {
    let show = |key: &&str| {
        project
            .succeed(&["snapshot", "show", key, "--json"])
            .lines()
    };
    KEYS.iter().flat_map(show).collect()
}

#[test]
fn a_user_is_told_of_with_the_message_id_of_each_part() {
    let project = with_a_past();
    let told = project
        .succeed(&["snapshot", "user", "b", "--json"])
        .lines();
    let ids: BTreeSet<_> = told
        .iter()
        .map(|line| line["messageId"].as_str().unwrap())
        .collect();
    let arrived = project.delivered();
    let line = arrived.iter().find(|line| line["userId"] == "b").unwrap();
    assert_eq!(ids, message_ids(line).into_iter().collect());
    assert_eq!(told.len(), 3);
}

#[test]
fn a_snapshot_is_made_anew_from_what_was_said_together() {
    let project = with_a_past();
    let before = shown(&project);
    let said = truth(&project.delivered());
    lose(&project);
    let made = project.succeed(&["snapshot", "rebuild", "--from", "delivered", "--json"]);
    let members: Vec<_> = made
        .lines()
        .iter()
        .map(|line| numbers(line, ["members", "left"]))
        .collect();
    assert_eq!(members, [[3, 1], [3, 1], [4, 1]]);
    assert_eq!(shown(&project), before);
    nothing_is_left(&project);
    assert_eq!(truth(&project.delivered()), said);
    verified(&project, &[]);
}

/// What `verify` finds, where it finds anything: missing, extra, wrong, duplicated.
#[track_caller]
fn verified(project: &Project, expected: &[(&str, [u64; 4])]) -> Ran {
    let ran = project.run(&["snapshot", "verify", "--from", "delivered", "--json"]);
    let lines = ran.lines();
    let fields = ["missing", "extra", "wrong", "duplicated"];
    let found = lines
        .iter()
        .map(|line| (line["audience"].as_str().unwrap(), numbers(line, fields)));
    let found: Vec<_> = found.filter(|(_, counts)| *counts != [0; 4]).collect();
    assert_eq!(found, expected, "{ran:?}");
    ran
}

#[test]
fn what_landed_together_is_compared_part_by_part() {
    let project = with_a_past();
    let ran = verified(&project, &[]);
    let counts: Vec<_> = ran
        .lines()
        .iter()
        .map(|line| numbers(line, ["records"]))
        .collect();
    assert_eq!(counts, [[5], [6], [6]]);

    let file = |text: &str| {
        let files = files(&project.path("delivered"));
        let holds =
            |file: &&std::path::PathBuf| std::fs::read_to_string(file).unwrap().contains(text);
        files.iter().find(holds).unwrap().clone()
    };
    let first = file(r#""userId":"b""#);
    let whole = std::fs::read_to_string(&first).unwrap();
    let line = whole
        .lines()
        .find(|line| line.contains(r#""userId":"b""#))
        .unwrap();
    let replaced =
        |to: &str| std::fs::write(&first, whole.replace(&format!("{line}\n"), to)).unwrap();
    replaced("");
    verified(
        &project,
        &[
            ("buyers", [1, 0, 0, 0]),
            ("spend", [1, 0, 0, 0]),
            ("vip", [1, 0, 0, 0]),
        ],
    );
    replaced(&format!("{line}\n{line}\n"));
    verified(
        &project,
        &[
            ("buyers", [0, 0, 0, 1]),
            ("spend", [0, 0, 0, 1]),
            ("vip", [0, 0, 0, 1]),
        ],
    );
    // One part says something else.
    replaced(&format!(
        "{}\n",
        line.replace(r#""vip":true"#, r#""vip":false"#)
    ));
    verified(&project, &[("vip", [0, 0, 1, 0])]);
}

/// Nothing of a record by itself may be another than it was; of one that is shared, nothing that is a part's own.
#[test]
fn a_record_that_was_changed_downstream_is_found() {
    let project = in_directory();
    let audience = |table: &str| {
        format!(
            "[[audience]]\nname = \"{table}\"\nsource = \"shop\"\n\
             query = \"SELECT user_id, anonymous_id FROM {table}\"\n"
        )
    };
    project.write(
        "schedules/main.toml",
        &(audience("one") + &audience("other")),
    );
    project.shop(
        "CREATE TABLE one (user_id, anonymous_id);
         INSERT INTO one VALUES ('both', 'x'), ('single', 'x');
         CREATE TABLE other AS SELECT * FROM one WHERE user_id = 'both'",
    );
    project.succeed(&["sync"]);
    verified(&project, &[]);
    let files = files(&project.path("delivered"));
    let [file] = &files[..] else {
        panic!("{files:?}");
    };
    let whole = std::fs::read_to_string(file).unwrap();
    let check = |user: &str, from: &str, to: &str, expected: &[(&str, [u64; 4])]| {
        let changed = whole.split_inclusive('\n').map(|line| {
            let is_it = line.contains(&format!("\"userId\":\"{user}\""));
            assert!(line.contains(from));
            if is_it {
                line.replacen(from, to, 1)
            } else {
                line.to_owned()
            }
        });
        std::fs::write(file, changed.collect::<String>()).unwrap();
        verified(&project, expected);
    };
    let one = [("one", [0, 0, 1, 0])];
    let both = [("one", [0, 0, 1, 0]), ("other", [0, 0, 1, 0])];
    let other_id = r#""anonymousId":"y""#;
    check("single", r#""anonymousId":"x""#, other_id, &one);
    check("single", r#""sentAt":null"#, r#""sentAt":1"#, &one);
    check("both", r#""anonymousId":"x""#, other_id, &both);
    check("both", r#""timestamp":"2"#, r#""timestamp":"3"#, &both);
}
