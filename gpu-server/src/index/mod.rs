//! Vector collections: points on disk in redb, a searchable view of them on the device.
//!
//! The file is the truth; the view is rebuilt from it at start, and whenever the two may have come apart. A write is
//! acknowledged after redb has committed it and the view has it. Search is exact: every point is compared.

pub mod ask;
pub mod backup;
pub mod collection;
pub mod columns;
pub mod filter;
pub mod fusion;
mod growth;
pub mod recall;
pub mod sparse;
pub mod store;
mod top;
pub mod usage;
pub mod view;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use medkg_telemetry::tenant::TenantId;

use crate::engine::Engine;
use crate::error::Error;
use collection::{Alarm, Collection};

use store::{Properties, Store, UNFINISHED};
use usage::{Memory, Usage};

/// Ending of a file that is being restored.
const RESTORING: &str = ".restoring";
const LOCK_POLL: Duration = Duration::from_millis(200);

/// All collections of all tenants.
#[derive(Debug)]
pub struct Collections {
    root: PathBuf,
    engine: Arc<Engine>,
    /// Keyed by tenant, then name; a tenant's own map is all that it can reach.
    open: RwLock<BTreeMap<String, BTreeMap<String, Arc<Entry>>>>,
    /// Serialises creating and dropping.
    changes: tokio::sync::Mutex<()>,
    alarm: Alarm,
    /// What was done to all of them, dropped ones included.
    overall: Arc<Usage>,
    /// Held as long as the process lives: two servers on one folder would each write what the other does not see. None
    /// where nobody can write.
    _lock: Option<File>,
}

/// All collections together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Collections that answer.
    pub served: u64,
    /// Collections whose file cannot be read.
    pub damaged: u64,
    /// Points in those that answer.
    pub points: u64,
    /// What their views take.
    pub memory: Memory,
}

/// Some collections, in the order of tenant and name.
#[derive(Debug, Default)]
pub struct Listed {
    /// Those that answer, with their tenants.
    pub served: Vec<(String, Handle)>,
    /// Tenants and names of those whose file cannot be read.
    pub damaged: Vec<(String, String)>,
}

/// A collection, or why it is not served.
#[derive(Debug)]
enum Entry {
    Open(Collection),
    Refused { path: PathBuf, error: Error },
}

impl Entry {
    /// The collection, if it is served.
    fn served(&self) -> Result<&Collection, Error> {
        match self {
            Self::Open(collection) => collection.check().map(|()| collection),
            Self::Refused { error, .. } => Err(error.clone()),
        }
    }
}

impl Collections {
    /// Opens every collection under `root` and puts its points on the device. One that cannot be read is kept by name
    /// and refuses its callers; the others are not touched.
    ///
    /// # Errors
    /// [`Error::Internal`] when the folder itself cannot be read; a device error.
    pub async fn open(root: &Path, engine: Arc<Engine>, alarm: Alarm) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::internal(format!("{}: {error}", root.display()));
        std::fs::create_dir_all(root).map_err(failed)?;
        let lock = lock(root).await.map_err(failed)?;
        let overall = Arc::new(Usage::try_new(None)?);
        let mut open: BTreeMap<String, BTreeMap<String, Arc<Entry>>> = BTreeMap::new();
        for (tenant, name, path) in files(root).map_err(failed)? {
            let file = path.clone();
            let entry = match blocking(move || Store::open(&file)).await {
                Ok(store) => match Collection::load(name.clone(), store, &engine, alarm.clone(), &overall).await {
                    Ok(collection) => Entry::Open(collection),
                    Err(error) if error.is_sticky() => return Err(error),
                    Err(error) => Entry::Refused { path, error },
                },
                Err(error) => Entry::Refused { path, error },
            };
            if let Entry::Refused { path, error } = &entry {
                tracing::error!(%tenant, collection = %name, file = %path.display(), %error, "collection not served");
            }
            open.entry(tenant).or_default().insert(name, Arc::new(entry));
        }
        Ok(Self {
            root: root.to_owned(),
            engine,
            open: RwLock::new(open),
            changes: tokio::sync::Mutex::new(()),
            alarm,
            overall,
            _lock: lock,
        })
    }

    /// Closes the files, so that the next start need not check them. For the end of the process: every collection is gone.
    pub fn close(&self) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The tenant's collections that are served, by name.
    pub fn list(&self, tenant: &str) -> Vec<(String, Properties)> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let entries = open.get(tenant).into_iter().flatten();
        entries
            .filter_map(|(name, entry)| Some((name.clone(), entry.served().ok()?.properties)))
            .collect()
    }

    /// Tenant and name of every collection that is not served. For operators: tenants must not learn of each other's.
    pub fn refused(&self) -> Vec<(String, String)> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let all = open
            .iter()
            .flat_map(|(tenant, entries)| entries.iter().map(move |entry| (tenant, entry)));
        all.filter(|(_, (_, entry))| entry.served().is_err())
            .map(|(tenant, (name, _))| (tenant.clone(), name.clone()))
            .collect()
    }

    /// How many there are, over all tenants.
    pub fn totals(&self) -> Totals {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let mut totals = Totals::default();
        for entry in open.values().flat_map(BTreeMap::values) {
            match entry.served() {
                Ok(collection) => {
                    totals.served += 1;
                    totals.points += collection.points();
                    totals.memory += collection.usage().memory();
                }
                Err(_) => totals.damaged += 1,
            }
        }
        totals
    }

    /// What was done to all of them since the start, dropped ones included.
    pub fn usage(&self) -> &Usage {
        &self.overall
    }

    /// The collections of all tenants, or of one.
    pub fn all(&self, tenant: Option<&str>) -> Listed {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let mut listed = Listed::default();
        let wanted = open.iter().filter(|(of, _)| tenant.is_none_or(|tenant| *of == tenant));
        for (tenant, collections) in wanted {
            for (name, entry) in collections {
                match entry.served() {
                    Ok(_) => {
                        let handle = Handle {
                            name: name.clone(),
                            entry: Arc::clone(entry),
                        };
                        listed.served.push((tenant.clone(), handle));
                    }
                    Err(_) => listed.damaged.push((tenant.clone(), name.clone())),
                }
            }
        }
        listed
    }

    /// Makes a collection; false if an equal one was there and that is accepted.
    ///
    /// # Errors
    /// [`Error::CollectionExists`], [`Error::CollectionDamaged`], [`Error::Internal`] when the file cannot be written.
    pub async fn create(&self, tenant: &str, name: &str, wanted: Properties, exist_ok: bool) -> Result<bool, Error> {
        let _one_at_a_time = self.changes.lock().await;
        match self.get(tenant, name) {
            Ok(found) => {
                let there = found.open()?.properties;
                if exist_ok && there == wanted {
                    return Ok(false);
                }
                return Err(Error::CollectionExists {
                    name: name.to_owned(),
                    existing: there.to_string(),
                });
            }
            Err(Error::CollectionNotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let path = self.root.join(tenant).join(format!("{name}.redb"));
        let store = blocking(move || Store::create(&path, wanted)).await?;
        let collection =
            Collection::load(name.to_owned(), store, &self.engine, self.alarm.clone(), &self.overall).await?;
        self.put(tenant, name, Entry::Open(collection));
        Ok(true)
    }

    /// From now on `entry` is what has this name.
    fn put(&self, tenant: &str, name: &str, entry: Entry) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = open.entry(tenant.to_owned()).or_default();
        of_tenant.insert(name.to_owned(), Arc::new(entry));
    }

    /// Removes a collection and its file; how many points it had. Works on a damaged one too.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::StorageReadOnly`], [`Error::Internal`] when the file cannot be removed.
    pub async fn drop(&self, tenant: &str, name: &str) -> Result<u64, Error> {
        let _one_at_a_time = self.changes.lock().await;
        let found = self.get(tenant, name)?;
        // The file first: if it cannot be removed, nothing has changed.
        let points = match found.entry.as_ref() {
            Entry::Open(collection) => collection.drop().await?,
            Entry::Refused { path, .. } => {
                let path = path.clone();
                blocking(move || store::discard(&path)).await?;
                0
            }
        };
        if let Some(collections) = self
            .open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(tenant)
        {
            collections.remove(name);
        }
        self.alarm.send_modify(|count| *count += 1);
        Ok(points)
    }

    /// A handle on one of the tenant's collections.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`].
    pub fn get(&self, tenant: &str, name: &str) -> Result<Handle, Error> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let entry = open.get(tenant).and_then(|collections| collections.get(name)).cloned();
        let entry = entry.ok_or_else(|| Error::CollectionNotFound {
            name: name.chars().take(127).collect(),
        })?;
        Ok(Handle {
            name: name.to_owned(),
            entry,
        })
    }
}

/// Keeps a collection alive while a call uses it.
#[derive(Debug, Clone)]
pub struct Handle {
    name: String,
    entry: Arc<Entry>,
}

impl Handle {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The collection.
    ///
    /// # Errors
    /// [`Error::CollectionDamaged`], or what else keeps it from being served.
    pub fn open(&self) -> Result<&Collection, Error> {
        self.entry.served()
    }
}

/// Takes the folder for this process alone. Waits for a server that is still draining, as a rolling update needs it.
async fn lock(root: &Path) -> std::io::Result<Option<File>> {
    let path = root.join(".lock");
    let file = match File::create(&path) {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied
            ) =>
        {
            tracing::warn!(folder = %root.display(), %error, "the data folder cannot be written; collections can be read only");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    tracing::warn!(lock = %path.display(), "another server uses the data folder; waiting until it ends");
                    told = true;
                }
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// `(tenant, collection, file)` of every collection file. What medkg did not put there is left alone.
fn files(root: &Path) -> std::io::Result<Vec<(String, String, PathBuf)>> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(root)? {
        let folder = folder?;
        let Ok(tenant) = folder.file_name().into_string() else {
            continue;
        };
        if TenantId::try_new(&tenant).is_err() || !folder.file_type()?.is_dir() {
            continue;
        }
        let entries = match std::fs::read_dir(folder.path()) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::error!(folder = %folder.path().display(), %error, "a folder cannot be read; it is left out");
                continue;
            }
        };
        for entry in entries {
            let path = entry?.path();
            let Some(file) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if let Some(unfinished) = file.strip_suffix(UNFINISHED).or_else(|| file.strip_suffix(RESTORING)) {
                // It was being created or restored when the process ended; nobody was told that it exists.
                tracing::warn!(collection = unfinished, "removing a collection that was never finished");
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!(file = %path.display(), %error, "it cannot be removed; it is left out");
                }
            } else if let Some(name) = file.strip_suffix(".redb") {
                found.push((tenant.clone(), name.to_owned(), path));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

#[cfg(test)]
#[path = "collections_tests.rs"]
mod tests;
