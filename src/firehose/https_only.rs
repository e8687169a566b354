//! Nothing is sent in the clear to another machine, whoever names the address: the configuration, which is checked
//! before, or the environment and the profile, which the SDK reads by itself.
//!
//! The calls of our own clients are looked at by [`HttpsOnly`]. The SDK's credentials chain builds clients of its own,
//! which take no interceptor, and is given a [`GuardedHttp`] to make its calls with.

use std::error::Error;
use std::net::{Ipv4Addr, Ipv6Addr};

use aws_sdk_firehose::config::http::HttpRequest;
use aws_sdk_firehose::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_firehose::config::{
    ConfigBag, HttpClient, Intercept, RuntimeComponents, SharedHttpClient,
};
use aws_sdk_firehose::error::{BoxError, ConnectorError};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};

use super::Blocked;

/// Where plain http is allowed.
pub const PLAIN_HTTP_HINT: &str = "plain http is for localhost, 127.0.0.1 and [::1]";

/// Whether nobody on the way to an address can read along: it is https, or on this machine.
pub fn is_private(url: &str) -> bool {
    let https = url.split_once("://").map(|(scheme, _)| scheme);
    https.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
        || endpoint_host(url).is_some_and(is_loopback)
}

/// Looks at each call before its first byte.
#[derive(Debug)]
pub(super) struct HttpsOnly;

/// A call that was not made. The address is not repeated: people put passwords into them.
#[derive(Debug, thiserror::Error)]
#[error("the address of {} is on another machine, so https is required", host.as_deref().unwrap_or("AWS"))]
struct InTheClear {
    host: Option<String>,
}

impl Intercept for HttpsOnly {
    fn name(&self) -> &'static str {
        "HttpsOnly"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let url = context.request().uri();
        if is_private(url) {
            return Ok(());
        }
        Err(InTheClear::at(url).into())
    }
}

impl InTheClear {
    fn at(url: &str) -> Self {
        Self {
            host: endpoint_host(url).map(str::to_owned),
        }
    }
}

/// Where AWS hands out credentials over plain http, to nobody but the machine or the container that asks: EC2, ECS and
/// EKS. <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>,
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>
const HANDS_OUT_CREDENTIALS: [&str; 5] = [
    "169.254.169.254",
    "[fd00:ec2::254]",
    "169.254.170.2",
    "169.254.170.23",
    "[fd00:ec2::23]",
];

fn hands_out_credentials(url: &str) -> bool {
    endpoint_host(url).is_some_and(|host| HANDS_OUT_CREDENTIALS.contains(&host))
}

/// An HTTP client that looks at each call before it makes it.
#[derive(Debug)]
pub(super) struct GuardedHttp(pub(super) SharedHttpClient);

impl HttpClient for GuardedHttp {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(GuardedConnector(
            self.0.http_connector(settings, components),
        ))
    }
}

#[derive(Debug)]
struct GuardedConnector(SharedHttpConnector);

impl HttpConnector for GuardedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let url = request.uri();
        if is_private(url) || hands_out_credentials(url) {
            return self.0.call(request);
        }
        let refused = ConnectorError::user(InTheClear::at(url).into());
        HttpConnectorFuture::ready(Err(refused))
    }
}

/// What to do about a call that was not made for this reason.
pub(super) fn refused(error: &(dyn Error + 'static)) -> Option<Blocked> {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    let refused = causes.find_map(|cause| cause.downcast_ref::<InTheClear>())?;
    Some(Blocked {
        problem: refused.to_string(),
        hint: Some(format!(
            "AWS_ENDPOINT_URL, one of the variables that begin so, or `endpoint_url` in the profile names it; {PLAIN_HTTP_HINT}"
        )),
    })
}

/// The host of an http or https address; `None` where it is no such address.
pub fn endpoint_host(url: &str) -> Option<&str> {
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

/// Whether a host is this machine.
pub fn is_loopback(host: &str) -> bool {
    let v6 = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|v4| v4.is_loopback())
        || v6.parse::<Ipv6Addr>().is_ok_and(|v6| v6.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_leaves_this_machine_is_encrypted() {
        for private in [
            "https://firehose.us-west-2.amazonaws.com/",
            "HTTPS://x",
            "http://127.0.0.1:4566/",
            "http://[::1]/",
        ] {
            assert!(is_private(private), "{private}");
        }
        for public in [
            "http://192.0.2.1",
            "http://localhost.example.com/",
            "http://user@localhost/",
            "localhost",
            "httpsx://x",
        ] {
            assert!(!is_private(public), "{public}");
        }
    }

    #[test]
    fn credentials_come_from_fixed_addresses() {
        for known in [
            "http://169.254.169.254/latest/api/token",
            "http://[fd00:ec2::254]/latest/api/token",
            "http://169.254.170.2/v2/credentials",
            "http://169.254.170.23:80/v1/credentials",
            "http://[fd00:ec2::23]/v1/credentials",
        ] {
            assert!(hands_out_credentials(known), "{known}");
        }
        for other in [
            "http://169.254.169.1/",
            "http://169.254.169.254.example.com/",
            "http://169.254.169.254@example.com/",
        ] {
            assert!(!hands_out_credentials(other), "{other}");
        }
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
