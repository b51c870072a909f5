//! How much memory the models hold now.

use super::entry::State;
use super::{Registry, Resident};

impl<M: Resident> Registry<M> {
    /// Bytes of all weights in memory; those that were replaced count while a call computes with them.
    pub fn held_bytes(&self) -> u64 {
        let table = self.read();
        let ready = table.entries.iter().filter_map(|entry| match &entry.state {
            State::Ready(model) => Some(model.bytes()),
            _ => None,
        });
        let still_used = table.retired.iter().filter(|(model, _)| model.strong_count() > 0);
        ready.chain(still_used.map(|(_, bytes)| *bytes)).sum()
    }
}
