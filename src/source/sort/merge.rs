//! Many runs as one.

use std::cmp::Ordering;

use super::buffer::{Ordered, head};
use super::record::{self, Place};
use super::run::{Ends, Run, RunReader};
use super::{Shares, SortError};
use crate::audience::{Member, MemberBuf, User, Value};
use crate::diff::Members;
use crate::source::is_greater;

/// Members in order, each once.
pub(in crate::source) struct Sorted {
    runs: Tournament,
    current: MemberBuf,
    /// Of the same user, from another run.
    next: MemberBuf,
}

impl Sorted {
    /// Of runs, and of those who are in memory still.
    pub(super) fn of(
        runs: Vec<Run>,
        ordered: Option<Ordered>,
        shares: Shares,
    ) -> Result<Self, SortError> {
        let of_ordered = ordered.as_ref().and_then(Ordered::ends);
        let ends = Ends::of_all(runs.iter().filter_map(Run::ends).chain(&of_ordered));
        let common = ends.map_or(0, |ends| ends.common());
        let mut cursors = Vec::with_capacity(runs.len() + 1);
        for run in runs {
            cursors.push(Cursor::open(Blocks::Run(run.read()?), shares)?);
        }
        if let Some(ordered) = ordered {
            cursors.push(Cursor::open(Blocks::Ordered(ordered), shares)?);
        }
        Ok(Self {
            runs: Tournament::of(cursors, common),
            current: MemberBuf::default(),
            next: MemberBuf::default(),
        })
    }

    /// Sets aside as much memory as this.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.runs.cursors.iter().map(Cursor::bytes).sum()
    }
}

impl Members for Sorted {
    type Error = SortError;

    fn advance(&mut self) -> Result<bool, SortError> {
        let Some(winner) = self.runs.winner() else {
            return Ok(false);
        };
        winner.read(&mut self.current)?;
        self.runs.step()?;
        while let Some(winner) = self.runs.winner() {
            match record::compare(winner.key(), self.current.user()) {
                Ordering::Greater => break,
                Ordering::Less => return Err(SortError::Damaged),
                Ordering::Equal => winner.read(&mut self.next)?,
            }
            if is_greater(&self.next, &self.current) {
                std::mem::swap(&mut self.current, &mut self.next);
            }
            self.runs.step()?;
        }
        Ok(true)
    }

    fn current(&self) -> Member<'_> {
        self.current.as_member()
    }

    fn user(&self) -> User<'_> {
        self.current.user()
    }

    fn value(&self) -> Value<'_> {
        self.current.value.as_value()
    }
}

/// Where blocks of records come from.
enum Blocks {
    Run(RunReader),
    Ordered(Ordered),
}

/// A place among members in order.
struct Cursor {
    blocks: Blocks,
    block: Vec<u8>,
    /// Where its record is. That of nobody, whose key is empty, after the last one.
    place: Place,
}

impl Cursor {
    /// At the first record.
    fn open(blocks: Blocks, shares: Shares) -> Result<Self, SortError> {
        let mut cursor = Self {
            blocks,
            block: Vec::with_capacity(shares.block_bytes),
            place: Place::default(),
        };
        cursor.step()?;
        Ok(cursor)
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.place.key(&self.block)
    }

    fn has_ended(&self) -> bool {
        self.key().is_empty()
    }

    fn read(&self, member: &mut MemberBuf) -> Result<(), SortError> {
        let read = self.place.read(&self.block, member);
        read.ok_or(SortError::Damaged)
    }

    fn step(&mut self) -> Result<(), SortError> {
        let mut at = self.place.end;
        if at == self.block.len() {
            if !self.fill()? {
                self.place = Place::default();
                return Ok(());
            }
            at = 0;
        }
        self.place = record::find(&self.block, at).ok_or(SortError::Damaged)?;
        Ok(())
    }

    fn fill(&mut self) -> Result<bool, SortError> {
        match &mut self.blocks {
            Blocks::Run(run) => run.fill(&mut self.block),
            Blocks::Ordered(ordered) => Ok(ordered.fill(&mut self.block)),
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        let ordered = match &self.blocks {
            Blocks::Run(_) => 0,
            Blocks::Ordered(ordered) => ordered.bytes(),
        };
        ordered + self.block.capacity()
    }
}

/// Cursors that play against each other: whoever has the least key wins, and each game that was lost is remembered. When
/// the winner moves on, only its own games are played again.
struct Tournament {
    cursors: Vec<Cursor>,
    /// The winner, and then the loser of each game. The two games before game `n` are `2n` and `2n + 1`, or cursors.
    players: Vec<Player>,
    /// How many bytes all keys begin with.
    common: usize,
}

#[derive(Clone, Copy)]
struct Player {
    head: u64,
    cursor: usize,
}

impl Tournament {
    fn of(cursors: Vec<Cursor>, common: usize) -> Self {
        let nobody = Player { head: 0, cursor: 0 };
        let mut tournament = Self {
            players: vec![nobody; cursors.len()],
            cursors,
            common,
        };
        if !tournament.cursors.is_empty() {
            tournament.players[0] = tournament.play(1);
        }
        tournament
    }

    /// Plays a game and all before it, and tells the winner.
    fn play(&mut self, game: usize) -> Player {
        if game >= self.cursors.len() {
            return self.player(game - self.cursors.len());
        }
        let (one, other) = (self.play(game * 2), self.play(game * 2 + 1));
        let (winner, loser) = match self.beats(other, one) {
            true => (other, one),
            false => (one, other),
        };
        self.players[game] = loser;
        winner
    }

    fn player(&self, cursor: usize) -> Player {
        let key = self.cursors[cursor].key();
        Player {
            head: match key {
                [] => u64::MAX,
                key => head(key, self.common),
            },
            cursor,
        }
    }

    #[inline]
    fn beats(&self, one: Player, other: Player) -> bool {
        match one.head == other.head {
            true => self.is_less(one.cursor, other.cursor),
            false => one.head < other.head,
        }
    }

    /// Whoever is at the end comes last.
    fn is_less(&self, one: usize, other: usize) -> bool {
        let [one, other] = [one, other].map(|cursor| self.cursors[cursor].key());
        !one.is_empty() && (other.is_empty() || one < other)
    }

    /// Whoever has the least record; `None` when all have been.
    #[inline]
    fn winner(&self) -> Option<&Cursor> {
        let winner = self.players.first()?;
        Some(&self.cursors[winner.cursor]).filter(|cursor| !cursor.has_ended())
    }

    /// Moves the winner past it.
    fn step(&mut self) -> Result<(), SortError> {
        let cursor = self.players[0].cursor;
        self.cursors[cursor].step()?;
        let mut winner = self.player(cursor);
        let mut game = (cursor + self.cursors.len()) / 2;
        while game > 0 {
            let loser = self.players[game];
            if self.beats(loser, winner) {
                self.players[game] = std::mem::replace(&mut winner, loser);
            }
            game /= 2;
        }
        self.players[0] = winner;
        Ok(())
    }
}
