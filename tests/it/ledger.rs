//! The obligation ledger: rounds in which users come and go, everything goes wrong that can, and most processes are
//! killed at some moment. When all of it is over, downstream has the truth, and nothing was repeated without need.
//!
//! `AUDIENCE_SYNC_KILLS` says how many processes are killed, `AUDIENCE_SYNC_SEED` repeats the dice of a run that failed;
//! what the clock and the scheduler do to it is not repeated.

mod book;
mod journal;
mod source;
mod weather;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::process::ExitStatusExt as _;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use chrono::Utc;
use fastrand::Rng;
use serde_json::Value;

use crate::firehose::{ROLE, mapped};
use crate::support::endpoint::{Call, Endpoint, Kind, Ledger};
use crate::support::{Project, Running};
use book::Book;
use journal::Journal;
use source::{AUDIENCES, Audience, Source};
use weather::{DECK, Weather};

const KILLS: usize = 300;
/// Projects that are worked on side by side: a process mostly waits.
const WORLDS: usize = 4;
/// What a process usually takes is between these, whatever the machine is busy with.
const USUAL: [Duration; 2] = [Duration::from_millis(150), Duration::from_millis(400)];
const STREAMS: [&str; 2] = ["members", "copies"];

#[test]
fn whatever_goes_wrong_the_truth_arrives_and_nothing_is_repeated_without_need() {
    let kills = variable("AUDIENCE_SYNC_KILLS").map_or(KILLS, |kills| kills as usize);
    let seed = variable("AUDIENCE_SYNC_SEED").unwrap_or_else(|| fastrand::u64(..));
    let shown = Seed(seed);
    let tallies = thread::scope(|scope| {
        let world = |number: usize| {
            let dice = Rng::with_seed(seed.wrapping_add(number as u64));
            scope.spawn(move || World::new(dice).run(kills.div_ceil(WORLDS)))
        };
        let worlds: Vec<_> = (0..WORLDS).map(world).collect();
        let ended = worlds
            .into_iter()
            .map(|world| world.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.fold(Tally::default(), Tally::and)
    });
    assert!(tallies.kills >= kills, "{tallies:?}");
    // Fewer prove less, and are not asked for everything.
    if kills >= KILLS {
        tallies.check();
    }
    drop(shown);
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Whether a call carries something of several audiences.
fn is_mixed(call: &Call) -> bool {
    let text = |record| str::from_utf8(record).unwrap();
    let name = |record| text(record).split("computation_key").nth(1).unwrap();
    let mut keys = call.records.iter().map(|record| {
        let (key, _) = name(record).split_once(',').unwrap();
        key
    });
    let first = keys.next();
    keys.any(|key| Some(key) != first)
}

/// Tells how to repeat a test that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            #[expect(clippy::print_stderr, reason = "only a test that fails is heard")]
            {
                eprintln!("AUDIENCE_SYNC_SEED={}", self.0);
            }
        }
    }
}

/// What has happened.
#[derive(Debug, Default)]
struct Tally {
    rounds: usize,
    kills: usize,
    /// Of processes that were delivering.
    kills_in_delivery: usize,
    /// Rounds that ended by themselves, by exit code.
    ended: BTreeMap<i32, usize>,
    repeats: usize,
    /// Calls that carried something of several audiences.
    mixed: usize,
    /// Runs that saw whether a change query had told everything.
    seen: usize,
    played: BTreeMap<Kind, usize>,
}

impl Tally {
    fn and(mut self, other: Self) -> Self {
        self.rounds += other.rounds;
        self.kills += other.kills;
        self.kills_in_delivery += other.kills_in_delivery;
        self.repeats += other.repeats;
        self.mixed += other.mixed;
        self.seen += other.seen;
        for (code, count) in other.ended {
            *self.ended.entry(code).or_default() += count;
        }
        for (kind, count) in other.played {
            *self.played.entry(kind).or_default() += count;
        }
        self
    }

    /// A test in which nothing goes wrong proves nothing.
    fn check(&self) {
        for kind in weather::kinds() {
            assert!(self.played.contains_key(&kind), "never: {kind:?}, {self:?}");
        }
        assert!(self.kills_in_delivery > self.kills / 4, "{self:?}");
        assert!(self.repeats > self.kills, "{self:?}");
        assert!(self.mixed > self.kills, "{self:?}");
        assert!(self.seen > 0, "{self:?}");
        assert!(self.ended.values().sum::<usize>() > 0, "{self:?}");
    }
}

/// One project, its source and its endpoint.
struct World {
    dice: Rng,
    endpoint: Endpoint,
    project: Project,
    source: Source,
    book: Book,
    journal: Journal,
    deck: Vec<Weather>,
    /// How long a process takes that ends by itself.
    usual: Duration,
    tally: Tally,
}

impl World {
    fn new(dice: Rng) -> Self {
        let endpoint = Endpoint::start();
        let secret = "secret_id = { env = \"AUDIENCE_SYNC_SECRET_ID\" }";
        let settings = format!("role_address = \"{ROLE}\"\n{secret}\n");
        let [one, other] = STREAMS;
        let project = mapped(
            &endpoint,
            &settings,
            &format!("identify = [\"{one}\", \"{other}\"]"),
        );
        project.write("schedules/main.toml", &source::schedule());
        Self {
            source: Source::new(&project),
            dice,
            endpoint,
            project,
            book: Book::default(),
            journal: Journal::default(),
            deck: Vec::new(),
            usual: USUAL[0],
            tally: Tally::default(),
        }
    }

    fn run(mut self, kills: usize) -> Tally {
        while self.tally.kills < kills {
            self.round();
            assert!(self.tally.rounds < 100 + 10 * kills, "{:?}", self.tally);
        }
        self.heal();
        self.tally.repeats = self.book.repeats;
        self.tally
    }

    fn round(&mut self) {
        self.source.change(self.tally.rounds, &mut self.dice);
        let weather = self.weather();
        self.endpoint.play(weather.faults(&mut self.dice));
        self.book.begin(Utc::now().timestamp_millis());
        let arguments: &[&str] = match self.dice.u8(..12) {
            0 => &["resync", "small", "--json"],
            1 => &["snapshot", "dead", "--retry", "--json"],
            _ => &["sync", "--json"],
        };
        let killed = self.run_until_killed(arguments);
        self.close(killed);
    }

    fn weather(&mut self) -> Weather {
        if self.deck.is_empty() {
            self.deck = DECK.to_vec();
            self.dice.shuffle(&mut self.deck);
        }
        self.deck.pop().expect("the deck is full")
    }

    /// Kills a process after a while, or some time after a call, unless it ends before.
    fn run_until_killed(&mut self, arguments: &[&str]) -> bool {
        let began = Instant::now();
        let mut running = self.project.start(arguments);
        let (calls, patience) = match self.dice.u8(..5) {
            // One that may end by itself, unless it hangs.
            0 => (usize::MAX, self.usual * 8),
            1 | 2 => (usize::MAX, self.usual.mul_f64(2.0 * self.dice.f64())),
            _ => (self.dice.usize(1..20), self.usual * 4),
        };
        let a_moment_later = Duration::from_micros(self.dice.u64(..5_000));
        while running.child.try_wait().unwrap().is_none() && began.elapsed() < patience {
            let enough = |ledger: &Ledger| ledger.calls.len() >= calls;
            if self.endpoint.wait_at_most(Duration::from_millis(1), enough) {
                thread::sleep(a_moment_later);
                break;
            }
        }
        running.child.kill().unwrap();
        let status = running.child.wait().unwrap();
        let killed = status.signal() == Some(9);
        if !killed {
            self.ended(&running, status.code().unwrap(), began.elapsed());
        }
        killed
    }

    /// Nothing but what is undelivered or held may be wrong with a process that ends by itself.
    fn ended(&mut self, running: &Running, code: i32, after: Duration) {
        assert!([0, 3, 4].contains(&code), "{code}: {}", running.stderr());
        self.nothing_is_missed(&running.stdout());
        *self.tally.ended.entry(code).or_default() += 1;
        let [least, most] = USUAL;
        self.usual = (self.usual * 7 + after.clamp(least, most)) / 8;
    }

    /// A change query that tells everything is found to have told everything, whoever was killed meanwhile.
    fn nothing_is_missed(&mut self, lines: &str) {
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let missed = line.get("missed").and_then(Value::as_u64);
            assert_eq!(missed.unwrap_or(0), 0, "{line}");
            self.tally.seen += usize::from(missed.is_some());
        }
    }

    fn close(&mut self, killed: bool) {
        self.endpoint.wait_until_idle();
        let arrived = self.endpoint.take_ledger();
        let left = self.journal.read(&self.project.path("snapshot.sqlite"));
        self.book.close(&arrived, &left, killed, &self.source);
        self.tally.rounds += 1;
        self.tally.kills += usize::from(killed);
        let delivers = left.iter().any(|entry| entry.waits);
        let is_delivering = killed && delivers && arrived.sent() > 0;
        self.tally.kills_in_delivery += usize::from(is_delivering);
        self.tally.mixed += arrived.calls.iter().filter(|call| is_mixed(call)).count();
        for (kind, count) in arrived.played {
            *self.tally.played.entry(kind).or_default() += count;
        }
    }

    /// All is well again, and one more run makes it so downstream; the run after that has nothing to do.
    fn heal(&mut self) {
        self.endpoint.accept_everything();
        self.book.begin(Utc::now().timestamp_millis());
        self.project.succeed(&["sync", "--approve", "--json"]);
        self.close(false);
        self.book.check_truth(&self.source);
        self.check_snapshot();

        let again = self.lines(&["sync", "--json"]);
        let outcomes: Vec<_> = again.iter().map(|line| &line["outcome"]).collect();
        assert_eq!(outcomes, ["unchanged"; AUDIENCES.len() * STREAMS.len()]);
        assert!(self.endpoint.ledger().calls.is_empty());
    }

    /// It knows what is so, and nothing waits.
    fn check_snapshot(&self) {
        let list = self.lines(&["snapshot", "list", "--json"]);
        let is_left = |line: &&Value| line["pending"] != 0 || line["held"] != 0;
        assert_eq!(list.iter().find(is_left), None);
        assert_eq!(self.lines(&["snapshot", "dead", "--json"]).len(), 0);
        for Audience { key, .. } in &AUDIENCES {
            let lines = self.lines(&["snapshot", "show", key, "--json"]);
            for stream in STREAMS {
                let shown = lines.iter().filter(|line| line["stream"] == stream);
                let shown = shown.map(|line| (line["user_id"].as_str(), &line["value"]));
                let shown: HashMap<_, _> = shown.collect();
                let members = self.source.members(key);
                let members = members.map(|(user, value)| (Some(user), value));
                assert_eq!(shown, members.collect(), "{key} at {stream}");
            }
        }
    }

    fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        self.project.succeed(arguments).lines()
    }
}
