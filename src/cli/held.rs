//! Removals that the guard holds, for whoever is asked about them.

use super::output::{count, printable};
use crate::snapshot::{Approval, Held, HeldUser};

/// How many, and what part: `120 (40.0 %)`.
pub(super) fn part(held: &Held) -> String {
    format!("{} ({:.1} %)", count(held.count), held.percent())
}

/// How many, and a few of them, a line each.
pub(super) fn sample(audience: &str, destination: &str, held: &Held) -> String {
    let mut text = format!(
        "\nheld of {} at {}: {} of {} members",
        printable(audience),
        printable(destination),
        part(held),
        count(held.of)
    );
    match held.count - held.sample.len() as u64 {
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

/// What a yes has meant, or would mean.
pub(super) fn approved(approval: Approval, removed: u64, is_dry_run: bool) -> String {
    let verb = if is_dry_run {
        "would approve"
    } else {
        "approved"
    };
    match approval {
        Approval::AsHeld => format!(
            "{verb}: exactly the {} removals that were held",
            count(removed)
        ),
        Approval::Replanned { held } => format!(
            "{verb} a new plan: {} removals; {} were held, and the source has changed since",
            count(removed),
            count(held)
        ),
    }
}
