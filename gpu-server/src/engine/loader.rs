//! The thread that turns wanted models into ones that answer, or into the reason why they do not.
//!
//! It is not the thread that computes: while a model is read, checked and warmed up, the others go on answering. One model
//! is loaded at a time, so that what is read from disk and what is held in memory stay predictable.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tch::{Device, Kind};

use super::golden::{self, Golden};
use super::memory;
use super::models::{Purpose, ReadyModel, Registry};
use super::parity::{self, Answers};
use super::precise::Precise;
use super::registry::Order;
use crate::config::ComputeType;
use crate::config::models::ModelSpec;
use crate::device::fault::FaultLatch;
use crate::device::ledger::{Holder, Ledger, Reservation};
use crate::device::{ActiveDevice, cuda};
use crate::error::Error;
use crate::model::Model;
use crate::model::checkpoint::Checkpoint;
use crate::model::tokenizer::TextEncoder;
use crate::model::weights::Files;

/// How long calls that hold memory may take to end before a model that needs it is refused.
const ENDING: Duration = Duration::from_secs(2);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(5);
/// Words of each input that a GPU's memory is measured with.
const PROBE_WORDS: usize = 256;

/// What loading needs.
#[derive(Debug)]
pub struct Loader {
    /// Where weights go.
    pub device: ActiveDevice,
    /// Where models report themselves.
    pub models: Arc<Registry>,
    /// Closed when the device is lost.
    pub latch: FaultLatch,
    /// Who holds the device's memory.
    pub ledger: Ledger,
    /// Element type of the weights, unless a model has its own.
    pub compute_type: ComputeType,
    /// Threads of one operation on the CPU while nothing is served yet.
    pub threads: usize,
    /// Most tokens of the warm-up.
    pub warm_up_tokens: usize,
    /// Set when the process is about to exit.
    pub stopping: Arc<AtomicBool>,
}

impl Loader {
    /// Fills orders until the process ends.
    pub fn run(self, orders: &Receiver<Order>) {
        // A thread takes over the global default at its first question, so that is asked before the number is set.
        tch::get_num_threads();
        let _no_gradients = tch::no_grad_guard();
        while let Ok(order) = orders.recv() {
            if self.stopping() {
                return;
            }
            // Who serves already keeps its threads.
            let serving = Purpose::ALL
                .into_iter()
                .any(|purpose| !self.models.in_memory(purpose).is_empty());
            let threads = if serving { 1 } else { self.threads };
            tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
            self.fill(&order);
        }
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Loads one model and reports how it ended.
    fn fill(&self, order: &Order) {
        let started = Instant::now();
        let spec = &order.spec;
        let loaded = if self.models.wants(order) {
            catch_unwind(AssertUnwindSafe(|| self.load(order))).unwrap_or_else(|_| {
                Err(Error::ModelLoadFailed {
                    name: spec.name.clone(),
                    problem: "loading it panicked".to_owned(),
                })
            })
        } else {
            Err(Error::ShuttingDown)
        };
        let told = loaded.as_ref().map(|ready| ready.digest.clone()).map_err(Clone::clone);
        let took = started.elapsed();
        if !self.models.settle(order, loaded, took) {
            tracing::info!(model = %spec.name, "loading was called off: another order for the model came in between");
            return;
        }
        let (model, role, seconds) = (&spec.name, spec.purpose.name(), took.as_secs_f64());
        match told {
            Ok(digest) => {
                let revision = &spec.revision;
                tracing::info!(%model, role, %digest, %revision, device = %self.device.id, seconds, "model ready");
            }
            Err(error) => {
                let directory = spec.directory.display();
                tracing::error!(%model, role, %directory, %error, seconds, "model not served");
                self.latch.observe(&error);
            }
        }
    }

    fn load(&self, order: &Order) -> Result<ReadyModel, Error> {
        let spec = &*order.spec;
        let checkpoint = checkpoint(spec)?;
        let encoder = TextEncoder::load(&checkpoint)?;
        let files = Files::open(&checkpoint)?;
        let stamps = files.stamps();
        let digest = files.digest();
        if let Some(pinned) = &spec.sha256
            && *pinned != digest
        {
            let problem = format!("the weights have the SHA-256 {digest}; {pinned} is pinned");
            return Err(checkpoint.failed("sha256", problem));
        }
        self.go_on()?;
        let (model, kind, mut memory) = self.place(order, &checkpoint, &files, &encoder)?;
        if files.stamps() != stamps {
            let problem = "a weights file changed while it was read; load the model again once it is whole";
            return Err(checkpoint.failed("model.safetensors", problem));
        }
        drop(files);
        self.make_room(order, model.memory_bytes)?;
        memory.resize(&named(order), model.memory_bytes)?;
        self.warm_up(spec, &checkpoint, &encoder, &model)?;
        self.compare(spec, &checkpoint, &encoder, &model)?;
        let most_tokens = self.largest_batch(spec, &encoder, &model)?;
        Ok(ReadyModel {
            name: spec.name.clone(),
            digest: digest.clone(),
            revision: spec.revision.clone(),
            architecture: checkpoint.architecture.model_type.clone(),
            dimension: checkpoint.dimension(),
            pooling: checkpoint.pooling(),
            normalized: checkpoint.normalized(),
            task: checkpoint.task.clone(),
            bf16: kind == Kind::BFloat16,
            most_tokens,
            encoder,
            model,
            memory,
            precise: (kind != Kind::Float)
                .then(|| Precise::new(checkpoint, digest, self.device.device, self.ledger.clone())),
        })
    }

    /// The model on the device, the element type that it computes in, and the memory that is counted for it.
    fn place(
        &self,
        order: &Order,
        checkpoint: &Checkpoint,
        files: &Files<'_>,
        encoder: &TextEncoder,
    ) -> Result<(Model, Kind, Reservation), Error> {
        let load = |kind: Kind| {
            self.go_on()?;
            let bytes = files.elements().saturating_mul(kind.elt_size_in_bytes() as u64);
            self.make_room(order, bytes)?;
            let memory = self.ledger.reserve(Holder::Models, &named(order), bytes)?;
            Ok::<_, Error>((Model::load(checkpoint, files, self.device.device, kind)?, kind, memory))
        };
        match order.spec.compute_type.unwrap_or(self.compute_type) {
            ComputeType::F32 => return load(Kind::Float),
            ComputeType::Bf16 => return load(Kind::BFloat16),
            ComputeType::Auto if !self.device.fast_bf16 => return load(Kind::Float),
            ComputeType::Auto => {}
        }
        // One after the other, so that the device never holds both.
        let answers = |model: &Model| Answers::of(model, encoder, order.spec.purpose);
        let exact = answers(&load(Kind::Float)?.0)?;
        let (model, kind, memory) = load(Kind::BFloat16)?;
        let Some(difference) = exact.difference(&answers(&model)?) else {
            return Ok((model, kind, memory));
        };
        drop((model, memory));
        tracing::warn!(model = %order.spec.name, %difference, "computes in f32: bf16 changes its answers too much");
        load(Kind::Float)
    }

    /// Waits a little for calls that hold memory, where the order may make others leave.
    fn make_room(&self, order: &Order, wanted: u64) -> Result<(), Error> {
        let until = Instant::now() + ENDING;
        loop {
            let full = match self.models.make_room(order, wanted, self.ledger.room_for_models()) {
                Ok(left) => {
                    for name in left {
                        tracing::info!(model = %name, in_favour_of = %order.spec.name, "model evicted");
                    }
                    return Ok(());
                }
                Err(full) => full,
            };
            let may_end = matches!(
                full,
                Error::ModelMemoryFull {
                    retry_after: Some(_),
                    ..
                }
            );
            if !(may_end && order.evict && Instant::now() < until) {
                // Where the device is the limit, it is told what holds it.
                return Err(self.ledger.check(&named(order), wanted).err().unwrap_or(full));
            }
            self.go_on()?;
            std::thread::sleep(LOOK);
        }
    }

    fn go_on(&self) -> Result<(), Error> {
        if self.stopping() {
            Err(Error::ShuttingDown)
        } else {
            Ok(())
        }
    }

    /// A short input and one of full length: a model that cannot answer them, or answers nonsense, must not become ready,
    /// and the first caller should not pay for what happens only once.
    fn warm_up(
        &self,
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        encoder: &TextEncoder,
        model: &Model,
    ) -> Result<(), Error> {
        let long = encoder.max_tokens.min(self.warm_up_tokens);
        for words in [1, long] {
            self.go_on()?;
            let text = "probe ".repeat(words);
            let input = parity::input(spec.purpose, encoder, "probe", &text)?;
            let row = model.forward(&[&input])?;
            if row.len() != model.width || row.iter().any(|value| !value.is_finite()) {
                let problem = format!("the model's answer to {} tokens is not finite", input.ids.len());
                return Err(checkpoint.failed("model.safetensors", problem));
            }
        }
        Ok(())
    }

    /// Learns what fits into a GPU's memory. After the warm-up, so that kernels are loaded.
    fn largest_batch(&self, spec: &ModelSpec, encoder: &TextEncoder, model: &Model) -> Result<Option<usize>, Error> {
        let Device::Cuda(index) = self.device.device else {
            return Ok(None);
        };
        self.go_on()?;
        let probe = parity::input(spec.purpose, encoder, "probe", &"probe ".repeat(PROBE_WORDS))?;
        let taken = |tokens: usize| {
            let inputs = vec![&probe; tokens.div_ceil(probe.ids.len().max(1))];
            let before = cuda::free_memory(index)?;
            model.forward(&inputs).ok()?;
            let bytes = before.saturating_sub(cuda::free_memory(index)?);
            Some((inputs.len() * probe.ids.len(), bytes))
        };
        let most = memory::largest_batch(taken, || cuda::free_memory(index));
        if let Some(tokens) = most {
            tracing::info!(model = %spec.name, tokens, "largest batch that fits into memory");
        } else {
            tracing::warn!(model = %spec.name, "what fits into memory could not be measured");
        }
        Ok(most)
    }

    /// Compares with the golden values, if there are any.
    fn compare(
        &self,
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        encoder: &TextEncoder,
        model: &Model,
    ) -> Result<(), Error> {
        let beside = spec.directory.join(golden::FILE);
        let path = match &spec.golden {
            Some(named) => named,
            None if beside.exists() => &beside,
            None => return Ok(()),
        };
        let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let failed = |problem: String| checkpoint.failed(&file, problem);
        match (spec.purpose, golden::read(path).map_err(failed)?) {
            (Purpose::Embedding, Golden::Vectors(golden)) => {
                for (index, text) in golden.texts.iter().enumerate() {
                    self.go_on()?;
                    let input = encoder
                        .text(text, &format!("texts[{index}]"))
                        .map_err(|e| failed(e.to_string()))?;
                    golden.check(index, &model.forward(&[&input])?).map_err(failed)?;
                }
            }
            (Purpose::Reranking, Golden::Scores(golden)) => {
                for (index, (query, document)) in golden.pairs.iter().enumerate() {
                    self.go_on()?;
                    let input = encoder.pair(&encoder.query(query)?, document)?;
                    let row = model.forward(&[&input])?;
                    golden
                        .check(index, row.first().copied().unwrap_or(f32::NAN))
                        .map_err(failed)?;
                }
            }
            (Purpose::Embedding, Golden::Scores(_)) => {
                return Err(failed("has scores; an embedding model has vectors".to_owned()));
            }
            (Purpose::Reranking, Golden::Vectors(_)) => {
                return Err(failed("has vectors; a reranking model has scores".to_owned()));
            }
        }
        Ok(())
    }
}

/// What errors call the model.
fn named(order: &Order) -> String {
    format!("model {:?}", order.spec.name)
}

/// The folder's configuration, with what the operator says instead.
fn checkpoint(spec: &ModelSpec) -> Result<Checkpoint, Error> {
    let mut checkpoint = match spec.purpose {
        Purpose::Embedding => Checkpoint::for_embedding(&spec.name, &spec.directory)?,
        Purpose::Reranking => Checkpoint::for_reranking(&spec.name, &spec.directory)?,
    };
    checkpoint.override_with(spec.pooling, spec.normalize);
    Ok(checkpoint)
}
