//! How long our syncs take beside the bare cost of what they cannot avoid, on one machine and in one run.
//!
//! `cargo bench -- [MEMBERS]...`, by default for 100,000, 1,000,000 and 10,000,000; `cargo bench -- warehouse MEMBERS...`
//! for what concerns PostgreSQL only. It makes its data, which takes about
//! 3 GB in `TMPDIR` at most. Where there is Python, what a person would write by hand does the same work beside it, and
//! where there is PostgreSQL, `psql`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod by_hand;
mod endpoint;
#[path = "../support/shop.rs"]
mod shop;
mod step;
mod warehouse;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

use by_hand::ByHand;
use endpoint::Endpoint;
use shop::Shop;
use step::{ID_BYTES, Measured};
use warehouse::Warehouse;

const SIZES: [u64; 3] = [100_000, 1_000_000, 10_000_000];

/// By itself only.
fn compare_warehouses(sizes: &[&str]) -> anyhow::Result<()> {
    let endpoint = Endpoint::start()?;
    let warehouse = Warehouse::prepare().context("PostgreSQL is missing")?;
    sizes
        .iter()
        .try_for_each(|size| warehouse::compare(members(size)?, &warehouse, &endpoint))
}

/// More would only take longer: there are few large audiences, and Python is slow.
const LARGEST_OF_MANY: u64 = 1_000_000;

const MANY: usize = 200;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["endpoint"] => endpoint::serve(),
        ["step", step, folder, users, audiences, url] => {
            let shop = Shop::new(Path::new(folder), users.parse()?, audiences.parse()?);
            step::run(step, &shop, url)
        }
        [] => compare_all(&SIZES),
        ["warehouse", ref sizes @ ..] => compare_warehouses(sizes),
        ref sizes => {
            let sizes: anyhow::Result<Vec<u64>> = sizes.iter().map(|size| members(size)).collect();
            compare_all(&sizes?)
        }
    }
}

fn members(size: &str) -> anyhow::Result<u64> {
    let digits = size.replace(['_', ','], "");
    let members = digits.parse();
    members.with_context(|| format!("`{size}` is no number of members"))
}

fn myself() -> anyhow::Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

fn compare_all(sizes: &[u64]) -> anyhow::Result<()> {
    let endpoint = Endpoint::start()?;
    let by_hand = ByHand::prepare();
    println!(
        "Each step is a process of its own. The bare cost and ours take turns; of all rounds, the fastest counts, and the\n\
         highest peak. Each ratio is to the bare cost above it. Ids have {ID_BYTES} bytes."
    );
    if let Err(reason) = &by_hand {
        println!("Python comparison left out: {reason}");
    }
    let warehouse = Warehouse::prepare();
    if warehouse.is_none() {
        println!("PostgreSQL comparison left out, for the reason above");
    }
    for size in sizes {
        let bare = compare(*size, &endpoint)?;
        compare_exports(*size, by_hand.as_ref().ok(), &endpoint)?;
        if let Some(warehouse) = &warehouse {
            warehouse::compare(*size, warehouse, &endpoint)?;
        }
        if *size > LARGEST_OF_MANY {
            println!(
                "(200 audiences, and what is written by hand: up to {} members only)",
                with_commas(LARGEST_OF_MANY)
            );
            continue;
        }
        if let Ok(by_hand) = &by_hand {
            compare_by_hand(*size, by_hand, &endpoint, &bare)?;
        }
        compare_many(*size, &endpoint)?;
    }
    Ok(())
}

/// Of what takes long at large sizes.
fn long_rounds(members: u64) -> u64 {
    if members < 500_000 { 5 } else { 3 }
}

const SHORT_ROUNDS: u64 = 5;

/// A shop in a temporary folder, and the steps on it.
struct Stage<'e> {
    endpoint: &'e Endpoint,
    folder: TempDir,
    shop: Shop,
    users: u64,
    audiences: usize,
}

impl<'e> Stage<'e> {
    fn set(users: u64, audiences: usize, endpoint: &'e Endpoint) -> anyhow::Result<Self> {
        let stage = Self::of(users, audiences, endpoint)?;
        stage.shop.make()?;
        Ok(stage)
    }

    /// With nothing made yet.
    fn of(users: u64, audiences: usize, endpoint: &'e Endpoint) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("there is no temporary folder")?;
        let shop = Shop::new(folder.path(), users, audiences);
        Ok(Self {
            endpoint,
            folder,
            shop,
            users,
            audiences,
        })
    }

    fn step(&self, name: &str) -> anyhow::Result<Measured> {
        Measured::of(self.command(name)?)
    }

    /// Runs a step.
    fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut step = myself()?;
        step.args(["step", name])
            .arg(self.folder.path())
            .args([self.users.to_string(), self.audiences.to_string()])
            .arg(&self.endpoint.url)
            .envs([
                ("AWS_ACCESS_KEY_ID", "bench"),
                ("AWS_SECRET_ACCESS_KEY", "bench"),
            ]);
        Ok(step)
    }

    /// So many rounds of these steps, in turn.
    fn rounds<const N: usize>(
        &self,
        count: u64,
        round: impl FnMut(u64) -> anyhow::Result<[Measured; N]>,
    ) -> anyhow::Result<[Measured; N]> {
        let measured: anyhow::Result<Vec<[Measured; N]>> = (0..count).map(round).collect();
        let measured = measured?;
        Ok(std::array::from_fn(|step| {
            let rounds: Vec<Measured> = measured.iter().map(|round| round[step]).collect();
            Measured::fastest(&rounds)
        }))
    }

    fn first_syncs(&self) -> anyhow::Result<[Measured; 2]> {
        self.rounds(long_rounds(self.users), |_| {
            self.forget()?;
            Ok([self.step("post")?, self.step("sync")?])
        })
    }

    /// Other changes in every round.
    fn deltas(&self) -> anyhow::Result<[Measured; 2]> {
        self.rounds(SHORT_ROUNDS, |round| {
            self.shop.change(round)?;
            let bare = self.step("scans")?.then(self.step("post-changes")?);
            Ok([bare, self.step("sync")?])
        })
    }

    fn forget(&self) -> anyhow::Result<()> {
        let snapshot = self.shop.path("snapshot.sqlite");
        match std::fs::remove_file(snapshot) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// What the snapshot takes for each member: the members alone, and all of it.
    fn snapshot_bytes(&self) -> anyhow::Result<[f64; 2]> {
        let path = self.shop.path("snapshot.sqlite");
        let snapshot = rusqlite::Connection::open(&path)?;
        // <https://sqlite.org/dbstat.html>
        let alone: f64 = snapshot.query_row(
            "SELECT sum(pgsize) FROM dbstat WHERE aggregate = TRUE AND name IN ('member', 'overlay')",
            [],
            |row| row.get(0),
        )?;
        let all = std::fs::metadata(path)?.len() as f64;
        Ok([alone, all].map(|bytes| bytes / self.shop.members() as f64))
    }
}

/// What the same work costs at least.
struct Bare {
    posting: Measured,
    scans: Measured,
    changes: Measured,
}

fn compare(members: u64, endpoint: &Endpoint) -> anyhow::Result<Bare> {
    let stage = Stage::set(members, 1, endpoint)?;
    let table = Table::open(&format!("{} members", with_commas(members)), members);
    let [posting, first] = stage.first_syncs()?;
    table.print("bare posting through the SDK", posting, None);
    table.print("first sync", first, Some(posting));
    let [alone, all] = stage.snapshot_bytes()?;

    let visit = stage.shop.connection()?;
    let [scans, merged] = stage.rounds(SHORT_ROUNDS, |_| {
        visit.execute("INSERT INTO visit VALUES (1)", [])?;
        Ok([stage.step("scans")?, stage.step("sync")?])
    })?;
    drop(visit);
    table.print("two bare scans", scans, None);
    table.print(
        "unchanged sync, another table written to",
        merged,
        Some(scans),
    );
    // Of a file that was just written, nobody can tell whether it is the same.
    thread::sleep(Duration::from_millis(2_100));
    stage.step("sync")?;
    let [same] = stage.rounds(SHORT_ROUNDS, |_| Ok([stage.step("sync")?]))?;
    table.print("unchanged sync, nothing written", same, Some(scans));

    let [changes, delta] = stage.deltas()?;
    table.print("two bare scans, bare posting of the changes", changes, None);
    table.print("sync of 1 % entered, 1 % left", delta, Some(changes));
    let [posting_again, resync] = stage.rounds(long_rounds(members), |_| {
        Ok([stage.step("post")?, stage.step("resync")?])
    })?;
    table.print("bare posting through the SDK", posting_again, None);
    table.print("resync", resync, Some(posting_again));
    let [one, two] = stage.rounds(long_rounds(members), |_| {
        stage.forget()?;
        let one = stage.step("sync")?;
        stage.forget()?;
        Ok([one, stage.step("sync-two")?])
    })?;
    table.print("first sync, one stream", one, None);
    table.print("first sync, two streams", two, Some(one));
    let times = |bytes: f64| bytes / ID_BYTES as f64;
    println!(
        "after the first sync, the snapshot has {alone:.1} bytes a member ({:.2} times the id), {all:.1} with its history ({:.2})",
        times(alone),
        times(all)
    );
    Ok(Bare {
        posting,
        scans,
        changes,
    })
}

fn compare_by_hand(
    members: u64,
    by_hand: &ByHand,
    endpoint: &Endpoint,
    bare: &Bare,
) -> anyhow::Result<()> {
    let stage = Stage::set(members, 1, endpoint)?;
    let step = |name: &str| by_hand.step(name, stage.folder.path(), &endpoint.url);
    let table = Table::open("  the same by hand, in Python, one round", members);
    table.print(
        "boto3, sqlite3: first sync",
        step("first")?,
        Some(bare.posting),
    );
    for (name, label) in by_hand::DIFFS {
        table.print(
            &format!("{label}: unchanged"),
            step(name)?,
            Some(bare.scans),
        );
    }
    stage.shop.change(0)?;
    for (name, label) in by_hand::DIFFS {
        table.print(
            &format!("{label}: 1 % entered, 1 % left"),
            step(name)?,
            Some(bare.changes),
        );
    }
    Ok(())
}

/// Members that come in no order from a file.
fn compare_exports(
    members: u64,
    by_hand: Option<&ByHand>,
    endpoint: &Endpoint,
) -> anyhow::Result<()> {
    let stage = Stage::of(members, 1, endpoint)?;
    stage.shop.export()?;
    let table = Table::open("  the same members in a CSV file, in no order", members);
    let rounds = long_rounds(members);
    let Some(by_hand) = by_hand else {
        let [csv, parquet] = stage.rounds(rounds, |_| {
            Ok([stage.step("export")?, stage.step("parquet")?])
        })?;
        table.print("read and sorted", csv, None);
        table.print("the same from Parquet", parquet, None);
        return Ok(());
    };
    let [duckdb, csv, parquet] = stage.rounds(rounds, |_| {
        let duckdb = by_hand.step("export", stage.folder.path(), &endpoint.url)?;
        Ok([duckdb, stage.step("export")?, stage.step("parquet")?])
    })?;
    table.print("DuckDB, read_csv and ORDER BY", duckdb, None);
    table.print("read and sorted", csv, Some(duckdb));
    table.print("the same from Parquet", parquet, Some(csv));
    Ok(())
}

fn compare_many(users: u64, endpoint: &Endpoint) -> anyhow::Result<()> {
    let stage = Stage::set(users, MANY, endpoint)?;
    let members = stage.shop.members();
    let title = format!(
        "  {MANY} audiences over them, {} members",
        with_commas(members)
    );
    let table = Table::open(&title, members);
    let [posting, first] = stage.first_syncs()?;
    table.print("bare posting through the SDK", posting, None);
    table.print("first sync of all", first, Some(posting));
    let [changes, delta] = stage.deltas()?;
    table.print("bare scans, bare posting of the changes", changes, None);
    table.print(
        "sync of 1 % entered, 1 % left, of each",
        delta,
        Some(changes),
    );
    Ok(())
}

struct Table {
    members: u64,
}

impl Table {
    fn open(title: &str, members: u64) -> Self {
        println!(
            "\n{title:<48} {:>9} {:>12} {:>8} {:>9}",
            "seconds", "members/s", "ratio", "peak MiB"
        );
        Self { members }
    }

    fn print(&self, name: &str, measured: Measured, bare: Option<Measured>) {
        let Measured { seconds, peak_mib } = measured;
        let rate = with_commas((self.members as f64 / seconds) as u64);
        let ratio = bare.map_or(String::new(), |bare| {
            format!("{:.2}", seconds / bare.seconds)
        });
        let peak = match peak_mib {
            0.0 => String::new(),
            mib => format!("{mib:.0}"),
        };
        println!("{name:<48} {seconds:>9.3} {rate:>12} {ratio:>8} {peak:>9}");
    }
}

fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).expect("digits"))
        .collect();
    groups.join(",")
}
