//! A thread that computes: it fetches a batch, runs the model, brings the outcome back, until the server ends.
//!
//! On the CPU there are as many as cores, each with one thread of libtorch: batches side by side need no barrier within an
//! operation. What is alone on the machine gets all cores. A GPU has one lane.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::attempt::{self, Compute};
use super::memory::MemoryModel;
use super::models::ReadyModel;
use super::scheduler::{Batch, Next, Scheduler};
use crate::device::fault::FaultLatch;
use crate::device::{ActiveDevice, cuda};
use crate::error::Error;
use crate::index::view::Views;
use crate::model::tokenizer::Encoded;

/// Tokens from which on a batch that is alone is worth all threads.
const WORTH_ALL_THREADS: usize = 64;
/// Tokens of the passes that a GPU's memory is calibrated with.
const PROBES: (usize, usize) = (1_024, 8_192);

/// Everything a lane is started with.
pub struct Lane {
    /// The first one is 0; it also runs the tasks.
    pub number: usize,
    /// Threads of an operation while other lanes compute.
    pub own_threads: usize,
    /// Threads of an operation that is alone.
    pub all_threads: usize,
    /// What to compute on.
    pub device: ActiveDevice,
    /// Where work comes from.
    pub scheduler: Arc<Scheduler>,
    /// Closed when the device is lost.
    pub latch: FaultLatch,
}

/// The number of threads that libtorch's operations take on this thread.
struct Threads(usize);

impl Threads {
    fn set(&mut self, count: usize) {
        if self.0 != count {
            tch::set_num_threads(i32::try_from(count).unwrap_or(1));
            self.0 = count;
        }
    }
}

impl Lane {
    /// Serves, and ends when the scheduler says so.
    pub fn run(self) {
        // A thread takes over the global default at its first question, so that is asked before the number is set.
        tch::get_num_threads();
        let mut threads = Threads(0);
        threads.set(self.all_threads);
        let _no_gradients = tch::no_grad_guard();
        if self.number == 0 {
            tch::set_num_interop_threads(1);
        }
        let mut views = Views::new(self.device.device);
        let mut calibrated = Vec::new();
        loop {
            match self.scheduler.next(self.number) {
                Next::Stop => return,
                Next::Task(task) => {
                    threads.set(self.all_threads);
                    if catch_unwind(AssertUnwindSafe(|| task(&mut views))).is_err() {
                        tracing::error!("a task panicked; its caller gets INTERNAL");
                    }
                    self.scheduler.task_done();
                }
                Next::Batch(batch) => {
                    let worth_all = batch.alone && batch.tokens() >= WORTH_ALL_THREADS;
                    threads.set(if worth_all { self.all_threads } else { self.own_threads });
                    self.compute(&batch);
                    if self.device.device != tch::Device::Cpu {
                        self.calibrate(&mut calibrated, &batch);
                    }
                }
            }
            if let Some(fault) = self.latch.fault() {
                self.scheduler.fail_all(&fault);
            }
        }
    }

    fn compute(&self, batch: &Batch) {
        let started = Instant::now();
        let (inputs, tokens) = (batch.inputs(), batch.tokens());
        let pass = Pass {
            model: &batch.model,
            inputs: &inputs,
        };
        let outcomes = match self.latch.fault() {
            Some(fault) => vec![Err(fault); inputs.len()],
            None => attempt::outcomes(&pass, inputs.len(), batch.model.model.width),
        };
        let elapsed = started.elapsed();
        tracing::debug!(
            lane = self.number,
            model = %batch.model.name,
            inputs = inputs.len(),
            tokens,
            seconds = elapsed.as_secs_f64(),
            "batch computed"
        );
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            self.latch.observe(error);
        }
        if let Some(Err(error)) = outcomes.iter().find(|outcome| outcome.is_err()) {
            let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
            tracing::error!(%error, failed, inputs = inputs.len(), tokens, "inputs could not be computed");
        }
        self.scheduler.finish(batch, outcomes, started, elapsed);
    }

    /// Learns once for each model what fits into the GPU's memory. After its first batch, so that kernels are loaded.
    fn calibrate(&self, calibrated: &mut Vec<Weak<ReadyModel>>, batch: &Batch) {
        calibrated.retain(|known| known.strong_count() > 0);
        if calibrated
            .iter()
            .any(|known| known.as_ptr() == Arc::as_ptr(&batch.model))
        {
            return;
        }
        calibrated.push(Arc::downgrade(&batch.model));
        let tch::Device::Cuda(index) = self.device.device else {
            return;
        };
        let inputs = batch.inputs();
        let taken = |tokens: usize| {
            let first = inputs.first()?;
            let repeated: Vec<&Encoded> = vec![first; tokens.div_ceil(first.ids.len().max(1))];
            let before = cuda::free_memory(index)?;
            batch.model.model.forward(&repeated).ok()?;
            let bytes = before.saturating_sub(cuda::free_memory(index)?);
            Some((repeated.len() * first.ids.len(), bytes))
        };
        let measured = || {
            let (small, large) = (taken(PROBES.0)?, taken(PROBES.1)?);
            // The allocator keeps what the first pass took, so the second one took only what it needs beyond that.
            let model = MemoryModel::calibrated(small, (large.0, small.1 + large.1))?;
            Some(model.most_tokens(cuda::free_memory(index)?))
        };
        if let Some(tokens) = measured() {
            tracing::info!(model = %batch.model.name, tokens, "largest batch that fits into memory");
            self.scheduler.limit(&batch.model, tokens);
        }
    }
}

/// A batch on its model.
struct Pass<'a> {
    model: &'a ReadyModel,
    inputs: &'a [&'a Encoded],
}

impl Compute for Pass<'_> {
    fn rows(&self, positions: &[usize]) -> Result<Vec<f32>, Error> {
        let inputs: Vec<&Encoded> = positions.iter().map(|&position| self.inputs[position]).collect();
        self.model.model.forward(&inputs)
    }

    fn precise(&self, position: usize) -> Result<Vec<f32>, Error> {
        let input = &[self.inputs[position]];
        match &self.model.precise {
            None => self.model.model.forward(input),
            Some(precise) => precise.model()?.forward(input),
        }
    }

    fn tokens(&self, position: usize) -> usize {
        self.inputs[position].ids.len()
    }
}
