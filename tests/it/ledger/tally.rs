//! What has happened in a world.

use std::collections::BTreeMap;

use super::weather;
use crate::support::endpoint::Kind;

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub rounds: usize,
    pub kills: usize,
    /// Of processes that were delivering.
    pub kills_in_delivery: usize,
    /// Rounds that ended by themselves, by exit code.
    pub ended: BTreeMap<i32, usize>,
    pub repeats: usize,
    /// Calls that carried something of several audiences.
    pub mixed: usize,
    /// Runs that saw whether a change query had reported everything.
    pub seen: usize,
    /// Streams that a mapping gained, lost, or had in place of another.
    pub remapped: usize,
    /// Streams that came back while something waited for them.
    pub came_back: usize,
    /// Rounds in which one stream was out of order, and another one had the truth.
    pub stood_alone: usize,
    /// Records that a stream refused until they were dead, of the user whom it refuses for ever.
    pub dead: usize,
    /// Snapshots that were lost and made anew.
    pub rebuilt: usize,
    pub played: BTreeMap<Kind, usize>,
}

impl Tally {
    pub(super) fn and(mut self, other: Self) -> Self {
        self.rounds += other.rounds;
        self.kills += other.kills;
        self.kills_in_delivery += other.kills_in_delivery;
        self.repeats += other.repeats;
        self.mixed += other.mixed;
        self.seen += other.seen;
        self.remapped += other.remapped;
        self.came_back += other.came_back;
        self.stood_alone += other.stood_alone;
        self.dead += other.dead;
        self.rebuilt += other.rebuilt;
        for (code, count) in other.ended {
            *self.ended.entry(code).or_default() += count;
        }
        self.play(other.played);
        self
    }

    pub(super) fn play(&mut self, played: BTreeMap<Kind, usize>) {
        for (kind, count) in played {
            *self.played.entry(kind).or_default() += count;
        }
    }

    /// A test in which nothing goes wrong proves nothing.
    pub(super) fn check(&self) {
        for kind in weather::kinds() {
            assert!(self.played.contains_key(&kind), "never: {kind:?}, {self:?}");
        }
        assert!(self.kills_in_delivery > self.kills / 4, "{self:?}");
        assert!(self.repeats > self.kills, "{self:?}");
        assert!(self.mixed > self.kills, "{self:?}");
        assert!(self.seen > 0, "{self:?}");
        assert!(self.ended.values().sum::<usize>() > 0, "{self:?}");
        for count in [
            self.remapped,
            self.came_back,
            self.stood_alone,
            self.dead,
            self.rebuilt,
        ] {
            assert!(count > 0, "{self:?}");
        }
    }
}
