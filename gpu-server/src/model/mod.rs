//! Models: Hugging Face checkpoints on disk become tensors that compute.
//!
//! From the folder: `folder`, `config_json` into `architecture`, `sentence` and `prompts` (sentence-transformers' files),
//! `checkpoint` (all of it together), `mapped` and `weights` (safetensors), `tokenizer` with `pair_template` (text to ids).
//! Computing: `packed` lays a batch out; `encoder` is one of `bert`, `roberta`, `mpnet` (their layers are `post_norm`),
//! `modernbert` and `qwen3`, made of `layers`, `gated`, `rope`, `activation` and `kernels`; `pipeline` with `pooling`,
//! `splade` or `heads` make the answer.
//!
//! Nothing here downloads anything, runs code from a checkpoint, or reads pickles.

pub mod activation;
pub mod architecture;
pub mod bert;
pub mod checkpoint;
pub mod config_json;
pub mod encoder;
pub mod folder;
pub mod fusion;
pub mod gated;
pub mod heads;
pub mod kernels;
pub mod layers;
pub mod mapped;
pub mod modernbert;
pub mod mpnet;
pub mod packed;
pub mod pair_template;
pub mod pipeline;
pub mod pooling;
pub mod post_norm;
pub mod prompts;
pub mod qwen3;
pub mod roberta;
pub mod rope;
pub mod sentence;
pub mod splade;
pub mod tokenizer;
pub mod weights;

use tch::{Device, Kind, Tensor};

use crate::error::Error;
use checkpoint::{Checkpoint, Task};
use encoder::Encoder;
use heads::Scorer;
use packed::{Batch, Numbering, Wanted};
use pipeline::Pipeline;
use splade::Splade;
use tokenizer::Encoded;
use weights::{Files, Weights};

/// A model on a device. Several threads may compute with it at the same time.
#[derive(Debug)]
pub struct Model {
    encoder: Encoder,
    answer: Answer,
    numbering: Numbering,
    device: Device,
    /// f32 values per input: the embedding's dimension, the words of the vocabulary, or 1.
    pub width: usize,
    /// Bytes of device memory that the weights hold.
    pub memory_bytes: u64,
}

/// What is made of token vectors.
#[derive(Debug)]
enum Answer {
    Embed(Pipeline),
    Sparse(Splade),
    Score(Scorer),
}

impl Model {
    /// Puts a checkpoint's weights on `device` as `kind`.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the file or the tensor, or a device error.
    pub fn load(checkpoint: &Checkpoint, files: &Files<'_>, device: Device, kind: Kind) -> Result<Self, Error> {
        let weights = &Weights::read(files, device, kind)?;
        let shape = &checkpoint.architecture;
        let encoder = Encoder::load(shape, weights)?;
        let answer = match &checkpoint.task {
            Task::Embed { pooling, steps } => Answer::Embed(Pipeline::load(pooling, steps, weights)?),
            Task::Sparse(pooling) => Answer::Sparse(Splade::load(shape, *pooling, weights)?),
            Task::Score(head) => Answer::Score(Scorer::load(checkpoint, *head, weights)?),
        };
        Ok(Self {
            encoder,
            answer,
            numbering: shape.numbering(),
            device,
            width: checkpoint.width(),
            memory_bytes: weights.taken_bytes(),
        })
    }

    /// Computes inputs together: f32 rows of `width`, row-major, on the host, in the order of the inputs. Gradients must
    /// be off on this thread.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, inputs: &[&Encoded]) -> Result<Vec<f32>, Error> {
        let batch = Batch::new(inputs, self.numbering, self.device)?;
        let output = self.compute(&batch)?.f_contiguous()?.f_to_device(Device::Cpu)?;
        let mut sorted = vec![0.0_f32; inputs.len() * self.width];
        let count = sorted.len();
        output.f_copy_data(&mut sorted, count)?;
        let mut rows = vec![0.0_f32; count];
        for (row, &place) in sorted.chunks_exact(self.width).zip(&batch.order) {
            rows[place * self.width..][..self.width].copy_from_slice(row);
        }
        Ok(rows)
    }

    /// [sequences, width] in the batch's order, on the device.
    fn compute(&self, batch: &Batch) -> Result<Tensor, Error> {
        match &self.answer {
            Answer::Embed(pipeline) => pipeline.forward(&self.encoder.forward(batch, pipeline.wanted())?, batch),
            Answer::Sparse(splade) => splade.forward(&self.encoder.forward(batch, Wanted::All)?, batch),
            Answer::Score(scorer) => {
                let hidden = self.encoder.forward(batch, scorer.pooling.wanted())?;
                scorer.forward(&scorer.pooling.pool(&hidden, batch)?.f_to_kind(hidden.kind())?)
            }
        }
    }
}

/// An extent as libtorch takes it.
fn to_i64(value: usize) -> Result<i64, Error> {
    i64::try_from(value).map_err(Error::internal)
}
