//! The SDK's client, and HTTP answers that a test writes, in the time of a paused clock.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_firehose::config::http::{HttpRequest, HttpResponse};
use aws_sdk_firehose::config::retry::RetryConfig;
use aws_sdk_firehose::config::{
    BehaviorVersion, HttpClient, Region, RuntimeComponents, SharedHttpClient,
};
use aws_sdk_firehose::error::ConnectorError;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::credentials::KeptCredentials;
use super::{Api, Aws, AwsSettings, Destination, Quota};
use crate::audience::DestinationName;
use crate::batch::Record;
use crate::mapping::StreamName;

/// How long an answer takes.
const LATENCY: Duration = Duration::from_millis(20);

/// A call of Firehose.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) stream: String,
    /// The text of its records.
    pub(super) records: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Answer {
    Accept,
    /// The records at these indices are refused, with these codes.
    Refuse(Vec<(usize, &'static str)>),
    /// The call is refused as a whole.
    Error(u16, &'static str),
    /// No answer comes.
    Lost,
}

type Script = Box<dyn FnMut(&Call) -> Answer + Send>;

#[derive(Clone)]
struct Scripted(Arc<Mutex<Script>>);

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

/// A destination whose calls are answered by a script.
pub(super) fn destination(script: impl FnMut(&Call) -> Answer + Send + 'static) -> Destination {
    with_api(Api::PutRecordBatch, script)
}

pub(super) fn with_api(
    api: Api,
    script: impl FnMut(&Call) -> Answer + Send + 'static,
) -> Destination {
    // How long backoff takes is no matter of chance.
    fastrand::seed(1);
    let credentials = Credentials::new("AKIATEST", "key", None, None, "test");
    let http = Scripted(Arc::new(Mutex::new(Box::new(script))));
    let config = aws_sdk_firehose::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-west-2"))
        .credentials_provider(credentials.clone())
        .retry_config(RetryConfig::disabled())
        .http_client(SharedHttpClient::new(http))
        .build();
    let settings = AwsSettings {
        region: "us-west-2".to_owned(),
        role: None,
        endpoint_url: None,
        sts_endpoint_url: None,
        api,
        quota: Quota::NONE,
    };
    let aws = Aws::with_client(
        settings,
        aws_sdk_firehose::Client::from_conf(config),
        KeptCredentials::new(SharedCredentialsProvider::new(credentials), None),
    );
    Destination::firehose(DestinationName::new("main"), false, aws)
}

pub(super) fn stream(name: &str) -> StreamName {
    StreamName::parse(name).unwrap()
}

/// A record of these lines, the first of which has this position.
pub(super) fn record(first: usize, lines: &[String]) -> Record {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    Record {
        data: Bytes::from(text),
        lines: first..first + lines.len(),
    }
}

/// A record for each line.
pub(super) fn records(lines: &[String]) -> Vec<Record> {
    let lines = lines.iter().enumerate();
    lines
        .map(|(position, line)| record(position, std::slice::from_ref(line)))
        .collect()
}

impl HttpClient for Scripted {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Scripted {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let is_batch = request
            .headers()
            .get("x-amz-target")
            .is_some_and(|target| target.ends_with("PutRecordBatch"));
        let call = Call::parse(&request, is_batch);
        let answer = (self.0.lock().unwrap())(&call);
        HttpConnectorFuture::new(async move {
            tokio::time::sleep(LATENCY).await;
            let refused = match answer {
                Answer::Lost => return Err(ConnectorError::io("connection reset".into())),
                Answer::Error(status, code) => return Ok(error(status, code)),
                Answer::Accept => Vec::new(),
                Answer::Refuse(refused) => refused,
            };
            Ok(match (is_batch, refused.first()) {
                (true, _) => response(200, &entries(call.records.len(), &refused)),
                (false, None) => response(200, &json!({ "RecordId": "id" })),
                (false, Some((_, code))) => error(500, code),
            })
        })
    }
}

impl Call {
    fn parse(request: &HttpRequest, is_batch: bool) -> Self {
        let body = request.body().bytes().expect("a body in memory");
        let body: Value = serde_json::from_slice(body).unwrap();
        let text = |record: &Value| {
            let data = BASE64_STANDARD.decode(record["Data"].as_str().unwrap());
            String::from_utf8(data.unwrap()).unwrap()
        };
        Self {
            stream: body["DeliveryStreamName"].as_str().unwrap().to_owned(),
            records: match is_batch {
                true => body["Records"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(text)
                    .collect(),
                false => vec![text(&body["Record"])],
            },
        }
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.records.iter().flat_map(|record| record.lines())
    }
}

fn entries(count: usize, refused: &[(usize, &'static str)]) -> Value {
    let entry = |index: usize| {
        let code = refused.iter().find(|(refused, _)| *refused == index);
        match code {
            Some((_, code)) => json!({ "ErrorCode": code, "ErrorMessage": "as the test says" }),
            None => json!({ "RecordId": format!("id-{index}") }),
        }
    };
    let entries: Vec<Value> = (0..count).map(entry).collect();
    json!({ "FailedPutCount": refused.len(), "RequestResponses": entries })
}

fn error(status: u16, code: &str) -> HttpResponse {
    response(
        status,
        &json!({ "__type": code, "message": "as the test says" }),
    )
}

fn response(status: u16, body: &Value) -> HttpResponse {
    let status = status.try_into().expect("an HTTP status");
    HttpResponse::new(status, body.to_string().into())
}
