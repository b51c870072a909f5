//! One collection: its file, its view, and the order in which they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::blocking;
use super::store::{Points, Properties, Store};
use super::view::Hit;
use crate::engine::Engine;
use crate::error::Error;

/// Bytes of payloads in one answer; a message of the wire holds 32 MiB.
const MAX_PAYLOAD_ANSWER: usize = 24 * 1024 * 1024;

static KEYS: AtomicU64 = AtomicU64::new(0);

/// A collection that is served.
#[derive(Debug)]
pub struct Collection {
    /// What never changes about it.
    pub properties: Properties,
    shared: Arc<Shared>,
}

/// Outlives the call that started a write: a write is never left half done because its caller went away.
#[derive(Debug)]
struct Shared {
    name: String,
    store: Store,
    engine: Arc<Engine>,
    key: u64,
    /// One write at a time, so that file and view change in the same order.
    writing: tokio::sync::Mutex<()>,
    /// The file has something that the view lacks: it must be rebuilt before the next use.
    stale: AtomicBool,
    closed: AtomicBool,
    points: AtomicUsize,
    queries: AtomicU64,
}

/// Numbers about a collection.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    /// Points in it.
    pub points: u64,
    /// Bytes on the device.
    pub device_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Queries answered since the start.
    pub queries: u64,
}

/// The nearest points of one query, with their payloads ("" for none) if they were asked for.
pub type Found = Vec<(Hit, String)>;

impl Collection {
    /// Puts a file's points on the device.
    ///
    /// # Errors
    /// [`Error::Internal`] naming the file, or a device error.
    pub async fn load(name: String, store: Store, engine: &Arc<Engine>) -> Result<Self, Error> {
        let properties = store.properties;
        let shared = Arc::new(Shared {
            name,
            store,
            engine: Arc::clone(engine),
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            writing: tokio::sync::Mutex::new(()),
            stale: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            points: AtomicUsize::new(0),
            queries: AtomicU64::new(0),
        });
        shared.refresh().await?;
        Ok(Self { properties, shared })
    }

    /// Points in it.
    pub fn points(&self) -> u64 {
        self.shared.points.load(Ordering::Acquire) as u64
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        self.shared.store.path.clone()
    }

    /// Writes points; how many ids were new. All or nothing.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`] once it is dropped, [`Error::Internal`] naming the file, or a device error.
    pub async fn upsert(&self, points: Points) -> Result<u64, Error> {
        self.change(move |store| {
            let inserted = store.write(&points)?;
            let ids: Vec<Arc<str>> = points.ids.iter().map(|id| Arc::from(id.as_str())).collect();
            Ok((inserted, Change::Upsert(ids, points.vectors)))
        })
        .await
    }

    /// Removes points; how many were there.
    ///
    /// # Errors
    /// As [`Self::upsert`].
    pub async fn remove(&self, ids: Vec<String>) -> Result<u64, Error> {
        self.change(move |store| Ok((store.remove(&ids)?, Change::Remove(ids))))
            .await
    }

    /// The nearest points of each query (row-major).
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`] once it is dropped, [`Error::Internal`] naming the file, or a device error.
    pub async fn search(&self, queries: Vec<f32>, k: usize, with_payload: bool) -> Result<Vec<Found>, Error> {
        let shared = Arc::clone(&self.shared);
        if shared.stale.load(Ordering::Acquire) {
            let _one_at_a_time = shared.writing.lock().await;
            shared.check_open()?;
            shared.refresh().await?;
        }
        shared.check_open()?;
        let key = shared.key;
        let count = queries.len() / self.properties.dimension;
        let found = shared
            .engine
            .run(move |views| views.get(key)?.search(&queries, k))
            .await;
        let hits = shared.unless_closed(found)?;
        shared.queries.fetch_add(count as u64, Ordering::Relaxed);
        if !with_payload {
            return Ok(hits
                .into_iter()
                .map(|hits| hits.into_iter().map(|hit| (hit, String::new())).collect())
                .collect());
        }
        blocking(move || {
            let mut left = MAX_PAYLOAD_ANSWER;
            let found = hits.into_iter().map(|hits| {
                let payloads = shared.store.payloads(hits.iter().map(|hit| &*hit.id))?;
                let bytes: usize = payloads.iter().map(String::len).sum();
                left = left.checked_sub(bytes).ok_or_else(|| {
                    Error::invalid(
                        "k",
                        "finds more than 24 MiB of payloads; ask for fewer points, or without payloads",
                    )
                })?;
                Ok(hits.into_iter().zip(payloads).collect())
            });
            found.collect()
        })
        .await
    }

    /// Numbers about it.
    ///
    /// # Errors
    /// A device error.
    pub async fn statistics(&self) -> Result<Statistics, Error> {
        self.shared.check_open()?;
        let key = self.shared.key;
        let asked = self
            .shared
            .engine
            .run(move |views| Ok(views.get(key)?.device_bytes()))
            .await;
        let device_bytes = self.shared.unless_closed(asked)?;
        Ok(Statistics {
            points: self.points(),
            device_bytes,
            disk_bytes: self.shared.store.disk_bytes(),
            queries: self.shared.queries.load(Ordering::Relaxed),
        })
    }

    /// Ends it: waits for the running write, refuses all later calls, frees the view.
    ///
    /// # Errors
    /// A device error.
    pub async fn close(&self) -> Result<(), Error> {
        let _no_write_runs = self.shared.writing.lock().await;
        self.shared.closed.store(true, Ordering::Release);
        let key = self.shared.key;
        self.shared
            .engine
            .run_owed(move |views| {
                views.remove(key);
                Ok(())
            })
            .await
    }

    /// File first, then view, in a task of its own: a caller that leaves between the two must not part them.
    async fn change(
        &self,
        write: impl FnOnce(&Store) -> Result<(u64, Change), Error> + Send + 'static,
    ) -> Result<u64, Error> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            let _one_at_a_time = shared.writing.lock().await;
            shared.check_open()?;
            // Nothing may be written that could then not be shown.
            shared.engine.check_tasks()?;
            shared.refresh().await?;
            let writer = Arc::clone(&shared);
            let (count, change) = shared.stale_on_error(blocking(move || write(&writer.store)).await)?;
            let key = shared.key;
            let applied = shared.engine.run_owed(move |views| {
                let view = views.get(key)?;
                match change {
                    Change::Upsert(ids, rows) => view.upsert(&ids, &rows)?,
                    Change::Remove(ids) => view.remove(&ids)?,
                }
                Ok(view.len())
            });
            let points = shared.stale_on_error(applied.await)?;
            shared.points.store(points, Ordering::Release);
            Ok(count)
        });
        task.await.map_err(Error::internal)?
    }
}

enum Change {
    Upsert(Vec<Arc<str>>, Vec<f32>),
    Remove(Vec<String>),
}

impl Shared {
    /// After a failed write it is not certain what the file holds, so the view is rebuilt before its next use.
    fn stale_on_error<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_err() {
            self.stale.store(true, Ordering::Release);
        }
        result
    }

    /// A collection that was dropped while a call waited for the device has no view any more: to the caller it is gone.
    fn unless_closed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_err() {
            self.check_open()?;
        }
        result
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::CollectionNotFound {
                name: self.name.clone(),
            });
        }
        Ok(())
    }

    /// Rebuilds the view from the file if it may lack something. Called with `writing` held, or before anybody can call.
    async fn refresh(self: &Arc<Self>) -> Result<(), Error> {
        if !self.stale.load(Ordering::Acquire) {
            return Ok(());
        }
        let reader = Arc::clone(self);
        let points = blocking(move || reader.store.read_all()).await?;
        let (key, properties) = (self.key, self.store.properties);
        let ids: Vec<Arc<str>> = points.ids.iter().map(|id| Arc::from(id.as_str())).collect();
        let count = ids.len();
        self.engine
            .run_owed(move |views| views.build(key, properties, &ids, &points.vectors))
            .await?;
        self.points.store(count, Ordering::Release);
        self.stale.store(false, Ordering::Release);
        Ok(())
    }
}
