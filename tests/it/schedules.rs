//! The examples in `schedules/` work.

use std::fs;
use std::path::Path;

use crate::support::Project;

#[test]
fn every_example_loads_and_runs_on_the_shop_of_the_demo() {
    let project = Project::empty();
    project.succeed(&["demo", "."]);
    fs::remove_dir_all(project.path("schedules")).unwrap();
    fs::remove_dir_all(project.path("delivered")).unwrap();
    fs::remove_file(project.path("snapshot.sqlite")).unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("schedules");
    let mut audiences = 0;
    for file in fs::read_dir(examples).unwrap() {
        let file = file.unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        project.write(
            &format!("schedules/{}", file.file_name().to_str().unwrap()),
            &text,
        );
        // A new example is run without a change here.
        audiences += text
            .lines()
            .filter(|line| ["[[audience]]", "[[computed_trait]]"].contains(line))
            .count();
    }
    project.succeed(&["check"]);
    project.succeed(&["snapshot", "create", "--anew"]);
    let lines = project.succeed(&["sync", "--json"]).lines();
    assert_eq!(lines.len(), audiences);
    for line in lines {
        assert_eq!(
            (&line["kind"], &line["outcome"]),
            (&"first".into(), &"delivered".into()),
            "{line}"
        );
        assert!(line["added"].as_u64().unwrap() > 0, "{line}");
    }
}
