//! Whether anybody is there, where no answer comes.
//!
//! A server may compute for a long time, so a call that waits is no sign of a fault. A machine that is stopped or cut off is
//! one, and TCP says nothing of it for minutes. So a call that another server could take asks the health service over the
//! connection on which it waits: a server that is busy answers that at once, one that is gone does not, and the call is made
//! elsewhere while there is time. The connection is left as it is: HTTP/2's own ping ends it if it stays silent, and a server
//! that stood still for a moment still answers those who had nowhere else to go.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::channel::Channel;
use crate::policy::classify::Service;
use crate::service::health::check;

/// A call waits for no longer than this before it asks.
const LONGEST: Duration = Duration::from_secs(2);
/// The share of its time that it waits for at most, and again for the answer: half of the time is left then.
const SHARE: u32 = 4;

/// How a call waits that could be made elsewhere.
pub(crate) struct Watchful<'a> {
    pub(crate) service: Service,
    /// How long it waits before it asks, and how long for the answer.
    pub(crate) patience: Duration,
    /// True if another server would take the call now.
    pub(crate) elsewhere: &'a (dyn Fn() -> bool + Send + Sync),
}

/// How patient a call is that has so much time left.
pub(crate) fn patience(remaining: Duration) -> Duration {
    (remaining / SHARE).min(LONGEST)
}

/// What the last question over a connection came to.
#[derive(Debug)]
struct Heard {
    at: Instant,
    patience: Duration,
    alive: bool,
}

/// Asks over one connection whether anybody is there; one question is enough for all who wait.
#[derive(Debug, Default)]
pub(crate) struct Listening {
    heard: Mutex<Option<Heard>>,
}

impl Listening {
    /// Returns when a question stayed unanswered and the call could be made elsewhere; true if another call asked it.
    pub(crate) async fn silence(&self, channel: &Channel, watchful: &Watchful<'_>) -> bool {
        let patience = watchful.patience;
        loop {
            tokio::time::sleep(patience).await;
            let since = now();
            let mut heard = self.heard.lock().await;
            let shared = match &*heard {
                Some(heard) if heard.alive => {
                    if heard.at + patience / 2 >= since {
                        continue;
                    }
                    false
                }
                // Asked while this call waited for its turn, by one that was not much less patient.
                Some(heard) => heard.at >= since && 2 * heard.patience >= patience,
                None => false,
            };
            if !(watchful.elsewhere)() {
                continue;
            }
            if shared {
                return true;
            }
            let answer = tokio::time::timeout(patience, check(channel.clone(), watchful.service)).await;
            let alive = answer.is_ok();
            *heard = Some(Heard {
                at: now(),
                patience,
                alive,
            });
            if !alive && (watchful.elsewhere)() {
                return false;
            }
        }
    }
}

/// The time, also where tests have paused it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_time_is_left_for_elsewhere() {
        assert_eq!(patience(Duration::from_secs(4)), Duration::from_secs(1));
        assert_eq!(patience(Duration::from_secs(3600)), LONGEST);
    }
}
