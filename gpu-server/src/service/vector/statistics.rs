//! Numbers about collections and tenants, and the check of search against float64.

use std::time::Instant;

use medkg_proto::v1;

use super::{Vectors, describe};
use crate::error::Error;
use crate::index::recall::Check;
use crate::index::usage::{Counts, Latencies, Memory};
use crate::service::device_id;

const MAX_SAMPLE: u32 = 1_000;
const DEFAULT_SAMPLE: u32 = 32;
const MAX_CHECKED_K: u32 = 100;
const DEFAULT_CHECKED_K: u32 = 10;

impl Vectors {
    pub(super) fn statistics(
        &self,
        tenant: &str,
        collection: &str,
    ) -> Result<v1::GetCollectionStatisticsResponse, Error> {
        let handle = self.collections()?.get(tenant, collection)?;
        let found = handle.open()?;
        let (counts, mut latencies) = (found.usage().counts(), Latencies::try_new()?);
        let memory = found.usage().memory();
        found.usage().add_latencies(&mut latencies);
        Ok(v1::GetCollectionStatisticsResponse {
            collection: Some(describe(collection, found.properties)),
            points: found.points(),
            device_bytes: memory.device,
            disk_bytes: found.disk_bytes(),
            queries: counts.queries,
            device: device_id(&self.engine).to_owned(),
            usage: Some(usage(counts, &latencies)),
            sparse_index_bytes: memory.sparse_index,
        })
    }

    pub(super) fn tenant_statistics(&self, tenant: &str) -> Result<v1::GetTenantStatisticsResponse, Error> {
        let listed = self.collections()?.all(Some(tenant));
        let mut answer = v1::GetTenantStatisticsResponse {
            damaged: listed.damaged.into_iter().map(|(_, name)| name).collect(),
            ..v1::GetTenantStatisticsResponse::default()
        };
        let (mut counts, mut latencies) = (Counts::default(), Latencies::try_new()?);
        let mut memory = Memory::default();
        for (_, handle) in listed.served {
            let collection = handle.open()?;
            answer.collections += 1;
            answer.points += collection.points();
            memory += collection.usage().memory();
            answer.disk_bytes += collection.disk_bytes();
            counts += collection.usage().counts();
            collection.usage().add_latencies(&mut latencies);
        }
        answer.device_bytes = memory.device;
        answer.sparse_index_bytes = memory.sparse_index;
        answer.usage = Some(usage(counts, &latencies));
        Ok(answer)
    }

    pub(super) async fn check_recall(
        &self,
        tenant: &str,
        deadline: Option<Instant>,
        request: v1::CheckRecallRequest,
    ) -> Result<v1::CheckRecallResponse, Error> {
        let handle = self.collections()?.get(tenant, &request.collection)?;
        let collection = handle.open()?;
        if request.sparse && collection.properties.sparse_dimension == 0 {
            let problem = "is true, but the collection keeps no sparse vectors; make one with a sparse_dimension";
            return Err(Error::invalid("sparse", problem));
        }
        let check = Check {
            sample: bounded("sample", request.sample, DEFAULT_SAMPLE, MAX_SAMPLE)?,
            k: bounded("k", request.k, DEFAULT_CHECKED_K, MAX_CHECKED_K)?,
            sparse: request.sparse,
            seed: request.seed,
        };
        // One at a time: each takes a core for as long as it lasts.
        let _turn = self.checks.acquire().await.map_err(Error::internal)?;
        let told = collection.check_recall(check, deadline).await?;
        let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let recall = if told.expected == 0 {
            1.0
        } else {
            told.found as f64 / told.expected as f64
        };
        Ok(v1::CheckRecallResponse {
            expected: told.expected,
            found: told.found,
            recall,
            queries: narrow(told.queries),
            mismatches: narrow(told.mismatches),
            mismatched_ids: told.mismatched,
            points: told.points,
        })
    }
}

fn bounded(field: &str, asked: u32, default: u32, most: u32) -> Result<usize, Error> {
    match asked {
        0 => Ok(default as usize),
        asked if asked <= most => Ok(asked as usize),
        asked => Err(Error::invalid(field, format!("is {asked}; it must be 0 to {most}"))),
    }
}

fn usage(counts: Counts, latencies: &Latencies) -> v1::CollectionUsage {
    let duration = |duration| prost_types::Duration::try_from(duration).ok();
    v1::CollectionUsage {
        searches: counts.searches,
        queries: counts.queries,
        upserts: counts.upserts,
        upserted_points: counts.upserted_points,
        deletes: counts.deletes,
        deleted_points: counts.deleted_points,
        last_write: counts.last_write.map(prost_types::Timestamp::from),
        search_latency: latencies.quantiles().map(|quantiles| v1::Latency {
            p50: duration(quantiles.p50),
            p90: duration(quantiles.p90),
            p99: duration(quantiles.p99),
            max: duration(quantiles.max),
        }),
    }
}
