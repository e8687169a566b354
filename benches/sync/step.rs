//! What is measured, each in a process of its own, so that its peak memory is its own.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use audience_sync::audience::{DestinationName, SourceName};
use audience_sync::diff::{Members as _, Scope};
use audience_sync::event::Identify;
use audience_sync::firehose::{Api, Aws, AwsSettings, Destination, Quota};
use audience_sync::secret::Secret;
use audience_sync::source::{Adbc, Dialect, Files, Interrupt, Source, SourceError};
use audience_sync::sync::Request;
use aws_sdk_firehose::primitives::Blob;
use aws_sdk_firehose::types::Record;
use rusqlite::Connection;
use tokio::task::JoinSet;

use crate::shop::{self, ONE, Shop};
use crate::warehouse;

/// The source is read once for both.
const TWO: [&str; 2] = ["members", "copies"];
/// All ids have as many.
pub(crate) const ID_BYTES: usize = 24;

/// What a step took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub seconds: f64,
    /// 0 where it is not known.
    pub peak_mib: f64,
}

impl Measured {
    /// Of several rounds: a machine that does something else as well only ever makes them slower.
    pub(crate) fn fastest(rounds: &[Self]) -> Self {
        Self {
            seconds: rounds
                .iter()
                .map(|round| round.seconds)
                .fold(f64::MAX, f64::min),
            peak_mib: rounds
                .iter()
                .map(|round| round.peak_mib)
                .fold(0.0, f64::max),
        }
    }

    /// One after the other.
    pub(crate) fn then(self, next: Self) -> Self {
        Self {
            seconds: self.seconds + next.seconds,
            peak_mib: self.peak_mib.max(next.peak_mib),
        }
    }

    /// Reads what a process said: its seconds and its MiB.
    pub(crate) fn of(mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command
            .spawn()
            .with_context(|| format!("{command:?} does not start"))?;
        // Open until the step has ended: it ends with it.
        let input = process.stdin.take();
        let output = process.wait_with_output()?;
        drop(input);
        ensure!(output.status.success(), "{command:?} failed");
        let said = String::from_utf8(output.stdout)?;
        let numbers: Result<Vec<f64>, _> = said.split_whitespace().map(str::parse).collect();
        match numbers?[..] {
            [seconds, peak_mib] => Ok(Self { seconds, peak_mib }),
            _ => bail!("{command:?} says {said:?}"),
        }
    }
}

/// Nobody waits for a step any more when whoever started it is gone.
#[expect(clippy::exit, reason = "nothing is left to be done")]
fn end_with_input() {
    std::thread::spawn(|| {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        std::process::exit(1);
    });
}

/// Runs a step in this process, and says what it took.
#[expect(clippy::print_stdout, reason = "whoever started it reads what it took")]
pub(crate) fn run(step: &str, shop: &Shop, url: &str) -> anyhow::Result<()> {
    end_with_input();
    let runtime = tokio::runtime::Runtime::new()?;
    let started = Instant::now();
    let resync = Request {
        scope: Scope::Everyone,
        ..Request::default()
    };
    match step {
        "scans" => scans(shop)?,
        "export" => read(shop, export(shop, shop::EXPORT))?,
        "parquet" => read(shop, export(shop, shop::PARQUET))?,
        "warehouse" => read(shop, warehouse()?)?,
        "post" => runtime.block_on(post(shop, shop.members(), url))?,
        "post-changes" => runtime.block_on(post(shop, shop.changes(), url))?,
        "sync" => runtime.block_on(shop.sync(destination(url), &ONE, Request::default()))?,
        "sync-two" => runtime.block_on(shop.sync(destination(url), &TWO, Request::default()))?,
        "resync" => runtime.block_on(shop.sync(destination(url), &ONE, resync))?,
        other => bail!("there is no step {other}"),
    }
    println!("{} {}", started.elapsed().as_secs_f64(), peak_mib());
    Ok(())
}

/// The most memory that this process has had; 0 where the system does not say.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

fn destination(url: &str) -> Destination {
    let aws = Aws::new(AwsSettings {
        region: "us-west-2".to_owned(),
        role: None,
        endpoint_url: Some(url.to_owned()),
        sts_endpoint_url: None,
        api: Api::Auto,
        quota: Quota::NONE,
    });
    Destination::firehose(DestinationName::new("main"), false, aws)
}

/// The ids of all audiences from both files, in order, and nothing done with them.
fn scans(shop: &Shop) -> anyhow::Result<()> {
    let (ours, theirs) = (
        Connection::open(shop.path("snapshot.sqlite"))?,
        shop.connection()?,
    );
    let mut number = ours.prepare(
        "SELECT feed.number FROM feed JOIN audience ON audience.number = feed.audience WHERE audience.id = ?1",
    )?;
    let mut delivered = ours.prepare("SELECT user FROM member WHERE feed = ?1 ORDER BY user")?;
    for audience in shop.audiences() {
        let mut members = theirs.prepare(&format!("{} ORDER BY user_id", audience.query))?;
        scan(members.query([])?)?;
        let number: i64 = number.query_row([audience.id.as_str()], |row| row.get(0))?;
        scan(delivered.query([number])?)?;
    }
    Ok(())
}

fn export(shop: &Shop, file: &str) -> Source {
    Source::Files(Files {
        name: SourceName::new("exports"),
        root: shop.folder.clone(),
        pattern: file.into(),
        format: None,
        dialect: Dialect::default(),
        columns: BTreeMap::new(),
    })
}

fn warehouse() -> anyhow::Result<Source> {
    let uri = Secret::new(std::env::var(warehouse::URI)?);
    Ok(Source::Adbc(Adbc {
        name: SourceName::new("wh"),
        driver: "postgresql".to_owned(),
        options: BTreeMap::new(),
        secrets: [("uri".to_owned(), uri)].into(),
    }))
}

/// All members of a source, in order, and nothing done with them.
fn read(shop: &Shop, source: Source) -> anyhow::Result<()> {
    let audience = shop.audiences().next().context("there is an audience")?;
    let read = source.read(&audience, &Interrupt::default(), |members| {
        let mut bytes = 0;
        while members.advance()? {
            bytes += members.user().id.len();
        }
        Ok::<usize, SourceError>(bytes)
    })?;
    ensure!(
        read as u64 == shop.members() * ID_BYTES as u64,
        "everyone is read"
    );
    Ok(())
}

fn scan(mut rows: rusqlite::Rows<'_>) -> anyhow::Result<()> {
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        bytes += row.get_ref(0)?.as_str()?.len();
    }
    ensure!(bytes > 0, "nobody is a member");
    Ok(())
}

const CALLS_IN_FLIGHT: usize = 16;
/// More than a line has.
const LINE_BYTES: usize = 640;

/// The records of a first sync, read from the source, rendered, and sent by the SDK alone: no journal, no snapshot, no
/// receipts.
async fn post(shop: &Shop, count: u64, url: &str) -> anyhow::Result<()> {
    let config = aws_config::defaults(aws_config::BehaviorVersion::v2026_01_12())
        .region("us-west-2")
        .endpoint_url(url)
        .load()
        .await;
    let client = aws_sdk_firehose::Client::new(&config);
    let connection = shop.connection()?;
    let mut ids = connection.prepare(&format!(
        "SELECT user_id FROM audience_member LIMIT {count}"
    ))?;
    let mut ids = ids.query([])?;
    let identify = Identify::new(&shop.computation());
    let mut calls = JoinSet::new();
    loop {
        let mut records = Vec::with_capacity(500);
        while records.len() < 500
            && let Some(row) = ids.next()?
        {
            let mut line = Vec::with_capacity(LINE_BYTES);
            identify.render(&shop::entering(row.get_ref(0)?.as_str()?), &mut line);
            records.push(Record::builder().data(Blob::new(line)).build()?);
        }
        if records.is_empty() {
            break;
        }
        if calls.len() == CALLS_IN_FLIGHT {
            calls.join_next().await.transpose()?.transpose()?;
        }
        let call = client
            .put_record_batch()
            .delivery_stream_name("members")
            .set_records(Some(records));
        calls.spawn(call.send());
    }
    while let Some(answer) = calls.join_next().await {
        ensure!(
            answer??.failed_put_count() == 0,
            "the endpoint accepts everything"
        );
    }
    Ok(())
}
