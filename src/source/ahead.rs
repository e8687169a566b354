//! Reads a source on a thread of its own, a little ahead of whoever uses its members.
//!
//! A merge waits for two databases in turn; so it waits for the slower one only. How the reading ended is said in so
//! many words and never guessed from a silence: only a source that was read to its end has an end.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::{Fingerprint, Interrupt, Question, Skipped, Source, SourceError};
use crate::audience::{Audience, Member, User, UserKind, Value};
use crate::diff::Members;

/// Members that change threads together, at most,
const BATCH_MEMBERS: usize = 1_024;
/// and as many as have so many bytes of text,
const BATCH_BYTES: usize = 256 << 10;
/// and how many such batches are read ahead.
const BATCHES_AHEAD: usize = 8;

/// What the reading thread says.
enum Said {
    Batch(Batch),
    End(Skipped, Option<Fingerprint>),
    Failed(SourceError),
}

/// The members of a source, as the reading thread hands them over.
pub struct MembersAhead {
    said: Receiver<Said>,
    batch: Batch,
    /// The member of the batch that the next `advance` moves to.
    next: usize,
    /// Rows that were left out. Complete at the end.
    pub skipped: Skipped,
    /// What the source was. Known at the end, where it can be known at all.
    pub read_from: Option<Fingerprint>,
}

/// Opens a source and hands its members to `use_members`, in order.
pub(super) fn read<T, E: From<SourceError>>(
    source: &Source,
    audience: &Audience,
    questions: &[Question],
    interrupt: &Interrupt,
    use_members: impl FnOnce(&mut MembersAhead) -> Result<T, E>,
) -> Result<T, E> {
    let (say, said) = sync_channel(BATCHES_AHEAD);
    thread::scope(|scope| {
        scope.spawn(move || {
            if let Err(error) = read_all(source, audience, questions, interrupt, &say) {
                // Nobody listens any more when the merge has failed.
                drop(say.send(Said::Failed(error)));
            }
        });
        let mut members = MembersAhead {
            said,
            batch: Batch::default(),
            next: 0,
            skipped: Skipped::default(),
            read_from: None,
        };
        // Dropping them ends a thread that still has something to say.
        let used = use_members(&mut members);
        drop(members);
        used
    })
}

/// Reads all members, or as many as somebody listens to, and says so at the end of each question.
fn read_all(
    source: &Source,
    audience: &Audience,
    questions: &[Question],
    interrupt: &Interrupt,
    say: &SyncSender<Said>,
) -> Result<(), SourceError> {
    source.ask_here(audience, questions, interrupt, |members| {
        let mut batch = Batch::default();
        while members.advance()? {
            batch.push(&members.current());
            if batch.is_full() && say.send(Said::Batch(std::mem::take(&mut batch))).is_err() {
                return Ok(false);
            }
        }
        drop(say.send(Said::Batch(batch)));
        let end = Said::End(members.skipped, members.read_from());
        Ok(say.send(end).is_ok())
    })
}

impl Members for MembersAhead {
    type Error = SourceError;

    fn advance(&mut self) -> Result<bool, SourceError> {
        while self.next == self.batch.members.len() {
            match self
                .said
                .recv()
                .expect("the reading thread says how it ended")
            {
                Said::Batch(batch) => {
                    self.batch = batch;
                    self.next = 0;
                }
                Said::End(skipped, read_from) => {
                    self.skipped = skipped;
                    self.read_from = read_from;
                    return Ok(false);
                }
                Said::Failed(error) => return Err(error),
            }
        }
        self.next += 1;
        Ok(true)
    }

    fn current(&self) -> Member<'_> {
        self.batch.member(self.next - 1)
    }
}

/// Members with all their text in one place.
#[derive(Default)]
struct Batch {
    text: String,
    members: Vec<Packed>,
}

/// Where the texts of a member are: each begins where the one before it ends.
struct Packed {
    kind: UserKind,
    id: (usize, usize),
    anonymous_id: Option<usize>,
    value: PackedValue,
    traits: usize,
}

enum PackedValue {
    True,
    Text(usize),
    Integer(i64),
    Real(f64),
}

impl Batch {
    fn is_full(&self) -> bool {
        self.members.len() >= BATCH_MEMBERS || self.text.len() >= BATCH_BYTES
    }

    fn push(&mut self, member: &Member<'_>) {
        let start = self.text.len();
        let id = self.add(member.user.id);
        let anonymous_id = member.anonymous_id.map(|id| self.add(id));
        let value = match member.value {
            Value::True => PackedValue::True,
            Value::Text(text) => PackedValue::Text(self.add(text)),
            Value::Integer(integer) => PackedValue::Integer(integer),
            Value::Real(real) => PackedValue::Real(real),
        };
        let traits = self.add(member.traits);
        self.members.push(Packed {
            kind: member.user.kind,
            id: (start, id),
            anonymous_id,
            value,
            traits,
        });
    }

    /// Adds a text, and tells where it ends.
    fn add(&mut self, text: &str) -> usize {
        self.text.push_str(text);
        self.text.len()
    }

    fn member(&self, position: usize) -> Member<'_> {
        let Packed {
            kind,
            id: (start, id),
            anonymous_id,
            value,
            traits,
        } = &self.members[position];
        let mut from = *id;
        let mut next = |end: usize| {
            let text = &self.text[from..end];
            from = end;
            text
        };
        let anonymous_id = anonymous_id.map(&mut next);
        let value = match value {
            PackedValue::True => Value::True,
            PackedValue::Text(end) => Value::Text(next(*end)),
            PackedValue::Integer(integer) => Value::Integer(*integer),
            PackedValue::Real(real) => Value::Real(*real),
        };
        let traits = next(*traits);
        Member {
            user: User {
                kind: *kind,
                id: &self.text[*start..*id],
            },
            anonymous_id,
            value,
            traits,
        }
    }
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
        ];
        let mut batch = Batch::default();
        members.iter().for_each(|member| batch.push(member));
        for (position, expected) in members.iter().enumerate() {
            assert!(batch.member(position) == *expected, "{position}");
        }
    }
}
