//! Where lines go: a delivery stream, told apart by its place as configured and not by a name in a file.
//!
//! What the snapshot remembers belongs to an audience and a stream. So each command asks which remembered stream a
//! configured one is, and [`resolve`] answers. Nothing here looks at the disk, the network or the environment: the same
//! configuration always means the same stream, and the answer can be tested.

use std::collections::HashMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use reqwest::Url;

use crate::mapping::StreamName;

/// A delivery stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream {
    pub place: Place,
    pub name: StreamName,
}

/// Where a stream is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Firehose {
        region: String,
        /// `None` where it is AWS's own, public or in a VPC.
        endpoint: Option<String>,
        /// `None` where no role tells it.
        account: Option<String>,
    },
    Directory(PathBuf),
}

/// An address of an endpoint that cannot be one. The address is not repeated: people put passwords into them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not an http or https address with a host")]
pub struct BadEndpoint;

impl Place {
    /// `endpoint` is the address that is really used, if it is not the one that AWS's own rules give.
    pub fn firehose(
        region: &str,
        endpoint: Option<&str>,
        account: Option<&str>,
    ) -> Result<Self, BadEndpoint> {
        let endpoint = endpoint.map(|url| normal_endpoint(url, region));
        Ok(Self::Firehose {
            region: region.to_owned(),
            endpoint: endpoint.transpose()?.flatten(),
            account: account.map(str::to_owned),
        })
    }

    /// A directory as it is written in the configuration, in its shortest form: `a/./b/../c/` is `a/c`.
    ///
    /// A relative path stays relative, to the directory of `audience-sync.toml`, so that a project that is moved, or
    /// called from elsewhere, keeps its snapshot. The disk is not looked at: a symbolic link in front of `..` is taken
    /// for a directory, and an absolute path is another place than a relative one that leads there.
    pub fn directory(written: &Path) -> Self {
        let mut normal = PathBuf::new();
        for component in written.components() {
            match (component, normal.components().next_back()) {
                (Component::CurDir, _) | (Component::ParentDir, Some(Component::RootDir)) => {}
                (Component::ParentDir, Some(Component::Normal(_))) => {
                    normal.pop();
                }
                _ => normal.push(component),
            }
        }
        if normal.as_os_str().is_empty() {
            normal.push(".");
        }
        Self::Directory(normal)
    }
}

/// What an endpoint is known by; `None` for one of AWS's own. Those lead to the same streams, and which of them is used
/// is a matter of the network. Users, passwords and queries are left out: what is known goes into the snapshot.
fn normal_endpoint(url: &str, region: &str) -> Result<Option<String>, BadEndpoint> {
    // The parser writes scheme and host in lower case, and leaves out the scheme's own port.
    let parsed = Url::parse(url).map_err(|_| BadEndpoint)?;
    let host = parsed
        .host_str()
        .filter(|_| matches!(parsed.scheme(), "http" | "https"))
        .ok_or(BadEndpoint)?;
    if is_of_aws(host, region) {
        return Ok(None);
    }
    let port = parsed.port().map(|port| format!(":{port}"));
    let (scheme, port) = (parsed.scheme(), port.unwrap_or_default());
    let path = parsed.path().trim_end_matches('/');
    Ok(Some(format!("{scheme}://{host}{port}{path}")))
}

/// What AWS's host names of a service end with, in each partition, without and with IPv6.
const AWS_DOMAINS: [&str; 14] = [
    "amazonaws.com",
    "api.aws",
    "amazonaws.com.cn",
    "api.amazonwebservices.com.cn",
    "amazonaws.eu",
    "api.amazonwebservices.eu",
    "c2s.ic.gov",
    "api.aws.ic.gov",
    "sc2s.sgov.gov",
    "api.aws.scloud",
    "cloud.adc-e.uk",
    "api.cloud-aws.adc-e.uk",
    "csp.hci.ic.gov",
    "api.aws.hci.ic.gov",
];

/// Whether a host is Firehose itself in a region, or an endpoint of it in a VPC.
/// <https://docs.aws.amazon.com/general/latest/gr/fh.html>,
/// <https://docs.aws.amazon.com/firehose/latest/dev/vpc.html>
fn is_of_aws(host: &str, region: &str) -> bool {
    let service = host
        .strip_prefix("firehose.")
        .or_else(|| host.strip_prefix("firehose-fips."));
    let domain = service
        .and_then(|rest| rest.strip_prefix(region))
        .and_then(|rest| rest.strip_prefix('.'));
    domain.is_some_and(|domain| AWS_DOMAINS.contains(&domain))
        || host.ends_with(".vpce.amazonaws.com")
        || host.ends_with(".vpce.amazonaws.com.cn")
}

impl Stream {
    /// Whether two may be the same stream: all is equal, but an account that is not known may be any.
    pub fn fits(&self, other: &Self) -> bool {
        let fits = match (&self.place, &other.place) {
            (
                Place::Firehose {
                    region,
                    endpoint,
                    account,
                },
                Place::Firehose {
                    region: other_region,
                    endpoint: other_endpoint,
                    account: other_account,
                },
            ) => {
                let both = account.as_ref().zip(other_account.as_ref());
                region == other_region
                    && endpoint == other_endpoint
                    && both.is_none_or(|(one, other)| one == other)
            }
            (one, other) => one == other,
        };
        fits && self.name == other.name
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, name } = self;
        match place {
            // Joined with nothing, a path ends in one slash.
            Place::Directory(path) => write!(f, "{name} in {}", path.join("").display()),
            Place::Firehose {
                region,
                endpoint,
                account,
            } => {
                write!(f, "{name} ({region}")?;
                if let Some(endpoint) = endpoint {
                    write!(f, " at {endpoint}")?;
                }
                if let Some(account) = account {
                    write!(f, ", account {account}")?;
                }
                f.write_str(")")
            }
        }
    }
}

/// Why a configured stream cannot be told from others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error(
        "the snapshot remembers several streams that {configured} may be: {}\n\nhint: add the `role_address` of the one that is meant; its account tells them apart",
        list(remembered)
    )]
    Several {
        configured: Box<Stream>,
        remembered: Vec<Stream>,
    },
    #[error(
        "{first} and {second} may both be {remembered}, which the snapshot remembers\n\nhint: leave the new one of the two out of the configuration for one `audience-sync sync`; the account of the other one is remembered then"
    )]
    Contested {
        first: Box<Stream>,
        second: Box<Stream>,
        remembered: Box<Stream>,
    },
}

/// Streams in a sentence.
pub fn list(streams: &[Stream]) -> String {
    let streams: Vec<_> = streams.iter().map(Stream::to_string).collect();
    streams.join(", ")
}

/// For each configured stream the position of the remembered one that it is; `None` for a new one.
///
/// An equal one comes first. Otherwise it is the only one that fits and is not equal to another configured stream. So
/// an account that was not known is taken over from the configuration, and removing a role changes nothing. No remembered
/// stream is given to two configured ones.
pub fn resolve(
    configured: &[Stream],
    remembered: &[Stream],
) -> Result<Vec<Option<usize>>, StreamError> {
    let mut taken = HashMap::new();
    let mut found = Vec::with_capacity(configured.len());
    for stream in configured {
        let position = match remembered.iter().position(|known| known == stream) {
            None => only_one_that_fits(stream, configured, remembered)?,
            equal => equal,
        };
        if let Some(position) = position
            && let Some(first) = taken.insert(position, stream)
        {
            return Err(StreamError::Contested {
                first: Box::new(Stream::clone(first)),
                second: Box::new(stream.clone()),
                remembered: Box::new(remembered[position].clone()),
            });
        }
        found.push(position);
    }
    Ok(found)
}

fn only_one_that_fits(
    stream: &Stream,
    configured: &[Stream],
    remembered: &[Stream],
) -> Result<Option<usize>, StreamError> {
    let positions = 0..remembered.len();
    let fitting: Vec<_> = positions
        .filter(|at| stream.fits(&remembered[*at]) && !configured.contains(&remembered[*at]))
        .collect();
    match fitting[..] {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        _ => Err(StreamError::Several {
            configured: Box::new(stream.clone()),
            remembered: fitting.iter().map(|at| remembered[*at].clone()).collect(),
        }),
    }
}

/// The first two configured streams that are one.
pub fn same(configured: &[Stream]) -> Option<(usize, usize)> {
    pairs(configured).find(|(first, second)| configured[*first] == configured[*second])
}

/// Each two configured streams that may be one: only one of them has a role that tells its account.
pub fn maybe_same(configured: &[Stream]) -> impl Iterator<Item = (usize, usize)> {
    pairs(configured).filter(|(first, second)| configured[*first] != configured[*second])
}

/// Each two that fit, by position, the earlier one first.
fn pairs(configured: &[Stream]) -> impl Iterator<Item = (usize, usize)> {
    let positions = 0..configured.len();
    let all = positions.flat_map(|second| (0..second).map(move |first| (first, second)));
    all.filter(|(first, second)| configured[*first].fits(&configured[*second]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "874699288871";
    const OTHER: &str = "123456789012";

    fn stream(place: Place) -> Stream {
        let name = StreamName::parse("members").unwrap();
        Stream { place, name }
    }

    fn of(account: Option<&str>) -> Stream {
        stream(Place::firehose("us-west-2", None, account).unwrap())
    }

    #[test]
    fn a_directory_is_known_by_its_shortest_form() {
        let check = |written: &str, normal: &str| {
            let place = Place::directory(Path::new(written));
            assert_eq!(place, Place::Directory(normal.into()), "{written}");
            // Equal paths may still be written in two ways.
            let Place::Directory(path) = place else {
                panic!()
            };
            assert_eq!(path.to_str(), Some(normal));
        };
        check("delivered", "delivered");
        check("./delivered//", "delivered");
        check("a/./b/../c", "a/c");
        check("a/..", ".");
        check(".", ".");
        check("../a", "../a");
        check("a/../../b", "../b");
        check("../../a", "../../a");
        check("/a/../../b/", "/b");
        check("/", "/");
        check("/..", "/");
    }

    #[test]
    fn an_endpoint_of_aws_is_left_out_and_another_is_known_by_its_shortest_form() {
        let check = |url: &str, expected: Result<Option<&str>, BadEndpoint>| {
            let normal = normal_endpoint(url, "us-west-2");
            assert_eq!(normal, expected.map(|it| it.map(str::to_owned)), "{url}");
        };
        for public in [
            "https://firehose.us-west-2.amazonaws.com",
            "HTTPS://Firehose.US-West-2.amazonaws.com:443/",
            "https://firehose.us-west-2.amazonaws.com.cn",
            "https://firehose-fips.us-west-2.amazonaws.com",
            "https://firehose.us-west-2.api.aws",
            "https://vpce-1-2.firehose.us-west-2.vpce.amazonaws.com",
        ] {
            check(public, Ok(None));
        }
        for (url, normal) in [
            ("HTTP://LocalHost:80/", "http://localhost"),
            ("http://127.0.0.1:4566//", "http://127.0.0.1:4566"),
            ("https://[::1]:443", "https://[::1]"),
            (
                "https://me:hunter2@proxy.example.com/a/?key=hunter2#b",
                "https://proxy.example.com/a",
            ),
            // Firehose of another region would not take what is signed for this one.
            (
                "https://firehose.eu-west-1.amazonaws.com",
                "https://firehose.eu-west-1.amazonaws.com",
            ),
            (
                "https://firehose.us-west-2.example.com",
                "https://firehose.us-west-2.example.com",
            ),
            (
                "https://vpce.amazonaws.com.example.com",
                "https://vpce.amazonaws.com.example.com",
            ),
        ] {
            check(url, Ok(Some(normal)));
        }
        for bad in ["", "localhost:4566", "ftp://host", "http://", "/path"] {
            check(bad, Err(BadEndpoint));
        }
    }

    #[test]
    fn a_stream_is_written_with_its_place() {
        let check = |place: Place, written: &str| assert_eq!(stream(place).to_string(), written);
        check(
            Place::directory(Path::new("delivered")),
            "members in delivered/",
        );
        check(Place::directory(Path::new("/")), "members in /");
        let firehose = |url, account| Place::firehose("us-west-2", url, account).unwrap();
        check(firehose(None, None), "members (us-west-2)");
        check(
            firehose(None, Some(ONE)),
            "members (us-west-2, account 874699288871)",
        );
        check(
            firehose(Some("http://localhost:4566/"), Some(ONE)),
            "members (us-west-2 at http://localhost:4566, account 874699288871)",
        );
    }

    #[test]
    fn streams_differ_by_each_part_of_their_place() {
        let place = |region, url| Place::firehose(region, url, None).unwrap();
        let all = [
            stream(place("us-west-2", None)),
            stream(place("eu-west-1", None)),
            stream(place("us-west-2", Some("http://localhost:4566"))),
            stream(Place::directory(Path::new("a"))),
            stream(Place::directory(Path::new("b"))),
            Stream {
                name: StreamName::parse("others").unwrap(),
                ..stream(place("us-west-2", None))
            },
        ];
        assert_eq!(pairs(&all).next(), None);
        assert_eq!(resolve(&all[..1], &all[1..]), Ok(vec![None]));
    }

    type Accounts<'a> = &'a [Option<&'a str>];

    fn found(
        configured: Accounts,
        remembered: Accounts,
    ) -> Result<Vec<Option<usize>>, StreamError> {
        let streams = |accounts: Accounts| accounts.iter().copied().map(of).collect::<Vec<_>>();
        resolve(&streams(configured), &streams(remembered))
    }

    #[test]
    fn a_configured_stream_is_the_remembered_one_that_fits() {
        let check = |configured: Accounts, remembered: Accounts, expected: &[Option<usize>]| {
            let found = found(configured, remembered);
            let case = format!("{configured:?} {remembered:?}");
            assert_eq!(found, Ok(expected.to_vec()), "{case}");
        };
        let (none, one, other) = (None, Some(ONE), Some(OTHER));
        check(&[one], &[], &[None]);
        check(&[none], &[none], &[Some(0)]);
        // An account is taken over from the first configuration that has one.
        check(&[one], &[none], &[Some(0)]);
        // A role that is removed changes nothing.
        check(&[none], &[one], &[Some(0)]);
        // Another account is another stream.
        check(&[other], &[one], &[None]);
        check(&[one, other], &[other, one], &[Some(1), Some(0)]);
        // An equal one comes first.
        check(&[none], &[one, none], &[Some(1)]);
        check(&[one], &[none, one], &[Some(1)]);
        // One that is another configured stream is left to it.
        check(&[none, one], &[one], &[None, Some(0)]);
        check(&[none, one], &[one, other], &[Some(1), Some(0)]);
        check(&[one, none], &[none], &[None, Some(0)]);
    }

    #[test]
    fn several_remembered_streams_that_fit_are_listed() {
        let error = found(&[None], &[Some(ONE), Some(OTHER)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the snapshot remembers several streams that members (us-west-2) may be: \
             members (us-west-2, account 874699288871), members (us-west-2, account 123456789012)\
             \n\nhint: add the `role_address` of the one that is meant; its account tells them apart"
        );
    }

    #[test]
    fn a_remembered_stream_is_given_to_one_configured_stream_only() {
        let error = found(&[Some(ONE), Some(OTHER)], &[None]).unwrap_err();
        let text = error.to_string();
        let expected = "members (us-west-2, account 874699288871) and \
                        members (us-west-2, account 123456789012) may both be members (us-west-2)";
        assert!(text.starts_with(expected), "{text}");
        assert!(found(&[Some(ONE), Some(ONE)], &[Some(ONE)]).is_err());
    }

    #[test]
    fn two_configured_streams_are_one_or_may_be() {
        let check = |accounts: Accounts, same_at, maybe_at: &[(usize, usize)]| {
            let streams: Vec<_> = accounts.iter().copied().map(of).collect();
            assert_eq!(same(&streams), same_at, "{accounts:?}");
            let maybe: Vec<_> = maybe_same(&streams).collect();
            assert_eq!(maybe, maybe_at, "{accounts:?}");
        };
        check(&[None, None], Some((0, 1)), &[]);
        check(&[Some(ONE), Some(OTHER), Some(ONE)], Some((0, 2)), &[]);
        check(&[Some(ONE), None, Some(OTHER)], None, &[(0, 1), (1, 2)]);
    }
}

#[cfg(test)]
mod laws {
    use std::collections::BTreeSet;

    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;
    use crate::laws::cases;

    /// Few places and names, so that they meet.
    fn streams() -> impl Strategy<Value = Vec<Stream>> {
        let account = prop::sample::select(&[None, Some("111111111111"), Some("222222222222")][..]);
        let firehose = (
            prop::sample::select(&["us-west-2", "eu-west-1"][..]),
            account,
        )
            .prop_map(|(region, account)| Place::firehose(region, None, account).unwrap());
        let directory = prop::sample::select(&["a", "a/../a", "b"][..])
            .prop_map(|path| Place::directory(Path::new(path)));
        let place = prop_oneof![3 => firehose, 1 => directory];
        let name = prop::sample::select(&["x", "y"][..]);
        let stream = (place, name).prop_map(|(place, name)| Stream {
            place,
            name: StreamName::parse(name).unwrap(),
        });
        btree_set(stream, 0..5)
            .prop_map(|streams| streams.into_iter().collect::<Vec<_>>())
            .prop_shuffle()
    }

    proptest! {
        #![proptest_config(cases(1_024))]

        #[test]
        fn a_stream_is_found_where_it_is_known_and_never_twice(
            configured in streams(),
            remembered in streams(),
        ) {
            let fitting = |stream: &Stream| {
                let fits = |known: &&Stream| known.fits(stream) && !configured.contains(known);
                remembered.iter().filter(fits).count()
            };
            match resolve(&configured, &remembered) {
                Ok(found) => {
                    let given: Vec<_> = found.iter().flatten().collect();
                    prop_assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len());
                    for (stream, found) in configured.iter().zip(found) {
                        match found {
                            Some(at) if remembered[at] == *stream => {}
                            Some(at) => {
                                prop_assert!(!remembered.contains(stream));
                                prop_assert!(remembered[at].fits(stream));
                                prop_assert_eq!(fitting(stream), 1);
                            }
                            None => prop_assert!(!remembered.contains(stream) && fitting(stream) == 0),
                        }
                    }
                }
                Err(StreamError::Several { configured, remembered }) => {
                    prop_assert_eq!(remembered.len(), fitting(&configured));
                    prop_assert!(remembered.len() > 1);
                }
                Err(StreamError::Contested { first, second, remembered }) => {
                    prop_assert!(first.fits(&remembered) && second.fits(&remembered));
                    prop_assert_ne!(first, second);
                }
            }
        }

        /// A run remembers what it found, with the accounts that it heard of. The next run finds the same.
        #[test]
        fn what_is_remembered_is_found_again(configured in streams()) {
            let positions = (0..configured.len()).map(Some).collect::<Vec<_>>();
            prop_assert_eq!(resolve(&configured, &configured), Ok(positions));
        }

        #[test]
        fn the_shortest_form_of_a_path_is_its_own(parts in prop::collection::vec(
            prop::sample::select(&["a", "b", ".", "..", ""][..]), 0..8,
        )) {
            let Place::Directory(normal) = Place::directory(&PathBuf::from(parts.join("/"))) else {
                panic!()
            };
            prop_assert_eq!(Place::directory(&normal), Place::Directory(normal.clone()));
            // `..` stands in front or nowhere.
            let mut names = normal.components().skip_while(|part| *part == Component::ParentDir);
            prop_assert!(names.all(|part| part != Component::ParentDir));
        }

        #[test]
        fn any_text_is_an_endpoint_or_none(text in "(https?:)?/{0,3}\\PC{0,40}", region in "\\PC{0,10}") {
            if let Ok(Some(normal)) = normal_endpoint(&text, &region) {
                prop_assert_eq!(normal_endpoint(&normal, &region), Ok(Some(normal)));
            }
        }
    }
}
