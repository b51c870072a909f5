//! Whether small calls share a request.

use std::time::Duration;

use super::check::Checker;

/// Short beside a request of a few milliseconds, and long enough for calls that were made together.
const MAX_WAIT: Duration = Duration::from_millis(2);
const MAX_TEXTS: usize = 64;

/// What a user sets of it. None means the default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CoalesceOptions {
    /// Seconds that a call waits for others at most.
    pub max_wait: Option<f64>,
    /// Most texts of one request; calls of as many or more have one of their own.
    pub max_texts: Option<u64>,
}

/// How small calls share a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoalesceConfig {
    /// How long a call waits for others at most.
    pub max_wait: Duration,
    /// Most texts of one request.
    pub max_texts: usize,
}

impl CoalesceOptions {
    /// The same with the defaults written out.
    pub(super) fn with_defaults(self) -> Self {
        Self {
            max_wait: self.max_wait.or(Some(MAX_WAIT.as_secs_f64())),
            max_texts: self.max_texts.or(Some(MAX_TEXTS as u64)),
        }
    }
}

impl Checker {
    pub(super) fn coalesce(&mut self, options: &CoalesceOptions) -> CoalesceConfig {
        CoalesceConfig {
            max_wait: self.seconds("coalesce.max_wait", options.max_wait, MAX_WAIT),
            max_texts: self.size("coalesce.max_texts", options.max_texts, MAX_TEXTS),
        }
    }
}
