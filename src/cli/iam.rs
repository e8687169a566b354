//! `iam`: the permission policy and the trust policy that these settings need, ready to paste.
//!
//! Policies belong to roles and not to destinations: a role is attached once, and needs the streams and external IDs
//! of every destination that assumes it. So naming one destination chooses its role, and prints all of that role.

use std::collections::BTreeMap;

use serde::Serialize;

use super::args::Args;
use super::output::{Output, printable};
use super::{Exit, Refusal};
use crate::audience::DestinationName;
use crate::config::{
    Aws, Config, ConfigError, Destination, DestinationKind, Region, RoleArn, SecretRef,
    SecretSource,
};

const ACCOUNT: &str = "YOUR_ACCOUNT_ID";
const SECRET: &str = "YOUR_SECRET_ID";

pub(super) fn run(
    args: &Args,
    output: &Output,
    destination: Option<&str>,
    show_secrets: bool,
) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    let wanted: Vec<&Destination> = match destination {
        Some(name) => vec![find(&config, name)?],
        None => config.destinations.values().collect(),
    };
    for destination in &wanted {
        if matches!(destination.kind, DestinationKind::Directory(_)) {
            output.note(format_args!(
                "destination `{}` writes files to a directory and needs no IAM",
                destination.name
            ));
        }
    }
    let is_wanted = |name: &DestinationName| wanted.iter().any(|wanted| wanted.name == *name);
    let grantees: Vec<Grantee<'_>> = grantees(&config)
        .filter(|grantee| {
            grantee
                .destinations
                .iter()
                .any(|(name, ..)| is_wanted(name))
        })
        .collect();
    // Every secret is there before the first line is printed.
    let sets: Vec<Policies<'_>> = grantees
        .iter()
        .map(|grantee| grantee.policies(show_secrets))
        .collect::<Result<_, _>>()?;
    for (place, (grantee, set)) in grantees.iter().zip(&sets).enumerate() {
        if output.json {
            output.line(set)?;
        } else {
            if place > 0 {
                output.text("")?;
            }
            print(output, set)?;
        }
        explain(output, grantee, show_secrets);
    }
    Ok(Exit::Success)
}

fn find<'c>(config: &'c Config, name: &str) -> Result<&'c Destination, Refusal> {
    let found = config.destinations.get(&DestinationName::new(name));
    found.ok_or_else(|| {
        let known: Vec<_> = config
            .destinations
            .keys()
            .map(DestinationName::as_str)
            .collect();
        Refusal::usage(format!(
            "there is no destination {name:?}\n\nhint: known: {}",
            known.join(", ")
        ))
    })
}

/// Who needs the permissions: a role with all destinations that assume it, or whoever runs audience-sync itself.
struct Grantee<'c> {
    role: Option<&'c RoleArn>,
    destinations: Vec<(&'c DestinationName, &'c Destination, &'c Aws)>,
}

fn grantees(config: &Config) -> impl Iterator<Item = Grantee<'_>> {
    let mut by_role: BTreeMap<Option<&str>, Grantee<'_>> = BTreeMap::new();
    for (name, destination) in &config.destinations {
        let DestinationKind::Firehose(aws) = &destination.kind else {
            continue;
        };
        let role = aws.role.as_ref();
        let grantee = by_role
            .entry(role.map(RoleArn::as_str))
            .or_insert_with(|| Grantee {
                role,
                destinations: Vec::new(),
            });
        grantee.destinations.push((name, destination, aws));
    }
    by_role.into_values()
}

impl Grantee<'_> {
    fn policies(&self, show_secrets: bool) -> Result<Policies<'_>, ConfigError> {
        let permission = Permission {
            effect: "Allow",
            action: ["firehose:PutRecordBatch", "firehose:PutRecord"],
            resource: self.streams(),
        };
        let trust = match self.role {
            Some(role) => Some(Policy::of(Trust {
                effect: "Allow",
                principal: Principal {
                    aws: format!("arn:{}:iam::{ACCOUNT}:root", role.partition()),
                },
                action: "sts:AssumeRole",
                condition: Condition {
                    string_equals: ExternalId {
                        ids: self.external_ids(show_secrets)?,
                    },
                },
            })),
            None => None,
        };
        Ok(Policies {
            role: self.role.map(RoleArn::as_str),
            destinations: self.destinations.iter().map(|(name, ..)| *name).collect(),
            permission_policy: Policy::of(permission),
            trust_policy: trust,
        })
    }

    /// The ARN of every stream that a mapping names, once, by destination.
    fn streams(&self) -> Vec<String> {
        let mut arns = Vec::new();
        for (_, destination, aws) in &self.destinations {
            let (partition, account) = match self.role {
                Some(role) => (role.partition(), role.account()),
                None => (partition(&aws.region), ACCOUNT),
            };
            for stream in destination.mapping.all_streams() {
                let region = &aws.region;
                let arn =
                    format!("arn:{partition}:firehose:{region}:{account}:deliverystream/{stream}");
                if !arns.contains(&arn) {
                    arns.push(arn);
                }
            }
        }
        arns
    }

    /// Each secret once: one text where there is one, as IAM has it. What is not shown is not read.
    fn external_ids(&self, show_secrets: bool) -> Result<OneOrMore, ConfigError> {
        let mut ids = Vec::new();
        for secret in self.secrets() {
            if !show_secrets {
                ids.push(SECRET.to_owned());
                continue;
            }
            let id = secret.resolve()?.expose().to_owned();
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(match <[String; 1]>::try_from(ids) {
            Ok([id]) => OneOrMore::One(id),
            Err(ids) => OneOrMore::More(ids),
        })
    }

    /// Where the secrets are, each place once.
    fn secrets(&self) -> Vec<&SecretRef> {
        let mut secrets: Vec<&SecretRef> = Vec::new();
        for (_, _, aws) in &self.destinations {
            if let Some(secret) = &aws.secret
                && !secrets.iter().any(|known| known.from == secret.from)
            {
                secrets.push(secret);
            }
        }
        secrets
    }
}

/// The partition that a region belongs to, where no role tells.
/// <https://docs.aws.amazon.com/whitepapers/latest/aws-fault-isolation-boundaries/partitions.html>
fn partition(region: &Region) -> &'static str {
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
        .find(|(start, _)| region.as_str().starts_with(start))
        .map_or("aws", |(_, partition)| partition)
}

/// The fields of `iam --json`.
#[derive(Serialize)]
struct Policies<'a> {
    role: Option<&'a str>,
    destinations: Vec<&'a DestinationName>,
    permission_policy: Policy<Permission>,
    trust_policy: Option<Policy<Trust>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Policy<S> {
    version: &'static str,
    statement: [S; 1],
}

impl<S> Policy<S> {
    fn of(statement: S) -> Self {
        Self {
            version: "2012-10-17",
            statement: [statement],
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Permission {
    effect: &'static str,
    action: [&'static str; 2],
    resource: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Trust {
    effect: &'static str,
    principal: Principal,
    action: &'static str,
    condition: Condition,
}

#[derive(Serialize)]
struct Principal {
    #[serde(rename = "AWS")]
    aws: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Condition {
    string_equals: ExternalId,
}

#[derive(Serialize)]
struct ExternalId {
    #[serde(rename = "sts:ExternalId")]
    ids: OneOrMore,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

fn print(output: &Output, set: &Policies<'_>) -> anyhow::Result<()> {
    let names: Vec<_> = set.destinations.iter().map(|name| name.as_str()).collect();
    let names = names.join(", ");
    let names = printable(&names);
    let permission = serde_json::to_string_pretty(&set.permission_policy)?;
    let Some((role, trust)) = set.role.zip(set.trust_policy.as_ref()) else {
        output.text(format_args!(
            "# Permission policy for whoever runs audience-sync, for {names}\n{permission}"
        ))?;
        return Ok(());
    };
    let trust = serde_json::to_string_pretty(trust)?;
    output.text(format_args!(
        "# Permission policy for role {role}, for {names}\n{permission}\n\n# Trust policy for role {role}\n{trust}"
    ))?;
    Ok(())
}

/// Says what has to be put in place of what.
fn explain(output: &Output, grantee: &Grantee<'_>, show_secrets: bool) {
    let Some(role) = grantee.role else {
        output.note(format_args!(
            "\nno role is assumed: replace {ACCOUNT} by the account of the streams, and attach the policy to whoever runs audience-sync"
        ));
        return;
    };
    output.note(format_args!(
        "\nrole {role}: in the trust policy replace {ACCOUNT} by the account that audience-sync runs in, or the whole principal by the ARN of who runs it"
    ));
    if show_secrets {
        output.note("the external IDs are shown: keep this output as you keep a password");
        return;
    }
    let places: Vec<_> = grantee.secrets().into_iter().map(place).collect();
    output.note(format_args!(
        "replace {SECRET} by the external ID in {}, or print it with --show-secrets",
        places.join(", then the one in ")
    ));
}

fn place(secret: &SecretRef) -> String {
    match &secret.from {
        SecretSource::Env(name) => format!("the environment variable {name}"),
        SecretSource::File(path) => format!("the file {}", path.display()),
    }
}
