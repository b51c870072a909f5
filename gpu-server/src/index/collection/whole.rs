//! What reads a collection whole, beside the calls that search and write it: copies, exports, the check of recall.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Ask, Collection, View, blocking};
use crate::error::Error;
use crate::index::recall::{self, Check, Limit, Recall};
use crate::index::store::scan::{Part, Scan};

/// Queries that are searched at once by a check: batches of other calls go between them.
const CHECKED_AT_ONCE: usize = 16;

impl Collection {
    /// Writes all points as they are now into a new file; how many there were. `each` hears of the bytes that were copied so
    /// far, and ends it by returning an error.
    ///
    /// # Errors
    /// What [`super::Store::copy_to`] says.
    pub fn copy_to(&self, path: &Path, each: impl FnMut(u64) -> Result<(), Error>) -> Result<u64, Error> {
        self.shared.check_open()?;
        self.shared.noticed(self.shared.store.copy_to(path, each))
    }

    /// Gives `take` all points as they are when `begun` is called, part by part.
    ///
    /// # Errors
    /// What [`super::Store::scan`] says.
    pub fn export(
        &self,
        how: Scan,
        begun: impl FnOnce() -> Result<(), Error>,
        take: impl FnMut(Part) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.shared.check_open()?;
        self.shared.noticed(self.shared.store.scan(how, begun, take))
    }

    /// Compares what search returns with the exact nearest points in float64.
    ///
    /// # Errors
    /// [`Error::DeadlineExpired`], [`Error::CollectionNotFound`] once it is dropped, [`Error::Internal`] naming the file, or a
    /// device error.
    pub async fn check_recall(&self, check: Check, deadline: Option<Instant>) -> Result<Recall, Error> {
        self.shared.check_open()?;
        let (limit, _waiting) = Limit::new(deadline);
        let (reader, own) = (Arc::clone(&self.shared), limit.clone());
        let drawn = blocking(move || recall::draw(&reader.store, check, &own)).await;
        let sample = Arc::new(self.shared.noticed(drawn)?);
        // Held until the searches have answered: the file's state that is compared is the one that the view shows.
        let no_write_runs = self.shared.writing.lock().await;
        self.shared.check_open()?;
        self.shared.refresh().await?;
        let (fixed, is_fixed) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        let (reader, own, drawn) = (Arc::clone(&self.shared), limit.clone(), Arc::clone(&sample));
        let comparing = blocking(move || {
            recall::compare(&reader.store, check, &drawn, &own, || {
                let _ = fixed.send(());
                // Nobody answers if a search failed, and then nobody waits for this one either.
                answered.blocking_recv().map_err(Error::internal)
            })
        });
        let searching = async {
            if is_fixed.await.is_ok() {
                let _ = answer.send(self.search_sample(&sample, check, &limit).await?);
            }
            drop(no_write_runs);
            Ok::<(), Error>(())
        };
        let (searched, compared) = tokio::join!(searching, comparing);
        searched?;
        self.shared.noticed(compared)
    }

    /// What search returns for each of the sample, as a caller would get it.
    async fn search_sample(
        &self,
        sample: &recall::Sample,
        check: Check,
        limit: &Limit,
    ) -> Result<Vec<recall::Returned>, Error> {
        let mut lists = Vec::with_capacity(sample.ids.len());
        for queries in sample.vectors.parts(CHECKED_AT_ONCE, self.properties.dimension) {
            limit.check()?;
            let ask = Ask {
                queries,
                k: check.k,
                filter: None,
                threshold: None,
            };
            let found = self
                .shared
                .on_view(&Arc::new(move |view: &mut View| view.search(&ask)))
                .await?;
            let found = found.ok_or_else(|| Error::internal("a search without a filter waits for columns"))?;
            lists.extend(
                found
                    .into_iter()
                    .map(|hits| hits.into_iter().map(|hit| hit.id).collect()),
            );
        }
        Ok(lists)
    }
}
