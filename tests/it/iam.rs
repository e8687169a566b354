//! `iam`: policies that can be pasted, with a placeholder for every secret.

use serde_json::{Value, json};

use crate::support::{Project, Ran, assert_fields};

const ROLE: &str = "arn:aws:iam::874699288871:role/example-role";

/// Two destinations that share a role, one with a role of its own, one without, and a directory.
const CONFIG: &str = r#"
[destination.main]
role_address = "arn:aws:iam::874699288871:role/example-role"
secret_id = { env = "SECRET" }
[destination.main.mapping]
identify = ["members", "copy"]
page = "members"

[destination.second]
region = "eu-central-1"
role_address = "arn:aws:iam::874699288871:role/example-role"
secret_id = { file = "secret" }
[destination.second.mapping]
"*" = "members"

[destination.china]
region = "cn-north-1"
role_address = "arn:aws-cn:iam::111111111111:role/path/writer"
secret_id = { env = "SECRET" }
[destination.china.mapping]
"*" = "all"

[destination.bare]
region = "us-gov-west-1"
[destination.bare.mapping]
"*" = "all"

[destination.files]
directory = "delivered"
[destination.files.mapping]
"*" = "all"
"#;

fn project(config: &str) -> Project {
    let mut project = Project::empty();
    project.write("audience-sync.toml", config);
    project.write("secret", "correct-horse\n");
    std::fs::create_dir(project.path("schedules")).unwrap();
    project.variables.insert("SECRET".into(), "hunter2".into());
    project
}

/// One destination with one role.
fn single() -> Project {
    project(CONFIG.split("[destination.second]").next().unwrap())
}

/// Runs `iam`, which must leave every file as it was.
#[track_caller]
fn iam(project: &Project, flags: &[&str]) -> Ran {
    let before = project.contents();
    let ran = project.succeed(&[&["iam"], flags].concat());
    assert!(project.contents() == before, "iam changed a file");
    ran
}

fn by_role(lines: &[Value], role: impl Into<Value>) -> &Value {
    let role = role.into();
    lines.iter().find(|line| line["role"] == role).unwrap()
}

fn resources(line: &Value) -> &Value {
    &line["permission_policy"]["Statement"][0]["Resource"]
}

fn external_ids(line: &Value) -> &Value {
    &line["trust_policy"]["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"]
}

#[test]
fn the_policies_of_a_role_are_ready_to_paste() {
    let ran = iam(&single(), &[]);
    assert_eq!(
        ran.stdout,
        r##"# Permission policy for role arn:aws:iam::874699288871:role/example-role, for main
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Action": [
        "firehose:PutRecordBatch",
        "firehose:PutRecord"
      ],
      "Resource": [
        "arn:aws:firehose:us-west-2:874699288871:deliverystream/copy",
        "arn:aws:firehose:us-west-2:874699288871:deliverystream/members"
      ]
    }
  ]
}

# Trust policy for role arn:aws:iam::874699288871:role/example-role
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Principal": {
        "AWS": "arn:aws:iam::YOUR_ACCOUNT_ID:root"
      },
      "Action": "sts:AssumeRole",
      "Condition": {
        "StringEquals": {
          "sts:ExternalId": "YOUR_SECRET_ID"
        }
      }
    }
  ]
}
"##
    );
    assert!(
        ran.stderr
            .contains("replace YOUR_ACCOUNT_ID by the account"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("the environment variable SECRET"),
        "{ran:?}"
    );
}

#[test]
fn each_role_has_a_line_with_all_that_assume_it() {
    let lines = iam(&project(CONFIG), &["--json"]).lines();
    assert_eq!(lines.len(), 3);
    for line in &lines {
        assert_fields(
            line,
            &["role", "destinations", "permission_policy", "trust_policy"],
        );
    }
    let shared = by_role(&lines, ROLE);
    assert_eq!(shared["destinations"], json!(["main", "second"]));
    assert_eq!(
        *resources(shared),
        json!([
            "arn:aws:firehose:us-west-2:874699288871:deliverystream/copy",
            "arn:aws:firehose:us-west-2:874699288871:deliverystream/members",
            "arn:aws:firehose:eu-central-1:874699288871:deliverystream/members"
        ])
    );
    assert_eq!(
        *external_ids(shared),
        json!(["YOUR_SECRET_ID", "YOUR_SECRET_ID"])
    );

    let china = by_role(&lines, "arn:aws-cn:iam::111111111111:role/path/writer");
    assert_eq!(
        *resources(china),
        json!(["arn:aws-cn:firehose:cn-north-1:111111111111:deliverystream/all"])
    );
    assert_eq!(
        china["trust_policy"]["Statement"][0]["Principal"],
        json!({ "AWS": "arn:aws-cn:iam::YOUR_ACCOUNT_ID:root" })
    );
    assert_eq!(*external_ids(china), json!("YOUR_SECRET_ID"));

    let bare = by_role(&lines, Value::Null);
    assert_eq!(
        *resources(bare),
        json!(["arn:aws-us-gov:firehose:us-gov-west-1:YOUR_ACCOUNT_ID:deliverystream/all"])
    );
    assert_eq!(bare["trust_policy"], Value::Null);
}

#[test]
fn a_named_destination_gives_the_policies_of_its_whole_role() {
    let project = project(CONFIG);
    let all = iam(&project, &["--json"]).lines();
    for name in ["main", "second"] {
        let lines = iam(&project, &[name, "--json"]).lines();
        assert_eq!(lines, [by_role(&all, ROLE).clone()]);
    }
    let text = iam(&project, &["bare"]).stdout;
    assert!(text.starts_with("# Permission policy for whoever runs audience-sync, for bare\n{"));
    assert!(!text.contains("Trust policy"), "{text}");
}

#[test]
fn what_stands_below_a_heading_is_json() {
    let text = iam(&project(CONFIG), &[]).stdout;
    let blocks: Vec<_> = text.split("# ").skip(1).collect();
    assert_eq!(blocks.len(), 5);
    for block in blocks {
        let (_, policy) = block.split_once('\n').unwrap();
        let policy: Value = serde_json::from_str(policy).unwrap();
        assert_eq!(policy["Version"], "2012-10-17");
    }
}

#[test]
fn no_secret_is_shown_or_even_read_unless_asked_for() {
    let mut project = project(CONFIG);
    for flags in [&[][..], &["--json"], &["main"], &["-vv"]] {
        let ran = format!("{:?}", iam(&project, flags));
        assert!(
            !ran.contains("hunter2") && !ran.contains("correct-horse"),
            "{ran}"
        );
    }
    project.variables.clear();
    iam(&project, &[]);
    let ran = project.run(&["iam", "--show-secrets"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
    assert!(
        ran.stderr
            .contains("the environment variable SECRET is not set"),
        "{ran:?}"
    );
}

#[test]
fn secrets_are_shown_when_asked_for_and_equal_ones_once() {
    let project = project(CONFIG);
    let shown = iam(&project, &["main", "--json", "--show-secrets"]);
    assert_eq!(
        *external_ids(&shown.lines()[0]),
        json!(["hunter2", "correct-horse"])
    );
    assert!(
        shown
            .stderr
            .contains("keep this output as you keep a password"),
        "{shown:?}"
    );
    assert!(!shown.stderr.contains("hunter2"), "{shown:?}");

    project.write("secret", "hunter2\n");
    let equal = iam(&project, &["main", "--json", "--show-secrets"]).lines();
    assert_eq!(*external_ids(&equal[0]), json!("hunter2"));
}

#[test]
fn one_reference_that_is_used_twice_is_one_secret() {
    let config = CONFIG.replace("{ file = \"secret\" }", "{ env = \"SECRET\" }");
    let lines = iam(&project(&config), &["second", "--json"]).lines();
    assert_eq!(*external_ids(&lines[0]), json!("YOUR_SECRET_ID"));
}

#[test]
fn a_directory_needs_no_policy() {
    let project = project(CONFIG);
    for flags in [&["files"][..], &["files", "--json"]] {
        let ran = iam(&project, flags);
        assert_eq!(
            (ran.stdout.as_str(), ran.stderr.as_str()),
            (
                "",
                "destination `files` writes files to a directory and needs no IAM\n"
            )
        );
    }
}

#[test]
fn an_unknown_destination_is_a_usage_error_that_lists_the_known_ones() {
    let ran = project(CONFIG).run(&["iam", "mian"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert_eq!(
        ran.stderr,
        "error: there is no destination \"mian\"\n\nhint: known: bare, china, files, main, second\n"
    );
}
