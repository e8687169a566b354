//! Reads a source on a thread of its own, a little ahead of whoever uses its members.
//!
//! A merge waits for two databases in turn; so it waits for the slower one only. How the reading ended is said in so
//! many words and never guessed from a silence: only a source that was read to its end has an end.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Fingerprint, Given, Interrupt, Question, Skipped, Source, SourceError};
use crate::audience::{Audience, Member, User, UserKind, Value};
use crate::diff::{Members, Membership};

/// Members that change threads together, at most,
const BATCH_MEMBERS: usize = 8_192;
/// and as many as have so many bytes of text,
const BATCH_BYTES: usize = 256 << 10;
/// and how many such batches are read ahead.
const BATCHES_AHEAD: usize = 8;
/// How often it is seen whether anybody still waits for members.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the reading thread says.
enum Said {
    Batch(Batch),
    End(Skipped, Option<Fingerprint>),
    /// In place of all members.
    AsBefore,
    Failed(SourceError),
}

/// The members of a source, as the reading thread hands them over.
pub struct MembersAhead {
    /// Goes before the reader does: nobody listens any more.
    said: Receiver<Said>,
    /// What was said first, where somebody has listened to it already.
    first: Option<Said>,
    batch: Batch,
    /// The member of the batch that the next `advance` moves to.
    next: usize,
    /// Rows that were left out. Complete at the end.
    pub skipped: Skipped,
    /// What the source was. Known at the end, where it can be known at all.
    pub read_from: Option<Fingerprint>,
    /// Questions that have yet to be answered to their end.
    open: usize,
    reader: Reader,
}

/// The reading thread. It ends with those who use its members.
struct Reader {
    thread: Option<JoinHandle<()>>,
    interrupt: Interrupt,
    has_ended: bool,
}

/// Begins to read a source.
pub(super) fn start(
    source: &Source,
    audience: &Audience,
    questions: &[Question],
    known: Option<&str>,
    interrupt: &Interrupt,
) -> MembersAhead {
    let (say, said) = sync_channel(BATCHES_AHEAD);
    let (source, audience, heard) = (source.clone(), audience.clone(), interrupt.clone());
    let (open, questions) = (questions.len(), questions.to_vec());
    let known = known.map(str::to_owned);
    let thread = thread::spawn(move || {
        let read = read_all(
            &source,
            &audience,
            &questions,
            known.as_deref(),
            &heard,
            &say,
        );
        // Nobody listens any more when the merge has failed.
        match read {
            Ok(Given::Members) => {}
            Ok(Given::AsBefore) => drop(say.send(Said::AsBefore)),
            Err(error) => drop(say.send(Said::Failed(error))),
        }
    });
    MembersAhead {
        said,
        first: None,
        batch: Batch::default(),
        next: 0,
        skipped: Skipped::default(),
        read_from: None,
        open,
        reader: Reader {
            thread: Some(thread),
            interrupt: interrupt.clone(),
            has_ended: false,
        },
    }
}

impl Drop for Reader {
    /// Waits until SQLite has closed the source. A query may go on for minutes before its first row, and between two
    /// statements nobody hears an interrupt.
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        while !self.has_ended && !thread.is_finished() {
            self.interrupt.interrupt();
            thread::sleep(Duration::from_millis(1));
        }
        // What it panicked with was on standard error, and whoever listened has panicked too.
        drop(thread.join());
    }
}

/// Reads all members, or as many as somebody listens to, and says so at the end of each question.
fn read_all(
    source: &Source,
    audience: &Audience,
    questions: &[Question],
    known: Option<&str>,
    interrupt: &Interrupt,
    say: &SyncSender<Said>,
) -> Result<Given, SourceError> {
    source.ask_here(audience, questions, known, interrupt, &mut |members| {
        let mut batch = Batch::default();
        while members.advance()? {
            batch.push(&members.current(), members.membership());
            if batch.is_full() {
                let next = Batch::like(&batch);
                if say
                    .send(Said::Batch(std::mem::replace(&mut batch, next)))
                    .is_err()
                {
                    return Ok(false);
                }
            }
        }
        drop(say.send(Said::Batch(batch)));
        let end = Said::End(members.skipped(), members.read_from());
        Ok(say.send(end).is_ok())
    })
}

impl MembersAhead {
    /// Waits until the source says something: until there are members, or an end, or a reason why there are none.
    pub fn wait(&mut self) {
        while self.first.is_none() && !self.reader.interrupt.is_requested() {
            // Whoever interrupts it may have to do so again before the reading thread hears it: that is for `drop`.
            self.first = self.said.recv_timeout(LOOK_EVERY).ok();
        }
    }

    /// Whether the source is what it is known to have been. Then there are no members to use: they are who they were.
    pub fn is_as_before(&mut self) -> bool {
        let said = self.listen();
        let is_as_before = matches!(said, Said::AsBefore);
        self.reader.has_ended = is_as_before;
        self.first = Some(said);
        is_as_before
    }

    fn listen(&mut self) -> Said {
        self.first.take().unwrap_or_else(|| {
            let said = self.said.recv();
            said.expect("the reading thread says how it ended")
        })
    }
}

impl Members for MembersAhead {
    type Error = SourceError;

    fn advance(&mut self) -> Result<bool, SourceError> {
        while self.next == self.batch.members.len() {
            match self.listen() {
                Said::Batch(batch) => {
                    self.batch = batch;
                    self.next = 0;
                }
                Said::End(skipped, read_from) => {
                    self.open -= 1;
                    self.reader.has_ended = self.open == 0;
                    self.skipped = skipped;
                    self.read_from = read_from;
                    return Ok(false);
                }
                Said::AsBefore => {
                    unreachable!("whoever knows what a source was sees first whether it is so")
                }
                Said::Failed(error) => {
                    self.reader.has_ended = true;
                    return Err(error);
                }
            }
        }
        self.next += 1;
        Ok(true)
    }

    fn current(&self) -> Member<'_> {
        self.batch.member(self.next - 1)
    }

    fn user(&self) -> User<'_> {
        self.batch.user(self.next - 1)
    }

    fn value(&self) -> Value<'_> {
        self.batch.value(self.next - 1)
    }

    fn membership(&self) -> Membership {
        self.batch.membership(self.next - 1)
    }
}

/// Members with all their text in one place.
#[derive(Default)]
struct Batch {
    text: String,
    members: Vec<Packed>,
    /// Of the few that have more than an id.
    more: Vec<More>,
}

/// Where the id of a member ends; it begins where the text of the one before ends.
struct Packed {
    start: u32,
    end: u32,
    kind: UserKind,
    /// Its place among those that have more.
    more: Option<u32>,
}

/// Where the other texts of a member are: each begins where the one before it ends.
struct More {
    anonymous_id: Option<usize>,
    value: PackedValue,
    membership: Membership,
    traits: usize,
}

enum PackedValue {
    True,
    Text(usize),
    Integer(i64),
    Real(f64),
}

impl Batch {
    /// As long as the last one became.
    fn like(full: &Self) -> Self {
        Self {
            text: String::with_capacity(full.text.len()),
            members: Vec::with_capacity(full.members.len()),
            more: Vec::with_capacity(full.more.len()),
        }
    }

    fn is_full(&self) -> bool {
        self.members.len() >= BATCH_MEMBERS || self.text.len() >= BATCH_BYTES
    }

    fn push(&mut self, member: &Member<'_>, membership: Membership) {
        let start = position(self.text.len());
        let end = position(self.add(member.user.id));
        let is_plain = member.anonymous_id.is_none()
            && member.value == Value::True
            && membership == Membership::Member
            && member.traits.is_empty();
        let more = (!is_plain).then(|| {
            let more = More {
                anonymous_id: member.anonymous_id.map(|id| self.add(id)),
                value: match member.value {
                    Value::True => PackedValue::True,
                    Value::Text(text) => PackedValue::Text(self.add(text)),
                    Value::Integer(integer) => PackedValue::Integer(integer),
                    Value::Real(real) => PackedValue::Real(real),
                },
                membership,
                traits: self.add(member.traits),
            };
            self.more.push(more);
            position(self.more.len() - 1)
        });
        self.members.push(Packed {
            start,
            end,
            kind: member.user.kind,
            more,
        });
    }

    /// Adds a text, and tells where it ends.
    fn add(&mut self, text: &str) -> usize {
        self.text.push_str(text);
        self.text.len()
    }

    fn user(&self, position: usize) -> User<'_> {
        let Packed {
            start, end, kind, ..
        } = self.members[position];
        User {
            kind,
            id: &self.text[start as usize..end as usize],
        }
    }

    fn member(&self, position: usize) -> Member<'_> {
        let user = self.user(position);
        let Packed { end, more, .. } = self.members[position];
        let Some(more) = more else {
            return Member {
                user,
                anonymous_id: None,
                value: Value::True,
                traits: "",
            };
        };
        let More {
            anonymous_id,
            value,
            traits,
            ..
        } = &self.more[more as usize];
        let mut from = end as usize;
        let mut next = |end: usize| &self.text[std::mem::replace(&mut from, end)..end];
        let anonymous_id = anonymous_id.map(&mut next);
        let value = match value {
            PackedValue::True => Value::True,
            PackedValue::Text(end) => Value::Text(next(*end)),
            PackedValue::Integer(integer) => Value::Integer(*integer),
            PackedValue::Real(real) => Value::Real(*real),
        };
        Member {
            user,
            anonymous_id,
            value,
            traits: next(*traits),
        }
    }

    fn value(&self, position: usize) -> Value<'_> {
        match self.members[position].more {
            None => Value::True,
            Some(_) => self.member(position).value,
        }
    }

    fn membership(&self, position: usize) -> Membership {
        let more = self.members[position].more;
        more.map_or(Membership::Member, |more| {
            self.more[more as usize].membership
        })
    }
}

/// Where an id begins or ends, or whose texts are where.
fn position(length: usize) -> u32 {
    u32::try_from(length).expect("a batch is full long before, and an id is short")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member<'a>(
        id: &'a str,
        anonymous_id: Option<&'a str>,
        value: Value<'a>,
        traits: &'a str,
    ) -> Member<'a> {
        Member {
            user: User {
                kind: UserKind::UserId,
                id,
            },
            anonymous_id,
            value,
            traits,
        }
    }

    #[test]
    fn members_are_the_same_on_the_other_side() {
        let members = [
            member("a", None, Value::True, ""),
            member("ü", Some("anonymous"), Value::Text("text"), r#","x":1"#),
            member("c", None, Value::Integer(-7), r#","y":"é""#),
            member("d", Some(""), Value::Real(1.5), ""),
            member("e", None, Value::Integer(0), ""),
        ];
        let mut batch = Batch::default();
        let both = [Membership::Member, Membership::Gone];
        for membership in both {
            members
                .iter()
                .for_each(|member| batch.push(member, membership));
        }
        let expected = both.map(|membership| members.map(|member| (member, membership)));
        for (position, (member, membership)) in expected.iter().flatten().enumerate() {
            assert!(batch.member(position) == *member, "{position}");
            assert_eq!(batch.membership(position), *membership, "{position}");
        }
    }
}
