//! A checkpoint's folder: its JSON files, read whole, and errors that name the file.
//!
//! Paths that come out of a checkpoint's own files must stay inside the folder; nothing here follows one that does not.

use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::Error;

/// A model's name and its folder.
#[derive(Debug, Clone)]
pub struct Folder {
    name: String,
    directory: PathBuf,
}

impl Folder {
    /// The folder of the model that requests call `name`. Nothing is read yet.
    pub fn new(name: &str, directory: &Path) -> Self {
        Self {
            name: name.to_owned(),
            directory: directory.to_owned(),
        }
    }

    /// What requests call the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where `file` is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// Whether `file` is there.
    pub fn has(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    /// A [`Error::ModelLoadFailed`] about `file`. The folder is the operator's business and stands in the log; callers
    /// read this message too.
    pub fn failed(&self, file: &str, problem: impl std::fmt::Display) -> Error {
        Error::ModelLoadFailed {
            name: self.name.clone(),
            problem: format!("{file}: {problem}"),
        }
    }

    /// Reads a JSON file that has to be there.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the file.
    pub fn required<T: DeserializeOwned>(&self, file: &str) -> Result<T, Error> {
        let bytes = std::fs::read(self.path(file)).map_err(|error| self.failed(file, error))?;
        serde_json::from_slice(&bytes).map_err(|error| self.failed(file, error))
    }

    /// Reads a JSON file that may be missing.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the file, when it is there and cannot be read.
    pub fn optional<T: DeserializeOwned + Default>(&self, file: &str) -> Result<T, Error> {
        if self.has(file) {
            self.required(file)
        } else {
            Ok(T::default())
        }
    }

    /// Checks that `path`, which `file` names, stays inside the folder.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names `file`.
    pub fn inside(&self, file: &str, path: &str) -> Result<(), Error> {
        let mut parts = Path::new(path).components();
        if !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_))) {
            Ok(())
        } else {
            Err(self.failed(file, format!("the path {path:?} is not one inside the model's folder")))
        }
    }
}
