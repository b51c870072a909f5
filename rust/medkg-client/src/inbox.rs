//! Values from many threads for one reader that sleeps until it is woken.
//!
//! Whoever brings a value learns whether the reader has to be woken; while it has been told and has not looked yet, nobody needs
//! to. Waking is the caller's: a byte into a socket, where the reader is an event loop. `loom` tries every order of bringing,
//! waking and taking.

use std::sync::PoisonError;

#[cfg(not(test))]
use std::sync::Mutex;

#[cfg(test)]
use loom::sync::Mutex;

/// Values for one reader.
#[derive(Debug)]
pub struct Inbox<T> {
    held: Mutex<Held<T>>,
}

#[derive(Debug)]
struct Held<T> {
    values: Vec<T>,
    /// True from when the reader is told that there is something until it looks.
    told: bool,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        let held = Held {
            values: Vec::new(),
            told: false,
        };
        Self { held: Mutex::new(held) }
    }
}

impl<T> Inbox<T> {
    /// Adds a value; true if the reader has to be woken.
    #[must_use = "a reader that is not woken sleeps on"]
    pub fn push(&self, value: T) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.values.push(value);
        !std::mem::replace(&mut held.told, true)
    }

    /// Takes all values, in the order in which they came. The reader calls it after it was woken, and has taken note of that
    /// (read the byte) before: whoever comes later wakes it again.
    pub fn take(&self) -> Vec<T> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.told = false;
        std::mem::take(&mut held.values)
    }
}

#[cfg(test)]
mod tests {
    use loom::sync::{Arc, Notify};
    use loom::thread;

    use super::*;

    #[test]
    fn no_value_is_left_behind_while_the_reader_sleeps() {
        loom::model(|| {
            let (inbox, bell) = (Arc::new(Inbox::default()), Arc::new(Notify::new()));
            let bring = |values: &'static [u32]| {
                let (inbox, bell) = (Arc::clone(&inbox), Arc::clone(&bell));
                thread::spawn(move || {
                    for &value in values {
                        if inbox.push(value) {
                            bell.notify();
                        }
                    }
                })
            };
            let bringing = [bring(&[1, 2]), bring(&[11])];
            let mut taken = Vec::new();
            while taken.len() < 3 {
                // A lost waking would be a deadlock, which loom reports.
                bell.wait();
                taken.extend(inbox.take());
            }
            for thread in bringing {
                thread.join().unwrap();
            }
            let of = |least: u32| {
                taken
                    .iter()
                    .copied()
                    .filter(move |value| (least..least + 10).contains(value))
            };
            assert!(
                of(1).eq([1, 2]) && of(11).eq([11]),
                "each thread's values in its order: {taken:?}"
            );
        });
    }
}
