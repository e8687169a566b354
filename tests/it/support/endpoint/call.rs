//! The calls of Firehose and STS: read from requests, and answered as AWS answers them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, NaiveDateTime, SecondsFormat, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::json;

use super::http::{Request, Response};

// <https://docs.aws.amazon.com/firehose/latest/dev/limits.html>, apart from the program's own idea of them.
const MAX_RECORDS: usize = 500;
const MAX_CALL_BYTES: usize = 4_194_304;
const MAX_RECORD_BYTES: usize = 1_024_000;
/// A signature of another time than this is refused, on either side.
const MAX_SKEW: TimeDelta = TimeDelta::minutes(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    PutRecordBatch,
    PutRecord,
    /// Or AssumeRoleWithWebIdentity: STS.
    AssumeRole,
}

/// One call, as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub api: Api,
    /// Empty for STS.
    pub stream: String,
    pub records: Vec<Vec<u8>>,
    /// Those of AssumeRole or AssumeRoleWithWebIdentity, by name.
    pub parameters: BTreeMap<String, String>,
    /// Whose signature it bears.
    pub access_key: String,
    pub session_token: Option<String>,
    /// Region and service that it is signed for: `us-west-2/firehose`.
    pub scope: String,
    signed_at: Option<DateTime<Utc>>,
}

/// The body of PutRecordBatch or PutRecord.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Put {
    delivery_stream_name: String,
    #[serde(default)]
    records: Vec<WireRecord>,
    record: Option<WireRecord>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireRecord {
    data: String,
}

impl Call {
    pub(super) fn parse(request: &Request) -> Self {
        let signed = request.header("authorization").unwrap_or_default();
        let credential = signed.split_once("Credential=").unwrap_or_default().1;
        let mut credential = credential.split(['/', ',']).map(str::to_owned);
        let mut part = |skipped| credential.nth(skipped).unwrap_or_default();
        let (access_key, region, service) = (part(0), part(1), part(0));
        let date = request.header("x-amz-date");
        let signed_at = date.map(|date| {
            let at = NaiveDateTime::parse_from_str(date, "%Y%m%dT%H%M%SZ").unwrap();
            at.and_utc()
        });
        let mut call = Self {
            api: Api::AssumeRole,
            stream: String::new(),
            records: Vec::new(),
            parameters: BTreeMap::new(),
            access_key,
            session_token: request.header("x-amz-security-token").map(str::to_owned),
            scope: format!("{region}/{service}"),
            signed_at,
        };
        call.api = match request.header("x-amz-target") {
            Some("Firehose_20150804.PutRecordBatch") => Api::PutRecordBatch,
            Some("Firehose_20150804.PutRecord") => Api::PutRecord,
            None => {
                call.parameters = request.form();
                // A token stands for the signature there.
                let is_signed = call.action() != "AssumeRoleWithWebIdentity";
                assert_eq!(call.signed_at.is_some(), is_signed);
                return call;
            }
            Some(other) => panic!("nobody plays {other}"),
        };
        let put: Put = serde_json::from_slice(&request.body).unwrap();
        let records = put.records.into_iter().chain(put.record);
        call.records = records
            .map(|record| BASE64_STANDARD.decode(record.data).unwrap())
            .collect();
        call.stream = put.delivery_stream_name;
        call
    }

    /// What is asked of STS.
    pub(crate) fn action(&self) -> &str {
        &self.parameters["Action"]
    }

    pub(super) fn bytes(&self) -> usize {
        self.records.iter().map(Vec::len).sum()
    }

    /// A limit of AWS's that it breaks: the code and what is wrong.
    pub(super) fn violation(&self) -> Option<(&'static str, String)> {
        let (count, bytes) = (self.records.len(), self.bytes());
        let is_too_long = |record: &Vec<u8>| record.len() > MAX_RECORD_BYTES;
        let code = match self.api {
            Api::AssumeRole => return None,
            _ if !(1..=MAX_RECORDS).contains(&count) => "ValidationException",
            _ if self.records.iter().any(is_too_long) => "ValidationException",
            _ if bytes > MAX_CALL_BYTES => "InvalidArgumentException",
            _ => return None,
        };
        let longest = self.records.iter().map(Vec::len).max().unwrap_or_default();
        let message = format!("{count} records of {bytes} bytes, the longest of {longest}");
        Some((code, message))
    }

    /// A signature of another time than AWS's: the code and what is wrong.
    pub(super) fn bad_time(&self, now: DateTime<Utc>) -> Option<(&'static str, String)> {
        let signed_at = self.signed_at?;
        let code = match self.api {
            Api::AssumeRole => "SignatureDoesNotMatch",
            _ => "InvalidSignatureException",
        };
        let message = format!("signed at {signed_at}, and it is {now}");
        ((now - signed_at).abs() > MAX_SKEW).then_some((code, message))
    }

    /// A 200 of Firehose's.
    pub(super) fn answer(&self, entries: usize, refused: &[usize], code: &str) -> Response {
        if self.api == Api::PutRecord && !refused.is_empty() {
            return self.error(503, code, "Slow down.");
        }
        if self.api == Api::PutRecord && entries == 1 {
            return Response::json(200, &json!({ "RecordId": "id", "Encrypted": false }));
        }
        if self.api == Api::PutRecord {
            return Response::json(200, &json!({ "Encrypted": false }));
        }
        let entry = |index: usize| match refused.contains(&index) {
            true => json!({ "ErrorCode": code, "ErrorMessage": "Slow down." }),
            false => json!({ "RecordId": format!("id-{index}") }),
        };
        let entries: Vec<_> = (0..entries).map(entry).collect();
        Response::json(
            200,
            &json!({ "FailedPutCount": refused.len(), "Encrypted": false, "RequestResponses": entries }),
        )
    }

    pub(super) fn error(&self, status: u16, code: &str, message: &str) -> Response {
        if self.api != Api::AssumeRole {
            return Response::json(status, &json!({ "__type": code, "message": message }));
        }
        Response::xml(
            status,
            format!(
                "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                 <Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
            ),
        )
    }
}

/// Credentials for an hour: those of the first session are `ASIA1`, `secret1` and `token1`.
pub(super) fn session(action: &str, number: u32, now: DateTime<Utc>) -> Response {
    let expiration = (now + TimeDelta::hours(1)).to_rfc3339_opts(SecondsFormat::Secs, true);
    Response::xml(
        200,
        format!(
            "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
             <AccessKeyId>ASIA{number}</AccessKeyId><SecretAccessKey>secret{number}</SecretAccessKey>\
             <SessionToken>token{number}</SessionToken><Expiration>{expiration}</Expiration>\
             </Credentials></{action}Result></{action}Response>"
        ),
    )
}
