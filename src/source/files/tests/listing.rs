//! Which files are read, and that nothing is taken for absent that is only in the way.

#[cfg(unix)]
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use super::*;

const MEMBER: &str = "user_id\na\n";

impl Exports {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn with_folder(self, name: &str) -> Self {
        fs::create_dir_all(self.path(name)).unwrap();
        self
    }

    #[cfg(unix)]
    fn with_link(self, name: &str, to: &str) -> Self {
        symlink(to, self.path(name)).unwrap();
        self
    }
}

#[test]
fn a_pattern_fits_names_and_no_further() {
    let check = |pattern: &str, expected: &[&str]| {
        let exports = Exports::new(pattern)
            .with("a/1.csv", "user_id\na1\n")
            .with("a/2.csv", "user_id\na2\n")
            .with("b/1.csv", "user_id\nb1\n")
            .with("b/.hidden.csv", "user_id\nhidden\n")
            .with(".c/1.csv", "user_id\nc1\n")
            .with("d.csv", "user_id\nd\n")
            .with("b/x[1].csv", "user_id\nx\n");
        let expected: Vec<String> = expected.iter().map(|id| format!("UserId {id:?}")).collect();
        assert_eq!(exports.read().unwrap(), expected, "{pattern}");
    };
    check("*/1.csv", &["a1", "b1"]);
    check("./a/../?/[12].csv", &["a1", "a2", "b1"]);
    check("[!a]/*.csv", &["b1", "x"]);
    check("b/x[[]1].csv", &["x"]);
    check("*.csv", &["d"]);
    check("b/.*.csv", &["hidden"]);
    check(".*/1.csv", &["c1"]);
    check("a/2.csv", &["a2"]);
}

#[cfg(unix)]
#[test]
fn a_name_that_is_no_text_is_a_name() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let exports = Exports::new("*.csv").with("b.csv", "user_id\nb\n");
    fs::write(
        exports.folder.path().join(OsStr::from_bytes(b"a\xff.csv")),
        MEMBER,
    )
    .unwrap();
    exports.gives(&["UserId \"a\"", "UserId \"b\""]);
}

#[test]
fn a_folder_where_a_file_is_meant_is_an_error_with_the_way_out() {
    let is_folder = "it is a folder\n\nhint: to read the files in it, let the pattern go on: /*";
    // As Spark writes what is called a file.
    for pattern in ["*.csv", "spark.csv"] {
        Exports::new(pattern)
            .with("spark.csv/part-0.csv", MEMBER)
            .with("b.csv", MEMBER)
            .fails(&format!("spark.csv: {is_folder}"));
    }
    Exports::new("*.csv/part-*.csv")
        .with("spark.csv/part-0.csv", MEMBER)
        .with("b.csv", MEMBER)
        .with_folder("empty.csv")
        .gives(&["UserId \"a\""]);
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_no_absent_file() {
    let nowhere = "it is a link to what is not there\n\nhint: let it lead to what is, or remove it";
    for (pattern, place) in [
        ("*.csv", "current.csv"),
        ("current.csv", "current.csv"),
        ("[dg]*/a.csv", "gone"),
        ("gone/a.csv", "gone"),
    ] {
        Exports::new(pattern)
            .with("b.csv", MEMBER)
            .with("d/a.csv", MEMBER)
            .with_link("current.csv", "nowhere.csv")
            .with_link("gone", "nowhere")
            .fails(&format!("{place}: {nowhere}"));
    }
    Exports::new("*/a.csv")
        .with("d/a.csv", MEMBER)
        .with_link("e", "d")
        .gives(&["UserId \"a\""]);
}

/// What cannot be looked at could be anything.
#[cfg(unix)]
#[test]
fn what_cannot_be_looked_at_is_an_error() {
    let loops = "Too many levels of symbolic links (os error 40)";
    for pattern in ["*/a.csv", "loop/a.csv", "loop"] {
        Exports::new(pattern)
            .with("b/a.csv", MEMBER)
            .with_link("loop", "loop")
            .fails(&format!("loop: {loops}"));
    }
}

#[cfg(unix)]
#[test]
fn what_may_not_be_read_is_an_error() {
    let denied = "Permission denied (os error 13)\n\nhint: let whoever runs audience-sync read it";
    let check = |pattern: &str, locked: &str, mode: u32, place: &str| {
        let exports = Exports::new(pattern)
            .with("a/members.csv", MEMBER)
            .with("b/members.csv", MEMBER);
        let set = |mode| {
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(exports.path(locked), permissions).unwrap();
        };
        set(mode);
        // Root may read everything.
        let is_barred = fs::read_dir(exports.path(locked))
            .and_then(|_| File::open(exports.path(locked).join("members.csv")))
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
            || File::open(exports.path(locked)).is_err();
        if is_barred {
            exports.fails(&format!("{place}: {denied}"));
        }
        set(0o700);
    };
    check("*/members.csv", "b", 0o000, "b/members.csv");
    check("b/members.csv", "b", 0o600, "b/members.csv");
    check("b/*.csv", "b", 0o300, "b");
    check("*/members.csv", "b/members.csv", 0o000, "b/members.csv");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_file_and_nobody_waits_for_it() {
    let exports = Exports::new("*.csv").with("b.csv", MEMBER);
    let made = Command::new("mkfifo").arg(exports.path("a.csv")).status();
    assert!(made.unwrap().success());
    exports.fails(
        "a.csv: it is no file\n\nhint: what comes out of a pipe is read once it is in a file",
    );
}
