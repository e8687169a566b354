//! What an answer of Firehose's means for the records that it refuses: try again, renew the credentials, leave them to
//! somebody who must act, or find the one that is to blame.
//!
//! Pure, so that every code has its row in a test. AWS lists the codes of a call and those that all of its services
//! share: <https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatch.html#API_PutRecordBatch_Errors>,
//! <https://docs.aws.amazon.com/firehose/latest/APIReference/CommonErrors.html>.

use super::credentials::is_about_credentials;
use super::{Parked, Refusal};
use crate::mapping::StreamName;
use crate::policy::{self, Permission};

/// A call that was refused as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Called<'a> {
    /// Such as `firehose:PutRecordBatch`.
    pub(super) permission: &'a str,
    pub(super) stream: &'a StreamName,
    pub(super) region: &'a str,
    /// Its ARN.
    pub(super) role: Option<&'a str>,
    /// Of the credentials that it was signed with.
    pub(super) generation: u64,
}

impl Called<'_> {
    /// Nothing was sent.
    pub(super) fn was_not_made(&self, message: &str) -> Refusal {
        Refusal::Park(Parked {
            problem: format!("firehose cannot be called: {message}"),
            hint: None,
        })
    }

    /// What to do, by an answer's status (0 where there was no answer), code and words.
    pub(super) fn was_answered(&self, status: u16, code: Option<&str>, message: &str) -> Refusal {
        let Some(code) = code.or_else(|| code_of_proxy(status)) else {
            return Refusal::Retry(format!("firehose did not answer: {message}"));
        };
        if status >= 500 || status == 429 || is_throttled(code) || is_passing(code) {
            return Refusal::Retry(format!("firehose answered {code}"));
        }
        let reason = format!("{code}: {}", shown(message));
        if is_about_credentials(code) {
            return Refusal::Refresh {
                reason,
                refused: self.generation,
            };
        }
        let (problem, hint) = match self.parked(code, &reason) {
            Some(parked) => parked,
            // ValidationException, InvalidArgumentException, SerializationException, and what AWS may yet come up with.
            None if matches!(status, 400 | 413) => {
                return Refusal::Bisect {
                    code: code.to_owned(),
                    message: message.to_owned(),
                };
            }
            None => (
                format!(
                    "stream `{}` cannot be written to ({status} {reason})",
                    self.stream
                ),
                "the records stay in the journal; the next run tries again".to_owned(),
            ),
        };
        Refusal::Park(Parked {
            problem,
            hint: Some(hint),
        })
    }

    /// What somebody must act on, and how.
    fn parked(&self, code: &str, reason: &str) -> Option<(String, String)> {
        let Self { stream, region, .. } = self;
        Some(match code {
            "ResourceNotFoundException" => (
                format!("there is no stream `{stream}` in {region} ({reason})"),
                "create it, or correct the mapping or the region; what is in the journal already goes to the stream of \
                 its plan, so create that one too"
                    .to_owned(),
            ),
            code if is_denied(code) => (
                format!(
                    "no permission for {} on stream `{stream}` ({reason})",
                    self.permission
                ),
                self.permission_hint(),
            ),
            code if code.contains("KMS") => (
                format!("the encryption key of stream `{stream}` cannot be used ({reason})"),
                "the stream's KMS key must be enabled, and its policy must let Firehose use it"
                    .to_owned(),
            ),
            "InvalidSourceException" => (
                format!("stream `{stream}` takes no direct puts ({reason})"),
                "its source must be Direct PUT, without decompression of CloudWatch Logs"
                    .to_owned(),
            ),
            "OptInRequired" | "SubscriptionRequiredException" | "UnknownOperationException" => (
                format!("there is no Firehose for this account in {region} ({reason})"),
                "see that the region is right, and enabled for the account".to_owned(),
            ),
            _ => return None,
        })
    }

    /// The very statement that is missing.
    fn permission_hint(&self) -> String {
        let arn = policy::stream_arn(self.role, self.region, self.stream.as_str());
        let statement = policy::line(&Permission::to_put(vec![arn]));
        let whose = self.role.unwrap_or("whoever runs audience-sync");
        format!(
            "add to the permission policy of {whose}: {statement}; `audience-sync iam` prints all of it"
        )
    }
}

/// What may be shown of a server's words. One that repeats what it was sent quotes it, and ids are not for logs.
fn shown(message: &str) -> &str {
    let quoted = message.find(['{', '[', '"', '\'', '`', '\\']);
    message[..quoted.unwrap_or(message.len())].trim_end()
}

/// A proxy on the way answers without a code. One that finds a call too large blames its content, too.
fn code_of_proxy(status: u16) -> Option<&'static str> {
    match status {
        400 => Some("400 Bad Request"),
        413 => Some("413 Content Too Large"),
        _ => None,
    }
}

pub(super) fn is_denied(code: &str) -> bool {
    matches!(
        code,
        "AccessDenied" | "AccessDeniedException" | "NotAuthorized"
    )
}

/// The stream, or the account, has had too much. A refused record has the same codes.
pub(super) fn is_throttled(code: &str) -> bool {
    code.contains("Throttl")
        || matches!(
            code,
            "ServiceUnavailableException"
                | "ServiceUnavailable"
                | "LimitExceededException"
                | "RequestLimitExceeded"
                | "TooManyRequestsException"
                | "SlowDown"
        )
}

/// Whether the code of a refused record is none that AWS documents: ServiceUnavailableException and InternalFailure.
/// <https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatchResponseEntry.html>
pub(super) fn is_strange(code: &str) -> bool {
    !is_throttled(code) && !is_passing(code)
}

/// The same call may go well the next time.
fn is_passing(code: &str) -> bool {
    matches!(
        code,
        "InternalFailure"
            | "InternalError"
            | "RequestAborted"
            | "RequestAbortedException"
            | "RequestExpired"
            | "RequestTimeout"
            | "RequestTimeoutException"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, code: Option<&str>) -> Refusal {
        let called = Called {
            permission: "firehose:PutRecordBatch",
            stream: &StreamName::parse("members").unwrap(),
            region: "us-west-2",
            role: Some("arn:aws:iam::874699288871:role/example-role"),
            generation: 7,
        };
        called.was_answered(status, code, "as the test says")
    }

    #[test]
    fn every_code_has_its_way_out() {
        let check = |status, codes: &[&str], expected: &str| {
            for code in codes {
                let code = Some(*code).filter(|code| !code.is_empty());
                let found = match refusal(status, code) {
                    Refusal::Retry(_) => "retry",
                    Refusal::Refresh { refused: 7, .. } => "refresh",
                    Refusal::Park(_) => "park",
                    Refusal::Bisect { .. } => "bisect",
                    Refusal::Refresh { .. } => "another generation",
                };
                assert_eq!(found, expected, "{status} {code:?}");
            }
        };
        check(0, &[""], "retry");
        check(500, &["InternalFailure", "SomethingNew", ""], "retry");
        check(
            503,
            &["ServiceUnavailableException", "SlowDown", ""],
            "retry",
        );
        check(429, &["SomethingNew", ""], "retry");
        let passing = [
            "ThrottlingException",
            "Throttling",
            "KMSThrottlingException",
            "LimitExceededException",
            "RequestAborted",
            "RequestAbortedException",
            "RequestExpired",
            "InternalFailure",
        ];
        check(400, &passing, "retry");
        let credentials = [
            "ExpiredTokenException",
            "ExpiredToken",
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "InvalidSignatureException",
            "MissingAuthenticationTokenException",
            "IncompleteSignature",
            "RequestTimeTooSkewed",
        ];
        check(400, &credentials, "refresh");
        check(403, &credentials, "refresh");
        let parked = [
            "AccessDeniedException",
            "ResourceNotFoundException",
            "InvalidKMSResourceException",
            "KMSAccessDeniedException",
            "InvalidSourceException",
            "OptInRequired",
            "UnknownOperationException",
        ];
        check(400, &parked, "park");
        check(403, &["AccessDenied", "MissingAuthenticationToken"], "park");
        check(404, &["UnknownOperationException", "SomethingNew"], "park");
        check(403, &[""], "retry");
        let content = [
            "ValidationException",
            "InvalidArgumentException",
            "SerializationException",
            "SomethingNew",
            "",
        ];
        check(400, &content, "bisect");
        check(413, &["", "RequestEntityTooLarge"], "bisect");
    }

    #[test]
    fn words_that_are_quoted_are_not_shown() {
        let check = |words: &str, expected: &str| assert_eq!(shown(words), expected);
        let denied = "User: arn:aws:sts::1:assumed-role/r/s is not authorized to perform: firehose:PutRecord";
        check(denied, denied);
        check("cannot take {\"userId\":\"u\"}", "cannot take");
        check("'u' is not welcome", "");
    }

    #[test]
    fn a_missing_permission_is_named_as_it_is_to_be_added() {
        let Refusal::Park(parked) = refusal(400, Some("AccessDeniedException")) else {
            panic!("nobody tries again");
        };
        assert_eq!(
            parked.to_string(),
            "no permission for firehose:PutRecordBatch on stream `members` (AccessDeniedException: as the test says)\n\n\
             hint: add to the permission policy of arn:aws:iam::874699288871:role/example-role: \
             {\"Effect\":\"Allow\",\"Action\":[\"firehose:PutRecordBatch\",\"firehose:PutRecord\"],\
             \"Resource\":[\"arn:aws:firehose:us-west-2:874699288871:deliverystream/members\"]}; \
             `audience-sync iam` prints all of it"
        );
    }
}
