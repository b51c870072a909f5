//! A backup put back: all of it checked first, then one collection after the other exchanged at once.
//!
//! The copy is opened, and its points are put on the device, under a name that is no collection's, while the old one serves. Then
//! writes to the old one are held back, the file gets its name, and the new one takes its place. A process that ends before has
//! the old one, and after it the new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::{self, Whole};
use super::manifest::{self, Copied};
use super::{At, Backups, Selection, Summary, Tell, file};
use crate::error::Error;
use crate::index::collection::Collection;
use crate::index::store::Store;
use crate::index::{Collections, Entry, RESTORING, blocking};

/// What to do with what is there.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Replace it; else it is an error.
    pub replace: bool,
    /// Check the backup and change nothing.
    pub check_only: bool,
}

impl Backups {
    /// Puts collections of a backup back.
    ///
    /// # Errors
    /// [`Error::BackupNotFound`], [`Error::BackupDamaged`], [`Error::BackupLacks`],
    /// [`Error::RestoreExists`]: nothing is changed then. [`Error::StorageFull`], a device error, what `tell` returns,
    /// [`Error::Internal`]: collections before are restored, this one and those after it are as they were.
    pub async fn restore(
        &self,
        collections: &Collections,
        name: &str,
        wanted: &Selection,
        how: How,
        tell: Tell,
    ) -> Result<Summary, Error> {
        let _turn = self.turn.lock().await;
        let (root, named) = (self.root.clone(), name.to_owned());
        let whole = blocking(move || Whole::open(&root, &named)).await?;
        let chosen = whole.manifest.collections.iter();
        let chosen: Vec<Copied> = chosen
            .filter(|one| wanted.has(&one.tenant, &one.collection))
            .cloned()
            .collect();
        if chosen.is_empty() && (wanted.tenant.is_some() || wanted.collection.is_some()) {
            let named = [&wanted.tenant, &wanted.collection].into_iter().flatten();
            let named: Vec<&str> = named.map(String::as_str).collect();
            return Err(Error::BackupLacks {
                wanted: named.join("/"),
            });
        }
        if !how.replace && !how.check_only {
            for one in &chosen {
                collections.refuse_existing(&one.tenant, &one.collection)?;
            }
        }
        let summary = manifest::summary(&chosen);
        let whole = Arc::new(whole);
        let chosen = check(name, &whole, chosen, &tell).await?;
        if how.check_only {
            return Ok(summary);
        }
        for (finished, one) in chosen.iter().enumerate() {
            let staged = collections.staged(&one.tenant, &one.collection);
            let outcome = async {
                stage(name, &whole, one, &staged, (finished, chosen.len()), &tell).await?;
                collections.exchange(name, one, &staged, how.replace).await
            };
            let outcome = outcome.await;
            if outcome.is_err() {
                let left = staged.clone();
                let _ = blocking(move || std::fs::remove_file(&left).map_err(Error::internal)).await;
            }
            outcome?;
            let at = At {
                tenant: &one.tenant,
                collection: &one.collection,
                finished,
                collections: chosen.len(),
                tell: &tell,
            };
            at.tell(one.bytes, true)?;
        }
        Ok(summary)
    }
}

fn damaged(backup: &str, one: &Copied, problem: &str) -> Error {
    Error::BackupDamaged {
        name: backup.to_owned(),
        problem: format!("the copy of {}/{} {problem}", one.tenant, one.collection),
    }
}

fn fits(backup: &str, one: &Copied, (bytes, sha256): &(u64, String)) -> Result<(), Error> {
    if (*bytes, sha256) != (one.bytes, &one.sha256) {
        return Err(damaged(backup, one, "is not what the manifest says"));
    }
    Ok(())
}

/// Reads every file before anything is changed.
async fn check(backup: &str, whole: &Arc<Whole>, chosen: Vec<Copied>, tell: &Tell) -> Result<Vec<Copied>, Error> {
    let (whole, tell, backup) = (Arc::clone(whole), Arc::clone(tell), backup.to_owned());
    blocking(move || {
        for (finished, one) in chosen.iter().enumerate() {
            let at = At {
                tenant: &one.tenant,
                collection: &one.collection,
                finished,
                collections: chosen.len(),
                tell: &tell,
            };
            let path = file(&whole.folder, &one.tenant, &one.collection);
            if !path.is_file() {
                return Err(damaged(&backup, one, "is missing"));
            }
            let found = folder::hash(&path, |bytes| at.tell(bytes, false))?;
            fits(&backup, one, &found)?;
        }
        Ok(chosen)
    })
    .await
}

/// Copies the file beside the collections, under a name that is none of theirs.
async fn stage(
    backup: &str,
    whole: &Arc<Whole>,
    one: &Copied,
    staged: &Path,
    (finished, collections): (usize, usize),
    tell: &Tell,
) -> Result<(), Error> {
    let (whole, tell, one, backup) = (Arc::clone(whole), Arc::clone(tell), one.clone(), backup.to_owned());
    let staged = staged.to_owned();
    blocking(move || {
        let at = At {
            tenant: &one.tenant,
            collection: &one.collection,
            finished,
            collections,
            tell: &tell,
        };
        if let Some(folder) = staged.parent() {
            std::fs::create_dir_all(folder).map_err(|error| folder::told(folder, &error))?;
        }
        let path = file(&whole.folder, &one.tenant, &one.collection);
        let found = folder::copy(&path, &staged, |bytes| at.tell(bytes, false))?;
        fits(&backup, &one, &found)
    })
    .await
}

impl Collections {
    fn refuse_existing(&self, tenant: &str, name: &str) -> Result<(), Error> {
        let existing = match self.get(tenant, name) {
            Err(Error::CollectionNotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
            Ok(found) => match found.open() {
                Ok(collection) => collection.properties.to_string(),
                Err(_) => "damaged".to_owned(),
            },
        };
        Err(Error::RestoreExists {
            collection: format!("{tenant}/{name}"),
            existing,
        })
    }

    fn staged(&self, tenant: &str, name: &str) -> PathBuf {
        self.root.join(tenant).join(format!("{name}{RESTORING}"))
    }

    /// Lets the staged file take the place of what is there.
    async fn exchange(&self, backup: &str, one: &Copied, staged: &Path, replace: bool) -> Result<(), Error> {
        let _one_at_a_time = self.changes.lock().await;
        if !replace {
            self.refuse_existing(&one.tenant, &one.collection)?;
        }
        let path = file(&self.root, &one.tenant, &one.collection);
        let (from, to) = (staged.to_owned(), path.clone());
        let opened = blocking(move || Store::open_as(&from, &to)).await;
        let store = opened.map_err(|error| damaged(backup, one, &format!("cannot be opened ({error})")))?;
        if store.properties != one.properties {
            return Err(damaged(backup, one, "has other properties than the manifest says"));
        }
        let new = Collection::load(
            one.collection.clone(),
            store,
            &self.engine,
            self.alarm.clone(),
            &self.overall,
        )
        .await?;
        let named = if new.points() == one.points {
            self.name_it(one, new, staged, &path).await
        } else {
            let problem = format!("has {} points, and the manifest says {}", new.points(), one.points);
            Err((new, damaged(backup, one, &problem)))
        };
        match named {
            Ok(()) => Ok(()),
            Err((new, error)) => {
                // What was put on the device goes again.
                new.close().await?;
                Err(error)
            }
        }
    }

    async fn name_it(
        &self,
        one: &Copied,
        new: Collection,
        staged: &Path,
        path: &Path,
    ) -> Result<(), (Collection, Error)> {
        let old = self.get(&one.tenant, &one.collection).ok();
        let old = old.as_ref().and_then(|handle| handle.open().ok());
        let no_write_runs = match old {
            Some(old) => Some(old.hold_writes().await),
            None => None,
        };
        let (from, to) = (staged.to_owned(), path.to_owned());
        let rename = move || {
            let named = std::fs::rename(&from, &to).and_then(|()| match to.parent() {
                Some(folder) => std::fs::File::open(folder)?.sync_all(),
                None => Ok(()),
            });
            named.map_err(|error| folder::told(&to, &error))
        };
        if let Err(error) = blocking(rename).await {
            return Err((new, error));
        }
        self.put(&one.tenant, &one.collection, Entry::Open(new));
        // What was damaged may be served again.
        self.alarm.send_modify(|count| *count += 1);
        if let Some(old) = old {
            old.replaced();
            drop(no_write_runs);
            // Its rows go; a device that cannot do that is lost, and every caller hears so.
            let _ = old.close().await;
        }
        Ok(())
    }
}
