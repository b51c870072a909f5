//! safetensors on disk to tensors on a device, each checked for name and shape.
//!
//! The format (a length, a JSON header, raw little-endian data) can be checked before a byte of it is used; pickled
//! `.bin` files cannot, and are refused. Files are mapped: the digest and the tensors come out of the same pages.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tch::{Device, Kind, Tensor};

use super::checkpoint::{Checkpoint, Task};
use super::mapped;
use super::sentence::Step;
use crate::error::Error;

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The weight files of a checkpoint, mapped.
#[derive(Debug)]
pub struct Files<'a> {
    checkpoint: &'a Checkpoint,
    /// By their path in the folder: the transformer's, and those of modules behind it.
    maps: BTreeMap<String, Mmap>,
    /// The index of a sharded checkpoint: tensor to file.
    shards: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl<'a> Files<'a> {
    /// Maps them all.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the file which is missing or cannot be read.
    pub fn open(checkpoint: &'a Checkpoint) -> Result<Self, Error> {
        let folder = &checkpoint.folder;
        let mut names = BTreeSet::new();
        let mut shards = None;
        if folder.has(WHOLE) {
            names.insert(WHOLE.to_owned());
        } else if folder.has(INDEX) {
            let index: Index = folder.required(INDEX)?;
            for file in index.weight_map.values() {
                folder.inside(INDEX, file)?;
                names.insert(file.clone());
            }
            if names.is_empty() {
                return Err(folder.failed(INDEX, "weight_map is empty"));
            }
            shards = Some(index.weight_map);
        } else {
            return Err(without_safetensors(checkpoint));
        }
        if let Task::Embed { steps, .. } = &checkpoint.task {
            names.extend(steps.iter().filter_map(|step| match step {
                Step::Dense { path, .. } => Some(format!("{path}/{WHOLE}")),
                Step::Normalize | Step::Truncate(_) => None,
            }));
        }
        let map = |name: String| {
            let bytes = mapped::map(&folder.path(&name)).map_err(|error| folder.failed(&name, error))?;
            Ok::<_, Error>((name, bytes))
        };
        let maps = names.into_iter().map(map).collect::<Result<_, _>>()?;
        Ok(Self {
            checkpoint,
            maps,
            shards,
        })
    }

    /// Lower-case hex SHA-256 of the file; of several files, of their digests in hex, one per line, in the order of their
    /// names.
    pub fn digest(&self) -> String {
        let digests: Vec<String> = self.maps.values().map(|bytes| hex(&Sha256::digest(bytes))).collect();
        match digests.as_slice() {
            [one] => one.clone(),
            several => hex(&Sha256::digest(several.join("\n") + "\n")),
        }
    }

    /// Elements of all tensors of floats, as the headers say; what cannot be read counts as nothing here, because
    /// [`Weights::read`] says what is wrong with it.
    pub fn elements(&self) -> u64 {
        let whole = self
            .maps
            .values()
            .filter_map(|bytes| SafeTensors::deserialize(bytes).ok());
        let tensors = whole.flat_map(|file| {
            let views = file.tensors().into_iter();
            views
                .map(|(_, view)| (view.dtype(), view.shape().to_vec()))
                .collect::<Vec<_>>()
        });
        let floats = tensors.filter(|(kind, _)| matches!(kind, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64));
        floats.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// How long each file is now and when it was written: others if one was exchanged or written to.
    pub fn stamps(&self) -> Vec<Option<(u64, SystemTime)>> {
        let stamp = |name: &String| {
            let found = std::fs::metadata(self.checkpoint.folder.path(name)).ok()?;
            Some((found.len(), found.modified().ok()?))
        };
        self.maps.keys().map(stamp).collect()
    }

    fn of_transformer(&self, file: &str) -> bool {
        match &self.shards {
            Some(shards) => shards.values().any(|shard| shard == file),
            None => file == WHOLE,
        }
    }
}

/// A folder that has only pickled weights is told what to do.
fn without_safetensors(checkpoint: &Checkpoint) -> Error {
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    match pickled.into_iter().find(|file| checkpoint.folder.has(file)) {
        Some(file) => checkpoint.failed(
            file,
            "pickled weights are not read, because reading them runs code; convert them with transformers' \
             save_pretrained(safe_serialization=True)",
        ),
        None => checkpoint.failed(WHOLE, format!("is not there, nor is {INDEX}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

/// The tensors of a checkpoint.
#[derive(Debug)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    /// Each weight file, by its path in the folder.
    files: BTreeMap<&'a str, SafeTensors<'a>>,
    /// The transformer's tensors: name to file.
    places: HashMap<String, &'a str>,
    device: Device,
    kind: Kind,
    taken: Cell<u64>,
}

impl<'a> Weights<'a> {
    /// Reads the headers and checks that every file is whole. Tensors become `kind` on `device` when they are taken; what
    /// nobody takes costs nothing.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] for a truncated or foreign file, or one that lacks what the index says.
    pub fn read(files: &'a Files<'a>, device: Device, kind: Kind) -> Result<Self, Error> {
        let checkpoint = files.checkpoint;
        let mut parsed = BTreeMap::new();
        let mut places = HashMap::new();
        for (name, bytes) in &files.maps {
            let tensors = SafeTensors::deserialize(bytes).map_err(|error| {
                let problem = match error {
                    SafeTensorError::MetadataIncompleteBuffer
                    | SafeTensorError::InvalidHeaderLength
                    | SafeTensorError::HeaderTooSmall => "it is not whole (a download that broke off?)".to_owned(),
                    other => format!("not a safetensors file ({other:?})"),
                };
                checkpoint.failed(name, problem)
            })?;
            if files.of_transformer(name) {
                places.extend(
                    tensors
                        .names()
                        .into_iter()
                        .map(|tensor| (tensor.clone(), name.as_str())),
                );
            }
            parsed.insert(name.as_str(), tensors);
        }
        for (tensor, file) in files.shards.iter().flatten() {
            if places.get(tensor) != Some(&file.as_str()) {
                return Err(checkpoint.failed(file, format!("tensor {tensor} is missing; {INDEX} says it is here")));
            }
        }
        Ok(Self {
            checkpoint,
            files: parsed,
            places,
            device,
            kind,
            taken: Cell::new(0),
        })
    }

    /// Bytes of the tensors that were taken so far.
    pub const fn taken_bytes(&self) -> u64 {
        self.taken.get()
    }

    /// Whether the transformer has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// One of the transformer's tensors. The family's prefix (`bert.`, `roberta.`, `model.`) is optional.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] when it is missing, has another shape, or holds no floats.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        let (file, view) = self.find(name).ok_or_else(|| self.missing(WHOLE, name))?;
        self.place(file, name, &view, shape, self.kind)
    }

    /// A tensor of a module behind the transformer, out of the file in its folder; in f32, as all that follows pooling.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_from(&self, module: &str, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        let file = format!("{module}/{WHOLE}");
        let tensors = self.files.get(file.as_str());
        let view = tensors.and_then(|tensors| tensors.tensor(name).ok());
        let view = view.ok_or_else(|| self.missing(&file, name))?;
        self.place(&file, name, &view, shape, Kind::Float)
    }

    fn missing(&self, file: &str, name: &str) -> Error {
        self.checkpoint.failed(file, format!("tensor {name} is missing"))
    }

    fn find(&self, name: &str) -> Option<(&'a str, TensorView<'_>)> {
        let prefix = self.checkpoint.architecture.prefix();
        // Checkpoints converted from TensorFlow call LayerNorm's parameters gamma and beta.
        let legacy = name
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta");
        [name, &legacy]
            .into_iter()
            .flat_map(|name| [name.to_owned(), format!("{prefix}{name}")])
            .find_map(|name| {
                let file = *self.places.get(&name)?;
                Some((file, self.files.get(file)?.tensor(&name).ok()?))
            })
    }

    fn place(
        &self,
        file: &str,
        name: &str,
        view: &TensorView<'_>,
        shape: &[usize],
        kind: Kind,
    ) -> Result<Tensor, Error> {
        let failed = |problem: String| self.checkpoint.failed(file, format!("tensor {name} {problem}"));
        if view.shape() != shape {
            let found = view.shape();
            return Err(failed(format!("has shape {found:?}; config.json asks for {shape:?}")));
        }
        let stored = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F64 => Kind::Double,
            other => return Err(failed(format!("holds {other:?}; floats are computed"))),
        };
        let extents: Result<Vec<i64>, _> = shape.iter().map(|&extent| i64::try_from(extent)).collect();
        let extents = extents.map_err(|error| failed(error.to_string()))?;
        // Copies the bytes, so that no tensor depends on the mapping.
        let tensor = Tensor::f_from_data_size(view.data(), &extents, stored)?;
        let bytes = tensor.numel() * kind.elt_size_in_bytes();
        self.taken.set(self.taken.get() + bytes as u64);
        Ok(tensor.f_to_kind(kind)?.f_to_device(self.device)?)
    }
}
