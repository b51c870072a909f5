//! A redb file that is kept open: guarded against what damaged files make redb do, and opened anew after an I/O error,
//! since redb then refuses everything else.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{
    Builder, Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase as _, TransactionError, WriteTransaction,
};

use super::Written;
use crate::error::Error;

/// Bytes of pages in memory for each file, of which at most half wait to be written.
const CACHE: usize = 128 * 1024 * 1024;

/// Why something with a file did not work.
#[derive(Debug)]
pub(super) enum Stop {
    /// What redb says.
    Redb(redb::Error),
    /// What somebody else says, who was asked before the commit.
    Other(Error),
}

impl<E: Into<redb::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

enum Opened {
    Writable(Database),
    /// The file, or the file system, cannot be written.
    ReadOnly(ReadOnlyDatabase),
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Opened {
    fn begin_read(&self) -> Result<ReadTransaction, TransactionError> {
        match self {
            Self::Writable(database) => database.begin_read(),
            Self::ReadOnly(database) => database.begin_read(),
        }
    }
}

/// The file.
pub(super) struct File {
    pub(super) path: PathBuf,
    /// None after an I/O error, until somebody needs it again.
    opened: RwLock<Option<Opened>>,
    row_bytes: usize,
}

/// A builder as all files need it; the flag tells whether the file had to be repaired.
pub(super) fn builder(path: &Path) -> (Builder, Arc<AtomicBool>) {
    let (file, repaired) = (path.display().to_string(), Arc::new(AtomicBool::new(false)));
    let flag = Arc::clone(&repaired);
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE).set_repair_callback(move |_| {
        if !flag.swap(true, Ordering::Relaxed) {
            tracing::warn!(%file, "the collection was not closed; its file is checked");
        }
    });
    (builder, repaired)
}

fn open(path: &Path) -> Result<Opened, redb::Error> {
    let (builder, repaired) = builder(path);
    let mut database = match builder.open(path) {
        Ok(database) => database,
        Err(error) => {
            let error = error.into();
            if !is_read_only(&error) {
                return Err(error);
            }
            tracing::warn!(file = %path.display(), "the file cannot be written; the collection is served for reading only");
            return Ok(Opened::ReadOnly(builder.open_read_only(path)?));
        }
    };
    // A repair has checked every page. Where there was none, what changed since the file was closed shows here only.
    if !repaired.load(Ordering::Relaxed) && !database.check_integrity()? {
        return Err(redb::Error::Corrupted("it was changed since it was closed".to_owned()));
    }
    Ok(Opened::Writable(database))
}

/// Begins to write in two phases: the file names its last commit only once that is on disk. So a damaged last commit is told
/// from one that was never finished, and a repair does not silently go back behind what was acknowledged.
pub(super) fn begin_write(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

impl File {
    /// Opens the file, and gives `first` what can be read; `first` tells how long a row is.
    pub(super) fn open(
        path: &Path,
        first: impl FnOnce(&ReadTransaction) -> Result<usize, Stop>,
    ) -> Result<Self, Error> {
        let opening = || -> Result<Self, Stop> {
            let opened = open(path)?;
            let row_bytes = first(&opened.begin_read()?)?;
            if let Opened::Writable(database) = &opened {
                super::older::convert(database, row_bytes)?;
            }
            Ok(Self {
                path: path.to_owned(),
                opened: RwLock::new(Some(opened)),
                row_bytes,
            })
        };
        guarded(path, opening)
    }

    /// Reads; once more if somebody else's I/O error was in the way.
    pub(super) fn read<T>(&self, work: impl Fn(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, Error> {
        let read = || self.with(|opened| Ok(work(&opened.begin_read()?)?));
        guarded(&self.path, || match read() {
            Err(Stop::Redb(redb::Error::PreviousIo)) => read(),
            outcome => outcome,
        })
    }

    /// Reads, for work that must not be repeated.
    pub(super) fn read_once<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, Stop>) -> Result<T, Error> {
        guarded(&self.path, || self.with(|opened| work(&opened.begin_read()?)))
    }

    /// Writes and commits, all or nothing. `ready` is asked before the commit, which it may refuse.
    pub(super) fn write(
        &self,
        work: impl Fn(&WriteTransaction) -> Result<Written, redb::Error>,
        ready: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Written, Error> {
        let write = |opened: &Opened| -> Result<Written, Stop> {
            let Opened::Writable(database) = opened else {
                return Err(redb::Error::Io(ErrorKind::ReadOnlyFilesystem.into()).into());
            };
            let transaction = begin_write(database)?;
            let done = work(&transaction)?;
            ready().map_err(Stop::Other)?;
            transaction.commit()?;
            Ok(done)
        };
        guarded(&self.path, || self.with(write))
    }

    fn with<T>(&self, work: impl FnOnce(&Opened) -> Result<T, Stop>) -> Result<T, Stop> {
        let mut opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        if opened.is_none() {
            drop(opened);
            self.reopen()?;
            opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        }
        let done = match opened.as_ref() {
            Some(opened) => work(opened),
            None => Err(redb::Error::PreviousIo.into()),
        };
        drop(opened);
        if matches!(&done, Err(Stop::Redb(redb::Error::Io(_) | redb::Error::PreviousIo))) {
            // The next one opens it. Those that still read are waited for: they have its lock.
            *self.opened.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done
    }

    fn reopen(&self) -> Result<(), redb::Error> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if opened.is_none() {
            tracing::warn!(file = %self.path.display(), "the file is opened again after an I/O error");
            let again = open(&self.path)?;
            if let Opened::Writable(database) = &again {
                super::older::convert(database, self.row_bytes)?;
            }
            *opened = Some(again);
        }
        Ok(())
    }
}

impl Drop for File {
    /// redb writes when it closes a file, and meets the damage of one that was damaged while it was open.
    fn drop(&mut self) {
        let opened = self.opened.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if catch_unwind(AssertUnwindSafe(|| drop(opened))).is_err() {
            let file = self.path.display();
            tracing::error!(%file, "a collection's file is damaged and could not be closed; restore it from a backup");
        }
    }
}

/// Runs work on a file and tells what went wrong with it. A damaged file may make redb panic; that is caught here.
pub(super) fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, Stop>) -> Result<T, Error> {
    let stop = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(Stop::Other(error))) => return Err(error),
        Ok(Err(Stop::Redb(error))) => error,
        Err(_) => redb::Error::Corrupted("it cannot be made sense of".to_owned()),
    };
    Err(told(path, &stop))
}

/// What a failure means for the collection whose file it is.
pub(super) fn told(path: &Path, error: &redb::Error) -> Error {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match error {
        redb::Error::Io(io) => told_io(path, io),
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::LockPoisoned(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. } => {
            tracing::error!(file = %path.display(), %error, "the collection's file is damaged");
            Error::CollectionDamaged {
                name,
                problem: error.to_string(),
            }
        }
        other => Error::internal(format!("{}: {other}", path.display())),
    }
}

/// The same for an error of the system.
pub(super) fn told_io(path: &Path, error: &std::io::Error) -> Error {
    if let Some(full) = super::full(path, error.kind()) {
        tracing::error!(file = %path.display(), %error, "the collection's file cannot grow");
        return full;
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => Error::StorageReadOnly { name },
        // redb says this of a file that is no database, and of one that ends too early.
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Error::CollectionDamaged {
            name,
            problem: error.to_string(),
        },
        _ => Error::internal(format!("{}: {error}", path.display())),
    }
}

fn is_read_only(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(io) if matches!(io.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied))
}
