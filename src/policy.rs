//! The statements of IAM that let records be put, and a role be assumed.
//!
//! Pure, so that `iam` and the message of a refused call name the same lines.

use serde::Serialize;

/// What stands in place of an account that nobody has named.
pub const ACCOUNT: &str = "YOUR_ACCOUNT_ID";
/// What stands in place of a secret.
pub const SECRET: &str = "YOUR_SECRET_ID";

/// The partition that a region belongs to, where no role tells.
/// <https://docs.aws.amazon.com/whitepapers/latest/aws-fault-isolation-boundaries/partitions.html>
pub fn partition(region: &str) -> &'static str {
    let by_start = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
        ("eusc-", "aws-eusc"),
    ];
    by_start
        .into_iter()
        .find(|(start, _)| region.starts_with(start))
        .map_or("aws", |(_, partition)| partition)
}

/// Partition and account of a role's ARN, such as `arn:aws:iam::874699288871:role/example-role`.
pub fn home_of(role: &str) -> Option<(&str, &str)> {
    let mut parts = role.split(':').skip(1);
    Some((parts.next()?, parts.nth(2)?))
}

/// The ARN of a stream, in the account of the role that writes to it.
pub fn stream_arn(role: Option<&str>, region: &str, stream: &str) -> String {
    let (partition, account) = role
        .and_then(home_of)
        .unwrap_or_else(|| (partition(region), ACCOUNT));
    format!("arn:{partition}:firehose:{region}:{account}:deliverystream/{stream}")
}

/// A statement as one line of JSON.
pub fn line(statement: &impl Serialize) -> String {
    serde_json::to_string(statement).expect("a statement is JSON")
}

/// Allows to put records into streams.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Permission {
    effect: &'static str,
    action: [&'static str; 2],
    resource: Vec<String>,
}

impl Permission {
    /// For these streams, by their ARNs.
    pub const fn to_put(streams: Vec<String>) -> Self {
        Self {
            effect: "Allow",
            action: ["firehose:PutRecordBatch", "firehose:PutRecord"],
            resource: streams,
        }
    }
}

/// Allows to assume the role whose trust policy holds it, to whoever knows an external ID.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Trust {
    effect: &'static str,
    principal: Principal,
    action: &'static str,
    condition: Condition,
}

impl Trust {
    /// In a partition of AWS, with these external IDs.
    pub fn of(partition: &str, external_ids: Vec<String>) -> Self {
        Self {
            effect: "Allow",
            principal: Principal {
                aws: format!("arn:{partition}:iam::{ACCOUNT}:root"),
            },
            action: "sts:AssumeRole",
            condition: Condition {
                string_equals: ExternalId {
                    ids: OneOrMore::of(external_ids),
                },
            },
        }
    }
}

#[derive(Debug, Serialize)]
struct Principal {
    #[serde(rename = "AWS")]
    aws: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Condition {
    string_equals: ExternalId,
}

#[derive(Debug, Serialize)]
struct ExternalId {
    #[serde(rename = "sts:ExternalId")]
    ids: OneOrMore,
}

/// One text where there is one, as IAM has it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn of(texts: Vec<String>) -> Self {
        match <[String; 1]>::try_from(texts) {
            Ok([text]) => Self::One(text),
            Err(texts) => Self::More(texts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_in_the_account_and_partition_of_its_role() {
        let check = |role, region, expected: &str| {
            assert_eq!(stream_arn(role, region, "members"), expected);
        };
        check(
            Some("arn:aws-cn:iam::874699288871:role/a/b"),
            "cn-north-1",
            "arn:aws-cn:firehose:cn-north-1:874699288871:deliverystream/members",
        );
        check(
            None,
            "us-gov-west-1",
            "arn:aws-us-gov:firehose:us-gov-west-1:YOUR_ACCOUNT_ID:deliverystream/members",
        );
    }

    #[test]
    fn a_statement_is_ready_to_paste() {
        assert_eq!(
            line(&Permission::to_put(vec!["arn".to_owned()])),
            r#"{"Effect":"Allow","Action":["firehose:PutRecordBatch","firehose:PutRecord"],"Resource":["arn"]}"#
        );
        assert_eq!(
            line(&Trust::of("aws", vec![SECRET.to_owned()])),
            r#"{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::YOUR_ACCOUNT_ID:root"},"Action":"sts:AssumeRole","Condition":{"StringEquals":{"sts:ExternalId":"YOUR_SECRET_ID"}}}"#
        );
    }
}
