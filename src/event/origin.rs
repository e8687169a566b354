//! Which destination a record was made for.
//!
//! A record does not name it, but its message id is a hash over it, and over what the record says. So the id also
//! tells a record from one that somebody has made up or changed.

use super::{Computation, Identify, Statement};
use crate::audience::DestinationName;

/// The destinations that a record may have been made for.
pub struct Origins {
    candidates: Vec<Candidate>,
    /// Where the last record came from: the next one most likely comes from there too.
    likely: usize,
}

struct Candidate {
    destination: DestinationName,
    /// The run of the last record that was looked at.
    run: Option<(Computation, Identify)>,
}

impl Origins {
    pub fn new(destinations: impl IntoIterator<Item = DestinationName>) -> Self {
        let candidate = |destination| Candidate {
            destination,
            run: None,
        };
        Self {
            candidates: destinations.into_iter().map(candidate).collect(),
            likely: 0,
        }
    }

    /// The destination whose record this is; `None` for one of no destination here, and for one that was tampered with.
    pub fn find(&mut self, statement: &Statement<'_>) -> Option<&DestinationName> {
        let count = self.candidates.len();
        let found = (0..count)
            .map(|step| (self.likely + step) % count)
            .find(|candidate| self.candidates[*candidate].made(statement))?;
        self.likely = found;
        Some(&self.candidates[found].destination)
    }
}

impl Candidate {
    fn made(&mut self, statement: &Statement<'_>) -> bool {
        let is_same_run = |(computation, _): &(Computation, Identify)| statement.is_of(computation);
        if !self.run.as_ref().is_some_and(is_same_run) {
            let computation = statement.computation(&self.destination);
            let identify = Identify::new(&computation);
            self.run = Some((computation, identify));
        }
        let (_, identify) = self.run.as_ref().expect("it was just made");
        identify.message_id(&statement.change()).as_str() == statement.message_id
    }
}
