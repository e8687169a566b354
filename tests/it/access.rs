//! What the program touches, and what it keeps to itself.

use std::time::{Duration, Instant};

use crate::firehose::{enter, project as at_firehose};
use crate::support::endpoint::{Answer, Api, Endpoint};
use crate::support::{Project, eventually};

/// An address of this machine that does not say so: whoever calls it could be anybody's.
fn elsewhere(endpoint: &Endpoint) -> String {
    endpoint.url().replace("127.0.0.1", "0.0.0.0")
}

/// Where the configuration names no address, the SDK looks for one.
fn without_endpoints(project: &Project, role: bool) {
    let role = if role {
        "role_address = \"arn:aws:iam::874699288871:role/example-role\"\n\
         secret_id = { env = \"AUDIENCE_SYNC_SECRET_ID\" }\n"
    } else {
        ""
    };
    project.write(
        "audience-sync.toml",
        &format!(
            "[source.shop]\nsqlite = \"shop.sqlite\"\n[destination.main]\n{role}mapping = {{ identify = \"members\" }}\n"
        ),
    );
}

#[track_caller]
fn check_parked(project: &Project, endpoint: &Endpoint, host: &str) {
    let started = Instant::now();
    let ran = project.run(&["sync"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(started.elapsed() < Duration::from_secs(60));
    let words = format!(
        "members: the address of {host} is on another machine, so https is required\n\nhint: AWS_ENDPOINT_URL, one of"
    );
    assert!(ran.stderr.contains(&words), "{ran:?}");
    assert!(endpoint.ledger().calls.is_empty());
}

#[test]
fn nothing_is_sent_in_the_clear_to_another_machine() {
    let endpoint = Endpoint::start();
    let set = |role: bool, variables: &[(&str, &str)]| {
        let mut project = at_firehose(&endpoint, "");
        enter(&project, 0..3);
        without_endpoints(&project, role);
        let variables = variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        project.variables.extend(variables);
        project
    };
    let (here, elsewhere) = (endpoint.url(), elsewhere(&endpoint));

    let reserved = set(false, &[("AWS_ENDPOINT_URL_FIREHOSE", "http://192.0.2.1")]);
    check_parked(&reserved, &endpoint, "192.0.2.1");
    for variable in ["AWS_ENDPOINT_URL_FIREHOSE", "AWS_ENDPOINT_URL"] {
        let project = set(false, &[(variable, &elsewhere)]);
        check_parked(&project, &endpoint, "0.0.0.0");
    }
    // The secret is in the first call to STS.
    let at_sts = set(
        true,
        &[
            ("AWS_ENDPOINT_URL", &here),
            ("AWS_ENDPOINT_URL_STS", &elsewhere),
        ],
    );
    check_parked(&at_sts, &endpoint, "0.0.0.0");
    let by_profile = set(false, &[("AWS_CONFIG_FILE", "aws.config")]);
    by_profile.write(
        "aws.config",
        &format!("[default]\nendpoint_url = {elsewhere}\n"),
    );
    check_parked(&by_profile, &endpoint, "0.0.0.0");

    // On this machine it may be plain. It is another stream than the one elsewhere.
    let mut allowed = by_profile;
    allowed
        .variables
        .insert("AWS_ENDPOINT_URL".to_owned(), here);
    let ran = allowed.succeed(&["sync", "--json"]);
    assert_eq!(ran.lines()[0]["kind"], "first");
    assert_eq!(endpoint.ledger().accepted.len(), 3);
}

/// The SDK makes calls of its own to come by credentials. A token of a cluster is all that it takes to be its role.
#[test]
fn no_token_is_sent_in_the_clear_to_another_machine() {
    let endpoint = Endpoint::start();
    let elsewhere = elsewhere(&endpoint);
    let role = "arn:aws:iam::874699288871:role/of-the-cluster";
    let identity = format!("role_arn = {role}\nweb_identity_token_file = token\n");
    let role_of_keys = format!(
        "role_arn = {role}\nsource_profile = keys\n[profile keys]\naws_access_key_id = AKIAPROJECT\naws_secret_access_key = key\n"
    );
    let check = |profile: &str, variables: &[(&str, &str)]| {
        let mut project = at_firehose(&endpoint, "");
        enter(&project, 0..3);
        project.variables.remove("AWS_ACCESS_KEY_ID");
        project.variables.remove("AWS_SECRET_ACCESS_KEY");
        project.write("token", "SEEME");
        project.write("aws.config", &format!("[default]\n{profile}"));
        let variables = [("AWS_CONFIG_FILE", "aws.config")]
            .iter()
            .chain(variables)
            .map(|(name, value)| (name.to_string(), value.to_string()));
        project.variables.extend(variables);
        check_parked(&project, &endpoint, "0.0.0.0");
    };
    check(
        "",
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "token"),
            ("AWS_ROLE_ARN", role),
            ("AWS_ENDPOINT_URL_STS", &elsewhere),
        ],
    );
    check(&identity, &[("AWS_ENDPOINT_URL", &elsewhere)]);
    check(&role_of_keys, &[("AWS_ENDPOINT_URL_STS", &elsewhere)]);
    check(&format!("{identity}endpoint_url = {elsewhere}\n"), &[]);
}

/// What is in every id, trait, value and secret of [`telling`].
const MARK: &str = "SEEME";

const AUDIENCES: &str = r#"
cron = "0 0 1 1 *"

[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, anonymous_id, email FROM members"
traits = ["email"]
guard = { max_removed_percent = 10, min_removed = 1 }

[[computed_trait]]
name = "Spend"
source = "shop"
query = "SELECT user_id, value FROM spend"
guard = false
"#;

fn telling(endpoint: &Endpoint) -> Project {
    let mut project = at_firehose(
        endpoint,
        "role_address = \"arn:aws:iam::874699288871:role/example-role\"\n\
         secret_id = { env = \"AUDIENCE_SYNC_SECRET_ID\" }\n",
    );
    project.write("schedules/main.toml", AUDIENCES);
    let secret = format!("{MARK}-secret");
    project
        .variables
        .insert("AUDIENCE_SYNC_SECRET_ID".to_owned(), secret);
    project.shop(&format!(
        "DROP TABLE members;
         CREATE TABLE members (user_id TEXT, anonymous_id TEXT, email);
         CREATE TABLE spend (user_id TEXT, value);
         WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 30)
         INSERT INTO members SELECT '{MARK}-user-' || n, '{MARK}-anonymous-' || n, '{MARK}-mail' FROM n;
         INSERT INTO members VALUES (NULL, '{MARK}-only', '{MARK}-mail');
         INSERT INTO spend SELECT user_id, '{MARK}-value' FROM members WHERE user_id IS NOT NULL"
    ));
    project
}

/// Runs a command that ends with a code and names nobody on standard error, in words or as JSON.
#[track_caller]
fn check_quiet(project: &Project, arguments: &[&str], code: i32, words: &str) {
    for format in ["text", "json"] {
        let ran = project.run(&[arguments, &["--log-format", format]].concat());
        assert_eq!(ran.code, code, "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(words), "{arguments:?}: {ran:?}");
        assert!(!ran.stderr.contains(MARK), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn no_log_names_anybody_of_a_source_or_a_journal() {
    let endpoint = Endpoint::start();
    let project = telling(&endpoint);
    check_quiet(&project, &["check"], 0, "");
    check_quiet(&project, &["sync", "--dry-run"], 0, "");
    let mut refused = 0;
    endpoint.script(move |call| match call.api {
        Api::AssumeRole => Answer::Accept,
        _ if refused < 3 => {
            refused += 1;
            Answer::Refuse(vec![0, 2], "ServiceUnavailableException")
        }
        _ => Answer::Accept,
    });
    check_quiet(&project, &["sync"], 0, "");
    check_quiet(&project, &["resync", "members"], 0, "");

    project.shop("DELETE FROM members WHERE user_id LIKE '%1%'");
    let held = "the guard holds 12 removals (38.7 %) of 31 delivered members at members";
    check_quiet(&project, &["sync", "members"], 4, held);
    check_quiet(
        &project,
        &["sync", "members", "--dry-run", "--approve"],
        0,
        "",
    );
    check_quiet(&project, &["resync", "members"], 4, held);

    let rows = format!(
        "('', '{MARK}', 1), (NULL, NULL, '{MARK}'), ('{MARK}' || char(0), '{MARK}', 1), ('{MARK}' || hex(zeroblob(600)), '', 1),
         ('{MARK}-infinite', '', 9e999), (CAST(x'5345454d45ff' AS TEXT), '{MARK}', 1)"
    );
    project.shop(&format!("INSERT INTO members VALUES {rows}"));
    check_quiet(&project, &["sync", "members"], 4, "skipped ");

    let dead = format!("('{MARK}-dead', '{MARK}', '{MARK}' || hex(zeroblob(600000)))");
    project.shop(&format!("INSERT INTO members VALUES {dead}"));
    check_quiet(
        &project,
        &["sync", "members"],
        3,
        "1 can never be delivered",
    );

    project.shop("UPDATE spend SET value = CAST(value AS BLOB) WHERE user_id LIKE '%-20'");
    check_quiet(
        &project,
        &["sync", "spend"],
        1,
        "gives a BLOB in column `value`",
    );
    project.shop("UPDATE spend SET value = '{' WHERE user_id LIKE '%-20'");
    let malformed = AUDIENCES.replace(
        "SELECT user_id, value",
        "SELECT user_id, value -> '$' AS value",
    );
    project.write("schedules/main.toml", &malformed);
    check_quiet(&project, &["sync", "spend"], 1, "malformed JSON");
    project.write(
        "schedules/main.toml",
        &AUDIENCES.replace("0 0 1 1 *", "* * * * * *"),
    );

    let staying = project.start(&["run"]);
    eventually("it has run", || {
        staying.stderr().contains("members: ") && staying.stderr().contains("spend: ")
    });
    staying.signal("TERM");
    let ran = staying.end();
    assert!(ran.code == 0 && !ran.stderr.contains(MARK), "{ran:?}");
}

#[test]
fn no_log_names_anybody_of_a_pipe() {
    let endpoint = Endpoint::start();
    let project = telling(&endpoint);
    let lines = [
        format!(r#"{{"type":"identify","userId":"{MARK}","traits":{{"email":"{MARK}"}}}}"#),
        format!(r#"{{"type":"{MARK}","userId":"{MARK}"}}"#),
        format!(r#"{{"type":"identify","userId":{{"{MARK}":1}}}}"#),
        format!(r#"{{"type":"identify","userId":"{MARK}" {MARK}"#),
        format!("{MARK} is not JSON"),
        format!(
            r#"{{"type":"page","userId":"{MARK}","messageId":"{}"}}"#,
            MARK.repeat(30)
        ),
        MARK.repeat(300_000),
    ];
    let ran = project.pipe(&["send"], lines.join("\n"));
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stderr.contains("line 7: longer than a record may be"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains(MARK), "{ran:?}");
    assert_eq!(endpoint.ledger().accepted.len(), 1);
}

/// A server may say what it was sent.
#[test]
fn no_log_repeats_what_a_server_repeats() {
    let endpoint = Endpoint::start();
    let project = telling(&endpoint);
    let say = |status: u16, code: &'static str| {
        endpoint.script(move |call| {
            let mut sent = call.records.concat();
            sent.extend(format!("{:?}", call.parameters).bytes());
            let sent = String::from_utf8(sent)
                .unwrap()
                .escape_default()
                .to_string();
            match call.api {
                Api::AssumeRole => Answer::Accept,
                _ => Answer::Error(status, code, format!("cannot take {sent}")),
            }
        });
    };
    for (status, code) in [
        (400, "InvalidArgumentException"),
        (400, "AccessDeniedException"),
        (400, "ResourceNotFoundException"),
        (400, "InvalidKMSResourceException"),
        (400, "SomethingNewException"),
        (403, "ExpiredTokenException"),
    ] {
        say(status, code);
        check_quiet(&project, &["sync"], 3, code);
    }
    let call = format!(r#"{{"type":"identify","userId":"{MARK}"}}"#);
    let ran = project.pipe(&["send"], call);
    assert!(ran.code == 3 && !ran.stderr.contains(MARK), "{ran:?}");
}
