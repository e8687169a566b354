//! How long a sync takes beside the bare cost of what it cannot avoid, on one machine and in one run.
//!
//! `cargo bench -- [MEMBERS]...` (default 1,000,000). Each step runs in a process of its own, so that its peak memory
//! is its own. The endpoint is a third process, on loopback, and does as little as HTTP allows: it counts the records
//! of a call and gives back as many record IDs.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use audience_sync::audience::{Audience, AudienceId, Class, DestinationName, Key, SourceName};
use audience_sync::diff::{Scope, merge};
use audience_sync::event::Computation;
use audience_sync::firehose::{Api, Aws, AwsSettings, Destination, Quota};
use audience_sync::mapping::{Mapping, Match, Pattern, StreamName};
use audience_sync::progress::Progress;
use audience_sync::run::{RunId, RunKind, Timestamp};
use audience_sync::snapshot::{Handle, Planning, Snapshot};
use audience_sync::source::{Interrupt, Source, Sqlite};
use audience_sync::stop::Stop;
use audience_sync::sync::{Keyed, Outlet, Project, Request, Runner};
use rusqlite::Connection;

/// A snapshot that is planned on, and thrown away.
const PLANNED: &str = "planned.sqlite";

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["endpoint"] => endpoint(),
        ["step", step, folder, url] => run_step(step, Path::new(folder), url),
        _ => {
            let sizes = arguments.iter().map(|size| {
                size.replace(['_', ','], "")
                    .parse()
                    .expect("a number of members")
            });
            let mut sizes: Vec<u64> = sizes.collect();
            if sizes.is_empty() {
                sizes.push(1_000_000);
            }
            sizes.into_iter().for_each(compare);
        }
    }
}

/// What a step took.
struct Measured {
    seconds: f64,
    peak_mib: f64,
}

fn compare(members: u64) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let endpoint = Endpoint::start();
    make_shop(folder.path(), members);
    let step = |name: &str| endpoint.step(name, folder.path());

    println!("\n{members} members");
    println!(
        "{:<44} {:>9} {:>12} {:>8} {:>9}",
        "", "seconds", "members/s", "ratio", "peak MiB"
    );
    let print = |name: &str, measured: &Measured, bare: Option<&Measured>| {
        let rate = members as f64 / measured.seconds;
        let ratio = bare.map_or(String::new(), |bare| {
            format!("{:.2}", measured.seconds / bare.seconds)
        });
        println!(
            "{name:<44} {:>9.2} {rate:>12.0} {ratio:>8} {:>9.0}",
            measured.seconds, measured.peak_mib
        );
    };
    let posting = step("post");
    print("bare posting through the SDK", &posting, None);
    print("first sync", &step("sync"), Some(&posting));
    let scans = step("scans");
    print("two bare scans", &scans, None);
    print("unchanged sync", &step("sync"), Some(&scans));
    change_shop(folder.path(), members);
    let scans = step("scans");
    print("two bare scans", &scans, None);
    // A copy, so that the sync after it has all of it to do.
    let planned = folder.path().join(PLANNED);
    std::fs::copy(folder.path().join("snapshot.sqlite"), &planned).expect("a copy");
    std::fs::File::open(planned)
        .and_then(|copy| copy.sync_all())
        .expect("the copy is on disk");
    print(
        "plan of 1 % entered, 1 % left, journalled",
        &step("plan"),
        Some(&scans),
    );
    print("sync of 1 % entered, 1 % left", &step("sync"), Some(&scans));
    let size =
        |name: &str| std::fs::metadata(folder.path().join(name)).map_or(0, |file| file.len());
    println!(
        "snapshot: {:.1} bytes a member (ids are 24)",
        size("snapshot.sqlite") as f64 / members as f64
    );
}

fn make_shop(folder: &Path, members: u64) {
    let shop = Connection::open(folder.join("shop.sqlite")).expect("a database");
    shop.execute_batch(&format!(
        "PRAGMA journal_mode = off; PRAGMA synchronous = off;
         CREATE TABLE members (user_id TEXT PRIMARY KEY) WITHOUT ROWID;
         WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {members} - 1)
         INSERT INTO members SELECT printf('user-%019d', i * 100) FROM n"
    ))
    .expect("members");
}

/// One in a hundred leaves, and as many enter.
fn change_shop(folder: &Path, members: u64) {
    let shop = Connection::open(folder.join("shop.sqlite")).expect("a database");
    let changed = shop.execute_batch(&format!(
        "PRAGMA journal_mode = off; PRAGMA synchronous = off;
         DELETE FROM members WHERE substr(user_id, -4) = '0000';
         WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {members} / 100 - 1)
         INSERT INTO members SELECT printf('user-%019d', i * 10000 + 50) FROM n"
    ));
    changed.expect("changes");
}

struct Endpoint {
    process: Child,
    url: String,
}

impl Endpoint {
    fn start() -> Self {
        let mut process = myself()
            .arg("endpoint")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the endpoint starts");
        let mut url = String::new();
        let said = process.stdout.take().expect("its standard output is piped");
        BufReader::new(said)
            .read_line(&mut url)
            .expect("the endpoint says where it is");
        Self {
            process,
            url: url.trim().to_owned(),
        }
    }

    fn step(&self, name: &str, folder: &Path) -> Measured {
        let output = myself()
            .args(["step", name])
            .arg(folder)
            .arg(&self.url)
            .envs([
                ("AWS_ACCESS_KEY_ID", "bench"),
                ("AWS_SECRET_ACCESS_KEY", "bench"),
            ])
            .stderr(Stdio::inherit())
            .output()
            .expect("the step runs");
        let said = String::from_utf8(output.stdout).expect("text");
        let mut numbers = said
            .split_whitespace()
            .map(|number| number.parse().expect("a number"));
        let mut next = || {
            numbers
                .next()
                .unwrap_or_else(|| panic!("step {name} failed"))
        };
        Measured {
            seconds: next(),
            peak_mib: next(),
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.process
            .kill()
            .and_then(|()| self.process.wait().map(drop))
            .expect("the endpoint ends");
    }
}

fn myself() -> Command {
    Command::new(std::env::current_exe().expect("this program"))
}

fn run_step(step: &str, folder: &Path, url: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let started = Instant::now();
    match step {
        "scans" => {
            scan(
                &folder.join("shop.sqlite"),
                "SELECT user_id FROM members ORDER BY user_id",
            );
            scan(
                &folder.join("snapshot.sqlite"),
                "SELECT user FROM member WHERE audience = 1 ORDER BY user",
            );
        }
        "post" => runtime.block_on(post(folder, url)),
        "sync" => runtime.block_on(sync(folder, url)),
        "plan" => plan(folder),
        other => panic!("no step {other}"),
    }
    println!("{} {}", started.elapsed().as_secs_f64(), peak_mib());
}

fn scan(file: &Path, query: &str) {
    let connection = Connection::open(file).expect("a database");
    let mut statement = connection.prepare(query).expect("a query");
    let mut rows = statement.query([]).expect("rows");
    let mut bytes = 0;
    while let Some(row) = rows.next().expect("a row") {
        bytes += row.get_ref(0).expect("an id").as_str().expect("text").len();
    }
    assert!(bytes > 0);
}

/// What a first sync sends, sent by the SDK alone: no journal, no snapshot, no receipts.
async fn post(folder: &Path, url: &str) {
    let config = aws_config::defaults(aws_config::BehaviorVersion::v2026_01_12())
        .region("us-west-2")
        .endpoint_url(url)
        .load()
        .await;
    let client = aws_sdk_firehose::Client::new(&config);
    let connection = Connection::open(folder.join("shop.sqlite")).expect("a database");
    let mut statement = connection
        .prepare("SELECT user_id FROM members ORDER BY user_id")
        .expect("a query");
    let mut rows = statement.query([]).expect("rows");
    let mut calls = tokio::task::JoinSet::new();
    loop {
        let mut records = Vec::with_capacity(500);
        while records.len() < 500
            && let Some(row) = rows.next().expect("a row")
        {
            let id = row.get_ref(0).expect("an id").as_str().expect("text");
            let line = format!("{{\"userId\":\"{id}\",\"padding\":\"{:.<520}\"}}\n", "");
            let data = aws_sdk_firehose::primitives::Blob::new(line);
            records.push(
                aws_sdk_firehose::types::Record::builder()
                    .data(data)
                    .build()
                    .expect("a record"),
            );
        }
        if records.is_empty() {
            break;
        }
        if calls.len() == 16 {
            calls.join_next().await;
        }
        let call = client
            .put_record_batch()
            .delivery_stream_name("members")
            .set_records(Some(records));
        calls.spawn(async move {
            call.send()
                .await
                .expect("the endpoint accepts")
                .failed_put_count()
        });
    }
    while calls.join_next().await.is_some() {}
}

async fn sync(folder: &Path, url: &str) {
    let mapping = Mapping {
        rows: vec![(Pattern::Any, streams())],
        matching: Match::First,
    };
    let aws = Aws::new(AwsSettings {
        region: "us-west-2".to_owned(),
        role: None,
        endpoint_url: Some(url.to_owned()),
        sts_endpoint_url: None,
        api: Api::Auto,
        quota: Quota::NONE,
    });
    let main = DestinationName::new("main");
    let destination = Destination::firehose(main.clone(), false, aws);
    let audience = audience();
    let project = Project {
        sources: BTreeMap::from([(audience.source.clone(), source(folder))]),
        destinations: BTreeMap::from([(main, Outlet::new(destination, mapping))]),
        space_id: None,
        history: Duration::MAX,
    };
    let keyed = Keyed {
        key: audience.key.clone(),
        audience,
    };
    let snapshot = Snapshot::open(&folder.join("snapshot.sqlite")).expect("a snapshot");
    let handle = Handle::new(snapshot);
    let runner = Runner {
        project: &project,
        snapshot: &handle,
        stop: Stop::new(),
        progress: Progress::default(),
    };
    let reports = runner.run(&keyed, Request::default()).await.expect("a run");
    assert!(
        reports.iter().all(|report| report.error.is_none()),
        "{reports:?}"
    );
}

/// The first phase of a sync by itself: read, merge, journal.
fn plan(folder: &Path) {
    let audience = audience();
    let mut snapshot = Snapshot::open(&folder.join(PLANNED)).expect("a snapshot");
    let started_at = Timestamp::after(Timestamp::now(), snapshot.last_started_at().expect("runs"));
    let planning = Planning {
        computation: Computation {
            audience: audience.id.clone(),
            key: audience.key.clone(),
            class: audience.class,
            destination: DestinationName::new("main"),
            run: RunId::at(started_at),
            started_at,
            space_id: None,
        },
        name: audience.name.clone(),
        kind: RunKind::Delta,
        streams: streams(),
        guard: None,
        approve: false,
    };
    let planned = snapshot.plan(&planning, |delivered, journal| {
        source(folder).read(&audience, &Interrupt::default(), |members| {
            let tally = merge(members, delivered, Scope::Changes, |change| {
                journal.push(&change).map_err(anyhow::Error::from)
            })?;
            Ok::<_, anyhow::Error>((tally, members.skipped.total()))
        })
    });
    assert!(planned.expect("a plan").tally.added > 0);
}

fn streams() -> Vec<StreamName> {
    vec![StreamName::parse("members").expect("a stream name")]
}

fn source(folder: &Path) -> Source {
    Source::Sqlite(Sqlite {
        name: SourceName::new("shop"),
        path: folder.join("shop.sqlite"),
    })
}

fn audience() -> Audience {
    Audience {
        id: AudienceId::new("members"),
        key: Key::new("members"),
        key_is_explicit: false,
        name: "Members".to_owned(),
        class: Class::Audience,
        source: SourceName::new("shop"),
        query: "SELECT user_id FROM members".to_owned(),
        destinations: vec![DestinationName::new("main")],
        guard: None,
        traits: Vec::new(),
        changes: None,
    }
}

/// The most memory this process has had, in MiB; 0 where the system does not say.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

fn endpoint() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("http://{}", listener.local_addr().expect("an address"));
    for stream in listener.incoming() {
        let stream = stream.expect("a connection");
        std::thread::spawn(move || answer(stream));
    }
}

/// Answers the calls of one connection until it is closed.
fn answer(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let answers: Vec<Vec<u8>> = (0..=500).map(accepted).collect();
    let mut buffer = vec![0; 1 << 20];
    let mut filled = 0;
    loop {
        let head = loop {
            if let Some(end) = buffer[..filled]
                .windows(4)
                .position(|end| end == b"\r\n\r\n")
            {
                break end + 4;
            }
            filled += some(stream.read(&mut buffer[filled..]).ok()?)?;
        };
        let text = std::str::from_utf8(&buffer[..head])
            .ok()?
            .to_ascii_lowercase();
        let length: usize = text
            .split("content-length: ")
            .nth(1)?
            .split("\r\n")
            .next()?
            .parse()
            .ok()?;
        buffer.resize(buffer.len().max(head + length), 0);
        while filled < head + length {
            filled += some(stream.read(&mut buffer[filled..]).ok()?)?;
        }
        // Base64 has no quotes: each record is one `"Data":`.
        let records = buffer[head..head + length]
            .split(|byte| *byte == b'"')
            .filter(|text| *text == b"Data")
            .count();
        stream.write_all(&answers[records]).ok()?;
        filled = 0;
    }
}

fn some(read: usize) -> Option<usize> {
    (read > 0).then_some(read)
}

fn accepted(records: usize) -> Vec<u8> {
    let entries = vec![r#"{"RecordId":"0123456789abcdef"}"#; records].join(",");
    let body =
        format!(r#"{{"FailedPutCount":0,"Encrypted":false,"RequestResponses":[{entries}]}}"#);
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}
