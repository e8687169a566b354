//! A disk or a snapshot that does not do: a clear word, an exit code, and nothing lost.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Project, Ran, ended, files, raw_lines, truth};

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

const CONFIG: &str = r#"
snapshot = "state/snapshot.sqlite"

[source.shop]
sqlite = "shop.sqlite"

[destination.main]
directory = "delivered/here"
mapping = { identify = "members" }
"#;

/// With so many members, whose ids are long: a plan of 5,000 takes 1.5 MiB.
fn project(members: usize) -> Project {
    let project = Project::new(SCHEDULE);
    project.write("audience-sync.toml", CONFIG);
    for folder in ["state", "delivered"] {
        fs::create_dir(project.path(folder)).unwrap();
    }
    project.shop(&format!(
        "CREATE TABLE members (user_id TEXT PRIMARY KEY) WITHOUT ROWID;
         WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < {members})
         INSERT INTO members SELECT printf('user_%05d_%0290d', n, 0) FROM n"
    ));
    project
}

/// Where a script may mount what it likes and nobody else sees it. Needs no rights where Linux gives everyone name
/// spaces of their own; `None`, and a word, where it does not.
fn with_own_mounts(project: &Project) -> Option<Command> {
    for kind in ["-Urm", "-m"] {
        let mut command = Command::new("unshare");
        let mut probe = Command::new("unshare");
        let mount = "mount -t tmpfs -o size=64k tmpfs state";
        project.like(probe.args([kind, "sh", "-c", mount]));
        if probe
            .env("PATH", path())
            .status()
            .is_ok_and(|status| status.success())
        {
            project.like(command.args([kind, "sh", "-c"]));
            return Some(command);
        }
    }
    say_untested();
    None
}

#[expect(clippy::print_stderr, reason = "a test that tests nothing says so")]
fn say_untested() {
    eprintln!("NOT TESTED: this machine lets nobody mount a file system of their own");
}

fn path() -> String {
    std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned())
}

/// Runs a script that calls the program by `as NAME ARGUMENTS`, and keeps what it printed and how it ended under that name.
fn play(project: &Project, mut shell: Command, script: &str) {
    let functions = r#"
        as() { name=$1; shift; "$BIN" "$@" >"$name.out" 2>"$name.err"; echo $? >"$name.code"; }
    "#;
    shell
        .arg(format!("{functions}\n{script}"))
        .env("PATH", path())
        .env("BIN", env!("CARGO_BIN_EXE_audience-sync"));
    let ran = ended(shell.spawn().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    assert!(project.path("shop.sqlite").exists());
}

fn ran(project: &Project, name: &str) -> Ran {
    let read =
        |ending: &str| fs::read_to_string(project.path(&format!("{name}.{ending}"))).unwrap();
    Ran {
        code: read("code").trim().parse().unwrap(),
        stdout: read("out"),
        stderr: read("err"),
    }
}

/// Every line that was delivered, once.
fn distinct(folder: &Path) -> Vec<String> {
    let mut lines = raw_lines(folder);
    lines.dedup();
    lines
}

const FULL: &str = "error: the snapshot state/snapshot.sqlite cannot be used: the disk is full: database or disk is full\n\n\
                    hint: make room; nothing that was decided is lost, and the next run goes on\n";

/// The script fills the disk of the snapshot but for so many KiB while the first run goes on.
#[track_caller]
fn check_full(project: &Project, free: usize) {
    match with_own_mounts(project) {
        Some(shell) => {
            let script = format!(
                "mount -t tmpfs -o size=32m tmpfs state || exit 9
                 as create snapshot create
                 head -c $((32 * 1024 * 1024 - {free} * 1024)) /dev/zero >state/ballast
                 as first sync --json
                 cp -r delivered first.delivered
                 rm state/ballast
                 as second sync --json
                 as third sync --json"
            );
            play(project, shell, &script);
            assert!(ran(project, "first").stderr.ends_with(FULL));
        }
        // The next best: no file may become longer.
        None => {
            let mut shell = Command::new("sh");
            project.like(shell.arg("-c"));
            // Of 512 bytes.
            let blocks = free * 2;
            let script = format!(
                "as create snapshot create
                 (trap '' XFSZ; ulimit -f {blocks}; as first sync --json)
                 cp -r delivered first.delivered
                 as second sync --json
                 as third sync --json"
            );
            play(project, shell, &script);
        }
    }
    let first = ran(project, "first");
    assert_eq!(first.code, 1, "{first:?}");
    let second = ran(project, "second");
    assert_eq!(second.code, 0, "{second:?}");
    let third = ran(project, "third");
    assert_eq!(third.lines()[0]["outcome"], "unchanged", "{third:?}");
    // A line has the bytes that are in the journal, however often it is sent.
    assert_eq!(distinct(&project.path("delivered")).len(), 5_000);
    assert_eq!(truth(&project.delivered_here()).len(), 5_000);
}

impl Project {
    fn delivered_here(&self) -> Vec<Value> {
        crate::support::records(&self.path("delivered/here"))
    }
}

#[test]
fn a_disk_without_room_for_the_plan_lets_nothing_be_sent() {
    let project = project(5_000);
    check_full(&project, 1_024);
    assert!(files(&project.path("first.delivered")).is_empty());
    let first = ran(&project, "first");
    assert_eq!(first.stdout, "");
    assert!(first.stderr.starts_with("error: the snapshot"), "{first:?}");
    // The plan of the first run is not half there: the second was a first run.
    assert_eq!(ran(&project, "second").lines()[0]["kind"], "first");
}

#[test]
fn a_disk_without_room_for_the_answers_costs_repeats_and_nothing_else() {
    let project = project(5_000);
    check_full(&project, 2_048);
    let sent = distinct(&project.path("first.delivered"));
    assert!(!sent.is_empty());
    let told = ran(&project, "first").lines();
    assert_eq!(told[0]["outcome"], "undelivered");
    let counts = ["delivered", "undelivered"].map(|field| told[0][field].as_u64().unwrap());
    assert!(
        counts[1] > 0 && counts[0] + counts[1] == 5_000,
        "{counts:?}"
    );
    let lines = ran(&project, "second").lines();
    assert_eq!(lines[0]["kind"], "resume");
    let all = distinct(&project.path("delivered"));
    assert!(sent.iter().all(|line| all.binary_search(line).is_ok()));
}

#[test]
fn a_disk_without_room_for_the_files_leaves_them_in_the_journal() {
    let project = project(5_000);
    let Some(shell) = with_own_mounts(&project) else {
        return;
    };
    play(
        &project,
        shell,
        "mount -t tmpfs -o size=16m tmpfs delivered || exit 9
         head -c $((15 * 1024 * 1024)) /dev/zero >delivered/ballast
         as create snapshot create
         as first sync --json
         cp -r delivered/here first.delivered
         rm delivered/ballast
         as second sync --json
         as third sync --json
         cp -r delivered/here kept",
    );
    let first = ran(&project, "first");
    let line = &first.lines()[0];
    assert_eq!((first.code, &line["outcome"]), (3, &json!("undelivered")));
    assert!(
        first
            .stderr
            .contains("cannot write below delivered/here: No space left on device"),
        "{first:?}"
    );
    // What counts as delivered is whole, and no half of a file lies anywhere.
    let sent = raw_lines(&project.path("first.delivered")).len() as u64;
    assert_eq!(line["delivered"], sent);
    assert_eq!(line["undelivered"], 5_000 - sent);
    assert!(sent < 5_000);
    let lines = ran(&project, "second").lines();
    assert_eq!(
        (&lines[0]["kind"], &lines[0]["delivered"]),
        (&json!("resume"), &json!(5_000 - sent))
    );
    assert_eq!(ran(&project, "third").lines()[0]["outcome"], "unchanged");
    assert_eq!(raw_lines(&project.path("kept")).len(), 5_000);
}

#[test]
fn a_project_that_a_full_disk_cut_short_is_begun_again() {
    let project = project(1);
    let Some(shell) = with_own_mounts(&project) else {
        return;
    };
    play(
        &project,
        shell,
        "mount -t tmpfs -o size=8k tmpfs state || exit 9
         head -c 8192 /dev/zero >state/ballast
         as files init state/one
         rm state/ballast
         as snapshot init state/one
         as again init state/one
         cp -r state/one half
         mount -o remount,size=1m state || exit 9
         as second init state/one
         as third init state/one
         cp -r state/one kept",
    );
    for (name, words) in [
        (
            "files",
            "cannot write state/one/schedules/orders.toml: No space left on device",
        ),
        (
            "snapshot",
            "the snapshot state/one/snapshot.sqlite cannot be used: ",
        ),
        (
            "again",
            "the snapshot state/one/snapshot.sqlite cannot be used: ",
        ),
    ] {
        let cut_short = ran(&project, name);
        assert!(
            cut_short.code == 1 && cut_short.stderr.contains(words),
            "{cut_short:?}"
        );
    }
    for name in ["audience-sync.toml", "snapshot.sqlite"] {
        assert!(!project.path("half").join(name).exists(), "{name}");
    }
    assert_eq!(ran(&project, "second").code, 0);
    let third = ran(&project, "third");
    assert!(
        third.code == 2 && third.stderr.contains("there is a project already"),
        "{third:?}"
    );
    // The configuration, the schedule, the snapshot and its lock.
    assert_eq!(files(&project.path("kept")).len(), 4);
}

#[test]
fn a_read_only_place_takes_no_run_and_may_be_looked_at() {
    let project = project(3);
    project.sync();
    project.shop("DELETE FROM members WHERE user_id LIKE 'user_00001%'");
    let Some(shell) = with_own_mounts(&project) else {
        return;
    };
    play(
        &project,
        shell,
        "protect() { mount --bind $1 $1 && mount -o remount,bind,ro $1 || exit 9; }
         protect state/snapshot.sqlite
         as file sync --json
         protect state
         as folder sync --json
         as list snapshot list --json
         as rehearsal sync --dry-run --json",
    );
    for (name, words) in [
        (
            "file",
            "error: the snapshot state/snapshot.sqlite cannot be used: it is read-only: attempt to write a readonly database\n\n\
             hint: whoever runs audience-sync must be able to write to the file and to its directory\n",
        ),
        (
            "folder",
            "/state/snapshot.sqlite.lock: Read-only file system (os error 30)\n\n\
             hint: a run makes this file beside the snapshot, and must be able to write to it\n",
        ),
    ] {
        let refused = ran(&project, name);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.ends_with(words), "{refused:?}");
    }
    assert_eq!(ran(&project, "list").lines()[0]["members"], 3);
    assert_eq!(ran(&project, "rehearsal").lines()[0]["removed"], 1);
    assert_eq!(project.delivered_here().len(), 3);
    assert_eq!(project.sync()["removed"], 1);
}

/// What every command says about a snapshot in this state. Nothing is sent by it, and nothing that counts is written.
#[track_caller]
fn check_unusable(prepare: impl FnOnce(&Path), words: &[&str]) {
    let project = project(2_000);
    project.sync();
    project.shop("DELETE FROM members WHERE user_id < 'user_00500'");
    prepare(&project.path("state/snapshot.sqlite"));
    let before = project.contents();
    for arguments in [
        &["sync"] as &[&str],
        &["sync", "--dry-run"],
        &["sync", "--approve"],
        &["resync", "members"],
        &["snapshot", "show", "members"],
    ] {
        let ran = project.run(arguments);
        assert_eq!(ran.code, 1, "{arguments:?}: {ran:?}");
        let named = "error: the snapshot state/snapshot.sqlite cannot be used: ";
        assert!(ran.stderr.contains(named), "{arguments:?}: {ran:?}");
        for words in words {
            assert!(
                ran.stderr.contains(words),
                "{arguments:?}: {words}: {ran:?}"
            );
        }
    }
    let mut after = project.contents();
    // Only who asked last.
    let lock = project.path("state/snapshot.sqlite.lock");
    after.insert(lock.clone(), before[&lock].clone());
    let names =
        |contents: &std::collections::BTreeMap<_, _>| contents.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    for (path, bytes) in &before {
        // In the snapshot, where it can be opened, who may write: on one page, and the count of writes on the first.
        let changed = match path.ends_with("snapshot.sqlite") && after[path].len() == bytes.len() {
            true => bytes
                .chunks(4096)
                .zip(after[path].chunks(4096))
                .filter(|(before, after)| before != after)
                .count(),
            false => usize::from(after[path] != *bytes) * 9,
        };
        assert!(changed <= 2, "{}: {changed} pages", path.display());
    }
}

const REBUILD: &str = "hint: move it away and make it anew from what was delivered: `audience-sync snapshot rebuild --from DIR`, with `--destination NAME` for each destination if there are several; \
                       a backup does not know what was told since\n";

#[test]
fn a_damaged_snapshot_is_refused_with_the_way_out() {
    check_unusable(
        |snapshot| {
            let bytes = fs::read(snapshot).unwrap();
            fs::write(snapshot, &bytes[..bytes.len() - 1_000]).unwrap();
        },
        &["the file is cut off after ", REBUILD],
    );
    check_unusable(
        |snapshot| {
            let mut bytes = fs::read(snapshot).unwrap();
            bytes[..64].fill(b'x');
            fs::write(snapshot, bytes).unwrap();
        },
        &[
            "the file is damaged, or was never a snapshot: file is not a database",
            REBUILD,
        ],
    );
    check_unusable(
        |snapshot| {
            // The members' pages, of which no index tells the content too.
            let mut bytes = fs::read(snapshot).unwrap();
            let is_of_members =
                |page: &&mut [u8]| page.windows(11).any(|text| text == b"user_01000_");
            bytes
                .chunks_mut(4096)
                .filter(is_of_members)
                .for_each(|page| page.fill(0));
            fs::write(snapshot, bytes).unwrap();
        },
        &[
            "the file is damaged: database disk image is malformed",
            REBUILD,
        ],
    );
}

#[test]
fn what_was_done_before_the_snapshot_failed_is_told() {
    let project = Project::new(
        r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
destinations = ["main", "other"]
"#,
    );
    let destination = |name: &str| {
        format!(
            "[destination.{name}]\ndirectory = \"{name}/here\"\nmapping = {{ identify = \"members\" }}\n"
        )
    };
    let config = format!(
        "[source.shop]\nsqlite = \"shop.sqlite\"\n{}{}",
        destination("main"),
        destination("other")
    );
    project.write("audience-sync.toml", &config);
    project.shop(
        "CREATE TABLE members (user_id TEXT);
         WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 1200)
         INSERT INTO members SELECT 'user_' || n FROM n",
    );
    for name in ["main", "other"] {
        project.write(name, "in the way");
    }
    assert_eq!(project.run(&["sync"]).code, 3);
    for name in ["main", "other"] {
        fs::remove_file(project.path(name)).unwrap();
    }
    rusqlite::Connection::open(project.path("snapshot.sqlite"))
        .unwrap()
        .execute(
            "UPDATE bytes SET entries = x'09' WHERE id = (SELECT bytes FROM chunk WHERE run = 1 AND count = 200)",
            [],
        )
        .unwrap();
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("chunk 8 of run 1 cannot be read"),
        "{ran:?}"
    );
    let mut told: Vec<_> = ran
        .lines()
        .iter()
        .map(|line| {
            ["destination", "outcome", "delivered", "undelivered"].map(|field| line[field].clone())
        })
        .collect();
    let line = |destination: &str, outcome: &str, delivered: u64, undelivered: u64| {
        [
            json!(destination),
            json!(outcome),
            json!(delivered),
            json!(undelivered),
        ]
    };
    // The other one may have been planned anew by then.
    told.truncate(2);
    assert_eq!(
        told,
        [
            line("main", "undelivered", 1_000, 200),
            line("other", "delivered", 1_200, 0)
        ]
    );
}

#[test]
fn a_snapshot_of_another_version_is_for_another_program() {
    let sql = |sql: &'static str| {
        move |snapshot: &Path| {
            let snapshot = rusqlite::Connection::open(snapshot).unwrap();
            snapshot.execute_batch(sql).unwrap();
            snapshot
                .pragma_update(None, "journal_mode", "delete")
                .unwrap();
        }
    };
    check_unusable(
        sql("PRAGMA user_version = 99"),
        &[
            "the snapshot is of version 99, and this audience-sync reads version 1\n\n",
            "hint: use the audience-sync that wrote it\n",
        ],
    );
    check_unusable(
        sql("PRAGMA application_id = 7"),
        &[
            "the file is a SQLite database, but not a snapshot of audience-sync\n\n",
            "hint: `snapshot` in audience-sync.toml names it; give it a file of its own\n",
        ],
    );
}

#[test]
fn whatever_holds_ids_is_for_its_owner_only() {
    let project = project(3);
    // As a program leaves them that is killed: SQLite's own files beside the snapshot.
    let looking = || rusqlite::Connection::open(project.path("state/snapshot.sqlite")).unwrap();
    project.sync();
    let open = looking();
    open.query_row("SELECT count(*) FROM run", [], |_| Ok(()))
        .unwrap();
    project.shop("DELETE FROM members");
    assert_eq!(project.run(&["sync"]).code, 4);
    let found: Vec<_> = [project.path("state"), project.path("delivered")]
        .iter()
        .flat_map(|folder| files(folder))
        .map(|path| (path.metadata().unwrap().permissions().mode() & 0o777, path))
        .collect();
    let endings = [".sqlite", "-wal", "-shm", ".lock"];
    for ending in endings {
        assert!(
            found
                .iter()
                .any(|(_, path)| path.to_str().unwrap().ends_with(ending)),
            "{ending}: {found:?}"
        );
    }
    assert!(found.len() > endings.len());
    assert!(found.iter().all(|(mode, _)| *mode == 0o600), "{found:?}");
}

#[test]
fn a_snapshot_that_others_may_open_is_pointed_out_and_left_so() {
    let project = project(3);
    let snapshot = project.path("state/snapshot.sqlite");
    let warning = "WARN others than its owner may open the snapshot state/snapshot.sqlite (mode 0644), and it holds people's \
                   ids. hint: chmod 600 state/snapshot.sqlite\n";
    let ran = project.succeed(&["sync"]);
    assert!(!ran.stderr.contains("WARN"), "{ran:?}");
    fs::set_permissions(&snapshot, fs::Permissions::from_mode(0o644)).unwrap();
    let ran = project.succeed(&["sync"]);
    assert!(ran.stderr.contains(warning), "{ran:?}");
    let mode = snapshot.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

/// What a change query tells is kept on disk while everyone is read.
#[test]
fn a_temporary_folder_without_room_stops_the_audience_that_needs_it_and_no_other() {
    let audience = |name: &str| {
        format!(
            "[[audience]]\nname = \"{name}\"\nsource = \"shop\"\nquery = \"SELECT user_id FROM {name} WHERE is_member\"\n"
        )
    };
    let changes = "changes = \"SELECT user_id, is_member FROM second WHERE :since > ''\"\n";
    let [first, second, third] = ["first", "second", "third"].map(audience);
    let project = Project::new(&[first, second, changes.to_owned(), third].concat());
    for name in ["first", "second", "third"] {
        project.shop(&format!(
            "CREATE TABLE {name} (user_id TEXT, is_member); INSERT INTO {name} VALUES ('a', 1)"
        ));
    }
    project.succeed(&["sync"]);
    // Long ids: to sort them takes 6 MB, to find one of them 28 MB.
    project.shop(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
         INSERT INTO second SELECT format('%01020d', i), 0 FROM n;
         INSERT INTO first VALUES ('b', 1); INSERT INTO second VALUES ('b', 1); INSERT INTO third VALUES ('b', 1)",
    );
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    snapshot
        .execute_batch("UPDATE feed SET reconciled_at = 0")
        .unwrap();
    drop(snapshot);
    let mut shell = Command::new("sh");
    project.like(shell.arg("-c"));
    // 12 MiB, in 512 bytes.
    play(
        &project,
        shell,
        "(trap '' XFSZ; ulimit -f 24576; as full sync --json); as roomy sync --json",
    );
    let outcomes = |ran: &Ran| {
        let lines = ran.lines();
        let outcomes = lines
            .iter()
            .map(|line| line["outcome"].as_str().unwrap().to_owned());
        outcomes.collect::<Vec<_>>()
    };
    let full = ran(&project, "full");
    assert_eq!(
        (full.code, outcomes(&full)),
        (
            1,
            ["delivered", "failed", "delivered"]
                .map(str::to_owned)
                .to_vec()
        ),
        "{full:?}"
    );
    assert!(
        full.stderr.contains(
            "what the change query of \"second\" reports cannot be kept in a temporary file"
        ) && full.stderr.contains("hint: make room where TMPDIR is"),
        "{full:?}"
    );
    let roomy = ran(&project, "roomy");
    assert_eq!(
        (roomy.code, outcomes(&roomy)),
        (
            0,
            ["unchanged", "delivered", "unchanged"]
                .map(str::to_owned)
                .to_vec()
        ),
        "{roomy:?}"
    );
    assert_eq!(truth(&project.delivered()).len(), 6);
}
