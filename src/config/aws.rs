//! The settings of AWS in a destination, checked before anything is sent: a typing error in an ARN is found here and
//! not by a failing call an hour later.

use std::fmt;

use super::Root;
use super::document::{Item, Table, shown};
use super::error::ConfigError;
use super::secret::SecretRef;
use crate::firehose::{
    Api, DEFAULT_REGION, PLAIN_HTTP_HINT, endpoint_host, is_loopback, is_private,
};

/// The keys that only mean something with AWS.
pub(super) const KEYS: [&str; 8] = [
    "region",
    "role_address",
    "secret_id",
    "endpoint_url",
    "sts_endpoint_url",
    "api",
    "quota",
    "price_per_gb",
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
    /// Dollars, as configured.
    pub price_per_gb: Option<f64>,
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
            price_per_gb: table
                .get("price_per_gb")
                .map(|item| read_price(&item))
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
        Self(DEFAULT_REGION.to_owned())
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

fn read_price(item: &Item<'_>) -> Result<f64, ConfigError> {
    let price = item.number()?;
    let fits = price.is_finite() && price >= 0.0;
    let not = || item.error("must be a finite number, 0 or more");
    fits.then_some(price)
        .ok_or_else(|| not().hint("it is in dollars: price_per_gb = 0.029"))
}

/// An address is not repeated in messages: people put passwords into them.
fn read_endpoint(item: &Item<'_>) -> Result<String, ConfigError> {
    let url = item.text()?;
    if endpoint_host(url).is_none() {
        return Err(item
            .error("must be an http or https address with a host, and without a user or password")
            .hint("one looks like http://127.0.0.1:4566"));
    }
    if !is_private(url) {
        return Err(item
            .error("is on another machine, so https is required")
            .hint(PLAIN_HTTP_HINT));
    }
    Ok(url.to_owned())
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
}
