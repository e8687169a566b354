//! The obligation ledger: rounds in which users come and go, everything goes wrong that can, and most processes are
//! killed at some moment. When all of it is over, downstream has the truth, and nothing was repeated without need.
//!
//! `AUDIENCE_SYNC_KILLS` says how many processes are killed, `AUDIENCE_SYNC_SEED` repeats the dice of a run that failed;
//! what the clock and the scheduler do to it is not repeated.

mod book;
mod journal;
mod landed;
mod source;
mod tally;
mod weather;

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;

use crate::firehose::{ROLE, config, mapped};
use crate::support::endpoint::{Call, Endpoint, Ledger};
use crate::support::{Project, Running};
use book::Book;
use journal::{Entry, Journal};
use landed::Landed;
use source::{AUDIENCES, Audience, GUARDED, Source, is_blamed};
use tally::Tally;
use weather::{DECK, FOR_EVER, ForEver, Outage, Troubles, Weather};

const KILLS: usize = 300;
/// Projects that are worked on side by side: a process mostly waits.
const WORLDS: usize = 4;
/// What a process usually takes is between these, whatever the machine is busy with.
const USUAL: [Duration; 2] = [Duration::from_millis(150), Duration::from_millis(400)];
/// A record that is answered with an internal error is dead after half a minute.
const UNTIL_DEAD: Duration = Duration::from_secs(32);
/// What a process takes at most that is not disturbed.
const LONG: Duration = Duration::from_secs(80);
/// All that a mapping may ever name.
const STREAMS: [&str; 3] = ["members", "copies", "others"];

#[test]
fn whatever_goes_wrong_the_truth_arrives_and_nothing_is_repeated_without_need() {
    let kills = variable("AUDIENCE_SYNC_KILLS").map_or(KILLS, |kills| kills as usize);
    let seed = variable("AUDIENCE_SYNC_SEED").unwrap_or_else(|| fastrand::u64(..));
    let shown = Seed(seed);
    let killed = AtomicUsize::new(0);
    let tallies = thread::scope(|scope| {
        let world = |number: usize| {
            let dice = Rng::with_seed(seed.wrapping_add(number as u64));
            let killed = &killed;
            scope.spawn(move || World::new(dice, FOR_EVER[number]).run(killed, kills))
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

/// One project, its source and its endpoint.
struct World {
    dice: Rng,
    endpoint: Endpoint,
    project: Project,
    source: Source,
    book: Book,
    journal: Journal,
    landed: Landed,
    deck: Vec<Weather>,
    troubles: Troubles,
    /// What the mapping names.
    streams: Vec<&'static str>,
    /// What the destination is called. That changes nothing.
    label: &'static str,
    /// What was in the journal after the last round.
    left: Vec<Entry>,
    /// How long a process takes that ends by itself.
    usual: Duration,
    tally: Tally,
}

/// What is done in a round.
enum Round {
    /// A process that may be killed, in bad weather.
    Rough(Weather),
    /// A process that ends by itself: some stream may be out of order, and all else is well.
    Calm,
    /// A process that is killed when a record is dead that is always answered with an internal error.
    Long,
}

impl World {
    fn new(mut dice: Rng, for_ever: ForEver) -> Self {
        let endpoint = Endpoint::start();
        let streams = STREAMS[..2].to_vec();
        let project = mapped(&endpoint, "", "").without_snapshot();
        project.write("schedules/main.toml", &source::schedule());
        let world = Self {
            source: Source::new(&project),
            landed: Landed::new(project.path("landed")),
            troubles: Troubles {
                for_ever,
                refuses: streams[dice.usize(..streams.len())],
                outage: None,
            },
            dice,
            endpoint,
            project,
            book: Book::default(),
            journal: Journal::default(),
            deck: Vec::new(),
            streams,
            label: "main",
            left: Vec::new(),
            usual: USUAL[0],
            tally: Tally::default(),
        };
        world.configure();
        world.project.succeed(&["snapshot", "create"]);
        world
    }

    fn configure(&self) {
        let secret = "secret_id = { env = \"AUDIENCE_SYNC_SECRET_ID\" }";
        let settings = format!("role_address = \"{ROLE}\"\n{secret}\n");
        let mapping = format!("identify = {:?}", self.streams);
        let config = config(&self.endpoint, &settings, &mapping);
        let label = format!("[destination.{}", self.label);
        let config = config.replace("[destination.main", &label);
        self.project.write("audience-sync.toml", &config);
    }

    fn run(mut self, killed: &AtomicUsize, kills: usize) -> Tally {
        while killed.load(Ordering::Relaxed) < kills {
            let before = self.tally.kills;
            self.round();
            killed.fetch_add(self.tally.kills - before, Ordering::Relaxed);
            assert!(self.tally.rounds < 100 + 10 * kills, "{:?}", self.tally);
        }
        self.heal();
        self.tally.repeats = self.book.repeats;
        self.tally
    }

    fn round(&mut self) {
        self.source.change(self.tally.rounds, &mut self.dice);
        if self.tally.rounds > 0 && self.dice.u8(..60) == 0 {
            self.lose_the_snapshot();
        }
        if self.dice.u8(..5) == 0 {
            self.change_the_mapping();
        }
        self.change_the_outage();
        match self.kind_of_round() {
            Round::Rough(weather) => self.rough(weather),
            Round::Calm => self.calm(),
            Round::Long => {
                self.endpoint.play(self.troubles.faults(&mut self.dice));
                let killed = self.run_until_killed(&["sync", "--json"], usize::MAX, UNTIL_DEAD);
                self.close(killed);
            }
        }
    }

    fn kind_of_round(&mut self) -> Round {
        // It takes half a minute until a record is dead that is answered so. Once is enough.
        if self.troubles.for_ever == ForEver::InternalError {
            let waits = |entry: &Entry| entry.is_refused && entry.is_waiting();
            let is_time = self.tally.dead == 0 && self.tally.rounds > 9;
            return match is_time && self.left.iter().any(waits) {
                true => Round::Long,
                false => Round::Rough(self.weather()),
            };
        }
        match self.troubles.outage {
            Some(outage) if outage.is_told_at_once() && self.dice.bool() => Round::Calm,
            _ => Round::Rough(self.weather()),
        }
    }

    fn weather(&mut self) -> Weather {
        if self.deck.is_empty() {
            self.deck = DECK.to_vec();
            self.dice.shuffle(&mut self.deck);
        }
        self.deck.pop().expect("the deck is full")
    }

    /// One stream accepts nothing for some rounds, whatever the weather is.
    fn change_the_outage(&mut self) {
        self.troubles.outage = match self.troubles.outage {
            Some(outage) if outage.rounds_left > 1 => Some(Outage {
                rounds_left: outage.rounds_left - 1,
                ..outage
            }),
            Some(_) => None,
            None => (self.dice.u8(..10) == 0).then(|| {
                let stream = self.streams[self.dice.usize(..self.streams.len())];
                Outage::at(stream, &mut self.dice)
            }),
        };
    }

    /// The mapping gains a stream, loses one, or names another one in its place; or the destination gets another name.
    fn change_the_mapping(&mut self) {
        let is_mapped = |stream: &&str| self.streams.contains(stream);
        let other = STREAMS.into_iter().find(|stream| !is_mapped(stream));
        let position = self.dice.usize(..self.streams.len());
        match (self.dice.u8(..4), other) {
            (0, Some(other)) => {
                self.streams.push(other);
                self.note_return(other);
            }
            (1, Some(other)) => {
                self.streams[position] = other;
                self.note_return(other);
            }
            (2, _) if self.streams.len() > 1 => drop(self.streams.remove(position)),
            _ => {
                self.label = if self.label == "main" { "aws" } else { "main" };
                self.configure();
                return;
            }
        }
        self.tally.remapped += 1;
        self.configure();
    }

    fn note_return(&mut self, stream: &str) {
        let waits = |entry: &Entry| STREAMS[entry.stream] == stream && entry.is_waiting();
        self.tally.came_back += usize::from(self.left.iter().any(waits));
    }

    fn rough(&mut self, weather: Weather) {
        let faults = weather.faults(&self.streams, &self.troubles, &mut self.dice);
        self.endpoint.play(faults);
        let arguments: &[&str] = match self.dice.u8(..24) {
            0 => &["resync", "small", "--json"],
            1 => &["resync", "small", "--stream", self.streams[0], "--json"],
            2 => &["snapshot", "dead", "--retry", "--json"],
            3 => &["snapshot", "dead", "--drop", "--json"],
            _ => &["sync", "--json"],
        };
        let (calls, patience) = match self.dice.u8(..5) {
            // One that may end by itself, unless it hangs.
            0 => (usize::MAX, self.usual * 8),
            1 | 2 => (usize::MAX, self.usual.mul_f64(2.0 * self.dice.f64())),
            _ => (self.dice.usize(1..20), self.usual * 4),
        };
        let killed = self.run_until_killed(arguments, calls, patience);
        self.close(killed);
    }

    /// A stream that is out of order is in the way of no other: those have the truth when a process has ended.
    fn calm(&mut self) {
        self.endpoint.play(self.troubles.faults(&mut self.dice));
        let (began, mut running) = (Instant::now(), self.project.start(&["sync", "--json"]));
        while running.child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < LONG, "{}", running.stderr());
            thread::sleep(Duration::from_millis(1));
        }
        let code = running.child.wait().unwrap().code().unwrap();
        self.ended(&running, code, began.elapsed());
        self.close(false);
        let is_out = |stream: &&str| {
            let outage = self.troubles.outage;
            outage.is_some_and(|outage| outage.stream == *stream)
        };
        for stream in self.streams.iter().filter(|stream| !is_out(stream)) {
            self.book.check_truth(&self.source, stream, |key, user| {
                key != GUARDED && !is_blamed(user)
            });
            self.tally.stood_alone += usize::from(self.troubles.outage.is_some());
        }
    }

    /// Kills a process after some time, or a moment after so many calls, unless it ends before.
    fn run_until_killed(&mut self, arguments: &[&str], calls: usize, patience: Duration) -> bool {
        let began = Instant::now();
        let mut running = self.project.start(arguments);
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
        self.landed.append(&arrived);
        let left = self.journal.read(&self.project.path("snapshot.sqlite"));
        let round = self.tally.rounds;
        self.book
            .close(&arrived, &left, killed, round, &self.source);
        for call in &arrived.calls {
            let is_mapped = call.stream.is_empty() || self.streams.contains(&call.stream.as_str());
            assert!(is_mapped, "{} is not mapped", call.stream);
        }
        self.tally.rounds += 1;
        self.tally.kills += usize::from(killed);
        let delivers = left.iter().any(|entry| entry.waits);
        let is_delivering = killed && delivers && arrived.sent() > 0;
        self.tally.kills_in_delivery += usize::from(is_delivering);
        self.tally.mixed += arrived.calls.iter().filter(|call| is_mixed(call)).count();
        let dead = left
            .iter()
            .filter(|entry| entry.is_refused && entry.is_dead);
        self.tally.dead += dead.count();
        self.tally.play(arrived.played);
        self.left = left;
    }

    /// Nobody has the snapshot any more. It is made anew from what was accepted.
    fn lose_the_snapshot(&mut self) {
        crate::rebuild::lose(&self.project);
        let refused = self.project.run(&["sync"]);
        assert_eq!(refused.code, 2, "{refused:?}");
        self.left.clear();
        self.journal = Journal::default();
        self.book.begin_anew();
        if self.book.is_empty() {
            self.project.succeed(&["snapshot", "create", "--anew"]);
            return;
        }
        let folder = self.landed.folder.to_str().unwrap();
        let arguments = ["snapshot", "rebuild", "--from", folder];
        // A process that is killed leaves a whole snapshot or none.
        let mut running = self.project.start(&arguments);
        thread::sleep(Duration::from_millis(self.dice.u64(..60)));
        running.child.kill().unwrap();
        running.child.wait().unwrap();
        if !self.project.path("snapshot.sqlite").exists() {
            self.project.succeed(&arguments);
        }
        self.tally.rebuilt += 1;
        for Audience { key, .. } in &AUDIENCES {
            self.check_members(key, |stream| self.book.members(stream, key));
        }
    }

    /// All is well again, all streams are mapped, and one more run makes it so downstream; the run after that has nothing
    /// to do.
    fn heal(&mut self) {
        self.streams = STREAMS.to_vec();
        self.configure();
        self.endpoint.accept_everything();
        self.project
            .succeed(&["sync", "--approve=1000000", "--json"]);
        self.close(false);
        for stream in STREAMS {
            self.book.check_truth(&self.source, stream, |_, _| true);
        }
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
            let members = self.source.members(key);
            let members: HashMap<_, _> = members.map(|(user, value)| (Some(user), value)).collect();
            self.check_members(key, |_| members.clone());
        }
        // It takes seconds, so it is looked at in one world: the one with most records that were accepted without a word.
        if self.troubles.for_ever == ForEver::InternalError {
            let folder = self.landed.folder.to_str().unwrap();
            self.project
                .succeed(&["snapshot", "verify", "--from", folder]);
        }
    }

    /// The snapshot has these members of an audience at each stream.
    fn check_members<'m>(
        &self,
        key: &str,
        members: impl Fn(&str) -> HashMap<Option<&'m str>, &'m Value>,
    ) {
        let lines = self.lines(&["snapshot", "show", key, "--json"]);
        for stream in STREAMS {
            let shown = lines.iter().filter(|line| line["stream"] == stream);
            let shown = shown.map(|line| (line["user_id"].as_str(), &line["value"]));
            let shown: HashMap<_, _> = shown.collect();
            assert_eq!(shown, members(stream), "{key} at {stream}");
        }
    }

    fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        self.project.succeed(arguments).lines()
    }
}
