//! Amazon Data Firehose itself, through its SDK.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_firehose::config::{SharedHttpClient, SharedInterceptor};
use aws_sdk_firehose::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_firehose::primitives::Blob;
use aws_sdk_firehose::types::Record as SdkRecord;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::credentials::{DefaultCredentials, KeptCredentials, Role};
use super::https_only::{self, GuardedHttp, HttpsOnly};
use super::refusals::{self, Called, is_denied};
use super::{CALL_TIMEOUT, Cause, Failure, Meters, Quota, Receipt, Refusal};
use crate::batch::Record;
use crate::causes::in_one_line;
use crate::mapping::StreamName;

/// Firehose closes idle connections; ours are closed first, or a call on one of them is lost in between.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// PutRecord calls that are in flight together.
const SINGLES_IN_FLIGHT: usize = 64;

/// Which of Firehose's two calls to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Api {
    /// PutRecordBatch, or PutRecord where the role may do only that: Segment's documented policy grants no more.
    #[default]
    Auto,
    PutRecordBatch,
    PutRecord,
}

/// Where a Firehose destination is, and as whom it is written to.
#[derive(Debug, Clone)]
pub struct AwsSettings {
    pub region: String,
    pub role: Option<Role>,
    pub endpoint_url: Option<String>,
    pub sts_endpoint_url: Option<String>,
    pub api: Api,
    /// Of each stream.
    pub quota: Quota,
}

/// A connection to Firehose in one region, as one role. Nothing is sent before the first record.
#[derive(Debug)]
pub struct Aws {
    settings: AwsSettings,
    client: OnceCell<(aws_sdk_firehose::Client, Arc<KeptCredentials>)>,
    /// Streams whose role was found not to have PutRecordBatch, and whether that was in this command or tick.
    denied: Mutex<HashMap<StreamName, bool>>,
    singles: Arc<Semaphore>,
}

impl Aws {
    pub fn new(settings: AwsSettings) -> Self {
        Self {
            client: OnceCell::new(),
            denied: Mutex::default(),
            singles: Arc::new(Semaphore::new(SINGLES_IN_FLIGHT)),
            settings,
        }
    }

    /// The same with a client of the caller's.
    #[cfg(test)]
    pub(super) fn with_client(
        settings: AwsSettings,
        client: aws_sdk_firehose::Client,
        credentials: KeptCredentials,
    ) -> Self {
        Self {
            client: OnceCell::new_with(Some((client, Arc::new(credentials)))),
            ..Self::new(settings)
        }
    }

    /// Sees to newer credentials than those of a generation; `false` where newer ones were refused as well.
    pub(super) async fn refresh(&self, refused: u64) -> bool {
        match self.client.get() {
            Some((_, credentials)) => credentials.refresh(refused).await,
            None => false,
        }
    }

    pub(super) const fn quota(&self) -> Quota {
        self.settings.quota
    }

    /// Whether records go to a stream one by one.
    pub(super) fn sends_singly(&self, stream: &StreamName) -> bool {
        self.sends_all_singly() || self.is_sent_singly(stream)
    }

    /// Whether that is so of every stream from the beginning.
    pub(super) fn sends_all_singly(&self) -> bool {
        self.settings.api == Api::PutRecord
    }

    pub(super) async fn put(
        &self,
        stream: &StreamName,
        records: &[Record],
        meters: &Meters,
    ) -> Receipt {
        let (client, credentials) = self.client.get_or_init(|| self.connect()).await;
        let generation = match credentials.get().await {
            Ok((_, generation)) => generation,
            Err(refusal) => return Receipt::none(refusal),
        };
        let call = Call {
            aws: self,
            client,
            stream,
            records,
            generation,
            meters,
        };
        let receipt = self.put_by_either(&call).await;
        if !receipt.delivered.is_empty() {
            credentials.prove(generation).await;
        }
        receipt
    }

    async fn put_by_either(&self, call: &Call<'_>) -> Receipt {
        if self.sends_singly(call.stream) {
            return call.put_singly().await;
        }
        let (receipt, denied) = call.put_batch().await;
        if !denied || self.settings.api == Api::PutRecordBatch {
            return receipt;
        }
        let one_by_one = || Refusal::Retry("the role may not firehose:PutRecordBatch".to_owned());
        if self.is_sent_singly(call.stream) {
            // Found out by another call meanwhile.
            return Receipt::none(one_by_one());
        }
        // The rate limiter permitted one request. One record is tried; the others go back, to be permitted one by one.
        let (first, others) = call.records.split_at(1);
        let mut singly = call.of(first).put_singly().await;
        let is_allowed = !singly.delivered.is_empty();
        // Neither is allowed: the faster one is the one to ask for.
        if !is_allowed && matches!(singly.refusal, Some(Refusal::Blocked(_))) {
            return receipt;
        }
        if !others.is_empty() {
            singly.refusal.get_or_insert_with(one_by_one);
        }
        if is_allowed && self.note_sent_singly(call.stream) {
            tracing::warn!(
                stream = %call.stream,
                "the role may not firehose:PutRecordBatch, so records go one by one, which is much slower; \
                 `audience-sync iam` prints the policy to add"
            );
        }
        singly
    }

    fn denied(&self) -> MutexGuard<'_, HashMap<StreamName, bool>> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_sent_singly(&self, stream: &StreamName) -> bool {
        self.denied().get(stream).copied().unwrap_or_default()
    }

    /// Whether this is new. A service that meets it at each tick warns once.
    fn note_sent_singly(&self, stream: &StreamName) -> bool {
        self.denied().insert(stream.clone(), true).is_none()
    }

    /// From now on PutRecordBatch is tried again: the permission may have been added.
    pub(super) fn forget_denied(&self) {
        self.denied()
            .values_mut()
            .for_each(|denied| *denied = false);
    }

    async fn connect(&self) -> (aws_sdk_firehose::Client, Arc<KeptCredentials>) {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .build_https();
        let region = Region::new(self.settings.region.clone());
        let base = SharedCredentialsProvider::new(DefaultCredentials {
            http: SharedHttpClient::new(GuardedHttp(http.clone())),
            region: region.clone(),
        });
        // From the environment and profile comes what the configuration does not say, such as FIPS endpoints.
        let shared = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(region.clone())
            .http_client(http)
            .no_credentials()
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(3))
                    .operation_timeout(CALL_TIMEOUT)
                    .build(),
            )
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .load()
            .await;

        let role = self.settings.role.clone().map(|role| {
            let mut sts = aws_sdk_sts::config::Builder::from(&shared)
                .identity_cache(IdentityCache::no_cache());
            sts.set_credentials_provider(Some(base.clone()));
            sts.push_interceptor(SharedInterceptor::new(HttpsOnly));
            if let Some(url) = &self.settings.sts_endpoint_url {
                sts.set_endpoint_url(Some(url.clone()));
            }
            (role, aws_sdk_sts::Client::from_conf(sts.build()))
        });
        let credentials = Arc::new(KeptCredentials::new(base, role));
        let mut firehose = aws_sdk_firehose::config::Builder::from(&shared)
            .identity_cache(IdentityCache::no_cache());
        let provider: Arc<dyn ProvideCredentials> = Arc::<KeptCredentials>::clone(&credentials);
        firehose.set_credentials_provider(Some(provider.into()));
        firehose.push_interceptor(SharedInterceptor::new(HttpsOnly));
        if let Some(url) = &self.settings.endpoint_url {
            firehose.set_endpoint_url(Some(url.clone()));
        }
        (
            aws_sdk_firehose::Client::from_conf(firehose.build()),
            credentials,
        )
    }
}

/// One attempt at some records.
struct Call<'a> {
    aws: &'a Aws,
    client: &'a aws_sdk_firehose::Client,
    stream: &'a StreamName,
    records: &'a [Record],
    /// Of the credentials it is signed with.
    generation: u64,
    meters: &'a Meters,
}

impl Call<'_> {
    /// The same with other records.
    const fn of<'a>(&'a self, records: &'a [Record]) -> Call<'a> {
        Call { records, ..*self }
    }

    /// The second half tells whether the call itself was denied, which another call might not be.
    async fn put_batch(&self) -> (Receipt, bool) {
        self.meters.request(self.records);
        let call = self
            .client
            .put_record_batch()
            .delivery_stream_name(self.stream.as_str());
        let answer = call
            .set_records(Some(self.records.iter().map(sdk_record).collect()))
            .send()
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let refusal = self.refusal("firehose:PutRecordBatch", &error);
                return (Receipt::none(refusal), error.code().is_some_and(is_denied));
            }
        };
        let entries = answer.request_responses();
        if entries.len() != self.records.len() {
            let problem = format!(
                "firehose answered {} of {} records",
                entries.len(),
                self.records.len()
            );
            return (Receipt::none(Refusal::Failed(unanswered(problem))), false);
        }
        let mut receipt = Receipt::default();
        for (index, entry) in entries.iter().enumerate() {
            match (entry.record_id(), entry.error_code()) {
                (Some(_), None) => receipt.delivered.push(index),
                (_, Some(code)) => {
                    let message = self.redacted(entry.error_message().unwrap_or_default());
                    let failure = refusals::of_record(code, &message);
                    receipt.refused.push((index, failure));
                }
                (None, None) => receipt.refused.push((index, no_record_id())),
            }
        }
        (receipt, false)
    }

    async fn put_singly(&self) -> Receipt {
        let mut receipt = Receipt {
            delivered: Vec::with_capacity(self.records.len()),
            ..Receipt::default()
        };
        let mut calls = JoinSet::new();
        let mut waiting = self.records.iter().enumerate();
        loop {
            // After a failure nothing new is begun: the rest is tried again with it. Rejected content is no failure.
            let is_content = |(_, failure): &(usize, Failure)| failure.cause == Cause::Content;
            while receipt.refusal.is_none() && receipt.refused.iter().all(is_content) {
                let Some(permit) = self.permit(calls.is_empty()).await else {
                    break;
                };
                let Some((index, record)) = waiting.next() else {
                    break;
                };
                self.meters.request(std::slice::from_ref(record));
                let call = self
                    .client
                    .put_record()
                    .delivery_stream_name(self.stream.as_str())
                    .record(sdk_record(record))
                    .send();
                calls.spawn(async move {
                    let answer = call.await;
                    drop(permit);
                    (index, answer)
                });
            }
            let refused = match calls.join_next().await {
                None => break,
                Some(Ok((index, Ok(answer)))) if !answer.record_id().is_empty() => {
                    receipt.delivered.push(index);
                    continue;
                }
                Some(Ok((index, Ok(_)))) => (index, no_record_id()),
                Some(Ok((index, Err(error)))) => match self.refusal("firehose:PutRecord", &error) {
                    Refusal::Failed(failure) => (index, failure),
                    Refusal::Rejected { code, message } => {
                        (index, Failure::of_content(code, message))
                    }
                    refusal => {
                        receipt.refusal.get_or_insert(refusal);
                        continue;
                    }
                },
                Some(Err(panic)) => {
                    let refusal = Refusal::Failed(unanswered(panic.to_string()));
                    receipt.refusal.get_or_insert(refusal);
                    continue;
                }
            };
            receipt.refused.push(refused);
        }
        if receipt.delivered.len() + receipt.refused.len() < self.records.len() {
            receipt
                .refusal
                .get_or_insert_with(|| Refusal::Retry("not sent yet".to_owned()));
        }
        receipt
    }

    /// The right to one more PutRecord call, shared by all chunks: at once, or after a wait.
    async fn permit(&self, may_wait: bool) -> Option<OwnedSemaphorePermit> {
        let singles = Arc::clone(&self.aws.singles);
        if may_wait {
            return singles.acquire_owned().await.ok();
        }
        singles.try_acquire_owned().ok()
    }

    /// What to do about a call that failed as a whole.
    fn refusal<E>(&self, permission: &str, error: &SdkError<E>) -> Refusal
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        if let Some(blocked) = https_only::refused(error) {
            return Refusal::Blocked(blocked);
        }
        let settings = &self.aws.settings;
        let message = match error.code() {
            Some(_) => self.redacted(error.message().unwrap_or_default()),
            None => self.redacted(&in_one_line(error)),
        };
        let called = Called {
            permission,
            stream: self.stream,
            region: &settings.region,
            role: settings.role.as_ref().map(|role| role.arn.as_str()),
            generation: self.generation,
        };
        match error {
            SdkError::ConstructionFailure(_) => called.was_not_made(&message),
            _ => called.was_answered(status(error), error.code(), &message),
        }
    }

    /// Words of a server, which might repeat what it was sent.
    fn redacted(&self, text: &str) -> String {
        self.aws
            .settings
            .role
            .as_ref()
            .map_or_else(|| text.to_owned(), |role| role.external_id.redact(text))
    }
}

fn sdk_record(record: &Record) -> SdkRecord {
    let data = Blob::from_maybe_shared(record.data.clone());
    SdkRecord::builder()
        .data(data)
        .build()
        .expect("a record has data")
}

/// An answer that says nothing about a record.
fn unanswered(message: String) -> Failure {
    Failure {
        cause: Cause::Unanswered,
        code: String::new(),
        message,
        is_maybe_accepted: true,
    }
}

fn no_record_id() -> Failure {
    unanswered("firehose answered without a record ID".to_owned())
}

/// The HTTP status of an answer; 0 where there was none.
fn status<E>(error: &SdkError<E>) -> u16 {
    let answer = error.raw_response();
    answer.map_or(0, |answer| answer.status().as_u16())
}
