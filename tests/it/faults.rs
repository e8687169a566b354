//! Every fault of Firehose and of STS by itself: what is delivered then, how often, and what is said about it.
//!
//! What somebody must act on is in `firehose/blocked.rs` too; all of it together, and crashes, in `ledger.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::firehose::{ROLE, enter, numbers, project, resumed, sync};
use crate::support::endpoint::{Api, Endpoint, Faults, Kind, Ledger, Lifetime, Quota, Rule};
use crate::support::{Project, Ran};

const UNAVAILABLE: &str = "ServiceUnavailableException";

/// A fault, and what a run makes of it.
struct Row {
    fault: Kind,
    faults: Faults,
    settings: &'static str,
    by_role: bool,
    users: usize,
    /// How often a record arrives in the first run,
    sent: RangeInclusive<usize>,
    /// and how many were accepted of which nobody was told.
    lost: usize,
    /// What the message says of a stream that takes nothing. Without words everything is delivered.
    words: &'static [&'static str],
}

impl Row {
    fn new(fault: Kind, faults: Faults) -> Self {
        Self {
            fault,
            faults,
            settings: "",
            by_role: true,
            users: 3,
            sent: 1..=1,
            lost: 0,
            words: &[],
        }
    }

    /// The fault happens so many times, and then no more.
    fn times(times: usize, fault: Kind) -> Self {
        let rule = Rule::always(fault).times(times);
        Self::new(fault, Faults::seeded(1).rule(rule))
    }

    /// The same, in calls of one kind.
    fn times_of(times: usize, api: Api, fault: Kind) -> Self {
        let rule = Rule::always(fault).times(times).of(api);
        Self::new(fault, Faults::seeded(1).rule(rule))
    }

    fn sent(mut self, sent: RangeInclusive<usize>) -> Self {
        self.sent = sent;
        self
    }

    fn lost(mut self, lost: usize) -> Self {
        self.lost = lost;
        self
    }

    fn users(mut self, users: usize) -> Self {
        self.users = users;
        self
    }

    fn blocked(mut self, words: &'static [&'static str]) -> Self {
        self.words = words;
        self
    }

    fn settings(mut self, settings: &'static str) -> Self {
        self.settings = settings;
        self
    }

    /// As who runs it, so that the first call is one of Firehose.
    fn without_role(mut self) -> Self {
        self.by_role = false;
        self
    }

    #[track_caller]
    fn check(self) {
        let Self { fault, users, .. } = self;
        let endpoint = Endpoint::start();
        let project = match self.by_role {
            true => project_with_role(&endpoint, self.settings),
            false => project(&endpoint, self.settings),
        };
        enter(&project, 0..users);
        endpoint.play(self.faults);
        let ran = sync(&project);
        endpoint.wait_until_idle();
        let first = endpoint.take_ledger();
        assert!(
            first.played.contains_key(&fault),
            "{fault:?} never happened"
        );
        let tally = Tally::of(&first);
        for sent in tally.sent.values() {
            assert!(self.sent.contains(sent), "{fault:?}: sent {sent} times");
        }
        assert_eq!(tally.lost, self.lost, "{fault:?}");

        endpoint.accept_everything();
        if self.words.is_empty() {
            check_delivered(fault, users, &ran);
            assert_eq!(project.sync()["outcome"], "unchanged", "{fault:?}");
            assert!(endpoint.ledger().calls.is_empty(), "{fault:?}");
            tally.check_told_once(fault, users);
        } else {
            check_kept(fault, users, &ran, self.words);
            assert!(first.accepted.is_empty(), "{fault:?}");
            let (resume, plan) = resumed(&project);
            assert_eq!(numbers(&resume, ["delivered"]), [users as u64]);
            assert_eq!(plan["outcome"], "unchanged", "{fault:?}");
            endpoint.wait_until_idle();
            let second = Tally::of(&endpoint.ledger());
            second.check_told_once(fault, users);
            let is_the_same = |record| second.sent.contains_key(record);
            assert!(tally.sent.keys().all(is_the_same), "{fault:?}");
        }
    }
}

/// By bytes of a record, how often it was sent and how often somebody was told that it is accepted.
#[derive(Default)]
struct Tally {
    sent: BTreeMap<Vec<u8>, usize>,
    told: BTreeMap<Vec<u8>, usize>,
    /// Records that were accepted, and nobody was told.
    lost: usize,
}

impl Tally {
    fn of(ledger: &Ledger) -> Self {
        let mut tally = Self::default();
        for record in ledger.calls.iter().flat_map(|call| &call.records) {
            *tally.sent.entry(record.clone()).or_default() += 1;
        }
        for ((_, record), told) in ledger.accepted.iter().zip(&ledger.acknowledged) {
            match told {
                true => *tally.told.entry(record.clone()).or_default() += 1,
                false => tally.lost += 1,
            }
        }
        tally
    }

    /// What somebody was told of is never sent again, and nothing that was sent is anything else.
    #[track_caller]
    fn check_told_once(&self, fault: Kind, users: usize) {
        let counts = (self.told.len(), self.sent.len());
        assert_eq!(counts, (users, users), "{fault:?}");
        assert!(self.told.values().all(|times| *times == 1), "{fault:?}");
    }
}

fn project_with_role(endpoint: &Endpoint, settings: &str) -> Project {
    let secret = "secret_id = { env = \"AUDIENCE_SYNC_SECRET_ID\" }";
    let settings = format!("role_address = \"{ROLE}\"\n{secret}\n{settings}\n");
    project(endpoint, &settings)
}

#[track_caller]
fn check_delivered(fault: Kind, users: usize, ran: &Ran) {
    assert_eq!(ran.code, 0, "{fault:?}: {ran:?}");
    let report = &ran.lines()[0];
    assert_eq!(report["outcome"], "delivered", "{fault:?}: {ran:?}");
    let counted = numbers(report, ["delivered", "undelivered"]);
    assert_eq!(counted, [users as u64, 0], "{fault:?}");
    assert!(report["error"].is_null(), "{fault:?}: {ran:?}");
}

#[track_caller]
fn check_kept(fault: Kind, users: usize, ran: &Ran, words: &[&str]) {
    assert_eq!(ran.code, 3, "{fault:?}: {ran:?}");
    let report = &ran.lines()[0];
    assert_eq!(report["outcome"], "undelivered", "{fault:?}: {ran:?}");
    let counted = numbers(report, ["delivered", "undelivered"]);
    assert_eq!(counted, [0, users as u64], "{fault:?}");
    let error = report["error"].as_str().unwrap();
    for word in words {
        assert!(error.contains(word), "{fault:?}: {word}: {error}");
        assert!(ran.stderr.contains(word), "{fault:?}: {word}: {ran:?}");
    }
}

#[test]
fn records_that_are_refused_are_sent_again_until_they_are_taken() {
    for code in [UNAVAILABLE, "InternalFailure", "NotInTheManual"] {
        Row::times(2, Kind::Refused(code)).sent(1..=3).check();
    }
}

#[test]
fn a_call_that_fails_for_now_is_made_again() {
    for (status, code) in [
        (500, "InternalFailure"),
        (503, UNAVAILABLE),
        (400, "ThrottlingException"),
        (400, "LimitExceededException"),
        (429, "TooManyRequestsException"),
        (502, "a gateway that is not AWS"),
    ] {
        let fault = Kind::Error(status, code);
        Row::times(2, fault).sent(3..=3).check();
    }
}

#[test]
fn a_connection_that_is_reset_before_all_is_said_leaves_nothing_behind() {
    for fault in [Kind::ResetBeforeReading, Kind::ResetHalfWay] {
        Row::times(3, fault).without_role().check();
    }
}

#[test]
fn an_answer_that_is_lost_costs_one_repeat_of_what_it_was_about() {
    for fault in [
        Kind::AcceptedThenClosed,
        Kind::AcceptedThenReset,
        Kind::CutShort,
        Kind::WrongCount,
    ] {
        Row::times(2, fault).sent(3..=3).lost(6).check();
    }
}

#[test]
fn an_answer_that_takes_a_while_is_waited_for() {
    let rule = Rule::always(Kind::Late).times(2);
    let times = Duration::from_millis(900)..Duration::from_millis(1_100);
    let faults = Faults::seeded(1).rule(rule).late(times);
    Row::new(Kind::Late, faults).check();
}

#[test]
fn single_records_are_as_safe_as_batches() {
    let singly = |row: Row| row.settings("api = \"put_record\"").sent(1..=3).check();
    singly(Row::times(2, Kind::Error(503, UNAVAILABLE)));
    singly(Row::times(2, Kind::Refused("InternalFailure")));
    singly(Row::times(2, Kind::AcceptedThenReset).lost(2));
    singly(Row::times(2, Kind::WrongCount).lost(2));
}

/// Whoever gives a call up after 30 seconds does not know what became of it.
#[test]
fn an_answer_that_does_not_come_in_30_seconds_is_given_up_and_the_call_repeated() {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint, "");
    enter(&project, 0..600);
    let never = Rule::always(Kind::AcceptedThenHung).times(1);
    let too_late = Rule::always(Kind::TooLate).times(1);
    endpoint.play(Faults::seeded(1).rules([never, too_late]));
    let began = Instant::now();
    let ran = sync(&project);
    let seconds = began.elapsed().as_secs();
    assert!((30..50).contains(&seconds), "{seconds} s");
    check_delivered(Kind::TooLate, 600, &ran);
    endpoint.wait_until_idle();
    let ledger = endpoint.ledger();
    assert_eq!(ledger.played.len(), 2, "{:?}", ledger.played);
    let tally = Tally::of(&ledger);
    tally.check_told_once(Kind::TooLate, 600);
    assert_eq!(tally.lost, 600);
    assert!(tally.sent.values().all(|times| *times == 2));
}

#[test]
fn credentials_that_are_not_accepted_any_more_are_renewed() {
    for code in [
        "ExpiredTokenException",
        "UnrecognizedClientException",
        "InvalidSignatureException",
    ] {
        Row::times(1, Kind::Error(400, code)).sent(2..=2).check();
    }
    let sessions = Faults::seeded(1).sessions(Lifetime::Calls(2..3));
    let row = Row::new(Kind::SessionExpired, sessions).users(1_201);
    row.sent(1..=2).check();
}

/// It is not the content's fault.
#[test]
fn credentials_that_are_missing_end_the_run_and_no_record_is_to_blame() {
    for code in ["MissingAuthenticationTokenException", "IncompleteSignature"] {
        let row = Row::times(usize::MAX, Kind::Error(400, code)).sent(1..=2);
        row.blocked(&["the credentials are not accepted"]).check();
    }
}

#[test]
fn sts_that_is_not_well_is_asked_again() {
    // The last two are pages of a proxy's: no code, and not even XML.
    let answers = [
        (500, "InternalFailure"),
        (400, "Throttling"),
        (400, "RequestExpired"),
        (403, ""),
        (407, "<p"),
    ];
    for (status, code) in answers {
        Row::times_of(2, Api::AssumeRole, Kind::Error(status, code)).check();
    }
}

#[test]
fn where_only_the_single_call_is_allowed_that_is_made() {
    let denied = Kind::Error(400, "AccessDeniedException");
    let row = Row::times_of(usize::MAX, Api::PutRecordBatch, denied);
    row.sent(2..=2).check();
}

#[test]
fn what_is_over_the_quota_goes_when_there_is_room() {
    let quota = |quota| Faults::seeded(1).quota(quota);
    let records = quota(Quota {
        records: 2.0,
        ..Quota::NONE
    });
    Row::new(Kind::OverQuota, records).sent(1..=9).check();
    let bytes = quota(Quota {
        bytes: 1_200.0,
        ..Quota::NONE
    });
    Row::new(Kind::OverQuota, bytes).sent(1..=9).check();
    let requests = quota(Quota {
        requests: 2.0,
        ..Quota::NONE
    });
    let row = Row::new(Kind::TooManyCalls, requests).sent(1..=9);
    row.settings("api = \"put_record\"").check();
}

#[test]
fn a_stream_that_takes_nothing_is_named_and_everything_is_kept() {
    let fault = Kind::Error(400, "InvalidSourceException");
    let faults = Faults::seeded(1).rule(Rule::always(fault));
    let row = Row::new(fault, faults);
    row.blocked(&["InvalidSource", "`members`", "hint: "])
        .check();
    let faults = Faults::seeded(1).streams(&["others"]);
    let row = Row::new(Kind::NoSuchStream, faults);
    row.blocked(&["no stream `members`", "us-west-2", "hint: "])
        .check();
}

const MAY_PUT: &str = r#""Action":["firehose:PutRecordBatch","firehose:PutRecord"]"#;
const MEMBERS: &str = r#""arn:aws:firehose:us-west-2:874699288871:deliverystream/members""#;
const MAY_ASSUME: &str = r#""Action":"sts:AssumeRole""#;
const EXTERNAL_ID: &str = r#""sts:ExternalId":"YOUR_SECRET_ID""#;

#[test]
fn what_is_missing_in_iam_is_printed_as_it_is_to_be_pasted() {
    let denied = Kind::Error(400, "AccessDeniedException");
    let row = Row::times(usize::MAX, denied).sent(1..=2);
    row.blocked(&[MAY_PUT, MEMBERS, ROLE]).check();
    let denied = Kind::Error(403, "AccessDenied");
    let row = Row::times_of(usize::MAX, Api::AssumeRole, denied);
    row.blocked(&[ROLE, MAY_ASSUME, EXTERNAL_ID]).check();
}

/// Whoever knows nothing of a stream's quota finds it out, and does not hammer.
#[test]
fn a_quota_far_below_what_is_sent_is_found_out() {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint, "");
    enter(&project, 0..1_000);
    endpoint.play(Faults::seeded(1).quota(Quota {
        records: 200.0,
        ..Quota::NONE
    }));
    check_delivered(Kind::OverQuota, 1_000, &sync(&project));
    endpoint.wait_until_idle();
    let ledger = endpoint.ledger();
    Tally::of(&ledger).check_told_once(Kind::OverQuota, 1_000);
    let refused = ledger.sent() - ledger.accepted.len();
    assert!(refused <= 3_000, "{refused} refused");
    assert!(ledger.calls.len() <= 60, "{} calls", ledger.calls.len());
}

/// It may have room for all of the bytes: smaller calls would only be more of them.
#[test]
fn a_stream_that_is_short_of_requests_gets_no_more_of_them() {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint, "");
    enter(&project, 0..3_000);
    endpoint.play(Faults::seeded(1).quota(Quota {
        requests: 2.0,
        ..Quota::NONE
    }));
    check_delivered(Kind::TooManyCalls, 3_000, &sync(&project));
    endpoint.wait_until_idle();
    let ledger = endpoint.ledger();
    Tally::of(&ledger).check_told_once(Kind::TooManyCalls, 3_000);
    let batches = ledger.of(Api::PutRecordBatch);
    assert!(batches.len() > 6, "nothing was refused");
    assert!(batches.iter().all(|call| call.records.len() == 500));
}

/// Of a call with something that Firehose does not like, only the line that is to blame stays behind.
#[test]
fn content_that_is_refused_is_in_the_way_of_nothing_else() {
    let codes: [&'static [&'static str]; 4] = [
        &["ValidationException"],
        &["InvalidArgumentException"],
        &["SerializationException"],
        &["NotInTheManualException"],
    ];
    for code in codes {
        for settings in ["", "api = \"put_record\"", "pack = true"] {
            check_poisoned(code, settings);
        }
    }
}

#[track_caller]
fn check_poisoned(code: &'static [&'static str], settings: &str) {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint, settings);
    enter(&project, 0..40);
    project.shop("INSERT INTO members VALUES ('u00020-poison')");
    endpoint.play(Faults::seeded(1).poison("poison", code));
    let ran = sync(&project);
    assert_eq!(ran.code, 3, "{code:?}: {ran:?}");
    let report = &ran.lines()[0];
    let counted = numbers(report, ["delivered", "undelivered"]);
    assert_eq!(counted, [40, 1], "{code:?}: {ran:?}");
    assert_eq!(lines_accepted(&endpoint.take_ledger()), 40, "{settings}");
    let list = project.succeed(&["snapshot", "list", "--json"]).lines();
    assert_eq!(list[0]["pending"], 0, "{code:?}");

    endpoint.accept_everything();
    let report = project.sync();
    assert_eq!(numbers(&report, ["added", "delivered"]), [1, 1]);
    assert_eq!(lines_accepted(&endpoint.ledger()), 1, "{settings}");
    assert_eq!(project.sync()["outcome"], "unchanged");
}

/// How many lines were accepted, each of them once.
#[track_caller]
fn lines_accepted(ledger: &Ledger) -> usize {
    let all = ledger.accepted_by("members").concat();
    let lines: Vec<_> = all.split_inclusive(|byte| *byte == b'\n').collect();
    let distinct: BTreeSet<_> = lines.iter().collect();
    assert_eq!(lines.len(), distinct.len());
    lines.len()
}

/// A plan of faults is what all of this rests on.
#[test]
fn what_nobody_asked_for_does_not_happen() {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint, "");
    enter(&project, 0..3);
    let elsewhere = Rule::always(Kind::Error(500, "InternalFailure")).at("others");
    let never = Rule::always(Kind::ResetHalfWay).times(0);
    endpoint.play(Faults::seeded(1).rules([elsewhere, never]));
    let report = project.sync();
    assert_eq!(numbers(&report, ["requests", "retries"]), [1, 0]);
    endpoint.wait_until_idle();
    let ledger = endpoint.ledger();
    assert!(ledger.played.is_empty(), "{:?}", ledger.played);
    assert_eq!(ledger.acknowledged, [true; 3]);
}
