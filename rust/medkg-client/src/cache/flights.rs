//! Texts that a call is embedding right now, so that no other call has to.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::key::Key;

/// Texts in work.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<Key, watch::Receiver<()>>>);

/// The texts that one call embeds for all. They are landed when this is dropped, whether or not it went well.
#[derive(Debug)]
pub(crate) struct Flight<'a> {
    flights: &'a Flights,
    keys: Vec<Key>,
    _landed: watch::Sender<()>,
}

/// Ends when the other call has landed.
#[derive(Debug, Clone)]
pub(crate) struct Landing(watch::Receiver<()>);

impl Landing {
    pub(crate) async fn landed(mut self) {
        // Nothing is ever sent: it ends with the sender.
        while self.0.changed().await.is_ok() {}
    }
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of `keys` this call is to embed, and what to wait for with each of the others.
    pub(crate) fn begin(&self, keys: &[Key]) -> (Flight<'_>, Vec<Option<Landing>>) {
        let (sender, receiver) = watch::channel(());
        let mut flying = self.lock();
        let mut own = Vec::new();
        let landings = keys
            .iter()
            .map(|key| {
                if let Some(other) = flying.get(key) {
                    return Some(Landing(other.clone()));
                }
                flying.insert(key.clone(), receiver.clone());
                own.push(key.clone());
                None
            })
            .collect();
        drop(flying);
        let flight = Flight {
            flights: self,
            keys: own,
            _landed: sender,
        };
        (flight, landings)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flying = self.flights.lock();
        for key in &self.keys {
            flying.remove(key);
        }
    }
}

/// Waits for all of them.
pub(crate) async fn landed(landings: impl IntoIterator<Item = Landing>) {
    for landing in landings {
        landing.landed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Keys;
    use super::*;

    #[tokio::test]
    async fn one_call_embeds_and_the_other_one_waits_until_it_has_landed_or_failed() {
        let keys = Keys::new("t", "m", &[]);
        let texts = |texts: &[&str]| texts.iter().map(|text| keys.of(text)).collect::<Vec<_>>();
        let flights = Flights::default();
        let (first, landings) = flights.begin(&texts(&["a", "b"]));
        assert!(landings.iter().all(Option::is_none));
        let (second, landings) = flights.begin(&texts(&["b", "c"]));
        let [Some(b), None] = &landings[..] else {
            panic!("{landings:?}")
        };
        let waits = tokio::spawn(b.clone().landed());
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(first);
        waits.await.unwrap();
        let (_, landings) = flights.begin(&texts(&["b", "c"]));
        assert!(landings[0].is_none() && landings[1].is_some());
        drop(second);
    }
}
