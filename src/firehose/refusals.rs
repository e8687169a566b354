//! What an answer of Firehose means for the records that it refuses: try again, renew the credentials, leave them until
//! an operator acts, or find the line whose content is rejected.
//!
//! Pure, so that every code has its row in a test. AWS lists the codes of a call and those that all of its services
//! share: <https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatch.html#API_PutRecordBatch_Errors>,
//! <https://docs.aws.amazon.com/firehose/latest/APIReference/CommonErrors.html>.

use super::credentials::is_about_credentials;
use super::{Blocked, Cause, Failure, Refusal};
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
        Refusal::Blocked(Blocked {
            problem: format!("firehose cannot be called: {message}"),
            hint: None,
        })
    }

    /// What to do, by an answer's status (0 where there was no answer), code and words.
    pub(super) fn was_answered(&self, status: u16, code: Option<&str>, message: &str) -> Refusal {
        let is_server_error = status == 0 || status >= 500;
        let Some(code) = code.or_else(|| code_of_proxy(status)) else {
            return Refusal::Failed(Failure {
                cause: Cause::Unanswered,
                code: String::new(),
                message: format!("firehose did not answer: {message}"),
                is_maybe_accepted: is_server_error,
            });
        };
        let failed = |cause, is_maybe_accepted| {
            Refusal::Failed(Failure {
                cause,
                code: code.to_owned(),
                message: message.to_owned(),
                is_maybe_accepted,
            })
        };
        if status == 429 || is_throttled(code) {
            return failed(Cause::Throttled, is_server_error);
        }
        if is_server_error || is_passing(code) {
            return failed(
                Cause::InternalError,
                is_server_error || may_be_accepted(code),
            );
        }
        let reason = format!("{code}: {}", shown(message));
        if is_about_credentials(code) {
            return Refusal::Refresh {
                reason,
                refused: self.generation,
            };
        }
        let (problem, hint) = match self.blocked(code, &reason) {
            Some(blocked) => blocked,
            // ValidationException, InvalidArgumentException, SerializationException, and what AWS may yet come up with.
            None if matches!(status, 400 | 413) => {
                return Refusal::Rejected {
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
        Refusal::Blocked(Blocked {
            problem,
            hint: Some(hint),
        })
    }

    /// What an operator must act on, and how.
    fn blocked(&self, code: &str, reason: &str) -> Option<(String, String)> {
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
        let whose = self.role.unwrap_or("the user that runs audience-sync");
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

/// What the code of a refused record means. AWS documents two: ServiceUnavailableException and InternalFailure.
/// <https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatchResponseEntry.html>
pub(super) fn of_record(code: &str, message: &str) -> Failure {
    let cause = match code {
        code if is_throttled(code) => Cause::Throttled,
        code if is_passing(code) => Cause::InternalError,
        _ => Cause::Undocumented,
    };
    Failure {
        cause,
        code: code.to_owned(),
        message: message.to_owned(),
        is_maybe_accepted: cause == Cause::InternalError && may_be_accepted(code),
    }
}

/// An internal error may come after the records were accepted. "If there is an internal server error or a timeout, the
/// write might have completed or it might have failed."
/// <https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatch.html>
fn may_be_accepted(code: &str) -> bool {
    // This one is found out before anything is looked at.
    code != "RequestExpired"
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
                    Refusal::Failed(failure) => match (failure.cause, failure.is_maybe_accepted) {
                        (Cause::Throttled, false) => "throttled",
                        (Cause::Throttled, true) => "throttled, maybe accepted",
                        (Cause::InternalError, false) => "failed",
                        (Cause::InternalError, true) => "failed, maybe accepted",
                        (Cause::Unanswered, false) => "unanswered",
                        (Cause::Unanswered, true) => "unanswered, maybe accepted",
                        (Cause::Undocumented | Cause::Content, _) => "not of a call",
                    },
                    Refusal::Refresh { refused: 7, .. } => "refresh",
                    Refusal::Blocked(_) => "blocked",
                    Refusal::Rejected { .. } => "rejected",
                    Refusal::Refresh { .. } => "another generation",
                    Refusal::Retry(_) => "nothing was sent",
                };
                assert_eq!(found, expected, "{status} {code:?}");
            }
        };
        check(0, &[""], "unanswered, maybe accepted");
        check(502, &[""], "unanswered, maybe accepted");
        check(
            500,
            &["InternalFailure", "SomethingNew"],
            "failed, maybe accepted",
        );
        check(
            503,
            &["ServiceUnavailableException", "SlowDown"],
            "throttled, maybe accepted",
        );
        check(429, &["SomethingNew"], "throttled");
        check(429, &[""], "unanswered");
        let throttled = [
            "ThrottlingException",
            "Throttling",
            "KMSThrottlingException",
            "LimitExceededException",
        ];
        check(400, &throttled, "throttled");
        let failed = ["RequestAborted", "RequestTimeout", "InternalFailure"];
        check(400, &failed, "failed, maybe accepted");
        check(400, &["RequestExpired"], "failed");
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
        let blocked = [
            "AccessDeniedException",
            "ResourceNotFoundException",
            "InvalidKMSResourceException",
            "KMSAccessDeniedException",
            "InvalidSourceException",
            "OptInRequired",
            "UnknownOperationException",
        ];
        check(400, &blocked, "blocked");
        check(
            403,
            &["AccessDenied", "MissingAuthenticationToken"],
            "blocked",
        );
        check(
            404,
            &["UnknownOperationException", "SomethingNew"],
            "blocked",
        );
        check(403, &[""], "unanswered");
        let content = [
            "ValidationException",
            "InvalidArgumentException",
            "SerializationException",
            "SomethingNew",
            "",
        ];
        check(400, &content, "rejected");
        check(413, &["", "RequestEntityTooLarge"], "rejected");
    }

    #[test]
    fn a_record_is_refused_for_one_of_two_reasons_or_an_undocumented_one() {
        let check = |code, cause, is_maybe_accepted| {
            let failure = of_record(code, "as the test says");
            assert_eq!(
                (failure.cause, failure.is_maybe_accepted),
                (cause, is_maybe_accepted),
                "{code}"
            );
        };
        check("ServiceUnavailableException", Cause::Throttled, false);
        check("InternalFailure", Cause::InternalError, true);
        check("SomethingNew", Cause::Undocumented, false);
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
        let Refusal::Blocked(blocked) = refusal(400, Some("AccessDeniedException")) else {
            panic!("it is tried again");
        };
        assert_eq!(
            blocked.to_string(),
            "no permission for firehose:PutRecordBatch on stream `members` (AccessDeniedException: as the test says)\n\n\
             hint: add to the permission policy of arn:aws:iam::874699288871:role/example-role: \
             {\"Effect\":\"Allow\",\"Action\":[\"firehose:PutRecordBatch\",\"firehose:PutRecord\"],\
             \"Resource\":[\"arn:aws:firehose:us-west-2:874699288871:deliverystream/members\"]}; \
             `audience-sync iam` prints all of it"
        );
    }
}
