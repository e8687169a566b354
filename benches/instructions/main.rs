//! How many instructions planning and rendering take for each member: a slowdown fails without timing anything.
//!
//! Each step runs under valgrind's callgrind twice, at two sizes: what the larger one takes more is for its members alone,
//! and all that a process does once is left out. `optimized.toml` says what is built how; in the release profile the
//! counts are the same within 3 %.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

#[path = "../support/shop.rs"]
mod shop;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, bail, ensure};
use audience_sync::audience::DestinationName;
use audience_sync::batch::LineBuffer;
use audience_sync::diff::{Follower, Scope, merge};
use audience_sync::event::Identify;
use audience_sync::firehose::{Destination, Directory};
use audience_sync::run::RunKind;
use audience_sync::snapshot::{Decided, Planning, Watermark, chunk};
use audience_sync::source::Interrupt;
use audience_sync::sync::Request;

use shop::Shop;

/// What is counted, and how many instructions a member it may take: 5 % more than when this was written, and 3 % for
/// rendering, which has no second thread to wait for and counts the same every time. Whoever makes it faster lowers the
/// bound; whoever makes it slower on purpose raises it and says why.
const BOUNDS: [Bound; 4] = [
    Bound {
        step: "first",
        what: "planning a first sync, everyone journalled",
        most: 1_960,
    },
    Bound {
        step: "unchanged",
        what: "planning an unchanged sync",
        most: 3_150,
    },
    Bound {
        step: "delta",
        what: "planning one where 1 % entered and 1 % left",
        most: 3_160,
    },
    Bound {
        step: "render",
        what: "rendering a line from the journal",
        // A `messageId` hashes all that tells it apart in one go: two blocks of SHA-256 for these names.
        most: 9_040,
    },
];

struct Bound {
    step: &'static str,
    what: &'static str,
    most: u64,
}

const SIZES: [u64; 2] = [20_000, 60_000];

/// The C library copies and compares by what a processor has, which would make counts differ between machines by up to
/// 6 %: it is to use what all have. Of SHA-256, valgrind has no instructions: it is counted as it is computed without.
/// <https://www.gnu.org/software/libc/manual/html_node/Hardware-Capability-Tunables.html>
const OF_ALL_PROCESSORS: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM,-SSE4_2,-SSE4_1,-SSSE3",
);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => check(),
        [step, folder, size] => run(step, &Shop::new(Path::new(folder), size.parse()?, 1)),
        _ => bail!("this takes no arguments"),
    }
}

fn check() -> anyhow::Result<()> {
    let has_bounds = cfg!(target_arch = "x86_64");
    if !has_bounds {
        println!("the bounds are those of x86_64, and nothing is held to them here");
    }
    println!(
        "{:<48} {:>9} {:>9}",
        "instructions a member", "counted", "at most"
    );
    let mut slower = Vec::new();
    for Bound { step, what, most } in BOUNDS {
        let [small, large] = SIZES.map(|size| count(step, size));
        let counted = (large? - small?) / (SIZES[1] - SIZES[0]);
        println!("{what:<48} {counted:>9} {most:>9}");
        if counted > most && has_bounds {
            let profile = profile(step, SIZES[1]);
            slower.push(format!(
                "{what} takes {counted} instructions a member, and may take {most}\n  callgrind_annotate {} | less",
                profile.display()
            ));
        }
    }
    ensure!(
        slower.is_empty(),
        "{}\n\nhint: callgrind_annotate lists what takes the most; the bounds are in benches/instructions/main.rs, and hold for \
         the build that .ci/run makes",
        slower.join("\n")
    );
    Ok(())
}

/// The instructions of one process, as callgrind counts them.
fn count(step: &str, size: u64) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir().context("there is no temporary folder")?;
    prepare(step, &Shop::new(folder.path(), size, 1))?;
    let profile = profile(step, size);
    let mut valgrind = Command::new("valgrind");
    valgrind
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(env::current_exe()?)
        .arg(step)
        .arg(folder.path())
        .arg(size.to_string())
        .envs([OF_ALL_PROCESSORS]);
    let output = valgrind.output().context(
        "valgrind does not start\n\nhint: install it, such as with: apt-get install valgrind",
    )?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{valgrind:?} failed: {said}");
    let text = fs::read_to_string(&profile)?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let totals = totals.with_context(|| format!("{} has no totals", profile.display()))?;
    Ok(totals.parse()?)
}

/// What callgrind writes is kept, for callgrind_annotate.
fn profile(step: &str, size: u64) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{step}-{size}.callgrind"))
}

/// What is there before a step, and not counted.
fn prepare(step: &str, shop: &Shop) -> anyhow::Result<()> {
    if step == "render" {
        return Ok(());
    }
    shop.make()?;
    if step != "first" {
        let delivered = Directory::new(shop.path("delivered"));
        let destination = Destination::directory(DestinationName::new("main"), false, delivered);
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(shop.sync(destination, &shop::ONE, Request::default()))?;
    }
    if step == "delta" {
        shop.change(0)?;
    }
    Ok(())
}

fn run(step: &str, shop: &Shop) -> anyhow::Result<()> {
    match step {
        "first" => plan(shop, RunKind::First, shop.members()),
        "unchanged" => plan(shop, RunKind::Delta, 0),
        "delta" => plan(shop, RunKind::Delta, shop.changes()),
        "render" => render(shop),
        other => bail!("there is no step {other}"),
    }
}

/// The first phase of a sync: read, merge, journal.
fn plan(shop: &Shop, kind: RunKind, changes: u64) -> anyhow::Result<()> {
    let audience = shop.audiences().next().context("there is an audience")?;
    let mut snapshot = shop.snapshot()?;
    let planning = Planning {
        computation: shop.computation(),
        stream: shop::stream(),
        destination: DestinationName::new("main"),
        name: audience.name.clone(),
        kind,
        scope: Scope::Changes,
        refresh: false,
        guard: None,
        approval: None,
    };
    let plans = snapshot.plan(&[planning], |delivered, journals| {
        shop.source()
            .read(&audience, &Interrupt::default(), |members| {
                let follow = |delivered| Follower::new(delivered, Scope::Changes);
                let followers: Result<Vec<_>, _> = delivered.into_iter().map(follow).collect();
                let tallies = merge(members, &mut followers?, |feed, change| {
                    journals[feed].push(&change).map_err(anyhow::Error::from)
                })?;
                Ok::<_, anyhow::Error>(Decided {
                    tallies,
                    skipped_rows: members.skipped.total(),
                    watermark: Watermark::NotModified,
                })
            })
    })?;
    let waiting = plans[0].run.waiting;
    ensure!(waiting == changes, "planned {waiting} of {changes}");
    Ok(())
}

/// Chunks of the journal as lines, as they are delivered.
fn render(shop: &Shop) -> anyhow::Result<()> {
    const CHUNK: u64 = 500;
    let mut entries = Vec::new();
    for number in 0..CHUNK {
        let id = format!("user-{number:019}");
        chunk::push_change(&mut entries, &shop::entering(&id));
    }
    let identify = Identify::new(&shop.computation());
    for _ in 0..shop.members() / CHUNK {
        let mut buffer = LineBuffer::with_capacity(CHUNK as usize * 512);
        for change in chunk::changes(&entries) {
            let change = change?;
            buffer.push(|bytes| identify.render(&change, bytes));
        }
        ensure!(
            buffer.finish().count() as u64 == CHUNK,
            "a line for each change"
        );
    }
    Ok(())
}
