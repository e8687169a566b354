//! The credentials that calls are signed with: those of the environment, or of a role assumed with them.
//!
//! Kept here and not in the SDK's cache, which never drops credentials that AWS has stopped accepting, and whose
//! errors do not tell a role that may not be assumed from a network that is down.

use std::time::{Duration, SystemTime};

use aws_config::Region;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_firehose::config::SharedHttpClient;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::{AssumeRoleError, AssumeRoleOutput};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::{Blocked, CALL_TIMEOUT, Refusal, https_only};
use crate::causes::in_one_line;
use crate::policy::{self, Trust};
use crate::secret::Secret;

/// The pause after a failure to get credentials: many calls wait for them at once, and are not to ask at once.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How long before they expire credentials are renewed. The SDK's 10 seconds are too few when STS is slow.
const RENEW_BEFORE: Duration = Duration::from_secs(5 * 60);
/// Credentials are kept for this long, however soon they expire: to a clock that is wrong, new ones may seem expired.
const KEPT_AT_LEAST: Duration = Duration::from_secs(10);
/// A role that is assumed by a role has its credentials for an hour at most.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_use.html>
const SESSION_SECONDS: i32 = 3_600;
const SESSION_NAME: &str = "audience-sync";
/// The way out where AWS does not accept credentials.
pub(super) const NOT_ACCEPTED_HINT: &str =
    "look at the access key, at the session token beside it, and at this machine's clock";

/// The role that writes to the streams.
#[derive(Debug, Clone)]
pub struct Role {
    pub arn: String,
    pub external_id: Secret,
}

/// The credentials of the environment, found anew whenever they are asked for.
///
/// The SDK's chain reads `~/.aws/config` and `~/.aws/credentials` once, for as long as it lives, so it lives for one
/// answer: a key that was rotated is to be used. What this costs is a file or two each time; what comes of it is kept
/// in [`KeptCredentials`].
#[derive(Debug)]
pub(super) struct DefaultCredentials {
    pub(super) http: SharedHttpClient,
    pub(super) region: Region,
}

impl ProvideCredentials for DefaultCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let config = ProviderConfig::without_region().with_http_client(self.http.clone());
            let chain = DefaultCredentialsChain::builder()
                .configure(config)
                .region(self.region.clone())
                .build()
                .await;
            chain.provide_credentials().await
        })
    }
}

#[derive(Debug)]
pub(super) struct KeptCredentials {
    base: SharedCredentialsProvider,
    role: Option<(Role, aws_sdk_sts::Client)>,
    kept: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: Option<Kept>,
    /// How many credentials there were so far.
    generations: u64,
    verdict: Verdict,
    /// When the last attempt to get new ones failed, and how.
    failed: Option<(Instant, Refusal)>,
}

#[derive(Debug)]
struct Kept {
    credentials: Credentials,
    generation: u64,
    came: Instant,
    /// Never, where they do not expire.
    renewed_at: Option<SystemTime>,
    given_up_at: Option<Instant>,
}

/// Which credentials Firehose has refused and accepted, by generation. When some are refused, new ones are tried, but
/// once: after that, only where they have worked.
#[derive(Debug, Default)]
struct Verdict {
    /// The last generation that was replaced because it was refused; 0 where there was none.
    refused: u64,
    /// The last generation that a call was accepted with.
    accepted: u64,
}

impl Verdict {
    fn accept(&mut self, generation: u64) {
        self.accepted = self.accepted.max(generation);
    }

    /// Whether newer credentials are worth a try.
    fn refuse(&mut self, generation: u64) -> bool {
        // Another call was refused first, and they are replaced already.
        if generation <= self.refused {
            return true;
        }
        if self.refused > 0 && self.accepted <= self.refused {
            return false;
        }
        self.refused = generation;
        true
    }
}

impl Kept {
    /// Whether they were refused, as those before them were: a later run gets new ones.
    fn is_given_up(&self) -> bool {
        self.given_up_at
            .is_some_and(|at| at.elapsed() >= ASK_AGAIN_AFTER)
    }

    fn is_fresh(&self) -> bool {
        self.came.elapsed() < KEPT_AT_LEAST
            || self.renewed_at.is_none_or(|at| SystemTime::now() < at)
    }

    fn shared(&self) -> (Credentials, u64) {
        (self.credentials.clone(), self.generation)
    }
}

impl State {
    fn keep(&mut self, credentials: Credentials) -> (Credentials, u64) {
        self.generations += 1;
        self.failed = None;
        let expiry = credentials.expiry();
        let kept = self.kept.insert(Kept {
            renewed_at: expiry.map(|expiry| renewed_at(expiry, SystemTime::now())),
            credentials,
            generation: self.generations,
            came: Instant::now(),
            given_up_at: None,
        });
        kept.shared()
    }

    /// The old ones still serve while STS is out of reach.
    fn old(&self) -> Option<(Credentials, u64)> {
        let old = self.kept.as_ref()?;
        let expiry = old.credentials.expiry();
        let lasts = expiry.is_none_or(|at| SystemTime::now() + Duration::from_secs(10) < at);
        lasts.then(|| old.shared())
    }
}

/// When credentials that come now are to be renewed. Those that last less than twice [`RENEW_BEFORE`] are used for half
/// of their time, or they would be renewed with every call.
fn renewed_at(expiry: SystemTime, now: SystemTime) -> SystemTime {
    let lifetime = expiry.duration_since(now).unwrap_or_default();
    expiry - RENEW_BEFORE.min(lifetime / 2)
}

impl KeptCredentials {
    pub(super) fn new(
        base: SharedCredentialsProvider,
        role: Option<(Role, aws_sdk_sts::Client)>,
    ) -> Self {
        Self {
            base,
            role,
            kept: Mutex::new(State::default()),
        }
    }

    /// Credentials that are good for a while yet, and which generation of them they are.
    pub(super) async fn get(&self) -> Result<(Credentials, u64), Refusal> {
        let came = Instant::now();
        let mut state = self.kept.lock().await;
        state.kept.take_if(|kept| kept.is_given_up());
        if let Some(kept) = state.kept.as_ref().filter(|kept| kept.is_fresh()) {
            return Ok(kept.shared());
        }
        if let Some((failed, refusal)) = &state.failed {
            let may_ask = *failed + ASK_AGAIN_AFTER;
            match state.old() {
                Some(old) if Instant::now() < may_ask => return Ok(old),
                // It failed while this call waited: calls that wait together share one answer.
                None if came < *failed => return Err(refusal.clone()),
                _ => sleep_until(may_ask).await,
            }
        }
        match self.load().await {
            Ok(credentials) => Ok(state.keep(credentials)),
            Err(refusal) => {
                state.failed = Some((Instant::now(), refusal.clone()));
                state.old().ok_or(refusal)
            }
        }
    }

    /// Remembers that a call was accepted with a generation of credentials.
    pub(super) async fn prove(&self, generation: u64) {
        self.kept.lock().await.verdict.accept(generation);
    }

    /// Drops the credentials of a generation that was refused, and those before it: the next call loads new ones.
    /// `false` where that was done already, and none since has worked.
    pub(super) async fn refresh(&self, refused: u64) -> bool {
        let mut state = self.kept.lock().await;
        let newer_may_do = state.verdict.refuse(refused);
        if newer_may_do {
            state.kept.take_if(|kept| kept.generation <= refused);
        } else if let Some(kept) = &mut state.kept {
            // What is in flight together ends with them. A later run asks anew.
            kept.given_up_at.get_or_insert_with(Instant::now);
        }
        newer_may_do
    }

    /// The credentials of the environment. The sources of some of them set no time limit of their own.
    async fn load_base(&self) -> Result<Credentials, Refusal> {
        match tokio::time::timeout(CALL_TIMEOUT, self.base.provide_credentials()).await {
            Ok(loaded) => loaded.map_err(|error| base_refusal(&error)),
            Err(_) => Err(Refusal::Retry(
                "no AWS credentials came within 30 s".to_owned(),
            )),
        }
    }

    async fn load(&self) -> Result<Credentials, Refusal> {
        let Some((role, sts)) = &self.role else {
            return self.load_base().await;
        };
        // Asked for first, so that missing ones are not taken for a fault of STS.
        self.load_base().await?;
        let mut assumed = assume(role, sts).await;
        if assumed
            .as_ref()
            .is_err_and(|error| error.code().is_some_and(is_about_credentials))
        {
            // From the refusal the SDK knows how far this machine's clock is off, and signs the next call by it.
            assumed = assume(role, sts).await;
        }
        let assumed = assumed.map_err(|error| role_refusal(role, &error))?;
        tracing::debug!(role = role.arn, "assumed");
        let answer = assumed
            .credentials()
            .ok_or_else(|| Refusal::Retry("STS gave no credentials".to_owned()))?;
        Ok(Credentials::new(
            answer.access_key_id(),
            answer.secret_access_key(),
            Some(answer.session_token().to_owned()),
            SystemTime::try_from(*answer.expiration()).ok(),
            "audience-sync",
        ))
    }
}

async fn assume(
    role: &Role,
    sts: &aws_sdk_sts::Client,
) -> Result<AssumeRoleOutput, SdkError<AssumeRoleError>> {
    sts.assume_role()
        .role_arn(&role.arn)
        .external_id(role.external_id.expose())
        .role_session_name(SESSION_NAME)
        .duration_seconds(SESSION_SECONDS)
        .send()
        .await
}

impl ProvideCredentials for KeptCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let kept = self.get().await;
            kept.map(|(credentials, _)| credentials)
                .map_err(|refusal| CredentialsError::provider_error(format!("{refusal:?}")))
        })
    }
}

fn base_refusal(error: &CredentialsError) -> Refusal {
    if let Some(blocked) = https_only::refused(error) {
        return Refusal::Blocked(blocked);
    }
    let problem = format!("no AWS credentials: {}", in_one_line(error));
    match error {
        CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_) => Refusal::Retry(problem),
        _ => Refusal::Blocked(Blocked {
            problem,
            hint: Some("set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role is attached".to_owned()),
        }),
    }
}

fn role_refusal(role: &Role, error: &SdkError<AssumeRoleError>) -> Refusal {
    if let Some(blocked) = https_only::refused(error) {
        return Refusal::Blocked(blocked);
    }
    let redacted = |text: &str| role.external_id.redact(text);
    let SdkError::ServiceError(answer) = error else {
        return Refusal::Retry(redacted(&format!(
            "STS did not answer: {}",
            in_one_line(error)
        )));
    };
    let status = answer.raw().status().as_u16();
    let code = answer.err().code().filter(|code| !code.is_empty());
    let Some(code) = code.map(str::to_owned) else {
        // A proxy on the way has no codes.
        return Refusal::Retry(format!("STS answered {status} without a code"));
    };
    let is_passing = matches!(code.as_str(), "RequestLimitExceeded" | "RequestExpired");
    if status >= 500 || status == 429 || code.contains("Throttl") || is_passing {
        return Refusal::Retry(redacted(&format!("STS answered {code}")));
    }
    let message = answer.err().message().unwrap_or_default();
    if is_about_credentials(&code) {
        // The role has no part in it.
        return Refusal::Blocked(Blocked {
            problem: redacted(&format!(
                "STS does not accept the AWS credentials ({code}: {message})"
            )),
            hint: Some(NOT_ACCEPTED_HINT.to_owned()),
        });
    }
    if code == "RegionDisabledException" {
        return Refusal::Blocked(Blocked {
            problem: redacted(&format!(
                "STS of this region may not be used ({code}: {message})"
            )),
            hint: Some("enable the region, and STS in it, for the account, or set `sts_endpoint_url` to another region's STS".to_owned()),
        });
    }
    Refusal::Blocked(Blocked {
        problem: redacted(&format!(
            "the role {} may not be assumed ({code}: {message})",
            role.arn
        )),
        hint: Some(trust_hint(role)),
    })
}

/// The statement that lets the role be assumed, without the secret.
fn trust_hint(role: &Role) -> String {
    let partition = policy::home_of(&role.arn).map_or("aws", |(partition, _)| partition);
    let statement = policy::line(&Trust::of(partition, vec![policy::SECRET.to_owned()]));
    format!(
        "its trust policy must name who runs audience-sync and the external ID: {statement}; \
         `audience-sync iam` prints all of it"
    )
}

/// Expired, revoked, not there, or signed by a clock that is off: new credentials and a new signature may do.
pub(super) fn is_about_credentials(code: &str) -> bool {
    code.starts_with("ExpiredToken")
        || matches!(
            code,
            "UnrecognizedClientException"
                | "InvalidClientTokenId"
                | "MissingAuthenticationTokenException"
                | "InvalidSignatureException"
                | "IncompleteSignature"
                | "IncompleteSignatureException"
                | "SignatureDoesNotMatch"
                | "RequestTimeTooSkewed"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_renewed_in_time_and_not_with_every_call() {
        let now = SystemTime::now();
        let check = |lifetime: u64, after: u64| {
            let expiry = now + Duration::from_secs(lifetime);
            assert_eq!(renewed_at(expiry, now), now + Duration::from_secs(after));
        };
        check(3_600, 3_300);
        check(600, 300);
        check(300, 150);
        check(120, 60);
        check(0, 0);
        let expired = now - Duration::from_secs(60);
        assert_eq!(renewed_at(expired, now), expired);
    }

    #[test]
    fn new_credentials_are_worth_one_try_until_some_have_worked() {
        let mut verdict = Verdict::default();
        assert!(verdict.refuse(1));
        // Calls that were in flight with the same ones go again.
        assert!(verdict.refuse(1));
        assert!(!verdict.refuse(2));
        assert!(!verdict.refuse(2));
        // Nor are those that come instead.
        assert!(!verdict.refuse(4));
        // A late answer to the old ones proves nothing about the new ones.
        verdict.accept(1);
        assert!(!verdict.refuse(5));
        verdict.accept(6);
        assert!(verdict.refuse(6));
        assert!(verdict.refuse(5));
        assert!(!verdict.refuse(7));
    }
}
