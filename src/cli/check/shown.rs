//! What was seen of a source, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::sources::Look;
use crate::audience::{AudienceId, Key, SourceName};
use crate::cli::output::{count, printable};
use crate::run::Timestamp;
use crate::source::{Fault, Order, Peek, Question, Seen};

/// The further fields of `check --sources --json`, on lines of their own.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    audience: &'a Key,
    id: &'a AudienceId,
    /// Which query it is about. Tells these lines from those of an audience and destination.
    peek: &'static str,
    source: &'a SourceName,
    source_kind: &'static str,
    reads: &'a [String],
    parts: u64,
    columns: Vec<Column<'a>>,
    rows: u64,
    complete: bool,
    skipped_rows: u64,
    faults: Vec<Faulty<'a>>,
    order: Option<&'static str>,
    first_row_seconds: Option<f64>,
    seconds: f64,
    updated_at: Option<Timestamp>,
    max_age_seconds: Option<u64>,
    min_members: u64,
    errors: Vec<&'a str>,
}

#[derive(Serialize)]
struct Column<'a> {
    column: &'a str,
    source_column: &'a str,
    declared: Option<&'a str>,
    found: &'a BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Faulty<'a> {
    reason: &'a str,
    rows: u64,
    first_row: u64,
    first_in: Option<&'a str>,
}

impl<'a> Line<'a> {
    pub(super) fn of(look: &'a Look<'_>) -> Self {
        let (audience, peek) = (&look.keyed.audience, &look.peek);
        let problems = look.problems.iter();
        Self {
            audience: &look.keyed.key,
            id: &audience.id,
            peek: asked(look.question),
            source: &audience.source,
            source_kind: look.source_kind,
            reads: &peek.reads,
            parts: peek.parts,
            columns: peek.columns.iter().map(Column::of).collect(),
            rows: peek.rows,
            complete: peek.is_complete,
            skipped_rows: peek.skipped_rows,
            faults: peek.faults.iter().map(Faulty::of).collect(),
            order: peek.order.map(order_word),
            first_row_seconds: peek.first_row.map(milliseconds),
            seconds: milliseconds(peek.duration),
            updated_at: look.updated_at,
            max_age_seconds: audience.expect.max_age.map(|age| age.as_secs()),
            min_members: audience.expect.min_members,
            errors: problems.map(|problem| problem.message.as_str()).collect(),
        }
    }
}

impl<'a> Column<'a> {
    fn of(seen: &'a Seen) -> Self {
        Self {
            column: &seen.name,
            source_column: seen.source_name.as_deref().unwrap_or(&seen.name),
            declared: seen.declared.as_deref(),
            found: &seen.found,
        }
    }
}

impl<'a> Faulty<'a> {
    fn of(fault: &'a Fault) -> Self {
        Self {
            reason: &fault.reason,
            rows: fault.rows,
            first_row: fault.first_row,
            first_in: fault.first_in.as_deref(),
        }
    }
}

/// As the schedule calls it.
const fn asked(question: Question) -> &'static str {
    match question {
        Question::Members => "query",
        Question::Changes { .. } => "changes",
    }
}

const fn order_word(order: Order) -> &'static str {
    match order {
        Order::Given => "given",
        Order::Sorted => "sorted_by_source",
        Order::Asked => "asked_for",
        Order::Here => "sorted_here",
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000.0).round() / 1_000.0
}

/// A title, and a line for each thing that there is to say.
pub(super) fn text(look: &Look<'_>) -> String {
    let Look { keyed, peek, .. } = look;
    let changes = match look.question {
        Question::Members => "",
        Question::Changes { .. } => " (changes)",
    };
    let mut text = format!(
        "\n{}{changes} from {}, {}",
        printable(keyed.key.as_str()),
        printable(keyed.audience.source.as_str()),
        look.source_kind
    );
    let mut say = |name: &str, what: String| {
        text.push_str(&format!("\n  {name:<8}  {}", printable(&what)));
    };
    reads(peek).into_iter().for_each(|what| say("reads", what));
    for seen in &peek.columns {
        say("column", column(seen));
    }
    say("rows", rows(peek));
    for fault in &peek.faults {
        say("fault", faulty(fault));
    }
    if let Some(order) = peek.order {
        say("order", ordered(order).to_owned());
    }
    say("time", time(peek));
    expected(look)
        .into_iter()
        .for_each(|what| say("expect", what));
    for problem in &look.problems {
        let what = problem.message.split("\n").next().unwrap_or_default();
        say("problem", what.to_owned());
    }
    text
}

fn reads(peek: &Peek) -> Option<String> {
    let named = peek.reads.join("; ");
    match peek.parts {
        0 => None,
        parts if parts > peek.reads.len() as u64 => {
            Some(format!("{named}; {} in all", count(parts)))
        }
        _ => Some(named),
    }
}

/// Such as `user_id (customer_id, declared TEXT): text 998, NULL 2`.
fn column(seen: &Seen) -> String {
    let declared = seen.declared.as_ref().map(|it| format!("declared {it}"));
    let about: Vec<String> = seen.source_name.iter().cloned().chain(declared).collect();
    let about = match about.is_empty() {
        true => String::new(),
        false => format!(" ({})", about.join(", ")),
    };
    let found = seen.found.iter();
    let found: Vec<String> = found
        .map(|(kind, rows)| format!("{kind} {}", count(*rows)))
        .collect();
    format!("{}{about}: {}", seen.name, found.join(", "))
}

fn rows(peek: &Peek) -> String {
    let all = match peek.is_complete {
        true => "in all",
        false => "looked at",
    };
    let skipped = match peek.skipped_rows {
        0 => String::new(),
        skipped => format!(", {} of them skipped", count(skipped)),
    };
    format!("{} {all}{skipped}", count(peek.rows))
}

/// Such as `2 with a NULL id, the first in exports/a.csv, row 3`.
fn faulty(fault: &Fault) -> String {
    let Fault {
        reason,
        rows,
        first_row,
        first_in,
    } = fault;
    let part = first_in.as_ref().map(|part| format!("{part}, "));
    let part = part.unwrap_or_default();
    format!(
        "{} {reason}, the first in {part}row {first_row}",
        count(*rows)
    )
}

const fn ordered(order: Order) -> &'static str {
    match order {
        Order::Given => "given by the source without sorting; verified so far",
        Order::Sorted => "sorted by the source; verified so far",
        Order::Asked => "asked of the source, COLLATE \"C\"; verified so far",
        Order::Here => "none: a run sorts on disk",
    }
}

fn time(peek: &Peek) -> String {
    let seconds = |duration: Duration| format!("{:.3} s", duration.as_secs_f64());
    match peek.first_row {
        Some(first) => format!(
            "{}, the first row after {}",
            seconds(peek.duration),
            seconds(first)
        ),
        None => seconds(peek.duration),
    }
}

/// What the audience expects, and what is known of that.
fn expected(look: &Look<'_>) -> Vec<String> {
    let expect = &look.keyed.audience.expect;
    let mut said = Vec::new();
    if look.question != Question::Members {
        return said;
    }
    if let Some(max_age) = expect.max_age {
        let brought = match look.updated_at {
            Some(at) => at.to_datetime().format("%Y-%m-%d %H:%M:%S UTC").to_string(),
            None => "at a time that is not known".to_owned(),
        };
        let max_age = humantime::format_duration(max_age);
        said.push(format!(
            "brought up to date {brought}; max_age is {max_age}"
        ));
    }
    if expect.min_members > 0 {
        let min_members = count(expect.min_members);
        said.push(format!(
            "min_members is {min_members}, which is not judged from a few rows"
        ));
    }
    said
}
