//! Whose turn it is to tokenise: a bounded number at a time, tenants in a circle, so that one with a thousand texts waiting
//! does not hold up another's one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

#[derive(Debug)]
struct State {
    free: usize,
    /// Tenants that wait, the next one first.
    circle: VecDeque<Arc<str>>,
    waiting: HashMap<Arc<str>, VecDeque<oneshot::Sender<Turn>>>,
}

/// The turns.
#[derive(Debug)]
pub struct Turns(Mutex<State>);

/// Passes on to the next one on drop.
#[derive(Debug)]
pub struct Turn(Option<Arc<Turns>>);

impl Turns {
    /// So many at a time.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            free: count,
            circle: VecDeque::new(),
            waiting: HashMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `tenant`'s turn. Nothing is lost if it is not waited for to the end.
    pub async fn next(self: &Arc<Self>, tenant: &Arc<str>) -> Turn {
        let receiver = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(Arc::clone(self)));
            }
            let (sender, receiver) = oneshot::channel();
            if !state.waiting.contains_key(tenant) {
                state.circle.push_back(Arc::clone(tenant));
            }
            state.waiting.entry(Arc::clone(tenant)).or_default().push_back(sender);
            receiver
        };
        // Senders live in the state until they are used.
        receiver.await.unwrap_or(Turn(None))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        let mut state = turns.lock();
        let mut turn = Self(Some(Arc::clone(&turns)));
        while let Some(tenant) = state.circle.pop_front() {
            let senders = state.waiting.get_mut(&tenant);
            let Some(sender) = senders.and_then(VecDeque::pop_front) else {
                continue;
            };
            if state.waiting.get(&tenant).is_some_and(VecDeque::is_empty) {
                state.waiting.remove(&tenant);
            } else {
                state.circle.push_back(tenant);
            }
            match sender.send(turn) {
                Ok(()) => return,
                // That one has gone; the turn is the next one's.
                Err(back) => turn = back,
            }
        }
        turn.0 = None;
        state.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tenants_take_turns_and_those_that_left_are_passed_over() {
        let turns = Turns::new(1);
        let (flood, other): (Arc<str>, Arc<str>) = ("flood".into(), "other".into());
        let first = turns.next(&flood).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (name, tenant) in [
            ("f1", &flood),
            ("left", &flood),
            ("f2", &flood),
            ("f3", &flood),
            ("o1", &other),
        ] {
            let (turns, tenant, order) = (Arc::clone(&turns), Arc::clone(tenant), Arc::clone(&order));
            let task = tokio::spawn(async move {
                let _turn = turns.next(&tenant).await;
                order.lock().unwrap().push(name);
            });
            // Let it begin to wait, so that the order is known.
            tokio::task::yield_now().await;
            if name == "left" {
                task.abort();
                tokio::task::yield_now().await;
            } else {
                tasks.push(task);
            }
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["f1", "o1", "f2", "f3"]);
        assert_eq!(turns.lock().free, 1);
        assert!(turns.lock().waiting.is_empty() && turns.lock().circle.is_empty());
    }
}
