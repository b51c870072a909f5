//! The fp32 twin of a model that computes in another type: it decides whether a result that is not finite is the input's
//! fault or the type's. Loaded when it is needed for the first time, which for most models is never.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind};

use crate::device::ledger::{Holder, Ledger, Reservation};
use crate::error::Error;
use crate::model::Model;
use crate::model::checkpoint::Checkpoint;
use crate::model::weights::Files;

/// Where the twin comes from, and the twin once it is there.
#[derive(Debug)]
pub struct Precise {
    checkpoint: Checkpoint,
    /// Of the weights that the model itself has.
    digest: String,
    device: Device,
    ledger: Ledger,
    twin: Mutex<Option<(Arc<Model>, Reservation)>>,
}

impl Precise {
    /// Out of the checkpoint that the model itself came from.
    pub const fn new(checkpoint: Checkpoint, digest: String, device: Device, ledger: Ledger) -> Self {
        Self {
            checkpoint,
            digest,
            device,
            ledger,
            twin: Mutex::new(None),
        }
    }

    /// The twin. A second caller waits while it is loaded; after a failure the next one tries again.
    ///
    /// # Errors
    /// What loading says.
    pub fn model(&self) -> Result<Arc<Model>, Error> {
        let mut twin = self.twin.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((model, _)) = twin.as_ref() {
            return Ok(Arc::clone(model));
        }
        tracing::warn!(model = %self.checkpoint.folder.name(), "loading an fp32 twin: a result was not finite");
        let files = Files::open(&self.checkpoint)?;
        // The folder may hold other weights by now, which may already serve under the same name.
        if files.digest() != self.digest {
            let problem = "the weights are not those that the model was loaded with; load it again";
            return Err(self.checkpoint.failed("model.safetensors", problem));
        }
        let bytes = files.elements().saturating_mul(Kind::Float.elt_size_in_bytes() as u64);
        let what = format!("the fp32 twin of model {:?}", self.checkpoint.folder.name());
        let memory = self.ledger.reserve(Holder::Models, &what, bytes)?;
        let model = Arc::new(Model::load(&self.checkpoint, &files, self.device, Kind::Float)?);
        *twin = Some((Arc::clone(&model), memory));
        Ok(model)
    }

    /// Bytes of device memory that the twin holds; 0 until it is there.
    pub fn memory_bytes(&self) -> u64 {
        // Somebody who loads it holds the lock: it is not there yet.
        let twin = self.twin.try_lock();
        twin.ok()
            .and_then(|twin| twin.as_ref().map(|(model, _)| model.memory_bytes))
            .unwrap_or(0)
    }
}
