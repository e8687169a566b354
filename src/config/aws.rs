//! The settings of AWS in a destination, checked before anything is sent: a typing error in an ARN is found here and
//! not by a failing call an hour later.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::Root;
use super::document::{Item, Table, shown};
use super::error::ConfigError;
use super::secret::SecretRef;
use crate::firehose::Api;

/// The keys that only mean something with AWS.
pub(super) const KEYS: [&str; 7] = [
    "region",
    "role_address",
    "secret_id",
    "endpoint_url",
    "sts_endpoint_url",
    "api",
    "quota",
];

/// How to reach Firehose.
#[derive(Debug, Clone)]
pub struct Aws {
    pub region: Region,
    /// Assumed through STS.
    pub role: Option<RoleArn>,
    /// The external ID of the role.
    pub secret: Option<SecretRef>,
    pub endpoint_url: Option<String>,
    pub sts_endpoint_url: Option<String>,
    pub api: Api,
    /// As configured; without one, the region's holds.
    pub quota: Option<Quota>,
}

impl Aws {
    /// Whether Firehose is played by a program on this machine, which has no quota.
    pub fn is_loopback(&self) -> bool {
        let endpoint = self.endpoint_url.as_deref();
        endpoint.and_then(endpoint_host).is_some_and(is_loopback)
    }

    pub(super) fn read(table: &Table<'_>, root: &Root) -> Result<Self, ConfigError> {
        let secret = table.get("secret_id");
        let secret = secret
            .map(|item| SecretRef::read(&item, root))
            .transpose()?;
        let role = table.get("role_address");
        if let (Some(role), None) = (&role, &secret) {
            let alone = role.error("needs a `secret_id`, the role's external ID");
            return Err(alone.hint("add secret_id = { env = \"AUDIENCE_SYNC_SECRET_ID\" }"));
        }
        let region = table
            .get("region")
            .map(|item| read_region(&item))
            .transpose()?;
        let endpoint = |key| table.get(key).map(|item| read_endpoint(&item)).transpose();
        Ok(Self {
            region: region.unwrap_or_default(),
            role: role.map(|item| read_role(&item)).transpose()?,
            secret,
            endpoint_url: endpoint("endpoint_url")?,
            sts_endpoint_url: endpoint("sts_endpoint_url")?,
            api: table
                .get("api")
                .map_or(Ok(Api::Auto), |item| read_api(&item))?,
            quota: table
                .get("quota")
                .map(|item| read_quota(&item))
                .transpose()?,
        })
    }
}

/// A region by its code, such as `us-west-2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region(String);

impl Region {
    /// Words and a number with hyphens between; which regions exist is for AWS to say.
    pub fn parse(text: &str) -> Option<Self> {
        let (words, number) = text.rsplit_once('-')?;
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
        let fits = words.contains('-')
            && words.split('-').all(is_word)
            && (1..=2).contains(&number.len())
            && number.bytes().all(|byte| byte.is_ascii_digit());
        fits.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Region {
    fn default() -> Self {
        Self("us-west-2".to_owned())
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The ARN of an IAM role, such as `arn:aws:iam::874699288871:role/example-role`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleArn {
    text: String,
    partition: usize,
}

impl RoleArn {
    const PREFIX: &str = "arn:";

    /// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html>
    pub fn parse(text: &str) -> Option<Self> {
        let (partition, rest) = text.strip_prefix(Self::PREFIX)?.split_once(':')?;
        let (account, role) = rest.strip_prefix("iam::")?.split_once(":role/")?;
        let (path, name) = role.rsplit_once('/').unwrap_or(("", role));
        let is_suffix =
            |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
        let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
        let mut words = partition.split('-');
        let fits = words.next() == Some("aws")
            && words.all(is_suffix)
            && account.len() == 12
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && path.len() <= 510
            && path.bytes().all(|byte| byte.is_ascii_graphic())
            && (1..=64).contains(&name.len())
            && name.bytes().all(in_name);
        fits.then(|| Self {
            text: text.to_owned(),
            partition: partition.len(),
        })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `aws`, `aws-cn`, `aws-us-gov` and so on.
    pub fn partition(&self) -> &str {
        &self.text[Self::PREFIX.len()..][..self.partition]
    }

    /// The 12 digits of the account.
    pub fn account(&self) -> &str {
        self.text.split(':').nth(4).unwrap_or_default()
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How much a destination may be sent; `None` where the region's quota holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quota {
    pub mib_per_second: Option<f64>,
    pub records_per_second: Option<u64>,
    pub requests_per_second: Option<u64>,
}

fn read_region(item: &Item<'_>) -> Result<Region, ConfigError> {
    let text = item.text()?;
    Region::parse(text).ok_or_else(|| {
        item.error(format!("is not the code of a region: `{}`", shown(text)))
            .hint("a region is written like us-west-2")
    })
}

fn read_role(item: &Item<'_>) -> Result<RoleArn, ConfigError> {
    RoleArn::parse(item.text()?).ok_or_else(|| {
        item.error("is not the ARN of an IAM role")
            .hint("one looks like arn:aws:iam::874699288871:role/example-role")
    })
}

fn read_api(item: &Item<'_>) -> Result<Api, ConfigError> {
    match item.text()? {
        "auto" => Ok(Api::Auto),
        "put_record_batch" => Ok(Api::PutRecordBatch),
        "put_record" => Ok(Api::PutRecord),
        other => {
            let known = ["auto", "put_record_batch", "put_record"];
            let unknown = item.error(format!("is not a way to call Firehose: `{}`", shown(other)));
            Err(unknown.hint_nearest(other, known.into_iter()))
        }
    }
}

fn read_quota(item: &Item<'_>) -> Result<Quota, ConfigError> {
    let table = item.table(item.what())?;
    table.only(&[
        "mib_per_second",
        "records_per_second",
        "requests_per_second",
    ])?;
    let mebibytes = |item: Item<'_>| {
        let number = item.number()?;
        let fits = number.is_finite() && number > 0.0;
        fits.then_some(number)
            .ok_or_else(|| item.error("must be a finite number over 0"))
    };
    let count = |key| {
        let count = |item: Item<'_>| {
            let count = item.integer()?.filter(|count| *count > 0);
            count.ok_or_else(|| item.error("must be a whole number over 0"))
        };
        table.get(key).map(count).transpose()
    };
    Ok(Quota {
        mib_per_second: table.get("mib_per_second").map(mebibytes).transpose()?,
        records_per_second: count("records_per_second")?,
        requests_per_second: count("requests_per_second")?,
    })
}

/// An address is not repeated in messages: people put passwords into them.
fn read_endpoint(item: &Item<'_>) -> Result<String, ConfigError> {
    let url = item.text()?;
    let Some(host) = endpoint_host(url) else {
        return Err(item
            .error("must be an http or https address with a host, and without a user or password")
            .hint("one looks like http://127.0.0.1:4566"));
    };
    let plain = url
        .get(..7)
        .is_some_and(|start| start.eq_ignore_ascii_case("http://"));
    if plain && !is_loopback(host) {
        return Err(item
            .error("is on another machine, so https is required")
            .hint("plain http is for localhost, 127.0.0.1 and [::1]"));
    }
    Ok(url.to_owned())
}

/// The host of an http or https address; `None` where it is no such address.
fn endpoint_host(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let is_http = ["http", "https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known));
    let is_clean = rest
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let authority = rest.split(['/', '?', '#']).next()?;
    let (host, port) = match authority.find(']') {
        Some(end) => authority.split_at(end + 1),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port_fits = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.parse::<u16>().is_ok_and(|n| n > 0));
    let in_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let host_fits = match host.strip_prefix('[') {
        Some(v6) => v6
            .strip_suffix(']')
            .is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.bytes().all(in_host),
    };
    (is_http && is_clean && port_fits && host_fits).then_some(host)
}

fn is_loopback(host: &str) -> bool {
    let v6 = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|v4| v4.is_loopback())
        || v6.parse::<Ipv6Addr>().is_ok_and(|v6| v6.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_words_and_a_number() {
        for good in ["us-west-2", "us-gov-west-1", "cn-north-1", "eusc-de-east-1"] {
            assert!(Region::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "us-west",
            "west-2",
            "us_west_2",
            "US-WEST-2",
            "us-west-2a",
            "us--west-2",
            "us-west-",
            "-us-2",
        ] {
            assert!(Region::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_role_knows_its_account_and_partition() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let role = RoleArn::parse(text);
            let parts = role.as_ref().map(|role| (role.partition(), role.account()));
            assert_eq!(parts, expected, "{text}");
        };
        check(
            "arn:aws:iam::874699288871:role/example-role",
            Some(("aws", "874699288871")),
        );
        check(
            "arn:aws-us-gov:iam::874699288871:role/a/b/c",
            Some(("aws-us-gov", "874699288871")),
        );
        check(
            "arn:aws-cn:iam::874699288871:role/r",
            Some(("aws-cn", "874699288871")),
        );
        check("arn:aws:iam::87469928887:role/r", None);
        check("arn:aws:iam::87469928887x:role/r", None);
        check("arn:aws:iam::874699288871:user/r", None);
        check("arn:aws:iam::874699288871:role/", None);
        check("arn:aws:iam::874699288871:role/a b", None);
        check("arn:aws:sts::874699288871:assumed-role/a/b", None);
        check("arn:awsx:iam::874699288871:role/r", None);
        check("arn:aws-:iam::874699288871:role/r", None);
        check(" arn:aws:iam::874699288871:role/r", None);
    }

    #[test]
    fn an_endpoint_has_a_scheme_and_a_host() {
        let check = |url: &str, host: Option<&str>| assert_eq!(endpoint_host(url), host, "{url}");
        check("http://127.0.0.1:4566", Some("127.0.0.1"));
        check(
            "https://vpce-1.firehose.us-west-2.vpce.amazonaws.com/",
            Some("vpce-1.firehose.us-west-2.vpce.amazonaws.com"),
        );
        check("HTTP://[::1]:80/x", Some("[::1]"));
        check("http://", None);
        check("http://:80", None);
        check("http://host:", None);
        check("http://host:0", None);
        check("http://host:99999", None);
        check("http://user:hunter2@localhost", None);
        check("http://localhost\\@example.com", None);
        check("http://[::1", None);
        check("http://::1]", None);
        check("http://[::1]x", None);
        check("ftp://host", None);
        check("127.0.0.1:4566", None);
        check("http://ho st", None);
        check("http://hö", None);
        check("", None);
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["localhost", "LocalHost", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example.com",
            "127.0.0.1.example.com",
            "10.0.0.1",
            "[::2]",
            "0.0.0.0",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
