//! Deliveries by the SDK's client, with answers by a script and a paused clock.

use std::iter;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::time::sleep;

use super::super::rate_limiter::Feedback;
use super::super::scripted::{self, Answer, Call, record, records, stream};
use super::super::{Api, Directory, Meter};
use super::*;
use crate::audience::DestinationName;
use crate::laws::cases;

/// What a test saw of the calls.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<Vec<Call>>>);

impl Seen {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// How often a line was sent in a call of its own.
    fn alone(&self, line: &str) -> usize {
        let calls = self.0.lock().unwrap();
        calls.iter().filter(|call| call.lines().eq([line])).count()
    }

    /// The script that it sees the calls of.
    fn script(
        &self,
        mut answer: impl FnMut(&Call) -> Answer + Send + 'static,
    ) -> impl FnMut(&Call) -> Answer + Send + 'static {
        let calls = Arc::clone(&self.0);
        move |call| {
            calls.lock().unwrap().push(call.clone());
            answer(call)
        }
    }
}

/// Refuses a call as a whole when a line of it begins with a word.
fn rejects(word: &'static str, status: u16, code: &'static str) -> impl Fn(&Call) -> Answer {
    move |call| match call.lines().any(|line| line.starts_with(word)) {
        true => Answer::Error(status, code),
        false => Answer::Accept,
    }
}

/// Refuses the records that begin with a word, one by one.
fn refuses(word: &'static str, code: &'static str) -> impl Fn(&Call) -> Answer {
    move |call| {
        let records = call.records.iter().enumerate();
        let refused = records.filter(|(_, record)| record.starts_with(word));
        Answer::Refuse(refused.map(|(index, _)| (index, code)).collect())
    }
}

fn lines(word: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{word}{n}")).collect()
}

fn positions(records: &[Record]) -> BTreeSet<usize> {
    records
        .iter()
        .flat_map(|record| record.lines.clone())
        .collect()
}

/// A delivery, and then the retry of its suspects.
async fn deliver(destination: &Destination, records: Vec<Record>, has_accepted: bool) -> Delivery {
    let (members, stop, meters) = (stream("members"), Stop::new(), Meters::default());
    let mut first = destination
        .deliver(&members, records, &meters, has_accepted, &stop)
        .await;
    if first.ended_by.is_some() {
        return first;
    }
    let suspects = std::mem::take(&mut first.suspects);
    let second = destination
        .retry(&members, suspects, &meters, has_accepted, &stop)
        .await;
    assert!(second.suspects.is_empty());
    first.delivered.extend(second.delivered);
    Delivery {
        delivered: first.delivered,
        ..second
    }
}

#[tokio::test(start_paused = true)]
async fn bad_lines_are_found_and_all_others_are_delivered() {
    type Script = Box<dyn FnMut(&Call) -> Answer + Send>;
    let check = async |script: Script, bad: usize, seconds: Range<u64>| {
        let seen = Seen::default();
        let destination = scripted::destination(seen.script(script));
        let all = [lines("bad", bad), lines("good", 75)].concat();
        let started = Instant::now();
        let delivery = deliver(&destination, records(&all), false).await;
        let took = started.elapsed();
        assert!(delivery.ended_by.is_none(), "{:?}", delivery.ended_by);
        assert_eq!(positions(&delivery.delivered), (bad..bad + 75).collect());
        let dead: Vec<Record> = delivery.dead.into_iter().map(|dead| dead.record).collect();
        assert_eq!(positions(&dead), (0..bad).collect());
        assert!(seconds.contains(&took.as_secs()), "{seconds:?} {took:?}");
        for line in lines("bad", bad) {
            assert_eq!(seen.alone(&line), 5, "{line}");
        }
    };
    let rejected = |code| Box::new(rejects("bad", 400, code));
    check(rejected("ValidationException"), 1, 0..3).await;
    check(rejected("SomethingNew"), 25, 0..10).await;
    check(rejected("ThrottlingException"), 1, 30..70).await;
    check(Box::new(rejects("bad", 500, "InternalFailure")), 1, 30..70).await;
    let refused = |code| Box::new(refuses("bad", code));
    check(refused("InternalFailure"), 1, 30..33).await;
    check(refused("InternalFailure"), 25, 30..40).await;
    check(refused("ServiceUnavailableException"), 2, 30..70).await;
    check(refused("SomethingNew"), 3, 0..6).await;
}

#[tokio::test(start_paused = true)]
async fn a_delivery_does_not_wait_for_lines_that_fail_alone() {
    let destination = scripted::destination(refuses("bad", "InternalFailure"));
    let all = [lines("good", 499), lines("bad", 1)].concat();
    let started = Instant::now();
    let meters = Meters::default();
    let delivery = destination
        .deliver(
            &stream("members"),
            records(&all),
            &meters,
            false,
            &Stop::new(),
        )
        .await;
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(delivery.delivered.len(), 499);
    assert_eq!(delivery.suspects.len(), 1);
    assert_eq!(delivery.suspects[0].record.lines, 499..500);
    assert_eq!(delivery.maybe_accepted, [499].into());
    assert!(delivery.ended_by.is_none() && delivery.dead.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_in_the_way_of_no_other_delivery() {
    // The retry never has an answer, and its calls take up all of their time.
    let destination = Arc::new(scripted::destination(|call| {
        match call.lines().any(|line| line.starts_with("bad")) {
            true => Answer::Refuse(vec![(call.records.len() - 1, "InternalFailure")]),
            false => Answer::Accept,
        }
    }));
    let all = [lines("good", 1), lines("bad", 1)].concat();
    let (members, stop, meters) = (stream("members"), Stop::new(), Meters::default());
    let first = destination
        .deliver(&members, records(&all), &meters, false, &stop)
        .await;
    let retry = destination.retry(&members, first.suspects, &meters, false, &stop);
    let others = async {
        let started = Instant::now();
        for _ in 0..100 {
            let good = records(&lines("good", 500));
            let delivery = destination
                .deliver(&members, good, &meters, false, &stop)
                .await;
            assert_eq!(delivery.delivered.len(), 500);
        }
        started.elapsed()
    };
    let (retried, took) = tokio::join!(retry, others);
    assert_eq!(retried.dead.len(), 1);
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_line_alone_is_dead_only_at_a_stream_that_accepted_others() {
    let check = async |has_accepted, code, expected: &str| {
        let destination = scripted::destination(rejects("bad", 400, code));
        let started = Instant::now();
        let delivery = deliver(&destination, records(&lines("bad", 1)), has_accepted).await;
        let found = match (delivery.dead.len(), &delivery.ended_by) {
            (1, None) => "dead",
            (0, Some(Ended::Stalled(_))) => "stalled",
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "{code} {has_accepted}");
        started.elapsed().as_secs()
    };
    check(true, "ValidationException", "dead").await;
    assert!((30..40).contains(&check(true, "ThrottlingException", "dead").await));
    assert_eq!(check(false, "ValidationException", "stalled").await, 90);
    assert_eq!(check(false, "ThrottlingException", "stalled").await, 90);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_rejects_each_line_refuses_everything_and_no_line_is_dead() {
    let check = async |count, has_accepted, calls: Range<usize>| {
        let seen = Seen::default();
        let script = rejects("bad", 400, "InvalidArgumentException");
        let destination = scripted::destination(seen.script(script));
        let delivery = deliver(&destination, records(&lines("bad", count)), has_accepted).await;
        let Some(Ended::RefusesEverything(blocked)) = &delivery.ended_by else {
            panic!("{:?}", delivery.ended_by);
        };
        let words =
            "stream `members` refuses every record that it is given (InvalidArgumentException)";
        assert_eq!(blocked.problem, words);
        assert!(delivery.dead.is_empty() && delivery.delivered.is_empty());
        assert!(calls.contains(&seen.count()), "{}", seen.count());
    };
    check(2, false, 8..30).await;
    check(2, true, 8..30).await;
    check(100, true, 199..1_300).await;
    check(600, false, 1_198..1_400).await;
}

/// Whatever they share it with. Content that is rejected has split the call before.
#[tokio::test(start_paused = true)]
async fn good_lines_are_found_where_each_record_has_a_bad_one() {
    let check = async |code, packed: usize, seconds: Range<u64>| {
        let world = move |call: &Call| match call.lines().any(|line| line.starts_with("rejected")) {
            true => Answer::Error(400, "ValidationException"),
            false => Answer::Refuse(
                (0..call.records.len())
                    .filter(|index| call.records[*index].contains("refused"))
                    .map(|index| (index, code))
                    .collect(),
            ),
        };
        let destination = scripted::destination(world);
        let lines: Vec<String> = (0..packed)
            .flat_map(|n| {
                let other = if n % 2 == 0 { "refused" } else { "rejected" };
                [format!("{other}{n}"), format!("good{n}")]
            })
            .chain(["refused".to_owned(), "good".to_owned()])
            .collect();
        let pairs = lines.chunks(2).enumerate();
        let records: Vec<Record> = pairs.map(|(pair, lines)| record(2 * pair, lines)).collect();
        let (started, count) = (Instant::now(), records.len());
        let meters = Meters::default();
        let delivery = destination
            .deliver(&stream("members"), records, &meters, false, &Stop::new())
            .await;
        assert!(delivery.ended_by.is_none(), "{:?}", delivery.ended_by);
        assert_eq!(delivery.delivered.len(), count, "{code} {packed}");
        assert_eq!(delivery.suspects.len(), count);
        let took = started.elapsed();
        assert!(
            seconds.contains(&took.as_secs()),
            "{code} {packed} {took:?}"
        );
    };
    for packed in [1, 8, 40, 250] {
        check("InternalFailure", packed, 0..45).await;
        check("ServiceUnavailableException", packed, 0..75).await;
        check("SomethingNew", packed, 0..45).await;
    }
}

/// Each delivery is a chunk, as callers make them.
#[tokio::test(start_paused = true)]
async fn no_number_of_bad_lines_in_front_keeps_good_ones_from_being_delivered() {
    for bad in [25, 600] {
        let script = rejects("bad", 400, "ValidationException");
        let destination = Arc::new(scripted::destination(script));
        let all = records(&[lines("bad", bad), lines("good", 75)].concat());
        let mut under_way = tokio::task::JoinSet::new();
        for chunk in all.chunks(500) {
            let (destination, chunk) = (Arc::clone(&destination), chunk.to_vec());
            under_way.spawn(async move { deliver(&destination, chunk, false).await });
        }
        let deliveries = under_way.join_all().await;
        let delivered = deliveries.iter().flat_map(|delivery| &delivery.delivered);
        let delivered: Vec<Record> = delivered.cloned().collect();
        assert_eq!(positions(&delivered), (bad..bad + 75).collect(), "{bad}");
        let dead = deliveries.iter().map(|delivery| delivery.dead.len());
        assert_eq!(dead.sum::<usize>(), bad);
    }
}

/// A first sync of a large audience, for one.
#[tokio::test(start_paused = true)]
async fn not_all_lines_are_offered_alone_to_a_stream_that_rejects_everything() {
    let seen = Seen::default();
    let script = rejects("bad", 400, "InvalidArgumentException");
    let destination = scripted::destination(seen.script(script));
    let (members, stop, meters) = (stream("members"), Stop::new(), Meters::default());
    for _ in 0..9_600 {
        let state = destination.streams.of(&members);
        state.evidence().refused_alone(false);
    }
    for is_last in [false, true] {
        let chunk = records(&lines("bad", 500));
        let delivery = destination
            .deliver(&members, chunk, &meters, false, &stop)
            .await;
        let ended = delivery.ended_by.unwrap();
        assert!(matches!(ended, Ended::RefusesEverything(_)), "{ended:?}");
        assert_eq!(delivery.suspects.is_empty(), is_last);
    }
    // The last is offered once, as a whole.
    let calls = seen.0.lock().unwrap();
    let whole = calls.iter().filter(|call| call.records.len() == 500);
    assert_eq!(whole.count(), 2);
    assert_eq!(calls.last().unwrap().records.len(), 500);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_accepted_something_never_refuses_everything() {
    let destination = scripted::destination(rejects("bad", 400, "ValidationException"));
    let good = deliver(&destination, records(&lines("good", 1)), false).await;
    assert_eq!(good.delivered.len(), 1);
    let bad = deliver(&destination, records(&lines("bad", 30)), false).await;
    assert!(bad.ended_by.is_none(), "{:?}", bad.ended_by);
    assert_eq!(bad.dead.len(), 30);
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_no_line_is_dead() {
    for code in ["InternalFailure", "ServiceUnavailableException"] {
        for count in [2, 10, 500] {
            let destination = scripted::destination(move |_| Answer::Error(503, code));
            let started = Instant::now();
            let delivery = deliver(&destination, records(&lines("good", count)), true).await;
            assert!(matches!(delivery.ended_by, Some(Ended::Stalled(_))));
            assert!(delivery.dead.is_empty());
            assert_eq!(started.elapsed().as_secs(), 90);
            assert_eq!(delivery.maybe_accepted, (0..count).collect(), "{code}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lines_that_may_have_been_accepted_are_told() {
    let check = async |answers: Vec<Answer>, expected: &[usize]| {
        let mut answers = answers.into_iter();
        let blocked = Answer::Error(400, "AccessDeniedException");
        let script = move |_: &Call| answers.next().unwrap_or_else(|| blocked.clone());
        let destination = scripted::destination(script);
        let delivery = deliver(&destination, records(&lines("a", 3)), false).await;
        assert!(matches!(delivery.ended_by, Some(Ended::Blocked(_))));
        let expected: BTreeSet<usize> = expected.iter().copied().collect();
        assert_eq!(delivery.maybe_accepted, expected);
    };
    check(vec![], &[]).await;
    check(vec![Answer::Lost], &[0, 1, 2]).await;
    check(vec![Answer::Error(500, "InternalFailure")], &[0, 1, 2]).await;
    check(vec![Answer::Error(400, "ThrottlingException")], &[]).await;
    check(vec![Answer::Error(400, "ValidationException")], &[]).await;
    let refuse = |refused: &[(usize, &'static str)]| Answer::Refuse(refused.to_vec());
    check(vec![refuse(&[(1, "InternalFailure")])], &[1]).await;
    check(vec![refuse(&[(1, "ServiceUnavailableException")])], &[]).await;
    // What is delivered in the end is in no doubt.
    let rest = [(0, "ServiceUnavailableException")];
    check(vec![Answer::Lost, refuse(&rest)], &[0]).await;
}

#[tokio::test(start_paused = true)]
async fn single_records_tell_of_each_line_by_itself() {
    let seen = Seen::default();
    let script = seen.script(rejects("bad", 400, "ValidationException"));
    let destination = scripted::with_api(Api::PutRecord, script);
    let all = [lines("bad", 3), lines("good", 97)].concat();
    let delivery = deliver(&destination, records(&all), false).await;
    assert_eq!((delivery.delivered.len(), delivery.dead.len()), (97, 3));
    assert_eq!(seen.count(), 97 + 3 * 5);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stalls_is_no_other_streams_trouble() {
    let destination = scripted::destination(|call| match call.stream.as_str() {
        "lame" => Answer::Lost,
        _ => Answer::Accept,
    });
    let (lame, well) = (stream("lame"), stream("well"));
    let (stop, meters) = (Stop::new(), Meters::default());
    let started = Instant::now();
    let stalled = async {
        let delivery = destination
            .deliver(&lame, records(&lines("a", 40)), &meters, true, &stop)
            .await;
        assert!(matches!(delivery.ended_by, Some(Ended::Stalled(_))));
        assert_eq!(started.elapsed().as_secs(), 90);
    };
    // What another stream accepts gives this one no more time.
    let others = async {
        for _ in 0..20 {
            sleep(Duration::from_secs(4)).await;
            let delivery = destination
                .deliver(&well, records(&lines("a", 2)), &meters, true, &stop)
                .await;
            assert_eq!(delivery.delivered.len(), 2);
        }
    };
    tokio::join!(stalled, others);
}

#[tokio::test(start_paused = true)]
async fn deliveries_and_retries_end_when_their_time_is_over() {
    let destination = scripted::destination(refuses("bad", "InternalFailure"));
    destination.begin(Some(Duration::from_secs(10)));
    let all = [lines("good", 1), lines("bad", 1)].concat();
    let delivery = deliver(&destination, records(&all), false).await;
    assert!(matches!(delivery.ended_by, Some(Ended::TimeUp)));
    assert_eq!(positions(&delivery.delivered), [0].into());
    assert_eq!(delivery.maybe_accepted, [1].into());
    assert!(destination.is_time_up());
    let delivery = deliver(&destination, records(&lines("good", 1)), false).await;
    assert!(matches!(delivery.ended_by, Some(Ended::TimeUp)));
    destination.begin(None);
    let delivery = deliver(&destination, records(&lines("good", 1)), false).await;
    assert_eq!(delivery.delivered.len(), 1);
}

/// A destination that never takes anything, for a reason that might pass: no file system takes names so long.
struct OutOfReach {
    destination: Destination,
    meter: Arc<Meter>,
    stop: Stop,
    _folder: TempDir,
}

impl OutOfReach {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root: String = iter::repeat_n('x', 300).collect();
        let directory = Directory::new(folder.path().join(root));
        Self {
            destination: Destination::directory(DestinationName::new("main"), false, directory),
            meter: Arc::default(),
            stop: Stop::new(),
            _folder: folder,
        }
    }

    /// How long a delivery took, how many calls it made, and how it ended.
    async fn deliver(&self) -> (Duration, u64, Ended) {
        let (started, calls) = (Instant::now(), self.meter.counts().requests);
        let mut meters = Meters::default();
        meters.add(1, &self.meter);
        let record = records(&lines("a", 1));
        let delivery = self
            .destination
            .deliver(&stream("members"), record, &meters, true, &self.stop)
            .await;
        assert!(delivery.delivered.is_empty() && delivery.maybe_accepted.is_empty());
        let calls = self.meter.counts().requests - calls;
        (started.elapsed(), calls, delivery.ended_by.unwrap())
    }
}

/// The clock of a paused runtime counts in milliseconds.
fn seconds(time: Duration) -> u64 {
    (time.as_millis() as f64 / 1_000.0).round() as u64
}

#[tokio::test(start_paused = true)]
async fn a_delivery_stalls_when_nothing_is_accepted_for_90_seconds() {
    let out_of_reach = OutOfReach::new();
    let (time, calls, ended) = out_of_reach.deliver().await;
    assert!(matches!(ended, Ended::Stalled(_)), "{ended:?}");
    assert_eq!(seconds(time), 90);
    // It backs off, to 10 s at most.
    assert!((9..100).contains(&calls), "{calls}");
    assert_eq!(out_of_reach.meter.counts().retries, calls - 1);
}

#[tokio::test(start_paused = true)]
async fn after_one_was_given_up_the_next_tries_once() {
    let out_of_reach = OutOfReach::new();
    out_of_reach.deliver().await;
    let (time, calls, ended) = out_of_reach.deliver().await;
    assert!(matches!(ended, Ended::Stalled(_)), "{ended:?}");
    assert_eq!((seconds(time), calls), (0, 1));

    // The next command begins anew.
    out_of_reach.destination.begin(None);
    let (time, _, _) = out_of_reach.deliver().await;
    assert_eq!(seconds(time), 90);
}

/// Of schedules that run beside each other, each begins its own ticks.
#[tokio::test(start_paused = true)]
async fn a_tick_that_begins_meanwhile_gives_a_stalled_delivery_no_more_time() {
    let out_of_reach = OutOfReach::new();
    let ticks = async {
        loop {
            sleep(Duration::from_secs(10)).await;
            out_of_reach.destination.begin(None);
        }
    };
    let delivery = tokio::time::timeout(Duration::from_secs(900), out_of_reach.deliver());
    let (time, _, ended) = tokio::select! {
        ended = delivery => ended.expect("it ends"),
        () = ticks => unreachable!(),
    };
    assert!(matches!(ended, Ended::Stalled(_)), "{ended:?}");
    assert_eq!(seconds(time), 90);
}

/// The stream accepts a line, and then only refuses: what it accepted is known until the line is dead.
#[tokio::test(start_paused = true)]
async fn a_tick_that_begins_meanwhile_makes_no_retry_forget_what_was_accepted() {
    let destination = scripted::destination(refuses("bad", "InternalFailure"));
    let all = [lines("good", 1), lines("bad", 2)].concat();
    let (members, stop, meters) = (stream("members"), Stop::new(), Meters::default());
    let first = destination
        .deliver(&members, records(&all), &meters, false, &stop)
        .await;
    let retry = destination.retry(&members, first.suspects, &meters, false, &stop);
    let tick = async {
        sleep(Duration::from_secs(10)).await;
        destination.begin(None);
    };
    let (retried, ()) = tokio::join!(retry, tick);
    assert!(retried.ended_by.is_none(), "{:?}", retried.ended_by);
    assert_eq!(retried.dead.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_is_asked_to_stop_does_not_wait_for_its_next_try() {
    let out_of_reach = OutOfReach::new();
    let stop = out_of_reach.stop.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(30)).await;
        stop.request();
    });
    let (time, calls, ended) = out_of_reach.deliver().await;
    assert!(matches!(ended, Ended::Stopped), "{ended:?}");
    assert_eq!(seconds(time), 30);
    assert!(calls > 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_stop_nothing_is_begun() {
    let out_of_reach = OutOfReach::new();
    out_of_reach.stop.request();
    let (time, calls, ended) = out_of_reach.deliver().await;
    assert!(matches!(ended, Ended::Stopped), "{ended:?}");
    assert_eq!((seconds(time), calls), (0, 0));
}

fn failure(cause: Cause) -> Failure {
    Failure {
        cause,
        code: "AsTheTestSays".to_owned(),
        message: String::new(),
        is_maybe_accepted: false,
    }
}

#[test]
fn a_call_says_how_much_a_stream_takes_by_what_it_did_not_deliver() {
    let check = |count: usize, delivered: usize, refused: &[Cause], refusal, expected| {
        let refused = refused.iter().zip(delivered..);
        let receipt = Receipt {
            delivered: (0..delivered).collect(),
            refused: refused
                .map(|(cause, index)| (index, failure(*cause)))
                .collect(),
            refusal,
        };
        let (_, failed) = Failed::split(records(&lines("a", count)), receipt);
        assert_eq!(failed.feedback(count == 1, false), expected);
    };
    let (throttled, internal) = (Cause::Throttled, Cause::InternalError);
    let whole = |cause| Some(Refusal::Failed(failure(cause)));
    check(500, 500, &[], None, Feedback::Enough);
    check(500, 400, &[throttled; 100], None, Feedback::TooMuch(100));
    check(500, 495, &[internal; 5], None, Feedback::Failed(5));
    check(3, 1, &[internal, throttled], None, Feedback::TooMuch(1));
    check(3, 1, &[Cause::Content; 2], None, Feedback::Enough);
    check(500, 0, &[], whole(throttled), Feedback::Failed(500));
    check(500, 0, &[], whole(Cause::Unanswered), Feedback::Failed(500));
    check(1, 0, &[], whole(throttled), Feedback::Nothing);
    check(1, 0, &[internal], None, Feedback::Nothing);
    let not_sent = || Some(Refusal::Retry("as the test says".to_owned()));
    check(1, 0, &[], not_sent(), Feedback::Failed(1));
    check(9, 3, &[throttled], not_sent(), Feedback::TooMuch(1));
}

/// What a stream does with lines of one kind, for ever. The word is what such a line begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// It refuses each call with such a line.
    Rejected,
    /// It refuses each record with such a line.
    Refused(&'static str),
}

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => Just(Fate::Good),
        3 => Just(Fate::Rejected),
        1 => Just(Fate::Refused("InternalFailure")),
        1 => Just(Fate::Refused("ServiceUnavailableException")),
        1 => Just(Fate::Refused("SomethingNew")),
    ]
}

/// A stream with fates, by the position that each line tells. Now and then an answer is lost.
fn world(fates: Vec<Fate>, lost: Vec<bool>) -> impl FnMut(&Call) -> Answer + Send {
    let mut lost = lost.into_iter();
    move |call| {
        let fate_of = |line: &str| fates[line.parse::<usize>().unwrap()];
        if lost.next().unwrap_or_default() {
            return Answer::Lost;
        }
        if call.lines().any(|line| fate_of(line) == Fate::Rejected) {
            return Answer::Error(400, "ValidationException");
        }
        let code_of = |record: &String| {
            record.lines().find_map(|line| match fate_of(line) {
                Fate::Refused(code) => Some(code),
                Fate::Good | Fate::Rejected => None,
            })
        };
        let records = call.records.iter().enumerate();
        Answer::Refuse(
            records
                .filter_map(|(index, record)| Some((index, code_of(record)?)))
                .collect(),
        )
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn every_good_line_is_delivered_and_every_bad_one_is_dead(
        // Of several deliveries at once.
        fates in vec(vec(fates(), 1..40), 1..4),
        pack in 1..4_usize,
        lost in vec(prop::bool::weighted(0.1), 0..40),
        has_accepted in any::<bool>(),
    ) {
        let all: Vec<Fate> = fates.concat();
        let seen = Seen::default();
        let script = seen.script(world(all.clone(), lost));
        let mut first = 0;
        let batches = fates.iter().map(|fates| {
            let lines: Vec<String> = (first..first + fates.len()).map(|n| n.to_string()).collect();
            let packed = lines.chunks(pack).enumerate();
            let records: Vec<Record> = packed
                .map(|(chunk, lines)| record(first + chunk * pack, lines))
                .collect();
            first += fates.len();
            records
        });
        let batches: Vec<Vec<Record>> = batches.collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let deliveries = runtime.block_on(async {
            let destination = Arc::new(scripted::destination(script));
            let mut under_way = tokio::task::JoinSet::new();
            for records in batches {
                let destination = Arc::clone(&destination);
                under_way.spawn(async move { deliver(&destination, records, has_accepted).await });
            }
            under_way.join_all().await
        });
        let is_any_good = all.contains(&Fate::Good);
        let mut delivered = BTreeSet::new();
        for delivery in deliveries {
            delivered.extend(positions(&delivery.delivered));
            for dead in delivery.dead {
                let line = dead.record.lines.start;
                prop_assert!(all[line] != Fate::Good);
                prop_assert!(seen.alone(&line.to_string()) >= 5);
                prop_assert!(is_any_good || has_accepted);
            }
            // A stream that accepts something is never to blame, and each line is decided.
            prop_assert!(!is_any_good || delivery.ended_by.is_none(), "{:?}", delivery.ended_by);
        }
        let good = (0..all.len()).filter(|line| all[*line] == Fate::Good);
        prop_assert_eq!(delivered, good.collect::<BTreeSet<_>>());
    }
}
