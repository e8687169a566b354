//! What an endpoint remembers.

use std::collections::BTreeMap;

use super::{Api, Call, Kind};

/// What arrived, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    pub calls: Vec<Call>,
    /// Stream and bytes of each record that was accepted.
    pub accepted: Vec<(String, Vec<u8>)>,
    /// For each of those, whether an answer that said so was sent whole, to a client that still waited for it. Of the
    /// others nobody but the endpoint knows.
    pub acknowledged: Vec<bool>,
    /// What [`Faults`](super::Faults) have played.
    pub played: BTreeMap<Kind, usize>,
}

impl Ledger {
    pub(crate) fn of(&self, api: Api) -> Vec<&Call> {
        self.calls.iter().filter(|call| call.api == api).collect()
    }

    /// The records that a stream accepted.
    pub(crate) fn accepted_by(&self, stream: &str) -> Vec<&[u8]> {
        let at_stream = self.accepted.iter().filter(|(at, _)| at == stream);
        at_stream.map(|(_, record)| record.as_slice()).collect()
    }

    /// How many records of Firehose's calls were sent, accepted or not.
    pub(crate) fn sent(&self) -> usize {
        self.calls.iter().map(|call| call.records.len()).sum()
    }
}
