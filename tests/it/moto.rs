//! Real orders, day by day, through a role and Firehose into S3, as moto plays them: what a consumer reads there is the
//! truth, and only what has changed was sent.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{NaiveDate, TimeDelta};
use serde_json::Value;

use crate::support::moto::Moto;
use crate::support::{ORDERS, Project, records, truth};

const ROLE: &str = "arn:aws:iam::874699288871:role/example-role";
const SECRET: &str = "external-id-of-the-replay";

const SCHEDULE: &str = r#"
[[audience]]
name = "Order Completed Last 30days"
source = "shop"
query = """
    SELECT DISTINCT customer_id AS user_id FROM orders JOIN calendar
    WHERE ordered_on > date(today, '-30 days') AND ordered_on <= today
"""
"#;

/// All of S3 is read and folded every so many days.
const LOOK_EVERY: i64 = 109;

type Users = BTreeSet<&'static str>;

/// Customer and day of each order.
fn orders() -> Vec<(&'static str, NaiveDate)> {
    let rows = ORDERS.lines().skip(1);
    rows.map(|row| {
        let mut fields = row.split(',');
        let (customer, day) = (fields.next().unwrap(), fields.next().unwrap());
        (customer, day.parse().unwrap())
    })
    .collect()
}

/// Who ordered in the 30 days up to a day, by the orders alone.
fn expected(orders: &[(&'static str, NaiveDate)], today: NaiveDate) -> Users {
    let in_time = |day: NaiveDate| day > today - TimeDelta::days(30) && day <= today;
    let ordered = orders.iter().filter(|(_, day)| in_time(*day));
    ordered.map(|(customer, _)| *customer).collect()
}

fn project(moto: &Moto, orders: &[(&str, NaiveDate)]) -> Project {
    let mut project = Project::new(SCHEDULE);
    let url = &moto.url;
    project.write(
        "audience-sync.toml",
        &format!(
            "[source.shop]\nsqlite = \"shop.sqlite\"\n\
             [destination.main]\nendpoint_url = \"{url}\"\nsts_endpoint_url = \"{url}\"\nrole_address = \"{ROLE}\"\n\
             secret_id = {{ env = \"AUDIENCE_SYNC_SECRET_ID\" }}\n\
             [destination.main.mapping]\nidentify = \"members\"\n"
        ),
    );
    let variables = [
        ("AWS_ACCESS_KEY_ID", "AKIAPROJECT"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AUDIENCE_SYNC_SECRET_ID", SECRET),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    project.variables.extend(variables);
    project.shop(
        "CREATE TABLE orders (customer_id TEXT, ordered_on TEXT); CREATE TABLE calendar (today TEXT);
         INSERT INTO calendar VALUES ('')",
    );
    let mut connection = project.shop_connection();
    let transaction = connection.transaction().unwrap();
    for (customer, day) in orders {
        let row = (customer, day.to_string());
        let insert = "INSERT INTO orders VALUES (?1, ?2)";
        transaction.execute(insert, row).unwrap();
    }
    transaction.commit().unwrap();
    project
}

/// What S3 must say about everyone who was ever a member.
fn folded(ever: &Users, now: &Users) -> BTreeMap<(String, String), Value> {
    let key = "order_completed_last_30days";
    ever.iter()
        .map(|user| {
            let is_member = now.contains(user);
            (((*user).to_owned(), key.to_owned()), is_member.into())
        })
        .collect()
}

#[test]
fn a_replay_of_real_orders_through_firehose_into_s3_is_the_truth() {
    let Some(mut moto) = Moto::start(ROLE, SECRET, "members") else {
        return;
    };
    let orders = orders();
    let project = project(&moto, &orders);
    let first: NaiveDate = "1997-01-01".parse().unwrap();
    let last: NaiveDate = "1998-06-30".parse().unwrap();
    let (mut before, mut ever, mut changes, mut runs) = (Users::new(), Users::new(), 0, 0);
    for today in first.iter_days().take_while(|day| *day <= last) {
        project.shop(&format!("UPDATE calendar SET today = '{today}'"));
        let now = expected(&orders, today);
        let changed = now.symmetric_difference(&before).count();
        ever.extend(&now);
        changes += changed;
        runs += usize::from(changed > 0);

        let report = project.sync();
        assert_eq!(report["members"], now.len(), "{today}");
        assert_eq!(report["records"], changed, "{today}");
        let again = project.sync();
        assert_eq!(again["outcome"], "unchanged", "{today}");
        assert_eq!(again["requests"], 0, "{today}");
        if (today - first).num_days() % LOOK_EVERY == 0 {
            let records = records(&moto.objects());
            assert_eq!(records.len(), changes, "{today}");
            assert_eq!(truth(&records), folded(&ever, &now), "{today}");
        }
        before = now;
    }
    // The last day was one of those that were looked at.
    assert_eq!((last - first).num_days() % LOOK_EVERY, 0);
    assert!(changes > before.len() * 2, "{changes} changes");
    used_the_role(&moto, runs);
}

/// Every run that had something to send, and no other, assumed the role by its external ID, and only the role's credentials ever
/// reached Firehose.
fn used_the_role(moto: &Moto, runs: usize) {
    let requests = moto.requests();
    let by_project = |service: &str| {
        let scope = format!("/us-west-2/{service}/");
        requests
            .iter()
            .filter(move |request| request.authorization.contains(&scope))
            .filter(|request| !request.authorization.contains("AKIASETUP"))
    };
    let assumed: Vec<_> = by_project("sts").collect();
    assert_eq!(assumed.len(), runs);
    for request in &assumed {
        assert!(request.authorization.contains("Credential=AKIAPROJECT/"));
        assert!(request.body.contains(&format!("ExternalId={SECRET}")));
        assert!(request.body.contains("RoleSessionName=audience-sync"));
    }
    let puts = by_project("firehose").filter(|put| put.body.contains("\"Records\""));
    let puts: Vec<_> = puts.collect();
    assert!(puts.len() >= assumed.len());
    for put in puts {
        let key = put.authorization.split_once("Credential=").unwrap().1;
        assert!(key.starts_with("ASIA"), "{key}");
    }
}
