//! The delivery streams that the configuration leads to.
//!
//! Not a part of reading the configuration: the environment and the AWS profile have a say in where a stream is.

use std::collections::BTreeMap;

use super::runtime;
use crate::audience::DestinationName;
use crate::config::{Config, ConfigError, Destination, DestinationKind};
use crate::firehose::endpoint_of_environment;
use crate::stream::{self, Place, Stream};

/// Where the streams of each destination are.
pub(super) fn places(config: &Config) -> anyhow::Result<BTreeMap<DestinationName, Place>> {
    let is_open = |it: &Destination| matches!(&it.kind, DestinationKind::Firehose(aws) if aws.endpoint_url.is_none());
    let endpoint = match config.destinations.values().any(is_open) {
        true => runtime()?.block_on(endpoint_of_environment()),
        false => None,
    };
    let places = config.destinations.iter().map(|(name, destination)| {
        let place = destination.place(endpoint.as_deref());
        let place = place.map_err(|bad| match is_open(destination) {
            true => ConfigError {
                message: format!("the address of Firehose in the environment or the AWS profile {bad}"),
                at: None,
                hint: Some(
                    "AWS_ENDPOINT_URL_FIREHOSE, AWS_ENDPOINT_URL or `endpoint_url` in the profile names it".to_owned(),
                ),
            },
            false => ConfigError {
                message: format!("the `endpoint_url` of destination `{name}` {bad}"),
                at: Some(destination.at.clone()),
                hint: Some("one looks like http://127.0.0.1:4566".to_owned()),
            },
        })?;
        Ok((name.clone(), place))
    });
    places.collect()
}

/// Every stream that a mapping names, with its destination.
pub(super) fn configured(
    config: &Config,
    places: &BTreeMap<DestinationName, Place>,
) -> Vec<(DestinationName, Stream)> {
    let of_destination = |(destination, configured): (&DestinationName, &Destination)| {
        let stream = |name| {
            let place = places[destination].clone();
            (destination.clone(), Stream { place, name })
        };
        let names = configured.mapping.all_streams();
        names.into_iter().map(stream).collect::<Vec<_>>()
    };
    config
        .destinations
        .iter()
        .flat_map(of_destination)
        .collect()
}

/// Refuses two destinations that lead to one stream. Returns warnings of those that may.
pub(super) fn must_differ(
    config: &Config,
    places: &BTreeMap<DestinationName, Place>,
) -> Result<Vec<String>, ConfigError> {
    let (names, streams): (Vec<_>, Vec<_>) = configured(config, places).into_iter().unzip();
    let destination = |position: usize| &config.destinations[&names[position]];
    if let Some((first, second)) = stream::same(&streams) {
        let (one, other) = (destination(first), destination(second));
        return Err(ConfigError {
            message: format!(
                "destination `{}` leads to a stream of destination `{}`, which stands at {}: {}",
                other.name, one.name, one.at, streams[second]
            ),
            at: Some(other.at.clone()),
            hint: Some("remove the stream from one of the two mappings".to_owned()),
        });
    }
    let warnings = stream::maybe_same(&streams).map(|(first, second)| {
        let (one, other) = (destination(first), destination(second));
        format!(
            "destinations `{}` and `{}` lead to one stream if both are of one account: {}, {}. \
             hint: only one of them has a `role_address`; with the role of the other one, their accounts are known",
            one.name, other.name, streams[first], streams[second]
        )
    });
    Ok(warnings.collect())
}
