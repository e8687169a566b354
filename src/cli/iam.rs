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
    Aws, Config, ConfigError, Destination, DestinationKind, RoleArn, SecretRef, SecretSource,
};
use crate::policy::{self, ACCOUNT, Permission, SECRET, Trust};

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
        let trust = match self.role {
            Some(role) => {
                let ids = self.external_ids(show_secrets)?;
                Some(Policy::of(Trust::of(role.partition(), ids)))
            }
            None => None,
        };
        Ok(Policies {
            role: self.role.map(RoleArn::as_str),
            destinations: self.destinations.iter().map(|(name, ..)| *name).collect(),
            permission_policy: Policy::of(Permission::to_put(self.streams())),
            trust_policy: trust,
        })
    }

    /// The ARN of every stream that a mapping names, once, by destination.
    fn streams(&self) -> Vec<String> {
        let mut arns = Vec::new();
        let role = self.role.map(RoleArn::as_str);
        for (_, destination, aws) in &self.destinations {
            for stream in destination.mapping.all_streams() {
                let arn = policy::stream_arn(role, aws.region.as_str(), stream.as_str());
                if !arns.contains(&arn) {
                    arns.push(arn);
                }
            }
        }
        arns
    }

    /// Each secret once. What is not shown is not read.
    fn external_ids(&self, show_secrets: bool) -> Result<Vec<String>, ConfigError> {
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
        Ok(ids)
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
