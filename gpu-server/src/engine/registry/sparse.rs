//! Which models make sparse vectors. Nobody but the loader knows it of a model that has not been loaded yet, so a call that
//! names none has to wait for those that come before the first one known to.

use super::{Purpose, Registry, Resident, State};

impl<M: Resident> Registry<M> {
    /// The models that make sparse vectors, or may turn out to once they are loaded, in the order in which they were named.
    pub fn maybe_sparse(&self) -> Vec<String> {
        self.embedding(|sparse, failed| sparse.unwrap_or(!failed))
    }

    /// The models that are known to make sparse vectors, in memory or not, in the order in which they were named.
    pub fn sparse(&self) -> Vec<String> {
        self.embedding(|sparse, _| sparse == Some(true))
    }

    fn embedding(&self, wanted: impl Fn(Option<bool>, bool) -> bool) -> Vec<String> {
        let table = self.read();
        let entries = table.entries.iter().filter(|entry| {
            let failed = entry.flight.is_none() && matches!(entry.state, State::Failed(_));
            entry.spec.purpose == Purpose::Embedding && wanted(entry.sparse, failed)
        });
        entries.map(|entry| entry.spec.name.clone()).collect()
    }
}
