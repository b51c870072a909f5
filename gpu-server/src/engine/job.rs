//! A job, and what comes back from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::Error;
use crate::model::tokenizer::Encoded;

use super::models::ReadyModel;
use super::registry::Resident as _;
use super::spans::{Picked, Waiting};

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
    /// What its trace shows.
    pub spans: Waiting,
}

/// A sparse row: the places of its elements that are above 0, ascending, and the elements.
pub type Terms = Box<[(u32, f32)]>;

/// One row per input.
#[derive(Debug, Clone)]
pub enum Rows {
    /// f32, row-major [inputs, width].
    Dense(Vec<f32>),
    /// A vocabulary wide and nearly all zero: 4,096 dense ones would take half a gigabyte.
    Sparse(Vec<Terms>),
}

/// One row of f32 per input.
#[derive(Debug, Clone)]
pub struct Computed {
    /// Sparse for models that make sparse vectors.
    pub rows: Rows,
    /// Values per row.
    pub width: usize,
    /// Forward passes that held one of the inputs.
    pub batches: u32,
    /// From handing over to the first of those passes.
    pub queue_time: Duration,
    /// Wall time of those passes, added up; passes run side by side on several cores.
    pub compute_time: Duration,
}

impl Computed {
    /// Hands over the dense rows, row-major [inputs, width]; nothing is left here.
    ///
    /// # Errors
    /// When the model makes sparse ones.
    pub fn take_dense(&mut self) -> Result<Vec<f32>, Error> {
        match &mut self.rows {
            Rows::Dense(rows) => Ok(std::mem::take(rows)),
            Rows::Sparse(_) => Err(Error::internal("sparse rows where dense ones were expected")),
        }
    }
}

/// A job with what has been computed of it.
#[derive(Debug)]
pub struct Running {
    job: Job,
    rows: Rows,
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
            rows: if job.model.makes_sparse() {
                Rows::Sparse(Vec::new())
            } else {
                Rows::Dense(Vec::new())
            },
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

    /// Some of its inputs are computed now.
    pub fn picked(&mut self) -> Picked {
        self.job.spans.picked()
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
        let (width, inputs) = (row.len(), self.job.inputs.len());
        // No room is made before: what only waits needs none for its answer.
        match &mut self.rows {
            Rows::Dense(rows) => {
                rows.resize(inputs * width, 0.0);
                rows[index * width..][..width].copy_from_slice(row);
            }
            Rows::Sparse(rows) => {
                rows.resize_with(inputs, Terms::default);
                let places = (0_u32..).zip(row.iter().copied());
                rows[index] = places.filter(|&(_, value)| value > 0.0).collect();
            }
        }
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
