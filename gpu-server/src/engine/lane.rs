//! A thread that computes: it fetches a batch, runs the model, brings the outcome back, until the server ends.
//!
//! On the CPU there are as many as cores, each with one thread of libtorch: batches side by side need no barrier within an
//! operation. What is alone on the machine gets all cores. A GPU has one lane.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::attempt::{self, Compute};
use super::models::ReadyModel;
use super::scheduler::{Batch, Next, Scheduler};
use super::spans::BatchSpans;
use crate::device::ActiveDevice;
use crate::device::fault::FaultLatch;
use crate::error::Error;
use crate::index::view::Views;
use crate::model::tokenizer::Encoded;

/// Tokens from which on a batch that is alone is worth all threads.
const WORTH_ALL_THREADS: usize = 64;
/// How much other threads of this process go before a lane's, as `nice` counts: with 5 the operating system gives them three
/// quarters of a core that both want.
const NICENESS: i32 = 5;

/// Everything a lane is started with.
pub struct Lane {
    /// The first one is 0; it also runs the tasks.
    pub number: usize,
    /// For small batches that need not wait for the other lanes' (see [`super::scheduler::Shape`]).
    pub express: bool,
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
        if self.device.device == tch::Device::Cpu && !self.express {
            step_back();
        }
        let mut threads = Threads(0);
        threads.set(self.all_threads);
        let _no_gradients = tch::no_grad_guard();
        if self.number == 0 {
            tch::set_num_interop_threads(1);
        }
        let mut views = Views::new(self.device.device);
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
                    let worth_all = (batch.alone || self.express) && batch.tokens() >= WORTH_ALL_THREADS;
                    threads.set(if worth_all { self.all_threads } else { self.own_threads });
                    self.compute(batch);
                }
            }
            if let Some(fault) = self.latch.fault() {
                self.scheduler.fail_all(&fault);
            }
        }
    }

    fn compute(&self, mut batch: Batch) {
        let started = Instant::now();
        let picked = std::mem::take(&mut batch.picked);
        let (inputs, tokens) = (batch.inputs(), batch.tokens());
        let spans = BatchSpans::begin(picked, self.number, &batch.model.name, inputs.len(), tokens);
        let pass = Pass {
            model: &batch.model,
            inputs: &inputs,
            spans: &spans,
        };
        let outcomes = match self.latch.fault() {
            Some(fault) => vec![Err(fault); inputs.len()],
            None => attempt::outcomes(&pass, inputs.len(), batch.model.model.width),
        };
        let elapsed = started.elapsed();
        drop(spans); // before the callers have their answers, or their spans would end late
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
        self.scheduler.finish(&batch, outcomes, started, elapsed);
    }
}

/// Lets the threads that take calls in and the express lane go before this one, and before libtorch's threads that it
/// will start: a short text must not share a core in equal parts with a flood's batches.
fn step_back() {
    // On Linux a number of a thread is as good as one of a process here.
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
        tracing::debug!(%error, "a lane keeps the priority of the process");
    }
}

/// A batch on its model.
struct Pass<'a> {
    model: &'a ReadyModel,
    inputs: &'a [&'a Encoded],
    spans: &'a BatchSpans,
}

impl Compute for Pass<'_> {
    fn rows(&self, positions: &[usize]) -> Result<Vec<f32>, Error> {
        let inputs: Vec<&Encoded> = positions.iter().map(|&position| self.inputs[position]).collect();
        let _spans = self.spans.forward(inputs.len());
        self.model.model.forward(&inputs)
    }

    fn precise(&self, position: usize) -> Result<Vec<f32>, Error> {
        let input = &[self.inputs[position]];
        let _spans = self.spans.forward(1);
        match &self.model.precise {
            None => self.model.model.forward(input),
            Some(precise) => precise.model()?.forward(input),
        }
    }

    fn tokens(&self, position: usize) -> usize {
        self.inputs[position].ids.len()
    }
}
