//! What changes while it is read decides nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use super::*;

const CHANGED: &str = "it changed, came or went while the source was read\n\nhint: write exports under another name and rename them when they are whole; the next run reads all of them";

/// What happens to a file after it was seen.
type Change = fn(&Path);

fn append(path: &Path) {
    let mut file = File::options().append(true).open(path).unwrap();
    file.write_all(b"b\n").unwrap();
}

/// As long as it was, and as old as it says.
fn overwrite(path: &Path) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, "user_id\nx\n").unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(modified).unwrap();
}

fn replace(path: &Path) {
    let other = path.with_extension("new");
    fs::write(&other, "user_id\nx\n").unwrap();
    fs::rename(other, path).unwrap();
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

impl Exports {
    fn see(&self) -> Vec<Seen> {
        self.source.see(&self.audience).unwrap()
    }

    /// Until the system tells: its times count in steps.
    fn change(&self, name: &str, change: Change) {
        let before = self.see();
        while self.see() == before {
            change(&self.folder.path().join(name));
        }
    }

    #[track_caller]
    fn has_changed<T>(&self, result: Result<T, SourceError>, place: &str) {
        let error = result.err().expect(place).to_string();
        let folder = format!("{}/", self.folder.path().display());
        let expected = format!("source `exports`: {place}: {CHANGED}");
        assert_eq!(error.replace(&folder, ""), expected);
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_decides_nothing() {
    let changes: [Change; 4] = [append, overwrite, replace, |path| {
        fs::write(path, "user_id\na").unwrap();
    }];
    for change in changes {
        let exports = Exports::new("*.csv")
            .with("a.csv", "user_id\na\n")
            .with("b.csv", "user_id\nb\n");
        let before = exports.see();
        exports.change("b.csv", change);
        let (columns, interrupt) = (BTreeMap::new(), Interrupt::default());
        let mut taker = Taker::new(&exports.audience, &columns, &interrupt);
        assert!(exports.source.read(&before[0], &mut taker).is_ok());
        exports.has_changed(exports.source.read(&before[1], &mut taker), "b.csv");
    }
}

#[test]
fn files_that_come_or_go_while_others_are_read_decide_nothing() {
    let changes: [(&str, Change); 6] = [
        ("a.csv", remove),
        ("d.csv", remove),
        ("c.csv", replace),
        ("b.csv", replace),
        ("e.csv", replace),
        ("d.csv", overwrite),
    ];
    for (name, change) in changes {
        let mut exports = Exports::new("*.csv");
        for name in ["a.csv", "c.csv", "d.csv"] {
            exports = exports.with(name, "user_id\na\n");
        }
        let before = exports.see();
        exports
            .source
            .must_be_as(&before, &exports.audience)
            .unwrap();
        exports.change(name, change);
        exports.has_changed(exports.source.must_be_as(&before, &exports.audience), name);
    }
}

/// As a writer does that is not done with its shards.
#[test]
fn shards_that_are_replaced_while_others_are_read_decide_nothing() {
    let large = format!("user_id\n{}", "somebody\n".repeat(1 << 20));
    let exports = Exports::new("*.csv")
        .with("a.csv", large)
        .with("b.csv", "user_id\nb\n");
    let path = exports.folder.path().join("b.csv");
    let (is_over, (writes, started)) = (AtomicBool::new(false), mpsc::channel());
    let read = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                replace(&path);
                writes.send(()).unwrap();
            }
        });
        started.recv().unwrap();
        let read = exports.read();
        is_over.store(true, Ordering::Relaxed);
        read
    });
    exports.has_changed(read, "b.csv");
}
