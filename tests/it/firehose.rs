//! Delivery to Firehose: what arrives there, as whom it is sent, and what becomes of what Firehose refuses.

mod blocked;
mod mended;
mod records;
mod retries;
mod role;
mod stopped;

use serde_json::Value;

use crate::support::endpoint::Endpoint;
use crate::support::{Project, Ran};

pub(crate) const ROLE: &str = "arn:aws:iam::874699288871:role/example-role";
pub(crate) const SECRET: &str = "the-external-id-that-nobody-may-see";

const MEMBERS: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

pub(crate) const TO_MEMBERS: &str = r#"identify = "members""#;

/// A project that delivers to the endpoint with credentials of its own, and whose source is an empty table `members`.
pub(crate) fn project(endpoint: &Endpoint, settings: &str) -> Project {
    mapped(endpoint, settings, TO_MEMBERS)
}

/// The same, by a role.
fn project_with_role(endpoint: &Endpoint) -> Project {
    let role =
        format!("role_address = \"{ROLE}\"\nsecret_id = {{ env = \"AUDIENCE_SYNC_SECRET_ID\" }}\n");
    project(endpoint, &role)
}

pub(crate) fn mapped(endpoint: &Endpoint, settings: &str, mapping: &str) -> Project {
    let mut project = Project::new(MEMBERS);
    project.write("audience-sync.toml", &config(endpoint, settings, mapping));
    let variables = [
        ("AWS_ACCESS_KEY_ID", "AKIAPROJECT"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AUDIENCE_SYNC_SECRET_ID", SECRET),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    project.variables.extend(variables);
    project.shop("CREATE TABLE members (user_id TEXT)");
    project
}

pub(crate) fn config(endpoint: &Endpoint, settings: &str, mapping: &str) -> String {
    let url = endpoint.url();
    format!(
        "[source.shop]\nsqlite = \"shop.sqlite\"\n\
         [destination.main]\nendpoint_url = \"{url}\"\nsts_endpoint_url = \"{url}\"\n{settings}\n\
         [destination.main.mapping]\n{mapping}\n"
    )
}

/// Adds users `u00000` and so on.
pub(crate) fn enter(project: &Project, users: std::ops::Range<usize>) {
    let rows: Vec<_> = users.map(|user| format!("('u{user:05}')")).collect();
    project.shop(&format!("INSERT INTO members VALUES {}", rows.join(",")));
}

pub(crate) fn sync(project: &Project) -> Ran {
    project.run(&["sync", "--json"])
}

/// The only report of a run that left something undelivered.
#[track_caller]
pub(crate) fn undelivered(ran: &Ran) -> Value {
    assert_eq!(ran.code, 3, "{ran:?}");
    let lines = ran.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["outcome"], "undelivered", "{ran:?}");
    lines[0].clone()
}

/// The report of a resume and that of the plan after it, of a run in which everything was delivered.
#[track_caller]
pub(crate) fn resumed(project: &Project) -> (Value, Value) {
    let lines = project.succeed(&["sync", "--json"]).lines();
    let [resume, plan] = lines.as_slice() else {
        panic!("a resume and a plan: {lines:?}");
    };
    assert_eq!(
        (&resume["kind"], &plan["kind"]),
        (&"resume".into(), &"delta".into())
    );
    assert_eq!(resume["outcome"], "delivered");
    (resume.clone(), plan.clone())
}

/// Fields of a report that are numbers.
pub(crate) fn numbers<const N: usize>(report: &Value, fields: [&str; N]) -> [u64; N] {
    fields.map(|field| report[field].as_u64().unwrap())
}

/// Which user a record is about.
pub(crate) fn user(record: &[u8]) -> String {
    let record: Value = serde_json::from_slice(record).unwrap();
    record["userId"].as_str().unwrap().to_owned()
}

/// Records in an order that does not depend on which call came first.
pub(crate) fn sorted<'r>(records: impl IntoIterator<Item = &'r [u8]>) -> Vec<Vec<u8>> {
    let mut records: Vec<_> = records.into_iter().map(<[u8]>::to_vec).collect();
    records.sort();
    records
}
