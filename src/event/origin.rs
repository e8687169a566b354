//! Which stream a record was made for.
//!
//! A record does not name it, but its message id is a hash over it, and over what the record says. So the id also
//! tells a record from one that somebody has made up or changed.

use super::{Computation, Identify, Statement};
use crate::mapping::StreamName;

/// The streams that a record may have been made for.
pub struct Origins {
    candidates: Vec<Candidate>,
    /// Where the last record came from: the next one most likely comes from there too.
    likely: usize,
}

struct Candidate {
    stream: StreamName,
    /// The run of the last record that was looked at.
    run: Option<(Computation, Identify)>,
}

impl Origins {
    pub fn new(streams: impl IntoIterator<Item = StreamName>) -> Self {
        let candidate = |stream| Candidate { stream, run: None };
        Self {
            candidates: streams.into_iter().map(candidate).collect(),
            likely: 0,
        }
    }

    /// A further stream, unless it is known.
    pub fn add(&mut self, stream: &StreamName) {
        if !self.candidates.iter().any(|known| known.stream == *stream) {
            self.candidates.push(Candidate {
                stream: stream.clone(),
                run: None,
            });
        }
    }

    /// The stream whose record this is; `None` for a record of no stream here, and for one that was changed since.
    pub fn find(&mut self, statement: &Statement<'_>) -> Option<&StreamName> {
        let count = self.candidates.len();
        let found = (0..count)
            .map(|step| (self.likely + step) % count)
            .find(|candidate| self.candidates[*candidate].made(statement))?;
        self.likely = found;
        Some(&self.candidates[found].stream)
    }
}

impl Candidate {
    fn made(&mut self, statement: &Statement<'_>) -> bool {
        let is_same_run = |(computation, _): &(Computation, Identify)| statement.is_of(computation);
        if !self.run.as_ref().is_some_and(is_same_run) {
            let computation = statement.computation(&self.stream);
            let identify = Identify::new(&computation);
            self.run = Some((computation, identify));
        }
        let (_, identify) = self.run.as_ref().expect("it was just made");
        identify.message_id(&statement.change()).as_str() == statement.message_id
    }
}
