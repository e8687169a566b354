//! Whatever is delivered first, and however often a process ends in between.

use std::collections::BTreeMap;

use fastrand::Rng;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::audience::{
    Action, AudienceId, Change, Class, DestinationName, Key, Member, UserKind, Value,
};
use crate::deliver::parcel::parcels;
use crate::diff::Tally;
use crate::event::{Computation, Landed};
use crate::laws::{Users, cases, ids, kinds, user};
use crate::progress::Progress;
use crate::run::{RunId, RunKind, Timestamp};
use crate::snapshot::{Credit, Planning};

const STREAMS: usize = 2;

/// Whether one leaves, the anonymous id beside a user id, and how long a trait is.
type Said = (bool, Option<String>, usize);

fn runs() -> impl Strategy<Value = Vec<Users<Said>>> {
    // Each of four has a quarter of 1,024,000 bytes.
    let length = prop_oneof![20 => 0..9_usize, 1 => Just(250_000), 1 => Just(257_000)];
    let said = (any::<bool>(), prop::option::weighted(0.2, "[xy]"), length);
    vec(btree_map((kinds(), ids()), said, 1..12), 4)
}

fn plan(snapshot: &mut Snapshot, number: usize, users: &Users<Said>) -> i64 {
    let started_at = Timestamp::from_millis(number as i64 + 1);
    let key = char::from(b'd' - number as u8).to_string();
    let streams = (0..STREAMS).map(|stream| StreamName::parse(&format!("s{stream}")).unwrap());
    let planning = Planning {
        computation: Computation {
            audience: AudienceId::new(&*key),
            key: Key::new(&*key),
            class: Class::Audience,
            destination: DestinationName::new("main"),
            run: RunId::at(started_at),
            started_at,
            space_id: None,
        },
        name: key,
        kind: RunKind::Delta,
        streams: streams.collect(),
        guard: None,
        approve: false,
        sharing: 1,
    };
    let plan = snapshot.plan::<SnapshotError>(&planning, |_, journal| {
        for (of, (leaves, anonymous_id, length)) in users {
            let anonymous_id = anonymous_id.as_deref();
            let traits = format!(",\"t\":\"{}\"", "t".repeat(*length));
            journal.push(&Change {
                action: if *leaves {
                    Action::Leave
                } else {
                    Action::Enter
                },
                member: Member {
                    user: user(of),
                    anonymous_id: anonymous_id.filter(|_| of.0 == UserKind::UserId),
                    value: Value::True,
                    traits: if *leaves { "" } else { &traits },
                },
            })?;
        }
        let added = users.len() as u64;
        let tally = Tally {
            added,
            ..Tally::default()
        };
        Ok((tally, 0))
    });
    plan.unwrap().run.number
}

/// Every line that was sent, by its message id.
type Sent = BTreeMap<String, Line>;

struct Line {
    bytes: Vec<u8>,
    /// Their message ids.
    parts: Vec<String>,
    is_refused: bool,
}

/// Sends what is not accepted yet, of which some is accepted and some refused for ever, unless all is well.
fn send(load: &Load, dice: &mut Rng, is_well: bool, sent: &mut Sent) -> Answer {
    let mut accepted: Vec<Vec<bool>> = (0..STREAMS).map(|stream| load.accepted(stream)).collect();
    let mut dead = Vec::new();
    let mut ids = BTreeMap::new();
    for (stream, before) in accepted.clone().iter().enumerate() {
        for record in load.records(false, before) {
            ids.insert(record.lines.start, note(&record.data, sent));
            accepted[stream][record.lines.start] = is_well || dice.u8(..3) == 0;
        }
    }
    for (line, has) in accepted[0].iter().enumerate() {
        if *has
            && !accepted[1][line]
            && let Some(id) = ids.get(&line)
            && dice.u8(..3) == 0
        {
            sent.get_mut(id).unwrap().is_refused = true;
            dead.push(Dead {
                position: line,
                reason: "bad".to_owned(),
                stream: Some(1),
                doubtful: Vec::new(),
            });
        }
    }
    Answer { accepted, dead }
}

fn note(line: &[u8], sent: &mut Sent) -> String {
    let text = std::str::from_utf8(line).unwrap();
    let parts = match Landed::parse(text).unwrap() {
        Landed::Ours(statement) => vec![statement],
        Landed::Coalesced { statements, .. } => statements,
        Landed::Foreign(_) => panic!("{text}"),
    };
    let parts: Vec<String> = parts
        .iter()
        .map(|part| part.message_id.to_string())
        .collect();
    let said: serde_json::Value = serde_json::from_str(text).unwrap();
    let id = said["messageId"].as_str().unwrap();
    let known = sent.entry(id.to_owned()).or_insert_with(|| Line {
        bytes: line.to_vec(),
        parts,
        is_refused: false,
    });
    assert!(known.bytes == line, "other bytes");
    id.to_owned()
}

/// What one process does. It may end before it remembers what came back.
fn deliver(snapshot: &mut Snapshot, dice: &mut Rng, is_well: bool, sent: &mut Sent) {
    let waiting = snapshot.waiting().unwrap().into_iter();
    let errands: Vec<Errand> = waiting
        .map(|run| Errand::new(run, Arc::default()))
        .collect();
    let progress = Progress::default();
    let mut account = Account::new(errands.len(), &progress);
    let (alone, together) = groups(&errands);
    for runs in together {
        let mut group = Group::new(runs, &errands, snapshot).unwrap();
        while is_well || dice.u8(..3) > 0 {
            let (left, round) = group.go_on(snapshot, &errands, true).unwrap();
            group = left;
            if round.is_empty() {
                break;
            }
            for (load, places) in round {
                let answer = send(&load, dice, is_well, sent);
                group.take_back(&answer, &places, &mut account);
            }
        }
        if dice.bool() {
            group.remember(snapshot, &errands).unwrap();
        }
    }
    for run in alone {
        let journaled = &errands[run].run;
        let credit = Credit {
            chunks: 9,
            bytes: usize::MAX,
        };
        let chunks = snapshot.settle(journaled, &[], -1, credit).unwrap();
        let chunks = chunks.into_iter().map(|chunk| (run, chunk)).collect();
        for parcel in parcels(chunks, |run| &*errands[run].run.streams) {
            let load = Load::render(&parcel, &errands).unwrap();
            let answer = send(&load, dice, is_well, sent);
            for (_, settled) in parcel.settle(answer) {
                snapshot
                    .settle(journaled, &[settled], -1, Credit::NONE)
                    .unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn every_change_is_in_one_line_whose_bytes_stay_the_same(
        runs in runs(),
        seed: u64,
        processes in 0..9_usize,
    ) {
        let mut snapshot = Snapshot::empty().unwrap();
        let numbers = runs.iter().enumerate();
        let numbers: Vec<i64> = numbers.map(|(number, users)| plan(&mut snapshot, number, users)).collect();
        snapshot.coalesce(&numbers).unwrap();
        let (mut dice, mut sent) = (Rng::with_seed(seed), Sent::new());
        for _ in 0..processes {
            deliver(&mut snapshot, &mut dice, false, &mut sent);
            if dice.bool() {
                snapshot.revive_dead_letters().unwrap();
            }
        }
        deliver(&mut snapshot, &mut dice, true, &mut sent);
        prop_assert_eq!(snapshot.waiting().unwrap().len(), 0);

        let mut said_in: BTreeMap<&String, Vec<&Line>> = BTreeMap::new();
        for line in sent.values() {
            prop_assert!(line.bytes.len() <= MAX_RECORD_BYTES);
            line.parts.iter().for_each(|part| said_in.entry(part).or_default().push(line));
        }
        prop_assert_eq!(said_in.len(), runs.iter().map(BTreeMap::len).sum::<usize>());
        for (part, mut lines) in said_in {
            // Once, and once more by itself where a line that it shared was refused.
            lines.sort_by_key(|line| line.parts.len());
            prop_assert!(lines.len() == 1 || lines[0].parts == [part.as_str()]);
            prop_assert!(lines.len() <= 2 && lines[1..].iter().all(|line| line.is_refused));
        }
    }
}
