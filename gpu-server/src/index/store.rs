//! A collection's file: a redb database with its properties, its vectors (f32, little-endian) and its payloads (JSON
//! text). redb commits with fsync by default: what `write` returned for is on disk.

mod blocks;
mod copy;
mod file;
mod older;
mod payloads;
pub mod scan;
mod sparse;

use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use self::file::{File, Stop};
use super::sparse::Rows;
use crate::error::Error;

/// "collection": what never changes, as JSON; "generation": how many writes there were, as u64, little-endian.
const PROPERTIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("properties");
const COLLECTION: &str = "collection";
const GENERATION: &str = "generation";

/// Ending of a file that is still being made.
pub const UNFINISHED: &str = ".new";

/// How nearness is measured. Larger is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Cosine of the angle.
    Cosine,
    /// Inner product.
    Dot,
    /// Minus the Euclidean distance.
    L2,
}

/// Element type of the rows on the device. The file holds f32 whatever it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// 32-bit floats.
    #[default]
    F32,
    /// IEEE 754 half precision: 11 significant bits, magnitudes up to 65,504.
    F16,
    /// bfloat16: 8 significant bits, the range of f32.
    Bf16,
}

/// What never changes about a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// Elements of every vector.
    pub dimension: usize,
    /// How nearness is measured.
    pub metric: Metric,
    /// Element type on the device; absent in files that are older than the choice.
    #[serde(default)]
    pub storage: Storage,
    /// Elements of every sparse vector, 0 for none; absent in files that are older than they are.
    #[serde(default)]
    pub sparse_dimension: u32,
}

impl Properties {
    /// Bytes of one vector on the device.
    pub const fn row_bytes(&self) -> u64 {
        let element = match self.storage {
            Storage::F32 => 4,
            Storage::F16 | Storage::Bf16 => 2,
        };
        element * self.dimension as u64
    }
}

impl std::fmt::Display for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            dimension,
            metric,
            storage,
            sparse_dimension,
        } = self;
        write!(
            f,
            "dimension {dimension}, metric {metric:?}, storage {storage:?}, sparse dimension {sparse_dimension}"
        )
    }
}

/// Points to write.
#[derive(Debug, Clone, Default)]
pub struct Points {
    /// No duplicates.
    pub ids: Vec<String>,
    /// Row-major [ids, dimension], f32 little-endian.
    pub vectors: Bytes,
    /// One per id, "" for none; or empty for none at all.
    pub payloads: Vec<String>,
    /// One row per id, or no rows for none at all.
    pub sparse: Rows,
}

/// What to fetch of a point beside its id.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Its vector.
    pub vectors: bool,
    /// Its payload.
    pub payloads: bool,
    /// Its sparse vector.
    pub sparse: bool,
}

/// What some ids have.
#[derive(Debug, Default)]
pub struct Fetched {
    /// Those that are there, in the order asked for.
    pub ids: Vec<String>,
    /// Their vectors one after the other, f32 little-endian, if they were asked for.
    pub vectors: Vec<u8>,
    /// One per id, "" for none, if they were asked for.
    pub payloads: Vec<String>,
    /// One row per id, if they were asked for.
    pub sparse: Rows,
    /// Those that are not there.
    pub missing: Vec<String>,
}

/// What a write did.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// Ids that it added, or removed.
    pub count: u64,
    /// Of the file, since.
    pub generation: u64,
}

/// An open file.
#[derive(Debug)]
pub struct Store {
    file: File,
    /// As written when it was made.
    pub properties: Properties,
}

fn row_bytes(properties: Properties) -> usize {
    properties.dimension * size_of::<f32>()
}

impl Store {
    /// Makes the file: under another name first, so that a half-made one is never taken for a collection.
    ///
    /// # Errors
    /// [`Error::StorageFull`], [`Error::StorageReadOnly`], [`Error::Internal`] naming the file; there is no file then.
    pub fn create(path: &Path, properties: Properties) -> Result<Self, Error> {
        let unfinished = path.with_extension(UNFINISHED.trim_start_matches('.'));
        let made = Self::make(path, &unfinished, properties);
        if made.is_err() {
            // It may not be there, and the next start would remove it.
            let _ = std::fs::remove_file(&unfinished);
        }
        made?;
        Self::open(path)
    }

    fn make(path: &Path, unfinished: &Path, properties: Properties) -> Result<(), Error> {
        let failed = |error: std::io::Error| file::told_io(path, &error);
        let folder = path
            .parent()
            .ok_or_else(|| Error::internal("a collection's file has no folder"))?;
        std::fs::create_dir_all(folder).map_err(failed)?;
        let json = serde_json::to_vec(&properties).map_err(Error::internal)?;
        let write = || -> Result<(), Stop> {
            let (builder, _) = file::builder(unfinished);
            let database = builder.create(unfinished)?;
            let transaction = file::begin_write(&database)?;
            transaction
                .open_table(PROPERTIES)?
                .insert(COLLECTION, json.as_slice())?;
            blocks::Writer::new(&transaction, row_bytes(properties))?.finish()?;
            payloads::Writer::new(&transaction)?;
            sparse::make(&transaction, properties)?;
            Ok(transaction.commit()?)
        };
        file::guarded(path, write)?;
        std::fs::rename(unfinished, path).map_err(failed)?;
        // The new name is on disk once its folder is.
        std::fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    }

    /// Opens the file, and checks all of it. One that an older version wrote is rewritten.
    ///
    /// # Errors
    /// [`Error::CollectionDamaged`]; [`Error::StorageFull`] or [`Error::StorageReadOnly`] where it has to be rewritten or
    /// repaired and cannot be; [`Error::Internal`] naming the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut properties = None;
        let file = File::open(path, |transaction| {
            let found = read_properties(transaction)?;
            properties = Some(found);
            Ok(row_bytes(found))
        })?;
        let properties = properties.ok_or_else(|| Error::internal("a file without properties was opened"))?;
        Ok(Self { file, properties })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Every point without its payload, in no order; and the generation that this is.
    ///
    /// # Errors
    /// [`Error::CollectionDamaged`], [`Error::Internal`] naming the file.
    pub fn read_all(&self) -> Result<(Points, u64), Error> {
        self.file.read(|transaction| {
            let (ids, rows) = blocks::Reader::new(transaction, row_bytes(self.properties))?.read_all()?;
            let points = Points {
                sparse: sparse::of_some(transaction, self.properties, &ids)?,
                ids,
                vectors: rows.into(),
                payloads: Vec::new(),
            };
            Ok((points, generation(transaction)?))
        })
    }

    /// How many writes the file has seen.
    ///
    /// # Errors
    /// As [`Self::read_all`].
    pub fn generation(&self) -> Result<u64, Error> {
        self.file.read(generation)
    }

    /// Writes all points or none; the ids that were not there before are counted. `ready` is asked when everything but the
    /// commit is done; an error of it is returned, and nothing is written.
    ///
    /// # Errors
    /// [`Error::StorageFull`], [`Error::StorageReadOnly`], [`Error::CollectionDamaged`], [`Error::Internal`] naming the file:
    /// nothing is changed, unless the commit itself failed, which [`Self::generation`] tells.
    pub fn write(&self, points: &Points, ready: impl FnOnce() -> Result<(), Error>) -> Result<Written, Error> {
        let write = |transaction: &WriteTransaction| {
            let mut count = 0;
            let mut payloads = payloads::Writer::new(transaction)?;
            let mut vectors = blocks::Writer::new(transaction, row_bytes(self.properties))?;
            vectors.upsert(&points.ids, &points.vectors, |at, new| {
                count += u64::from(new);
                match points.payloads.get(at).map(String::as_str) {
                    None | Some("") if new => Ok(()),
                    None | Some("") => payloads.remove(&points.ids[at]),
                    Some(payload) => payloads.insert(&points.ids[at], payload),
                }
            })?;
            vectors.finish()?;
            sparse::write(transaction, self.properties, &points.ids, &points.sparse)?;
            let generation = next_generation(transaction)?;
            Ok(Written { count, generation })
        };
        self.file.write(write, ready)
    }

    /// Removes points; those that were there are counted.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn remove(&self, ids: &[String]) -> Result<Written, Error> {
        let write = |transaction: &WriteTransaction| {
            let mut count = 0;
            let mut payloads = payloads::Writer::new(transaction)?;
            let mut vectors = blocks::Writer::new(transaction, row_bytes(self.properties))?;
            for id in ids {
                if vectors.remove(id)? {
                    count += 1;
                    payloads.remove(id)?;
                }
            }
            vectors.finish()?;
            sparse::write(transaction, self.properties, ids, &Rows::default())?;
            let generation = next_generation(transaction)?;
            Ok(Written { count, generation })
        };
        self.file.write(write, || Ok(()))
    }

    /// The payloads of some ids, "" where there is none.
    ///
    /// # Errors
    /// As [`Self::read_all`].
    pub fn payloads<S: AsRef<str>>(&self, ids: &[S]) -> Result<Vec<String>, Error> {
        self.file.read(|transaction| {
            let payloads = payloads::Reader::new(transaction)?;
            ids.iter().map(|id| payloads.read(id.as_ref())).collect()
        })
    }

    /// What some ids have; None where vectors, payloads and sparse vectors together take more than `most` bytes.
    ///
    /// # Errors
    /// As [`Self::read_all`].
    pub fn fetch(&self, ids: &[String], wanted: Wanted, most: usize) -> Result<Option<Fetched>, Error> {
        self.file.read(|transaction| {
            let vectors = blocks::Reader::new(transaction, row_bytes(self.properties))?;
            let payloads = payloads::Reader::new(transaction)?;
            let mut fetched = Fetched::default();
            let mut payload_bytes = 0;
            for id in ids {
                let there = if wanted.vectors {
                    vectors.read(id, &mut fetched.vectors)?
                } else {
                    vectors.has(id)?
                };
                if !there {
                    fetched.missing.push(id.clone());
                    continue;
                }
                if wanted.payloads {
                    let payload = payloads.read(id)?;
                    payload_bytes += payload.len();
                    fetched.payloads.push(payload);
                }
                if fetched.vectors.len() + payload_bytes > most {
                    return Ok(None);
                }
                fetched.ids.push(id.clone());
            }
            if wanted.sparse {
                fetched.sparse = sparse::of_some(transaction, self.properties, &fetched.ids)?;
                if fetched.vectors.len() + payload_bytes + fetched.sparse.bytes() > most {
                    return Ok(None);
                }
            }
            Ok(Some(fetched))
        })
    }

    /// Gives `take` every id that has a payload, with it, until it says to stop.
    ///
    /// # Errors
    /// As [`Self::read_all`].
    pub fn each_payload(&self, mut take: impl FnMut(&str, &str) -> ControlFlow<()>) -> Result<(), Error> {
        self.file
            .read_once(|transaction| Ok(payloads::Reader::new(transaction)?.each(&mut take)?))
    }

    /// Bytes of the file.
    pub fn disk_bytes(&self) -> u64 {
        std::fs::metadata(self.path()).map_or(0, |data| data.len())
    }
}

/// The elements of vectors as the file has them.
pub(super) fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|chunk| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]))
}

/// The error of a file that could not be written for lack of room, if it was that; it names the collection, or the backup.
pub(super) fn full(path: &Path, kind: std::io::ErrorKind) -> Option<Error> {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    if !matches!(kind, StorageFull | QuotaExceeded | FileTooLarge) {
        return None;
    }
    // A collection's file has another end while it is created or restored; a backup has other files too.
    let of_a_collection = |end: &std::ffi::OsStr| ["redb", "new", "restoring"].into_iter().any(|known| end == known);
    let collection = path
        .file_stem()
        .filter(|_| path.extension().is_some_and(of_a_collection));
    let what = collection.map_or_else(
        || "the backup".to_owned(),
        |name| format!("collection {:?}", name.to_string_lossy()),
    );
    Some(Error::StorageFull { what })
}

/// Removes a collection's file, which may be open. That it is not there is fine.
///
/// # Errors
/// [`Error::StorageReadOnly`], [`Error::Internal`] naming the file.
pub fn discard(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file::told_io(path, &error)),
        _ => Ok(()),
    }
}

fn read_properties(transaction: &ReadTransaction) -> Result<Properties, redb::Error> {
    let table = transaction.open_table(PROPERTIES)?;
    let value = table.get(COLLECTION)?;
    let value = value.ok_or_else(|| redb::Error::Corrupted("it has no properties".to_owned()))?;
    let properties: Properties = serde_json::from_slice(value.value())
        .map_err(|error| redb::Error::Corrupted(format!("its properties are unreadable ({error})")))?;
    if properties.dimension == 0 {
        return Err(redb::Error::Corrupted("its dimension is 0".to_owned()));
    }
    Ok(properties)
}

fn generation(transaction: &ReadTransaction) -> Result<u64, redb::Error> {
    let value = transaction.open_table(PROPERTIES)?.get(GENERATION)?;
    Ok(value.map_or(0, |value| number(value.value())))
}

fn next_generation(transaction: &WriteTransaction) -> Result<u64, redb::Error> {
    let mut table = transaction.open_table(PROPERTIES)?;
    let next = table.get(GENERATION)?.map_or(0, |value| number(value.value())) + 1;
    table.insert(GENERATION, next.to_le_bytes().as_slice())?;
    Ok(next)
}

/// Files that are older than the count have none.
fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
