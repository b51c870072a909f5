//! A job, and what comes back from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::Error;
use crate::model::tokenizer::Encoded;

use super::models::ReadyModel;

/// Who asks, and until when.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose turn it is.
    pub tenant: Arc<str>,
    /// After this nobody wants the answer.
    pub deadline: Option<Instant>,
}

/// Inputs of one call for one model.
#[derive(Debug)]
pub struct Job {
    /// What computes them.
    pub model: Arc<ReadyModel>,
    /// At least one.
    pub inputs: Arc<[Encoded]>,
    /// Who asks.
    pub caller: Caller,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Computed, Error>>,
    /// When it was handed over.
    pub enqueued: Instant,
}

/// One row of f32 per input.
#[derive(Debug, Clone)]
pub struct Computed {
    /// Row-major [inputs, width].
    pub rows: Vec<f32>,
    /// Values per row.
    pub width: usize,
    /// Forward passes that held one of the inputs.
    pub batches: u32,
    /// From handing over to the first of those passes.
    pub queue_time: Duration,
    /// Wall time of those passes, added up; passes run side by side on several cores.
    pub compute_time: Duration,
}

/// A job with what has been computed of it.
#[derive(Debug)]
pub struct Running {
    job: Job,
    rows: Vec<f32>,
    left: usize,
    batches: u32,
    started: Option<Instant>,
    compute_time: Duration,
    /// Tokens of all inputs.
    pub tokens: usize,
}

impl Running {
    /// Nothing is computed yet.
    pub fn new(job: Job, tokens: usize) -> Self {
        Self {
            rows: Vec::new(),
            left: job.inputs.len(),
            batches: 0,
            started: None,
            compute_time: Duration::ZERO,
            tokens,
            job,
        }
    }

    /// The job.
    pub const fn job(&self) -> &Job {
        &self.job
    }

    /// Notes a forward pass that held some of its inputs.
    pub fn passed(&mut self, started: Instant, elapsed: Duration) {
        self.batches += 1;
        self.compute_time += elapsed;
        let first = self.started.get_or_insert(started);
        *first = started.min(*first);
    }

    /// Keeps an input's row; true once there is a row for every input.
    pub fn keep(&mut self, index: usize, row: &[f32]) -> bool {
        let width = row.len();
        // Not before: what only waits needs no room for its answer.
        self.rows.resize(self.job.inputs.len() * width, 0.0);
        self.rows[index * width..][..width].copy_from_slice(row);
        self.left -= 1;
        self.left == 0
    }

    /// Sends what has been computed, or why it was not. A caller that left does not hear it.
    pub fn reply(self, error: Option<Error>) {
        let Self { job, rows, .. } = self;
        let answer = match error {
            Some(error) => Err(error),
            None => Ok(Computed {
                rows,
                width: job.model.model.width,
                batches: self.batches,
                queue_time: self
                    .started
                    .map_or(Duration::ZERO, |at| at.saturating_duration_since(job.enqueued)),
                compute_time: self.compute_time,
            }),
        };
        let _ = job.reply.send(answer);
    }
}
