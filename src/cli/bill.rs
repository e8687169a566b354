//! What a dry run would cost, for people: packed and not, side by side.

use std::collections::BTreeMap;
use std::time::Duration;

use super::output::{bytes, count, printable, table};
use crate::bill::{Bill, Charge, PRICE_PER_GB, PRICED_IN};
use crate::sync::Report;

/// A table with both ways of each destination; `None` where nothing would be sent.
pub(super) fn shown(reports: &[Report]) -> Option<String> {
    let mut bills: BTreeMap<&str, Bill> = BTreeMap::new();
    for report in reports {
        let Some(bill) = report.bill else { continue };
        bills
            .entry(report.destination.as_str())
            .and_modify(|sum| *sum += bill)
            .or_insert(bill);
    }
    bills.retain(|_, bill| bill.unpacked.records > 0);
    if bills.is_empty() {
        return None;
    }
    let columns = [
        "destination",
        "pack",
        "records",
        "sent",
        "billed",
        "per GB",
        "cost",
        "at the quota",
    ];
    let rows = bills
        .iter()
        .flat_map(|(destination, bill)| [false, true].map(|pack| row(destination, bill, pack)));
    let mut text = format!("\n{}", table(&columns, &columns[2..], rows.collect()));
    if bills.values().any(|bill| bill.price_per_gb == PRICE_PER_GB) {
        text.push_str(&format!(
            "\n\n${PRICE_PER_GB} per GB was quoted for us-east-1 in {PRICED_IN}; `price_per_gb` sets yours."
        ));
    }
    if bills.values().any(|bill| bill.is_free) {
        text.push_str("\nA directory costs nothing: this is what Firehose would charge.");
    }
    Some(text)
}

fn row(destination: &str, bill: &Bill, pack: bool) -> Vec<String> {
    let Charge {
        records,
        bytes: sent,
        billed_bytes,
        dollars: cost,
        quota_seconds,
    } = if pack { bill.packed } else { bill.unpacked };
    let mark = if pack == bill.pack { " (as set)" } else { "" };
    vec![
        printable(destination).into_owned(),
        format!("{pack}{mark}"),
        count(records),
        bytes(sent),
        bytes(billed_bytes),
        format!("${}", bill.price_per_gb),
        dollars(cost),
        quota_seconds.map_or_else(|| "-".to_owned(), time),
    ]
}

/// Cents, and of less than ten of them two digits: `$1,234.50`, `$0.0079`.
fn dollars(amount: f64) -> String {
    if amount >= 0.1 || amount == 0.0 {
        let cents = (amount * 100.0).round() as u64;
        return format!("${}.{:02}", count(cents / 100), cents % 100);
    }
    let decimals = (1.0 - amount.log10().floor()) as usize;
    format!("${amount:.decimals$}")
}

fn time(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1}s");
    }
    humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_amounts_keep_two_digits() {
        let shown = [0.0, 0.000_000_14, 0.0079, 0.0999, 0.1, 0.28, 1_234.5].map(dollars);
        let expected = [
            "$0.00",
            "$0.00000014",
            "$0.0079",
            "$0.100",
            "$0.10",
            "$0.28",
            "$1,234.50",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn times_are_read_at_a_glance() {
        assert_eq!([0.04, 59.9, 576.4].map(time), ["0.0s", "59.9s", "9m 36s"]);
    }
}
