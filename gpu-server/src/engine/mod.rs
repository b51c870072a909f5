//! From texts to numbers: tokenising in turns, admission, a fair queue, and the threads that compute.
//!
//! | | |
//! |---|---|
//! | `turns` | who tokenises |
//! | `admission` | what is let in, and when to come back |
//! | `queue`, `line` | what is computed next (pure) |
//! | `scheduler` | the lock around them, jobs and their answers |
//! | `lane`, `attempt` | threads that compute, and what they do when a pass fails |
//! | `registry`, `loader`, `golden`, `follow` | which models there are, and what has to be true before one serves |
//! | `models`, `precise`, `memory` | models, their fp32 twins, what fits into a GPU |
//!
//! Callers hand over inputs and wait; what a caller left or whose deadline passed is never computed. Knows no gRPC.

pub mod admission;
pub mod attempt;
pub mod follow;
pub mod golden;
pub mod job;
pub mod lane;
pub mod line;
pub mod loader;
pub mod memory;
pub mod models;
pub mod parity;
pub mod precise;
pub mod queue;
pub mod registry;
pub mod scheduler;
mod spans;
pub mod turns;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::oneshot;

use crate::config::{DeviceChoice, ServerConfig};
use crate::device::ActiveDevice;
use crate::device::canary::{self, Canary};
use crate::device::fault::FaultLatch;
use crate::device::ledger::Ledger;
use crate::device::neighbours::{Home, Neighbours};
use crate::device::pressure::Gauge;
use crate::device::watch::Watched;
use crate::error::Error;
use crate::index::view::Views;
use crate::model::tokenizer::Encoded;
use job::{Caller, Computed};
use lane::Lane;
use loader::Loader;
use models::{Purpose, ReadyModel, Registry};
use scheduler::{Scheduler, Shape};
use turns::Turns;

/// What runs besides batches, with the views of the collections.
pub type Task = Box<dyn FnOnce(&mut Views) + Send>;

/// Bytes of text that are tokenised in one turn: some milliseconds.
const TURN_BYTES: usize = 32 * 1024;
/// Tokens of a batch on the CPU below which its fixed cost shows (docs/adr/0009-packed-batches.md).
const SMALLEST_CPU: usize = 128;

/// The door to the device.
#[derive(Debug)]
pub struct Engine {
    /// Every model that was configured, whatever its state.
    pub models: Arc<Registry>,
    /// Closed once the device is lost.
    pub latch: FaultLatch,
    /// How full the GPU's memory is.
    pub memory: Gauge,
    /// Who holds the device's memory.
    pub ledger: Ledger,
    /// The other processes of the host, if they share a lease store.
    pub neighbours: Option<Arc<Neighbours>>,
    /// What computes; none where nothing does.
    pub device: Option<ActiveDevice>,
    scheduler: Arc<Scheduler>,
    turns: Arc<Turns>,
    /// Turns of one request at a time.
    tokenisers: usize,
    stopping: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the lanes, and the loader with every model that is configured. Returns at once: models report themselves
    /// ready.
    ///
    /// # Errors
    /// [`Error::Internal`] when a thread cannot be started.
    pub fn start(config: &ServerConfig, device: Result<ActiveDevice, Error>) -> Result<Arc<Self>, Error> {
        let (models, orders) = Registry::new(config.model_memory);
        let listed = config.models_file.as_ref().map(|(_, listed)| listed.clone());
        models.start(config.models.clone(), listed.unwrap_or_default());
        let on_cpu = config.device == DeviceChoice::Cpu;
        let shape = Shape {
            lanes: if on_cpu { config.threads } else { 1 },
            express: on_cpu,
            largest: config.batch_tokens,
            smallest: if on_cpu { SMALLEST_CPU } else { config.batch_tokens }.min(config.batch_tokens),
        };
        let (device, latch) = match device {
            Ok(device) => (Some(device), FaultLatch::new(None)),
            Err(fault) => (None, FaultLatch::new(Some(fault))),
        };
        let ledger = Ledger::of(device.as_ref());
        let home = device
            .as_ref()
            .and_then(|device| device.watched.as_ref())
            .map(|watched| Home {
                uuid: watched.uuid.clone(),
                id: watched.id.clone(),
            });
        let store = config.lease_store.clone();
        let neighbours = store.map(|store| Neighbours::open(store, ledger.clone(), home));
        let engine = Self {
            models: Arc::new(models),
            latch,
            memory: Gauge::new(config.memory_thresholds),
            ledger,
            neighbours: neighbours.transpose()?,
            device,
            scheduler: Arc::new(Scheduler::new(shape, config.queue_tokens)),
            turns: Turns::new(config.threads),
            tokenisers: config.threads,
            stopping: Arc::default(),
            threads: Mutex::default(),
        };
        if let Some(active) = &engine.device {
            let loader = Loader {
                device: active.clone(),
                models: Arc::clone(&engine.models),
                latch: engine.latch.clone(),
                ledger: engine.ledger.clone(),
                compute_type: config.compute_type,
                threads: config.threads,
                warm_up_tokens: config.batch_tokens,
                stopping: Arc::clone(&engine.stopping),
            };
            engine.spawn("model-loader", move || loader.run(&orders))?;
            for number in 0..shape.threads() {
                let lane = Lane {
                    number,
                    express: number >= shape.lanes,
                    own_threads: if on_cpu { 1 } else { config.threads },
                    all_threads: config.threads,
                    device: active.clone(),
                    scheduler: Arc::clone(&engine.scheduler),
                    latch: engine.latch.clone(),
                };
                engine.spawn_lane(lane)?;
            }
            if let Some(watched) = active.watched.clone() {
                engine.watch(watched)?;
            }
            if let Some(canary) = canary::of(active) {
                engine.listen(canary)?;
            }
        }
        Ok(Arc::new(engine))
    }

    fn watch(&self, watched: Watched) -> Result<(), Error> {
        let (latch, memory, stopping) = (self.latch.clone(), self.memory.clone(), Arc::clone(&self.stopping));
        self.spawn("gpu-watch", move || watched.run(&latch, &memory, &stopping))
    }

    fn listen(&self, canary: Canary<impl FnMut() -> Result<(), Error> + Send + 'static>) -> Result<(), Error> {
        let (sing, listen) = canary.halves(self.latch.clone());
        let stopping = Arc::clone(&self.stopping);
        self.spawn("canary", move || sing(&stopping))?;
        let stopping = Arc::clone(&self.stopping);
        self.spawn("canary-watchdog", move || listen(&stopping))
    }

    /// Waits for `answer`, but not for a device that is lost: a thread that hangs with it never answers.
    ///
    /// # Errors
    /// That of the answer, or the device's fault.
    pub async fn unless_lost<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            // What is there already is given.
            biased;
            answer = answer => answer,
            fault = self.latch.wait() => Err(fault),
        }
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let named = std::thread::Builder::new().name(name.to_owned());
        let thread = named.spawn(run).map_err(Error::internal)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    fn spawn_lane(&self, lane: Lane) -> Result<(), Error> {
        let (latch, scheduler) = (self.latch.clone(), Arc::clone(&self.scheduler));
        let name = format!("lane-{}", lane.number);
        let run = move || {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lane.run())).is_err() {
                // Without its lanes the process computes nothing more, and must not look healthy.
                let fault = Error::GpuLost {
                    detail: "a lane of the device died".to_owned(),
                };
                latch.observe(&fault);
                scheduler.fail_all(&fault);
            }
        };
        self.spawn(&name, run)
    }

    /// The model called `name`, an empty name meaning the default. One that left memory is loaded again, and waited for as
    /// long as the deadline lets it.
    ///
    /// # Errors
    /// A GPU error, or what [`registry::Registry::get`] says.
    pub async fn model(
        &self,
        purpose: Purpose,
        name: &str,
        deadline: Option<Instant>,
    ) -> Result<Arc<ReadyModel>, Error> {
        self.check()?;
        self.unless_lost(self.models.get(purpose, name, deadline)).await
    }

    /// Computes inputs with a model: one row per input, in order.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::DeadlineExpired`], a GPU error, or [`Error::OfInput`] with the input's index.
    pub async fn compute(
        &self,
        model: &Arc<ReadyModel>,
        inputs: Vec<Encoded>,
        caller: &Caller,
    ) -> Result<Computed, Error> {
        self.check()?;
        // Held until the answer is there: whoever stops waiting gives up its place.
        let (_ticket, answer) = self.scheduler.submit(model, inputs, caller.clone())?;
        let answer = self.unless_lost(async { answer.await.map_err(|_| self.gone())? });
        match caller.deadline {
            None => answer.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer)
                .await
                .map_err(|_| Error::DeadlineExpired)?,
        }
    }

    /// Runs `task` on the first lane, between two batches.
    ///
    /// # Errors
    /// [`Error::QueueFull`], what the task returns, or a GPU error.
    pub async fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Views) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.check_tasks()?;
        self.run_owed(task).await
    }

    /// As [`Self::run`], for a task that must follow what was done already: it is let in however many wait.
    ///
    /// # Errors
    /// What the task returns, or a GPU error.
    pub async fn run_owed<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Views) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.check()?;
        let (reply, answer) = oneshot::channel();
        let latch = self.latch.clone();
        let task: Task = Box::new(move |views| {
            if reply.is_closed() {
                return;
            }
            let result = task(views);
            if let Err(error) = &result {
                latch.observe(error);
            }
            // A caller that left does not want the answer.
            let _ = reply.send(result);
        });
        if !self.scheduler.post(task) {
            return Err(self.gone());
        }
        self.unless_lost(async { answer.await.map_err(|_| self.gone())? }).await
    }

    /// Whether a task would be let in.
    ///
    /// # Errors
    /// [`Error::QueueFull`], or a GPU error.
    pub fn check_tasks(&self) -> Result<(), Error> {
        self.check()?;
        self.scheduler.check_tasks()
    }

    /// Tokenises texts beside the async threads: `work` gets ranges of them and gives one value per text. Long requests are
    /// worked on by several threads, and take turns with those of other tenants.
    ///
    /// # Errors
    /// [`Error::QueueFull`] when their tokens could not be computed anyway; the first thing that `work` returns.
    pub async fn tokenise<T: Send + 'static>(
        &self,
        caller: &Caller,
        bytes: impl IntoIterator<Item = usize>,
        work: impl Fn(Range<usize>) -> Result<Vec<T>, Error> + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        let ranges = ranges(bytes);
        let texts = ranges.last().map_or(0, |range| range.end);
        // A text has at least one token.
        self.scheduler.check(caller, texts)?;
        let work = Arc::new(work);
        let parts = ranges.into_iter().map(|range| {
            let (turns, work, tenant) = (Arc::clone(&self.turns), Arc::clone(&work), Arc::clone(&caller.tenant));
            async move {
                let turn = turns.next(&tenant).await;
                let work = move || {
                    let _turn = turn;
                    work(range)
                };
                tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
            }
        });
        let parts: Vec<Vec<T>> = futures_util::stream::iter(parts)
            .buffered(self.tokenisers)
            .try_collect()
            .await?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// Ends the lanes and the loader after what they compute right now; false if that took longer than `bound`. A process
    /// must not exit while libtorch computes: its static destructors would pull the ground from under them.
    pub fn stop(&self, bound: Duration) -> bool {
        self.stopping.store(true, Ordering::Release);
        self.models.close();
        self.scheduler.stop();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in &threads {
            thread.thread().unpark();
        }
        let deadline = Instant::now() + bound;
        while threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        threads.into_iter().all(|thread| thread.join().is_ok())
    }

    /// The device's fault, if it has one.
    ///
    /// # Errors
    /// [`Error::GpuUnavailable`] or [`Error::GpuLost`].
    pub fn check(&self) -> Result<(), Error> {
        self.latch.fault().map_or(Ok(()), Err)
    }

    /// Why there was no answer: the end of the process, the fault that stopped it, or a bug.
    fn gone(&self) -> Error {
        if self.stopping.load(Ordering::Acquire) {
            return Error::ShuttingDown;
        }
        self.latch
            .fault()
            .unwrap_or_else(|| Error::internal("a lane dropped the request"))
    }
}
/// Texts of these sizes in parts of about `TURN_BYTES`, each of at least one text.
fn ranges(bytes: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut room = 0;
    for (at, bytes) in bytes.into_iter().enumerate() {
        match ranges.last_mut() {
            Some(last) if bytes <= room => {
                last.end += 1;
                room -= bytes;
            }
            _ => {
                ranges.push(at..at + 1);
                room = TURN_BYTES.saturating_sub(bytes);
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::Arguments;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_hangs_and_what_waits_behind_it_end_with_the_device() {
        let line = "gpu-server --services gpu --device cpu --threads 1";
        let config = ServerConfig::try_new(Arguments::try_parse_from(line.split_whitespace()).unwrap()).unwrap();
        let engine = Engine::start(&config, crate::device::probe(config.device)).unwrap();
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let (entered, runs) = oneshot::channel();
        let running = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move {
                let hangs = move |_: &mut Views| {
                    let _ = entered.send(());
                    let _ = hang.recv();
                    Ok(())
                };
                engine.run(hangs).await
            }
        });
        runs.await.unwrap();
        let waiting = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { engine.run(|_| Ok(())).await }
        });
        engine.latch.observe(&Error::GpuLost {
            detail: "it hangs".to_owned(),
        });
        for call in [running, waiting] {
            assert!(matches!(call.await.unwrap(), Err(Error::GpuLost { detail }) if detail == "it hangs"));
        }
        assert!(!engine.stop(Duration::from_millis(50)), "the lane hangs still");
        drop(release);
    }

    #[test]
    fn texts_are_parted_by_size() {
        assert!(ranges([]).is_empty());
        assert_eq!(
            ranges([10, TURN_BYTES - 10, 1, TURN_BYTES * 3, 5]),
            [0..2, 2..3, 3..4, 4..5]
        );
    }
}
