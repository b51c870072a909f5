//! Writes to a collection: the device and the file, both or neither.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, mpsc};

use super::{Collection, blocking};
use crate::error::Error;
use crate::index::columns::{self, Read};
use crate::index::filter::Field;
use crate::index::store::{Points, Store, Written};
use crate::index::view::{Staged, View};

/// Waits until the device is ready for a commit, or says why not.
type Ready = Box<dyn FnOnce() -> Result<(), Error> + Send>;

impl Collection {
    /// Writes points; how many ids were new. All or nothing: the rows are put on the device while the file is written, and
    /// both must have room for them before the commit.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`] once it is dropped, what [`Store::write`] says, or a device error.
    pub async fn upsert(&self, points: Points) -> Result<u64, Error> {
        let count = points.ids.len();
        let points = Arc::new(points);
        let shown = Arc::clone(&points);
        let ids: Arc<OnceLock<Vec<Arc<str>>>> = Arc::default();
        let known = Arc::clone(&ids);
        let stage = {
            let points = Arc::clone(&points);
            move |view: &mut View| {
                let ids = ids.get_or_init(|| points.ids.iter().map(|id| Arc::from(id.as_str())).collect());
                view.stage(ids, &points.vectors)
            }
        };
        let write = move |store: &Store, fields: &[Field], ready: Ready| {
            let payloads = (0..points.ids.len()).map(|row| points.payloads.get(row).map_or("", String::as_str));
            let read = if fields.is_empty() {
                Read::new()
            } else {
                columns::read(fields, payloads)
            };
            Ok((store.write(&points, ready)?, read))
        };
        let apply = move |view: &mut View, staged: Staged, read: Read| {
            let ids = known.get().map(Vec::as_slice).unwrap_or_default();
            view.apply(ids, staged, read)?;
            view.write_sparse(ids, &shown.sparse)
        };
        let inserted = self.change(count, stage, write, apply).await?;
        self.shared.usage.upserted(count);
        Ok(inserted)
    }

    /// Removes points; how many were there.
    ///
    /// # Errors
    /// As [`Self::upsert`].
    pub async fn remove(&self, ids: Vec<String>) -> Result<u64, Error> {
        let ids = Arc::new(ids);
        let gone = Arc::clone(&ids);
        let write = move |store: &Store, _: &[Field], _| Ok((store.remove(&ids)?, ()));
        let removed = self
            .change(0, |_| Ok(()), write, move |view, (), ()| view.remove(&gone))
            .await?;
        self.shared.usage.deleted(removed);
        Ok(removed)
    }

    /// `rows` may be new. The device prepares while the file is written; then the commit; then the view shows it. In a task of its own: a caller
    /// that leaves in between must not part file and view.
    async fn change<S: Send + 'static, W: Send + 'static>(
        &self,
        rows: usize,
        stage: impl FnOnce(&mut View) -> Result<S, Error> + Send + 'static,
        write: impl FnOnce(&Store, &[Field], Ready) -> Result<(Written, W), Error> + Send + 'static,
        apply: impl FnOnce(&mut View, S, W) -> Result<(), Error> + Send + 'static,
    ) -> Result<u64, Error> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            let _one_at_a_time = shared.writing.lock().await;
            shared.check_open()?;
            // Nothing may be written that could then not be shown.
            shared.engine.check_tasks()?;
            shared.refresh().await?;
            shared.growth.up_to(shared.points.load(Ordering::Acquire) + rows)?;
            let key = shared.key;
            let (tell, told) = mpsc::channel();
            let staging = async {
                let staged = shared.engine.run_owed(move |views| stage(views.get(key)?)).await;
                // The writer may have failed, and not be there to hear it.
                let _ = tell.send(staged.as_ref().map(drop).map_err(Clone::clone));
                staged
            };
            let ready: Ready = Box::new(move || told.recv().map_err(Error::internal)?);
            let (writer, fields) = (Arc::clone(&shared), shared.fields());
            let writing = blocking(move || write(&writer.store, &fields, ready));
            let (staged, written) = tokio::join!(staging, writing);
            if staged.is_err() || written.is_err() {
                shared.growth.settle(shared.usage.memory().device);
            }
            let staged = staged?;
            let (written, found) = shared.stale_on_error(shared.noticed(written))?;
            let applied = shared.engine.run_owed(move |views| {
                let view = views.get(key)?;
                apply(view, staged, found)?;
                Ok((view.len(), view.memory(), view.fields()))
            });
            let (points, memory, fields) = shared.stale_on_error(applied.await)?;
            shared.growth.settle(memory.device);
            shared.set_fields(fields);
            shared.usage.set_memory(memory);
            shared.points.store(points, Ordering::Release);
            shared.set_shown(Some(written.generation));
            Ok(written.count)
        });
        task.await.map_err(Error::internal)?
    }
}
