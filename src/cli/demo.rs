//! `demo`: a first sync and a day later a delta, on real orders, with nothing set up.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rusqlite::{Connection, params};

use super::output::{Output, count};
use super::sync::{Reports, Selection, deliver_selection};
use super::{Exit, Refusal, init, project};
use crate::config::Config;
use crate::run::RunId;
use crate::sync::{Left, Request};

const FILES: [(&str, &str); 3] = [
    (
        "audience-sync.toml",
        include_str!("demo/audience-sync.toml"),
    ),
    (
        "schedules/orders.toml",
        include_str!("../../schedules/orders.toml"),
    ),
    (
        "schedules/winback.toml",
        include_str!("../../schedules/winback.toml"),
    ),
];
const ORDERS: &str = include_str!("demo/cdnow-orders.csv");
const FIRST_DAY: &str = "1997-04-01";

pub(super) fn run(output: &Output, dir: &Path) -> anyhow::Result<Exit> {
    let shop = dir.join("shop.sqlite");
    let is_new = !shop.exists();
    if is_new {
        make(dir)?;
        say(
            output,
            format_args!(
                "{} real orders of an online shop, 1997 and 1998, in {}",
                count(orders().count() as u64),
                shop.display()
            ),
        )?;
    }
    let days: &[&str] = if is_new {
        &[
            "the first sync sends everyone who is in an audience",
            "a day later, only those who entered, left or changed",
        ]
    } else {
        &["another day: only those who entered, left or changed"]
    };
    let mut last = None;
    for (position, what) in days.iter().enumerate() {
        let today = if is_new && position == 0 {
            FIRST_DAY.to_owned()
        } else {
            next_day(&shop)?
        };
        say(output, format_args!("\n{today}: {what}\n"))?;
        let (exit, left) = sync(output, dir)?;
        if exit != Exit::Success {
            return Ok(exit);
        }
        last = left;
    }
    if !output.json {
        show(output, dir, last)?;
    }
    Ok(Exit::Success)
}

fn say(output: &Output, text: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    if !output.json {
        output.text(text)?;
    }
    Ok(())
}

/// Makes the project, in a directory that is empty, not there yet, or left half-made by a crash.
fn make(dir: &Path) -> anyhow::Result<()> {
    if is_taken(dir) || dir.is_file() {
        let message = format!(
            "{} is not empty, and not a demo\n\nhint: `audience-sync demo DIR` makes a new one",
            dir.display()
        );
        return Err(Refusal::usage(message).into());
    }
    init::write(dir, &FILES)?;
    let path = dir.join("shop.sqlite");
    make_shop(&path).with_context(|| format!("cannot make {}", path.display()))
}

/// Whether there is anything in a directory but what a demo that was cut short has left.
fn is_taken(dir: &Path) -> bool {
    let is_ours = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let of_a_file =
            |(file, text): &(&str, &str)| *path == dir.join(file) && !init::is_taken(path, text);
        name == "schedules" || name.contains(init::UNFINISHED) || FILES.iter().any(of_a_file)
    };
    let paths = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let all = [paths(dir), paths(&dir.join("schedules"))].concat();
    !all.iter().all(|path| is_ours(path))
}

/// The shop is there when all of it is.
fn make_shop(path: &Path) -> anyhow::Result<()> {
    let unfinished = init::unfinished(path);
    if unfinished.exists() {
        fs::remove_file(&unfinished)?;
    }
    fill(&unfinished)?;
    Ok(fs::rename(unfinished, path)?)
}

fn fill(path: &Path) -> rusqlite::Result<()> {
    let mut shop = Connection::open(path)?;
    let transaction = shop.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE orders (customer_id TEXT, ordered_on TEXT, items INTEGER, total REAL);
         CREATE INDEX orders_by_customer ON orders (customer_id, ordered_on);
         CREATE TABLE calendar (today TEXT);",
    )?;
    transaction.execute("INSERT INTO calendar VALUES (?1)", [FIRST_DAY])?;
    {
        let mut insert = transaction.prepare("INSERT INTO orders VALUES (?1, ?2, ?3, ?4)")?;
        for [customer, ordered_on, items, total] in orders() {
            // The columns' affinities make numbers of them.
            insert.execute(params![customer, ordered_on, items, total])?;
        }
    }
    transaction.commit()
}

/// The rows of the data set, whose fields hold no commas.
fn orders() -> impl Iterator<Item = [&'static str; 4]> {
    let fields = |line: &'static str| line.split(',').collect::<Vec<_>>().try_into().ok();
    ORDERS.lines().skip(1).filter_map(fields)
}

fn next_day(shop: &Path) -> anyhow::Result<String> {
    let not_a_demo = || {
        Refusal::usage(format!(
            "{} is not a demo's\n\nhint: `audience-sync demo DIR` makes a new one",
            shop.display()
        ))
    };
    let shop = Connection::open(shop)?;
    let moved = shop.query_row(
        // Naming the other columns too: a shop of somebody else's may have a calendar.
        "UPDATE calendar SET today = date(today, '+1 day')
         WHERE EXISTS (SELECT customer_id, ordered_on, items, total FROM orders) RETURNING today",
        [],
        |row| row.get(0),
    );
    moved.map_err(|_| not_a_demo().into())
}

/// Syncs everything, and tells the last run of the audience of customers.
fn sync(output: &Output, dir: &Path) -> anyhow::Result<(Exit, Option<RunId>)> {
    let config = Config::load(&dir.join("audience-sync.toml"))?;
    let project = project::open(&config)?;
    let lock = project::lock(&config, "demo", false)?;
    let snapshot = match config.snapshot.exists() {
        true => project::open_snapshot(&config, lock, false)?,
        false => {
            let mut snapshot = project::create_snapshot(&config, &lock, false)?;
            snapshot.hold(lock)?;
            snapshot
        }
    };
    let keyed = project::select(&config, &[], &snapshot.known()?)?;
    let mut reports = Reports::new(*output);
    let selection = Selection {
        left: Left::All,
        keyed,
    };
    deliver_selection(
        &config,
        &project,
        snapshot,
        &selection,
        &Request::default(),
        &mut reports,
    )?;
    let run = reports.run_of("order_completed_last_30days");
    Ok((reports.close(), run))
}

/// Shows one record of a run, where the others lie, and what to type next.
fn show(output: &Output, dir: &Path, run: Option<RunId>) -> anyhow::Result<()> {
    let delivered = dir.join("delivered");
    let left = run.and_then(|run| leaver(&delivered, &run.to_string()));
    if let Some((user, file, record)) = &left {
        output.text(format_args!("\nCustomer {user} has left, 30 days after the last order. This is what was sent:\n\n{record}"))?;
        output.text(format_args!("\nIt lies in {}", file.display()))?;
    }
    let user = left.map_or_else(|| "00004".to_owned(), |(user, ..)| user);
    let program = program();
    output.text(format_args!(
        "
What Firehose would have got is in {delivered}, laid out as it lays out S3. Look around:

  cd {dir}
  {program} check                  what would run where, and when
  {program} snapshot list          every audience: members, last sync
  {program} snapshot user {user}    everything that was sent about one customer, and why
  {program} sync                   again: nothing has changed, so nothing is sent
  {program} demo .                 another day

Then `{program} init` in a directory of your own.",
        delivered = delivered.display(),
        dir = quoted(dir),
    ))?;
    Ok(())
}

/// How to call this program: by its name where a shell finds it by that, else by its whole path.
fn program() -> String {
    let name = env!("CARGO_PKG_NAME");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_found = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let whole = std::env::current_exe().ok().filter(|_| !is_found);
    whole.map_or_else(|| name.to_owned(), |path| quoted(&path))
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+@%,:=".contains(c);
    if path.chars().all(is_plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

/// A record of a run that says `false`: its user, its file and its line.
fn leaver(folder: &Path, run: &str) -> Option<(String, PathBuf, String)> {
    for file in files(folder) {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let leaves = |line: &&str| {
            line.contains(run) && line.contains("\"order_completed_last_30days\":false")
        };
        if let Some(line) = text.lines().find(leaves) {
            let record: serde_json::Value = serde_json::from_str(line).ok()?;
            return Some((record["userId"].as_str()?.to_owned(), file, line.to_owned()));
        }
    }
    None
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut entries: Vec<_> = entries.collect();
    entries.sort();
    entries
        .into_iter()
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}
