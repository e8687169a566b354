use std::collections::BTreeMap;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::audience::{MemberBuf, UserKind, Value, ValueBuf};
use crate::causes::in_one_line;
use crate::diff::Members as _;
use crate::laws::{cases, ids, kinds};
use crate::source::is_greater;

#[derive(Debug, Clone)]
struct Row {
    user: (UserKind, String),
    anonymous_id: Option<String>,
    value: ValueBuf,
    traits: String,
}

impl Row {
    fn new(id: impl Into<String>) -> Self {
        Self {
            user: (UserKind::UserId, id.into()),
            anonymous_id: None,
            value: ValueBuf::True,
            traits: String::new(),
        }
    }

    fn to_member(&self) -> MemberBuf {
        MemberBuf {
            kind: self.user.0,
            id: self.user.1.clone(),
            anonymous_id: self.anonymous_id.clone(),
            value: self.value.clone(),
            traits: self.traits.clone(),
        }
    }
}

fn sorter(shares: Shares) -> Sorter {
    sorter_in(&std::env::temp_dir(), shares)
}

fn sorter_in(folder: &Path, shares: Shares) -> Sorter {
    Sorter::with(folder.to_owned(), shares, &Interrupt::default())
}

fn push_all<'r>(
    sorter: &mut Sorter,
    rows: impl IntoIterator<Item = &'r Row>,
) -> Result<(), SortError> {
    rows.into_iter()
        .try_for_each(|row| sorter.push(&row.to_member().as_member()))
}

fn collect(mut sorted: Sorted) -> Result<Vec<Row>, SortError> {
    let mut rows = Vec::new();
    while sorted.advance()? {
        let member = sorted.current();
        assert_eq!((sorted.user(), sorted.value()), (member.user, member.value));
        rows.push(Row {
            user: (member.user.kind, member.user.id.to_owned()),
            anonymous_id: member.anonymous_id.map(str::to_owned),
            value: match member.value {
                Value::True => ValueBuf::True,
                Value::Text(text) => ValueBuf::Text(text.to_owned()),
                Value::Integer(integer) => ValueBuf::Integer(integer),
                Value::Real(real) => ValueBuf::Real(real),
            },
            traits: member.traits.to_owned(),
        });
    }
    assert!(!sorted.advance()?, "an end stays one");
    Ok(rows)
}

fn sort(rows: &[Row], shares: Shares) -> Vec<Row> {
    let mut sorter = sorter(shares);
    push_all(&mut sorter, rows).unwrap();
    collect(sorter.finish().unwrap()).unwrap()
}

/// The same by looking each user up.
fn looked_up(rows: &[Row]) -> Vec<Row> {
    let mut users = BTreeMap::<&(UserKind, String), &Row>::new();
    for row in rows {
        let kept = users.entry(&row.user).or_insert(row);
        if is_greater(&row.to_member(), &kept.to_member()) {
            *kept = row;
        }
    }
    users.into_values().cloned().collect()
}

#[track_caller]
fn check(rows: &[Row], shares: Shares) {
    let (sorted, expected) = (sort(rows, shares), looked_up(rows));
    assert_eq!(sorted.len(), expected.len());
    for (row, expected) in sorted.iter().zip(&expected) {
        let is_same = row.to_member().as_member() == expected.to_member().as_member();
        assert!(is_same, "{row:?}, not {expected:?}");
    }
}

/// Ids that are alike for long, too.
fn any_id() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => ids(),
        2 => (0..3_usize, "[a\u{0}\u{10ffff}]{0,9}").prop_map(|(times, end)| "a long beginning ".repeat(times) + &end),
    ]
}

/// Of a source all are members, or all have a value.
fn values() -> impl Strategy<Value = ValueBuf> {
    prop_oneof![
        "[ab]{0,3}".prop_map(ValueBuf::Text),
        (-2..3_i64).prop_map(ValueBuf::Integer),
        any::<i64>().prop_map(ValueBuf::Integer),
        (-2..3_i8).prop_map(|real| ValueBuf::Real(real.into())),
        (prop::num::f64::NORMAL | prop::num::f64::ZERO).prop_map(ValueBuf::Real),
    ]
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let members = rows_with(Just(ValueBuf::True).boxed());
    prop_oneof![members, rows_with(values().boxed())]
}

fn rows_with(value: BoxedStrategy<ValueBuf>) -> impl Strategy<Value = Vec<Row>> {
    let traits = prop_oneof![4 => Just(String::new()), 1 => "(,\"x\":[12]){1,60}"];
    let row = (kinds(), any_id(), prop::option::of(ids()), value, traits);
    let row = row.prop_map(|(kind, id, anonymous_id, value, traits)| Row {
        user: (kind, id),
        anonymous_id,
        value,
        traits,
    });
    vec(row, 0..300)
}

proptest! {
    #![proptest_config(cases(256))]

    /// In one buffer, in a few runs, and in so many that they are merged over and over.
    #[test]
    fn sorting_gives_what_looking_everyone_up_gives(
        rows in rows(),
        budget in prop_oneof![0..4_096_usize, Just(1 << 20)],
        at_once in prop_oneof![2..5_usize, Just(63)],
    ) {
        check(&rows, Shares { at_once, ..Shares::of(budget) });
    }

    #[test]
    fn bytes_that_are_no_record_are_none(bytes in vec(any::<u8>(), 0..60), at in 0..70_usize) {
        let mut member = MemberBuf::default();
        if let Some(place) = record::find(&bytes, at) {
            prop_assert!(place.end <= bytes.len());
            let _: Option<()> = place.read(&bytes, &mut member);
        }
    }
}

/// In an order that is none, each of them `times` times.
fn shuffled(count: u64, times: u64) -> Vec<Row> {
    let of = |number: u64| {
        Row::new(format!(
            "user_{:016x}",
            (number % count).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ))
    };
    (0..count * times).map(of).collect()
}

#[test]
fn many_members_are_sorted_in_several_passes() {
    let rows = shuffled(8_000, 2);
    check(
        &rows,
        Shares {
            at_once: 4,
            ..Shares::of(20_000)
        },
    );
    check(&rows, Shares::of(20_000));
    check(&rows, Shares::of(1 << 30));
}

#[test]
fn nobody_gives_nobody() {
    check(&[], Shares::of(1 << 20));
    check(&[], Shares::of(0));
}

#[test]
fn a_member_that_is_larger_than_the_budget_is_sorted_too() {
    let mut rows = shuffled(1_000, 1);
    for (place, row) in rows.iter_mut().enumerate().step_by(100) {
        row.traits = format!(",\"x\":\"{}\"", "x".repeat(10_000 + place));
    }
    rows.push(Row::new("x".repeat(10_000)));
    check(
        &rows,
        Shares {
            at_once: 3,
            ..Shares::of(4_000)
        },
    );
}

#[test]
fn members_in_order_are_one_run() {
    let mut rows = shuffled(5_000, 1);
    rows.sort_by(|a, b| a.user.cmp(&b.user));
    let runs = |rows: &[Row]| {
        let mut sorter = sorter(Shares::of(20_000));
        push_all(&mut sorter, rows).unwrap();
        sorter.writer.unwrap().finish().unwrap().runs.len()
    };
    assert_eq!(runs(&rows), 1);
    // Such as two files, each in order: another run is the buffer where one ends and the other one begins.
    rows.rotate_left(2_500);
    assert_eq!(runs(&rows), 3);
    check(&rows, Shares::of(20_000));
}

/// All buffers together, at every moment: while one fills, the other one is sorted and written, and runs are merged.
#[test]
fn memory_stays_within_the_budget() {
    let rows = shuffled(5_000, 1);
    for budget in [10_000, 100_000, 1_000_000] {
        let shares = Shares::of(budget);
        let blocks = (shares.at_once + 1) * shares.block_bytes;
        let mut sorter = Sorter::new(budget, &Interrupt::default());
        for row in &rows {
            push_all(&mut sorter, [row]).unwrap();
            assert!(2 * sorter.filling.bytes() + blocks <= budget);
        }
        let mut sorted = sorter.finish().unwrap();
        while sorted.advance().unwrap() {
            assert!(sorted.bytes() <= budget);
        }
    }
}

/// Blocks are as long as the longest record, and so fewer runs are merged at once.
#[test]
fn memory_stays_within_the_budget_where_rows_are_long() {
    let budget = 1 << 20;
    let mut rows = shuffled(400, 1);
    for row in rows.iter_mut().step_by(2) {
        // As a row of 4 MiB is to 64 MiB.
        row.traits = "x".repeat(budget / 16);
    }
    let mut sorter = Sorter::new(budget, &Interrupt::default());
    push_all(&mut sorter, &rows).unwrap();
    let mut sorted = sorter.finish().unwrap();
    let mut members = 0;
    while sorted.advance().unwrap() {
        members += 1;
        assert!(sorted.bytes() <= budget, "{} of {budget}", sorted.bytes());
    }
    assert_eq!(members, rows.len());
}

#[test]
fn runs_that_cannot_be_written_are_an_error_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let mut sorter = sorter_in(&missing, Shares::of(20_000));
    let pushed = push_all(&mut sorter, &shuffled(2_000, 1));
    let text = in_one_line(&pushed.unwrap_err());
    let beginning = format!(
        "members could not be sorted: no temporary file could be written in {}: ",
        missing.display()
    );
    assert!(text.starts_with(&beginning), "{text}");
    let hint = "\n\nhint: let TMPDIR name a folder with room for all of them";
    assert!(text.ends_with(hint), "{text}");

    // One buffer went to the thread, and the next one was never full.
    let mut sorter = sorter_in(&missing, Shares::of(20_000));
    let count = 1 + sorter.shares.members as u64;
    push_all(&mut sorter, &shuffled(count, 1)).unwrap();
    let failure = sorter.finish().err().unwrap();
    assert!(
        matches!(failure, SortError::Unwritable { .. }),
        "{failure:?}"
    );
}

/// Runs are merged before there is a first member, and while others are still pushed.
#[test]
fn an_interrupt_ends_a_merge_of_runs() {
    let rows = shuffled(2_000, 1);
    let shares = Shares {
        at_once: 2,
        ..Shares::of(20_000)
    };
    let interrupt = Interrupt::default();
    let sorter = || Sorter::with(std::env::temp_dir(), shares, &interrupt);
    let mut all = sorter();
    push_all(&mut all, &rows).unwrap();
    interrupt.interrupt();
    let finished = all.finish().err();
    assert!(
        matches!(finished, Some(SortError::Interrupted)),
        "{finished:?}"
    );
    let pushed = push_all(&mut sorter(), &rows);
    assert!(matches!(pushed, Err(SortError::Interrupted)), "{pushed:?}");
}
