//! What tests take from package registries, below `target/`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A virtual environment with these packages in it, made where there is none yet. `skip` is the variable that skips the
/// tests that need it.
pub(crate) fn environment(name: &str, requirements: &[&str], skip: &str) -> PathBuf {
    let hint = format!("this test needs python3 and PyPI; {skip}=1 skips it");
    made_once(name, &requirements.join(" "), |environment| {
        let mut venv = Command::new("python3");
        succeed(venv.args(["-m", "venv"]).arg(environment), &hint);
        let mut pip = Command::new(environment.join("bin/python"));
        let pip = pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]);
        succeed(pip.args(requirements), &hint);
    })
}

/// A folder that is made where there is none yet, or one of something else.
pub(crate) fn made_once(name: &str, of: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = target.join(name);
    let made = folder.join("made-of");
    // One test makes it, and the others wait.
    let lock = File::create(target.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if fs::read_to_string(&made).is_ok_and(|made| made == of) {
        return folder;
    }
    if let Err(error) = fs::remove_dir_all(&folder) {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    make(&folder);
    fs::write(made, of).unwrap();
    folder
}

/// Runs a command that must end well, and returns what it printed.
pub(crate) fn succeed(command: &mut Command, hint: &str) -> String {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("cannot start {command:?}: {error}\n\nhint: {hint}"),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {stderr}\n\nhint: {hint}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether the environment asks to skip what needs something.
#[expect(clippy::print_stderr, reason = "a test that did not run says so")]
pub(crate) fn is_skipped(skip: &str, why: &str) -> bool {
    let is_skipped = std::env::var_os(skip).is_some_and(|value| value == "1");
    if is_skipped {
        eprintln!("skipped, because {skip} is 1: {why}");
    }
    is_skipped
}
