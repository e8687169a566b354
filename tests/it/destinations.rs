//! Two destinations that lead to one delivery stream, wherever it is named: in the file, the environment or the profile.

use crate::check::check;
use crate::support::Project;

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
destinations = ["main"]
query = "SELECT user_id FROM members"
"#;

const ROLE: &str = "role_address = \"arn:aws:iam::874699288871:role/example-role\"\n\
                    secret_id = { env = \"SECRET\" }";

/// With two destinations of these settings.
fn project(one: &str, other: &str) -> Project {
    let mut project = Project::new(SCHEDULE);
    project.variables.insert("SECRET".into(), "hunter2".into());
    project.shop("CREATE TABLE members (user_id TEXT)");
    project.write(
        "audience-sync.toml",
        &format!(
            "[source.shop]\nsqlite = \"shop.sqlite\"\n\
             [destination.main]\nmapping = {{ identify = \"members\" }}\n{one}\n\
             [destination.other]\nmapping = {{ page = [\"pages\", \"members\"] }}\n{other}\n"
        ),
    );
    project
}

#[test]
fn two_destinations_that_lead_to_one_stream_are_refused_with_both_places() {
    let project = project(
        "directory = \"delivered\"",
        "directory = \"./a/../delivered/\"",
    );
    let ran = check(&project, &[], 2);
    assert_eq!(
        ran.stderr,
        "error: destination `other` leads to a stream of destination `main`, which stands at \
         audience-sync.toml:3:14: members in delivered/\n  --> audience-sync.toml:6:14\n\n\
         hint: remove the stream from one of the two mappings\n"
    );
}

#[test]
fn two_destinations_of_which_one_has_a_role_are_warned_of() {
    let ran = check(&project("", ROLE), &[], 0);
    let expected = "destinations `main` and `other` lead to one stream if both are of one account: \
                    members (us-west-2), members (us-west-2, account 874699288871). hint: ";
    assert!(ran.stderr.contains(expected), "{ran:?}");
    let same = check(&project(ROLE, ROLE), &[], 2);
    assert!(same.stderr.contains("leads to a stream of"), "{same:?}");
    let elsewhere = check(&project(ROLE, "region = \"eu-west-1\""), &[], 0);
    assert!(!elsewhere.stderr.contains("WARN"), "{elsewhere:?}");
}

/// `main` names an endpoint, `other` does not.
#[test]
fn the_endpoint_that_is_really_used_tells_streams_apart() {
    let check = |variables: &[(&str, &str)], profiles: &str, code| {
        let mut project = project("endpoint_url = \"http://127.0.0.1:4566\"", "");
        let named = variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        project.variables.extend(named);
        let path = project.path("profiles");
        let path = path.to_str().unwrap().to_owned();
        project.variables.insert("AWS_CONFIG_FILE".into(), path);
        project.write("profiles", profiles);
        let ran = check(&project, &[], code);
        let is_refused = ran.stderr.contains("leads to a stream of");
        assert_eq!(is_refused, code == 2, "{variables:?} {profiles} {ran:?}");
    };
    let same = "HTTP://127.0.0.1:4566/";
    let aws = "https://firehose.us-west-2.amazonaws.com";
    check(&[], "", 0);
    check(&[("AWS_ENDPOINT_URL", same)], "", 2);
    check(&[("AWS_ENDPOINT_URL_FIREHOSE", same)], "", 2);
    check(&[("AWS_ENDPOINT_URL_STS", same)], "", 0);
    check(
        &[
            ("AWS_ENDPOINT_URL", same),
            ("AWS_ENDPOINT_URL_FIREHOSE", aws),
        ],
        "",
        0,
    );
    check(
        &[
            ("AWS_ENDPOINT_URL", same),
            ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true"),
        ],
        "",
        0,
    );
    let of_profile = format!("[default]\nendpoint_url = {same}\n[profile bare]\n");
    check(&[], &of_profile, 2);
    check(&[("AWS_PROFILE", "bare")], &of_profile, 0);
    let of_service = format!(
        "[profile dev]\nservices = local\nendpoint_url = {aws}\n\
         [services local]\nfirehose =\n  endpoint_url = {same}\n"
    );
    check(&[], &of_service, 0);
    check(&[("AWS_PROFILE", "dev")], &of_service, 2);
}

#[test]
fn an_address_in_the_environment_that_is_none_is_refused_and_not_repeated() {
    let mut project = project("", "region = \"eu-west-1\"");
    project.variables.insert(
        "AWS_ENDPOINT_URL".to_owned(),
        "me:hunter2@localhost".to_owned(),
    );
    let ran = check(&project, &[], 2);
    assert_eq!(
        ran.stderr,
        "error: the address of Firehose in the environment or the AWS profile is not an http or https address with a \
         host\n\nhint: AWS_ENDPOINT_URL_FIREHOSE, AWS_ENDPOINT_URL or `endpoint_url` in the profile names it\n"
    );
}
