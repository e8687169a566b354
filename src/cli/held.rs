//! What the guard holds, for the people who are asked about it.

use super::output::{count, printable};
use crate::snapshot::{Held, HeldUser};

/// How many of each kind: `120 removals (40.0 %), 3 changes`.
pub(super) fn words(held: &Held) -> String {
    let mut words = Vec::new();
    if held.removals > 0 {
        let removals = count(held.removals);
        words.push(format!("{removals} removals ({:.1} %)", held.percent()));
    }
    if held.additions > 0 {
        words.push(format!("{} additions", count(held.additions)));
    }
    if held.changes > 0 {
        words.push(format!("{} changes", count(held.changes)));
    }
    words.join(", ")
}

/// How many, and a few of the users who would be removed, a line each.
pub(super) fn sample(audience: &str, stream: &str, held: &Held) -> String {
    let mut text = format!(
        "\nheld of {} at {}: {} of {} members",
        printable(audience),
        printable(stream),
        words(held),
        count(held.of)
    );
    match held.removals - held.sample.len() as u64 {
        _ if held.sample.is_empty() => {}
        0 => text.push(':'),
        _ => text.push_str(", among them:"),
    }
    for user in &held.sample {
        let (kind, id) = match user {
            HeldUser::UserId(id) => ("user_id", id),
            HeldUser::AnonymousId(id) => ("anonymous_id", id),
        };
        text.push_str(&format!("\n  {kind} {}", printable(id)));
    }
    text
}
