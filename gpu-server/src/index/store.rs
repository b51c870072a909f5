//! A collection's file: a redb database with its properties, its vectors (f32, little-endian) and its payloads (JSON
//! text). redb commits with fsync by default: what `write` returned for is on disk.

mod copy;
pub mod scan;
mod sparse;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, RepairSession, TableDefinition};
use serde::{Deserialize, Serialize};

use super::sparse::Rows;
use crate::error::Error;

const PROPERTIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("properties");
const VECTORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("vectors");
const PAYLOADS: TableDefinition<'_, &str, &str> = TableDefinition::new("payloads");

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
    /// Row-major [ids, dimension].
    pub vectors: Vec<f32>,
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

/// An open file.
#[derive(Debug)]
pub struct Store {
    database: Database,
    /// The file.
    pub path: PathBuf,
    /// As written when it was made.
    pub properties: Properties,
}

/// Says once that the file is checked, which takes time where there are many points.
fn unfinished_business(path: &Path) -> impl Fn(&mut RepairSession) + 'static {
    let (file, said) = (path.display().to_string(), Once::new());
    move |_| said.call_once(|| tracing::warn!(%file, "the collection was not closed; its file is checked"))
}

impl Store {
    /// Makes the file: under another name first, so that a half-made one is never taken for a collection.
    ///
    /// # Errors
    /// [`Error::Internal`] naming the file.
    pub fn create(path: &Path, properties: Properties) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::internal(format!("{}: {error}", path.display()));
        let folder = path.parent().ok_or_else(|| failed(&"it has no folder"))?;
        std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
        let unfinished = path.with_extension(UNFINISHED.trim_start_matches('.'));
        let bytes = serde_json::to_vec(&properties).map_err(|e| failed(&e))?;
        let write = || -> Result<(), redb::Error> {
            let database = Database::create(&unfinished)?;
            let transaction = database.begin_write()?;
            transaction
                .open_table(PROPERTIES)?
                .insert("collection", bytes.as_slice())?;
            transaction.open_table(VECTORS)?;
            transaction.open_table(PAYLOADS)?;
            sparse::make(&transaction, properties)?;
            Ok(transaction.commit()?)
        };
        write().map_err(|error| told(path, &error))?;
        std::fs::rename(&unfinished, path).map_err(|e| failed(&e))?;
        // The new name is on disk once its folder is.
        std::fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| failed(&e))?;
        Self::open(path).map_err(|problem| failed(&problem))
    }

    /// Opens the file.
    ///
    /// # Errors
    /// In words without paths, why it cannot be read. A damaged file may make redb panic; that is caught here and told
    /// the same way.
    pub fn open(path: &Path) -> Result<Self, String> {
        let open = || -> Result<Self, redb::Error> {
            let database = Builder::new()
                .set_repair_callback(unfinished_business(path))
                .open(path)?;
            let transaction = database.begin_read()?;
            let table = transaction.open_table(PROPERTIES)?;
            let value = table.get("collection")?;
            let value = value.ok_or_else(|| redb::Error::Corrupted("it has no properties".to_owned()))?;
            let properties = serde_json::from_slice(value.value())
                .map_err(|error| redb::Error::Corrupted(format!("its properties are unreadable ({error})")))?;
            drop(value);
            drop(table);
            Ok(Self {
                database,
                path: path.to_owned(),
                properties,
            })
        };
        catch_unwind(AssertUnwindSafe(open))
            .map_err(|_| "the file is damaged".to_owned())?
            .map_err(|error| error.to_string())
    }

    /// Every point, in the order of ids.
    ///
    /// # Errors
    /// [`Error::Internal`] naming the file.
    pub fn read_all(&self) -> Result<Points, Error> {
        let read = || -> Result<Points, redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(VECTORS)?;
            let mut points = Points::default();
            for entry in table.iter()? {
                let (id, bytes) = entry?;
                let before = points.vectors.len();
                points.vectors.extend(floats(bytes.value()));
                if points.vectors.len() - before != self.properties.dimension {
                    let found = points.vectors.len() - before;
                    return Err(redb::Error::Corrupted(format!("{:?} has {found} elements", id.value())));
                }
                points.ids.push(id.value().to_owned());
            }
            points.sparse = sparse::of_all(&transaction, self.properties, &points.ids)?;
            Ok(points)
        };
        self.guarded(read)
    }

    /// Writes all points or none; the ids that were not there before are counted.
    ///
    /// # Errors
    /// [`Error::Internal`] naming the file; nothing is changed then.
    pub fn write(&self, points: &Points) -> Result<u64, Error> {
        let write = || -> Result<u64, redb::Error> {
            let transaction = self.database.begin_write()?;
            let mut inserted = 0;
            {
                let mut vectors = transaction.open_table(VECTORS)?;
                let mut payloads = transaction.open_table(PAYLOADS)?;
                for (row, id) in points.ids.iter().enumerate() {
                    let vector = &points.vectors[row * self.properties.dimension..][..self.properties.dimension];
                    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                    inserted += u64::from(vectors.insert(id.as_str(), bytes.as_slice())?.is_none());
                    match points.payloads.get(row).map(String::as_str) {
                        None | Some("") => drop(payloads.remove(id.as_str())?),
                        Some(payload) => drop(payloads.insert(id.as_str(), payload)?),
                    }
                }
            }
            sparse::write(&transaction, self.properties, &points.ids, &points.sparse)?;
            transaction.commit()?;
            Ok(inserted)
        };
        self.guarded(write)
    }

    /// Removes points; those that were there.
    ///
    /// # Errors
    /// [`Error::Internal`] naming the file; nothing is changed then.
    pub fn remove(&self, ids: &[String]) -> Result<u64, Error> {
        let write = || -> Result<u64, redb::Error> {
            let transaction = self.database.begin_write()?;
            let mut removed = 0;
            {
                let mut vectors = transaction.open_table(VECTORS)?;
                let mut payloads = transaction.open_table(PAYLOADS)?;
                for id in ids {
                    removed += u64::from(vectors.remove(id.as_str())?.is_some());
                    payloads.remove(id.as_str())?;
                }
            }
            sparse::write(&transaction, self.properties, ids, &Rows::default())?;
            transaction.commit()?;
            Ok(removed)
        };
        self.guarded(write)
    }

    /// The payloads of some ids, "" where there is none.
    ///
    /// # Errors
    /// [`Error::Internal`] naming the file.
    pub fn payloads<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Result<Vec<String>, Error> {
        let read = || -> Result<Vec<String>, redb::Error> {
            let table = self.database.begin_read()?.open_table(PAYLOADS)?;
            ids.map(|id| {
                Ok(table
                    .get(id)?
                    .map_or_else(String::new, |value| value.value().to_owned()))
            })
            .collect()
        };
        self.guarded(read)
    }

    /// What some ids have; None where vectors, payloads and sparse vectors together take more than `most` bytes.
    ///
    /// # Errors
    /// [`Error::Internal`] naming the file.
    pub fn fetch(&self, ids: Vec<String>, wanted: Wanted, most: usize) -> Result<Option<Fetched>, Error> {
        let read = || -> Result<Option<Fetched>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let vectors = transaction.open_table(VECTORS)?;
            let payloads = transaction.open_table(PAYLOADS)?;
            let mut fetched = Fetched::default();
            let mut payload_bytes = 0;
            for id in ids {
                let Some(vector) = vectors.get(id.as_str())? else {
                    fetched.missing.push(id);
                    continue;
                };
                if wanted.vectors {
                    fetched.vectors.extend_from_slice(vector.value());
                }
                if wanted.payloads {
                    let payload = payloads.get(id.as_str())?;
                    let payload = payload.map_or_else(String::new, |payload| payload.value().to_owned());
                    payload_bytes += payload.len();
                    fetched.payloads.push(payload);
                }
                if fetched.vectors.len() + payload_bytes > most {
                    return Ok(None);
                }
                fetched.ids.push(id);
            }
            if wanted.sparse {
                fetched.sparse = sparse::of_some(&transaction, self.properties, &fetched.ids)?;
                if fetched.vectors.len() + payload_bytes + fetched.sparse.bytes() > most {
                    return Ok(None);
                }
            }
            Ok(Some(fetched))
        };
        self.guarded(read)
    }

    /// Gives `take` every id that has a payload, with it, until it says to stop.
    ///
    /// # Errors
    /// [`Error::Internal`] naming the file.
    pub fn each_payload(&self, mut take: impl FnMut(&str, &str) -> ControlFlow<()>) -> Result<(), Error> {
        let read = || -> Result<(), redb::Error> {
            for entry in self.database.begin_read()?.open_table(PAYLOADS)?.iter()? {
                let (id, payload) = entry?;
                if take(id.value(), payload.value()).is_break() {
                    break;
                }
            }
            Ok(())
        };
        self.guarded(read)
    }

    /// Bytes of the file.
    pub fn disk_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |data| data.len())
    }

    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Error> {
        catch_unwind(AssertUnwindSafe(work))
            .map_err(|_| Error::internal(format!("{}: the file is damaged", self.path.display())))?
            .map_err(|error| told(&self.path, &error))
    }
}

fn told(path: &Path, error: &redb::Error) -> Error {
    match error {
        redb::Error::Io(io) if is_full(io.kind()) => Error::DiskFull,
        _ => Error::internal(format!("{}: {error}", path.display())),
    }
}

/// Whether it is for lack of room that something could not be written.
pub(super) fn is_full(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind;
    matches!(
        kind,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

/// The elements of vectors as the file has them.
pub(super) fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|chunk| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]))
}
