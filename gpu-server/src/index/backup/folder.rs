//! The folder of a backup: made under another name, named when all of it is on disk, read only if it is whole.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::file;
use super::manifest::Manifest;
use crate::error::Error;
use crate::index::store::full;

const MANIFEST: &str = "manifest.json";
const DIGEST: &str = "manifest.sha256";
const LOCK: &str = "lock";
const BUFFER: usize = 1024 * 1024;

/// What a file system says, by what an operator can do about it.
pub(super) fn told(path: &Path, error: &std::io::Error) -> Error {
    full(path, error.kind()).unwrap_or_else(|| Error::internal(format!("{}: {error}", path.display())))
}

/// A backup that is being made. Dropped before it is finished, it is removed.
#[derive(Debug)]
pub(super) struct Partial {
    root: PathBuf,
    name: String,
    folder: PathBuf,
    /// Held as long as it is being made: a folder whose lock is free was left by a process that ended.
    _lock: File,
    finished: bool,
}

impl Partial {
    /// Makes the folder; one that an interrupted backup left is removed.
    pub(super) fn begin(root: &Path, name: &str) -> Result<Self, Error> {
        if root.join(name).exists() {
            return Err(Error::BackupExists { name: name.to_owned() });
        }
        let folder = root.join(format!(".{name}.partial"));
        let failed = |error: std::io::Error| told(&folder, &error);
        fs::create_dir_all(&folder).map_err(failed)?;
        let lock = File::create(folder.join(LOCK)).map_err(failed)?;
        if lock.try_lock().is_err() {
            return Err(Error::BackupExists { name: name.to_owned() });
        }
        let partial = Self {
            root: root.to_owned(),
            name: name.to_owned(),
            folder: folder.clone(),
            _lock: lock,
            finished: false,
        };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                tracing::warn!(backup = name, "removing what an interrupted backup of that name left");
                fs::remove_dir_all(&path).map_err(failed)?;
            }
        }
        Ok(partial)
    }

    /// Where the copy of a collection goes; its folder is there.
    pub(super) fn file(&self, tenant: &str, collection: &str) -> Result<PathBuf, Error> {
        let path = file(&self.folder, tenant, collection);
        let folder = self.folder.join(tenant);
        fs::create_dir_all(&folder).map_err(|error| told(&folder, &error))?;
        Ok(path)
    }

    /// Puts all of it on disk, then names it.
    pub(super) fn finish(mut self, manifest: &Manifest) -> Result<(), Error> {
        let json = serde_json::to_vec_pretty(manifest).map_err(Error::internal)?;
        let digest = format!("{:x}", Sha256::digest(&json));
        let finish = || -> std::io::Result<()> {
            let mut folders = vec![self.folder.clone()];
            for one in &manifest.collections {
                let path = file(&self.folder, &one.tenant, &one.collection);
                File::open(&path)?.sync_all()?;
                folders.extend(path.parent().map(Path::to_path_buf));
            }
            for (name, bytes) in [(MANIFEST, json.as_slice()), (DIGEST, digest.as_bytes())] {
                let mut file = File::create(self.folder.join(name))?;
                file.write_all(bytes)?;
                file.sync_all()?;
            }
            fs::remove_file(self.folder.join(LOCK))?;
            folders.dedup();
            for folder in &folders {
                File::open(folder)?.sync_all()?;
            }
            fs::rename(&self.folder, self.root.join(&self.name))?;
            File::open(&self.root)?.sync_all()
        };
        finish().map_err(|error| match error.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => Error::BackupExists {
                name: self.name.clone(),
            },
            _ => told(&self.folder, &error),
        })?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            tracing::warn!(folder = %self.folder.display(), %error, "an unfinished backup could not be removed");
        }
    }
}

/// A backup that has its name.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) folder: PathBuf,
    pub(super) manifest: Manifest,
}

impl Whole {
    /// Reads the manifest of a backup.
    pub(super) fn open(root: &Path, name: &str) -> Result<Self, Error> {
        let folder = root.join(name);
        if !folder.is_dir() {
            return Err(Error::BackupNotFound { name: name.to_owned() });
        }
        let damaged = |problem: String| Error::BackupDamaged {
            name: name.to_owned(),
            problem,
        };
        let read = |file: &str| {
            fs::read(folder.join(file)).map_err(|error| damaged(format!("its {file} cannot be read ({error})")))
        };
        let (json, digest) = (read(MANIFEST)?, read(DIGEST)?);
        if digest != format!("{:x}", Sha256::digest(&json)).as_bytes() {
            return Err(damaged(format!("its {MANIFEST} is not what {DIGEST} says")));
        }
        let manifest = Manifest::parse(&json).map_err(damaged)?;
        Ok(Self { folder, manifest })
    }
}

/// Length and SHA-256 of a file, in hex; `each` hears how many bytes were read.
pub(super) fn hash(path: &Path, mut each: impl FnMut(u64) -> Result<(), Error>) -> Result<(u64, String), Error> {
    pour(path, None, &mut each)
}

/// Copies a file and puts the copy on disk; length and SHA-256 of what was read.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    mut each: impl FnMut(u64) -> Result<(), Error>,
) -> Result<(u64, String), Error> {
    let mut file = File::create(to).map_err(|error| told(to, &error))?;
    let poured = pour(from, Some((to, &mut file)), &mut each)?;
    file.sync_all().map_err(|error| told(to, &error))?;
    Ok(poured)
}

fn pour(
    from: &Path,
    mut to: Option<(&Path, &mut File)>,
    each: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<(u64, String), Error> {
    let mut file = File::open(from).map_err(|error| told(from, &error))?;
    let (mut buffer, mut hasher, mut bytes) = (vec![0; BUFFER], Sha256::new(), 0);
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok((bytes, format!("{:x}", hasher.finalize()))),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(told(from, &error)),
        };
        hasher.update(&buffer[..read]);
        if let Some((path, file)) = &mut to {
            file.write_all(&buffer[..read]).map_err(|error| told(path, &error))?;
        }
        bytes += read as u64;
        each(bytes)?;
    }
}
