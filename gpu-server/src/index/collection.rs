//! One collection: its file, its view, and the order in which they change.

mod whole;
mod write;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::ask::{Ask, Hit};
use super::blocking;
use super::columns::{self, Read};
use super::filter::{Cell, Field, Filter};
use super::growth::Growth;
use super::store::{self, Fetched, Properties, Store, Wanted};
use super::usage::Usage;
use super::view::View;
use crate::engine::Engine;
use crate::error::Error;

/// Bytes of payloads, and of vectors that are fetched, in one answer; a message of the wire holds 32 MiB.
const MAX_ANSWER: usize = 24 * 1024 * 1024;

/// Callers are served.
const OPEN: u8 = 0;
/// It is gone.
const DROPPED: u8 = 1;
/// Another one has its name.
const REPLACED: u8 = 2;

static KEYS: AtomicU64 = AtomicU64::new(0);

/// Counts how often what is served has changed.
pub type Alarm = watch::Sender<u64>;

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
    /// The file may have something that the view lacks: whether it has is to be seen before the next use.
    stale: AtomicBool,
    /// The generation of the file that the view shows; none before there is a view.
    shown: Mutex<Option<u64>>,
    /// The fields whose columns the view keeps; a write takes them out of its payloads before it is applied.
    fields: Mutex<Vec<Field>>,
    /// One of the three below.
    life: AtomicU8,
    /// Why it is not served any more, once its file was seen to be damaged.
    damage: OnceLock<Error>,
    alarm: Alarm,
    points: AtomicUsize,
    usage: Usage,
    growth: Growth,
}

/// The nearest points of one query, with their payloads ("" for none) if they were asked for.
pub type Found = Vec<(Hit, String)>;

impl Collection {
    /// Puts a file's points on the device.
    ///
    /// # Errors
    /// [`Error::Internal`] naming the file, or a device error.
    pub async fn load(
        name: String,
        store: Store,
        engine: &Arc<Engine>,
        alarm: Alarm,
        overall: &Arc<Usage>,
    ) -> Result<Self, Error> {
        let properties = store.properties;
        let growth = Growth::try_new(&engine.ledger, &name, &properties)?;
        let shared = Arc::new(Shared {
            name,
            store,
            engine: Arc::clone(engine),
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            writing: tokio::sync::Mutex::new(()),
            stale: AtomicBool::new(true),
            shown: Mutex::new(None),
            fields: Mutex::new(Vec::new()),
            life: AtomicU8::new(OPEN),
            damage: OnceLock::new(),
            alarm,
            points: AtomicUsize::new(0),
            usage: Usage::try_new(Some(Arc::clone(overall)))?,
            growth,
        });
        shared.refresh().await?;
        Ok(Self { properties, shared })
    }

    /// Points in it.
    pub fn points(&self) -> u64 {
        self.shared.points.load(Ordering::Acquire) as u64
    }

    /// Whether it is served.
    ///
    /// # Errors
    /// [`Error::CollectionDamaged`] once its file was seen to be damaged.
    pub fn check(&self) -> Result<(), Error> {
        self.shared.damage.get().map_or(Ok(()), |damage| Err(damage.clone()))
    }

    /// The nearest points of each query.
    ///
    /// # Errors
    /// [`Error::InvalidField`] for a filter's field that no payload has, [`Error::CollectionNotFound`] once it is dropped,
    /// [`Error::Internal`] naming the file, or a device error.
    pub async fn search(&self, ask: Ask, with_payload: bool) -> Result<Vec<Found>, Error> {
        let started = Instant::now();
        let queries = ask.queries.count(self.properties.dimension);
        let found = self.find(ask, with_payload).await?;
        self.shared.usage.searched(queries, started.elapsed());
        Ok(found)
    }

    async fn find(&self, ask: Ask, with_payload: bool) -> Result<Vec<Found>, Error> {
        let shared = Arc::clone(&self.shared);
        let filter = ask.filter.clone();
        let hits = self.ask(filter, move |view| view.search(&ask)).await?;
        if !with_payload {
            return Ok(hits
                .into_iter()
                .map(|hits| hits.into_iter().map(|hit| (hit, String::new())).collect())
                .collect());
        }
        let reader = Arc::clone(&shared);
        let payloads = blocking(move || {
            let mut left = MAX_ANSWER;
            let found = hits.into_iter().map(|hits| {
                let ids: Vec<&str> = hits.iter().map(|hit| &*hit.id).collect();
                let payloads = reader.store.payloads(&ids)?;
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
        });
        shared.noticed(payloads.await)
    }

    /// How many points match.
    ///
    /// # Errors
    /// As [`Self::search`].
    pub async fn count(&self, filter: Filter) -> Result<u64, Error> {
        let wanted = filter.clone();
        let count = self.ask(Some(filter), move |view| view.count(&wanted)).await?;
        Ok(count as u64)
    }

    /// What some ids have, as it was written.
    ///
    /// # Errors
    /// [`Error::InvalidField`] if that is too much for an answer, [`Error::CollectionNotFound`] once it is dropped,
    /// [`Error::Internal`] naming the file.
    pub async fn fetch(&self, ids: Vec<String>, wanted: Wanted) -> Result<Fetched, Error> {
        self.shared.check_open()?;
        let reader = Arc::clone(&self.shared);
        let fetched = blocking(move || reader.store.fetch(&ids, wanted, MAX_ANSWER)).await;
        self.shared.noticed(fetched)?.ok_or_else(|| {
            Error::invalid(
                "ids",
                "have more than 24 MiB of vectors, payloads and sparse vectors; ask for fewer",
            )
        })
    }

    /// Bytes of its file.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.store.disk_bytes()
    }

    /// What was done to it since the start, and what memory it takes.
    pub fn usage(&self) -> &Usage {
        &self.shared.usage
    }

    /// Ends it: waits for the running write, removes the file, refuses all later calls, frees the view; how many points it had.
    ///
    /// # Errors
    /// [`Error::StorageReadOnly`] or [`Error::Internal`] if the file cannot be removed: nothing has changed then. A device
    /// error.
    pub async fn drop(&self) -> Result<u64, Error> {
        let no_write_runs = self.shared.writing.lock().await;
        let path = self.shared.store.path().to_owned();
        blocking(move || store::discard(&path)).await?;
        let points = self.points();
        self.shared.end(DROPPED);
        drop(no_write_runs);
        self.close().await?;
        Ok(points)
    }

    /// Ends it: waits for the running write, refuses all later calls, frees the view. Its file stays.
    ///
    /// # Errors
    /// A device error.
    pub async fn close(&self) -> Result<(), Error> {
        let _no_write_runs = self.shared.writing.lock().await;
        self.shared.end(DROPPED);
        let key = self.shared.key;
        self.shared
            .engine
            .run_owed(move |views| {
                views.remove(key);
                Ok(())
            })
            .await?;
        self.shared.growth.settle(0);
        Ok(())
    }

    /// Lets the running write end and no other one begin, as long as what is returned is kept.
    pub async fn hold_writes(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.shared.writing.lock().await
    }

    /// Refuses all later calls: another collection has its name now.
    pub fn replaced(&self) {
        self.shared.end(REPLACED);
    }

    /// What `work` finds in the view, once that has the columns that `filter` needs.
    async fn ask<T: Send + 'static>(
        &self,
        filter: Option<Filter>,
        work: impl Fn(&mut View) -> Result<Option<T>, Error> + Send + Sync + 'static,
    ) -> Result<T, Error> {
        let shared = Arc::clone(&self.shared);
        let work = Arc::new(work);
        if shared.stale.load(Ordering::Acquire) {
            let _one_at_a_time = shared.writing.lock().await;
            shared.check_open()?;
            shared.refresh().await?;
        }
        if let Some(found) = shared.on_view(&work).await? {
            return Ok(found);
        }
        // In a task of its own: what is read must reach the view before the next write does, whether or not the caller waits.
        let task = tokio::spawn(async move {
            let _one_at_a_time = shared.writing.lock().await;
            shared.check_open()?;
            shared.refresh().await?;
            if let Some(found) = shared.on_view(&work).await? {
                return Ok(found);
            }
            if let Some(filter) = filter {
                shared.read_columns(&filter).await?;
            }
            let found = shared.on_view(&work).await?;
            found.ok_or_else(|| Error::internal("the view lacks columns that it was just given"))
        });
        task.await.map_err(Error::internal)?
    }
}

impl Shared {
    /// After a failed write it is not certain what the file holds, so that is looked at before the view's next use.
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

    /// What was read or written; damage ends the collection at once.
    fn noticed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error @ Error::CollectionDamaged { .. }) = &result
            && self.damage.set(error.clone()).is_ok()
        {
            tracing::error!(%error, file = %self.store.path().display(), "collection not served any more");
            self.alarm.send_modify(|count| *count += 1);
        }
        result
    }

    fn check_open(&self) -> Result<(), Error> {
        if let Some(damage) = self.damage.get() {
            return Err(damage.clone());
        }
        let name = || self.name.clone();
        match self.life.load(Ordering::Acquire) {
            OPEN => Ok(()),
            REPLACED => Err(Error::CollectionReplaced { name: name() }),
            _ => Err(Error::CollectionNotFound { name: name() }),
        }
    }

    /// Refuses all later calls; the first reason stays.
    fn end(&self, how: u8) {
        let _ = self
            .life
            .compare_exchange(OPEN, how, Ordering::AcqRel, Ordering::Acquire);
    }

    fn fields(&self) -> Vec<Field> {
        self.fields.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn shown(&self) -> Option<u64> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_shown(&self, generation: Option<u64>) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = generation;
    }

    fn set_fields(&self, fields: Vec<Field>) {
        *self.fields.lock().unwrap_or_else(PoisonError::into_inner) = fields;
    }

    async fn on_view<T: Send + 'static>(
        &self,
        work: &Arc<impl Fn(&mut View) -> Result<Option<T>, Error> + Send + Sync + 'static>,
    ) -> Result<Option<T>, Error> {
        self.check_open()?;
        let (key, work) = (self.key, Arc::clone(work));
        let found = self.engine.run(move |views| work(views.get(key)?)).await;
        self.unless_closed(found)
    }

    /// Gives the view the columns of a filter, out of the file. Called with `writing` held.
    async fn read_columns(self: &Arc<Self>, filter: &Filter) -> Result<(), Error> {
        let fields: BTreeSet<Field> = filter.fields().into_iter().map(|(field, _)| field.clone()).collect();
        let fields: Vec<Field> = fields.into_iter().collect();
        let reader = Arc::clone(self);
        let (ids, read) = self.noticed(blocking(move || reader.columns_of_file(&fields)).await)?;
        let key = self.key;
        let added = self.engine.run_owed(move |views| {
            let view = views.get(key)?;
            view.add_columns(&ids, read);
            Ok(view.fields())
        });
        self.set_fields(added.await?);
        Ok(())
    }

    fn columns_of_file(&self, fields: &[Field]) -> Result<(Vec<Arc<str>>, Read), Error> {
        let mut read = columns::read(fields, std::iter::empty());
        // Every point has a cell in every column, also one without a payload.
        let mut bytes = fields.len() * self.points.load(Ordering::Acquire) * size_of::<Cell>();
        let mut ids = Vec::new();
        self.store.each_payload(|id, payload| {
            ids.push(Arc::from(id));
            bytes += columns::add(&mut read, payload);
            if bytes > columns::MAX_BYTES {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        if bytes > columns::MAX_BYTES {
            let problem = "is over fields that hold more than 1 GiB; filter on shorter values";
            return Err(Error::invalid("filter", problem));
        }
        Ok((ids, read))
    }

    /// Rebuilds the view from the file if it may lack something. Called with `writing` held, or before anybody can call.
    async fn refresh(self: &Arc<Self>) -> Result<(), Error> {
        if !self.stale.load(Ordering::Acquire) {
            return Ok(());
        }
        let reader = Arc::clone(self);
        let shown = self.shown();
        if shown.is_some() && shown == Some(self.noticed(blocking(move || reader.store.generation()).await)?) {
            self.stale.store(false, Ordering::Release);
            return Ok(());
        }
        self.set_shown(None);
        let reader = Arc::clone(self);
        let (points, generation) = self.noticed(blocking(move || reader.store.read_all()).await)?;
        let (key, properties) = (self.key, self.store.properties);
        let ids: Vec<Arc<str>> = points.ids.iter().map(|id| Arc::from(id.as_str())).collect();
        let count = ids.len();
        self.growth.exactly(count)?;
        let built = self.engine.run_owed(move |views| {
            views.build(key, properties, &ids, &points.vectors, &points.sparse)?;
            Ok(views.get(key)?.memory())
        });
        let memory = built.await?;
        self.growth.settle(memory.device);
        self.usage.set_memory(memory);
        self.set_shown(Some(generation));
        self.set_fields(Vec::new());
        self.points.store(count, Ordering::Release);
        self.stale.store(false, Ordering::Release);
        Ok(())
    }
}
