//! Backups: copies of collections in a folder, made while they are served and written, and put back while the server serves.
//!
//! ```text
//! ROOT/NAME/manifest.json      what is in it, with the SHA-256 of each file
//! ROOT/NAME/manifest.sha256    of the manifest
//! ROOT/NAME/TENANT/COLLECTION.redb
//! ROOT/.NAME.partial/          one that is being made, or was when the process ended
//! ```
//!
//! A copy is written point by point out of one read transaction of redb, which is a consistent snapshot whatever is written
//! meanwhile; redb has no other way to copy a file that is open. Everything is on disk before the folder gets its name, so that
//! what has a name is whole.

mod folder;
mod manifest;
mod restore;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Collections, Handle, Listed, blocking};
use crate::error::Error;
use folder::Partial;
use manifest::{Copied, Manifest};
pub use restore::How;

/// Which collections are meant.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only this tenant's.
    pub tenant: Option<String>,
    /// Only this one of the tenant.
    pub collection: Option<String>,
}

impl Selection {
    fn has(&self, tenant: &str, collection: &str) -> bool {
        let fits = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        fits(&self.tenant, tenant) && fits(&self.collection, collection)
    }
}

/// Where the work is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Whose collection.
    pub tenant: String,
    /// Which one.
    pub collection: String,
    /// Bytes of it that were read.
    pub bytes: u64,
    /// Whether it is done.
    pub done: bool,
    /// Collections before it.
    pub finished: usize,
    /// Collections in all.
    pub collections: usize,
}

/// What a backup has, or what was restored of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Collections.
    pub collections: usize,
    /// Points in them.
    pub points: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// As TENANT/NAME: those that are damaged, and not in it.
    pub damaged: Vec<String>,
}

/// Hears of progress; ends the work by returning an error, as it does when nobody listens any more.
pub type Tell = Arc<dyn Fn(Progress) -> Result<(), Error> + Send + Sync>;

/// The folder of backups. One backup or restore at a time.
#[derive(Debug)]
pub struct Backups {
    root: PathBuf,
    turn: tokio::sync::Mutex<()>,
}

/// The collection that is worked on.
struct At<'a> {
    tenant: &'a str,
    collection: &'a str,
    finished: usize,
    collections: usize,
    tell: &'a Tell,
}

impl At<'_> {
    fn tell(&self, bytes: u64, done: bool) -> Result<(), Error> {
        (self.tell)(Progress {
            tenant: self.tenant.to_owned(),
            collection: self.collection.to_owned(),
            bytes,
            done,
            finished: self.finished,
            collections: self.collections,
        })
    }
}

impl Backups {
    /// Those below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Copies collections into a new backup.
    ///
    /// # Errors
    /// [`Error::BackupExists`], [`Error::CollectionNotFound`] and [`Error::CollectionDamaged`] for one that is asked for by name,
    /// [`Error::StorageFull`], what `tell` returns, [`Error::Internal`]. Nothing is left then.
    pub async fn create(
        &self,
        collections: &Collections,
        name: &str,
        wanted: &Selection,
        tell: Tell,
    ) -> Result<Summary, Error> {
        let _turn = self.turn.lock().await;
        if let (Some(tenant), Some(collection)) = (&wanted.tenant, &wanted.collection) {
            collections.get(tenant, collection)?.open()?;
        }
        let Listed { served, damaged } = collections.all(wanted.tenant.as_deref());
        let served = served
            .into_iter()
            .filter(|(tenant, handle)| wanted.has(tenant, &handle.name));
        let served: Vec<(String, Handle)> = served.collect();
        let damaged = damaged.into_iter().filter(|(tenant, name)| wanted.has(tenant, name));
        let damaged: Vec<String> = damaged.map(|(tenant, name)| format!("{tenant}/{name}")).collect();
        let (root, name) = (self.root.clone(), name.to_owned());
        blocking(move || {
            let partial = Partial::begin(&root, &name)?;
            let mut manifest = Manifest::new(damaged);
            for (finished, (tenant, handle)) in served.iter().enumerate() {
                let at = At {
                    tenant,
                    collection: &handle.name,
                    finished,
                    collections: served.len(),
                    tell: &tell,
                };
                manifest.collections.push(copy(&partial, handle, &at)?);
            }
            partial.finish(&manifest)?;
            Ok(manifest.summary())
        })
        .await
    }
}

fn copy(partial: &Partial, handle: &Handle, at: &At<'_>) -> Result<Copied, Error> {
    let collection = handle.open()?;
    let path = partial.file(at.tenant, at.collection)?;
    let points = collection.copy_to(&path, |bytes| at.tell(bytes, false))?;
    let (bytes, sha256) = folder::hash(&path, |bytes| at.tell(bytes, false))?;
    at.tell(bytes, true)?;
    Ok(Copied {
        tenant: at.tenant.to_owned(),
        collection: at.collection.to_owned(),
        properties: collection.properties,
        points,
        bytes,
        sha256,
    })
}

/// `TENANT/COLLECTION.redb` below a backup.
fn file(folder: &Path, tenant: &str, collection: &str) -> PathBuf {
    folder.join(tenant).join(format!("{collection}.redb"))
}
