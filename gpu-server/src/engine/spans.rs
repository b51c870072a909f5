//! What a call's trace shows of the engine: how long its inputs waited, the batches they were in, and the forward passes.
//!
//! A batch serves several calls, and a span has one parent, so each call gets its own spans of it: whoever looks at one trace
//! sees the whole way, and never another tenant's. `calls` says how many shared the batch. Without a collector they are not made.

use medkg_telemetry::logging::DETAIL;
use tracing::Span;

/// The spans of a job while it waits.
#[derive(Debug)]
pub struct Waiting {
    call: Span,
    /// Ends with the first batch that holds one of the inputs.
    queue: Option<Span>,
}

impl Waiting {
    /// Begins to wait, in the span of the call that this runs in.
    pub fn begin(inputs: usize, tokens: usize) -> Self {
        Self {
            call: Span::current(),
            queue: Some(tracing::info_span!(
                target: DETAIL,
                "queue",
                inputs = count(inputs),
                tokens = count(tokens)
            )),
        }
    }

    /// Some of the inputs are computed now.
    pub fn picked(&mut self) -> Picked {
        Picked {
            call: self.call.clone(),
            _queue: self.queue.take(),
        }
    }
}

/// A job of a batch. It is made under the scheduler's lock and used outside of it, where spans may take their time.
#[derive(Debug)]
pub struct Picked {
    call: Span,
    _queue: Option<Span>,
}

/// The spans of a batch or of a forward pass, one for each of its calls; they end on drop.
#[derive(Debug)]
pub struct BatchSpans(Vec<Span>);

impl BatchSpans {
    /// A batch begins.
    pub fn begin(picked: Vec<Picked>, lane: usize, model: &str, inputs: usize, tokens: usize) -> Self {
        let (lane, inputs, tokens, calls) = (count(lane), count(inputs), count(tokens), count(picked.len()));
        let of = |job: Picked| tracing::info_span!(target: DETAIL, parent: &job.call, "batch", lane, model, inputs, tokens, calls);
        Self(picked.into_iter().map(of).collect())
    }

    /// A forward pass of the batch begins.
    #[must_use = "the spans end on drop"]
    pub fn forward(&self, inputs: usize) -> Self {
        let of = |batch: &Span| tracing::info_span!(target: DETAIL, parent: batch, "forward", inputs = count(inputs));
        Self(self.0.iter().map(of).collect())
    }
}

/// As OpenTelemetry has numbers: an unsigned one would travel as text.
fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
