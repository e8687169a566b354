//! The address of Firehose that the environment or the profile names.
//!
//! It is part of what tells a stream apart, so it must be known before the first call. The SDK is asked and not the
//! environment: which variable goes before which, and what a profile's `services` section means, is its business.
//! Nothing is sent.

use aws_config::{BehaviorVersion, Region};
use aws_types::service_config::ServiceConfigKey;

use super::DEFAULT_REGION;

/// The address that a destination without an `endpoint_url` sends to, if AWS_ENDPOINT_URL_FIREHOSE, AWS_ENDPOINT_URL
/// or the profile names one. `None` otherwise: the SDK then uses one of AWS's public endpoints, also where FIPS or
/// dual-stack endpoints are asked for.
pub async fn endpoint_of_environment() -> Option<String> {
    let loaded = aws_config::defaults(BehaviorVersion::v2026_01_12())
        // Without a region, the SDK would ask the machine for its own.
        .region(Region::new(DEFAULT_REGION))
        .no_credentials()
        .load()
        .await;
    // What `aws_sdk_firehose::config::Builder::from` looks up.
    let key = ServiceConfigKey::builder()
        .service_id("Firehose")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .expect("all three are given");
    let own = loaded
        .service_config()
        .and_then(|config| config.load_config(key));
    own.or_else(|| loaded.endpoint_url().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use aws_sdk_firehose::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};

    use crate::stream::Place;

    #[tokio::test]
    async fn what_the_sdk_uses_by_itself_is_a_public_endpoint_in_each_partition() {
        let resolver = DefaultResolver::new();
        for region in [
            "us-west-2",
            "cn-north-1",
            "eusc-de-east-1",
            "us-gov-west-1",
            "us-iso-east-1",
            "us-isob-east-1",
            "eu-isoe-west-1",
            "us-isof-south-1",
        ] {
            for (fips, dual_stack) in [(false, false), (true, false), (false, true), (true, true)] {
                let params = Params::builder()
                    .region(region)
                    .use_fips(fips)
                    .use_dual_stack(dual_stack)
                    .build()
                    .unwrap();
                let endpoint = ResolveEndpoint::resolve_endpoint(&resolver, &params).await;
                let url = endpoint.unwrap().url().to_owned();
                let own = Place::firehose(region, Some(&url), None);
                assert_eq!(own, Place::firehose(region, None, None), "{url}");
            }
        }
    }
}
