//! What is true of every command.

use crate::support::{CONFIG, Project};

#[test]
fn help_and_version_are_data_and_mistakes_are_not() {
    let project = Project::empty();
    let version = project.succeed(&["--version"]);
    assert_eq!(
        version.stdout,
        format!("audience-sync {}\n", env!("CARGO_PKG_VERSION"))
    );
    let help = project.succeed(&["--help"]).stdout;
    for word in [
        "demo", "init", "sync", "resync", "run", "check", "snapshot", "send", "iam",
    ] {
        assert!(help.contains(&format!("\n  {word} ")), "{word}: {help}");
        let own = project.succeed(&[word, "--help"]);
        assert!(own.stdout.contains("Usage: "), "{own:?}");
    }
    assert!(help.contains("5 another run holds the snapshot"), "{help}");
    for arguments in [
        &["sing"] as &[&str],
        &[],
        &["resync"],
        &["sync", "--nonsense"],
        &["snapshot"],
    ] {
        let ran = project.run(arguments);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (2, ""),
            "{arguments:?}: {ran:?}"
        );
        assert!(ran.stderr.contains("Usage: "), "{ran:?}");
    }
    assert!(project.contents().is_empty());
}

#[test]
fn the_configuration_is_found_by_flag_or_variable() {
    let mut project = Project::empty().without_snapshot();
    let missing = project.run(&["sync"]);
    assert_eq!(missing.code, 2, "{missing:?}");
    assert!(missing.stderr.contains("audience-sync.toml"), "{missing:?}");

    project.write("by-flag/my.toml", CONFIG);
    project.write("by-variable/my.toml", CONFIG);
    for folder in ["by-flag/schedules", "by-variable/schedules"] {
        std::fs::create_dir(project.path(folder)).unwrap();
    }
    project.succeed(&["snapshot", "create", "--config", "by-flag/my.toml"]);
    assert!(project.path("by-flag/snapshot.sqlite").exists());
    for arguments in [
        &["send", "--config", "by-flag/my.toml"] as &[&str],
        &["--config", "by-flag/my.toml", "send"],
    ] {
        assert_eq!(project.pipe(arguments, "").code, 0);
    }
    project.variables.insert(
        "AUDIENCE_SYNC_CONFIG".to_owned(),
        "by-variable/my.toml".to_owned(),
    );
    // What was typed goes before what was set.
    project.succeed(&["sync", "--config", "by-flag/my.toml"]);
    assert_eq!(project.pipe(&["send"], "").code, 2);
    assert!(!project.path("by-variable/snapshot.sqlite").exists());
    project.succeed(&["snapshot", "create"]);
    assert_eq!(project.pipe(&["send"], "").code, 0);
    assert!(project.path("by-variable/snapshot.sqlite").exists());
}
