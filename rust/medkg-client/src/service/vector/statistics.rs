//! Size, memory and use of collections and tenants, and whether search is right.

use std::time::{Duration, SystemTime};

use medkg_proto::v1;

use super::{CollectionInfo, Stub, VectorClient, broken, collection};
use crate::call::{CallOptions, Method};
use crate::error::ClientError;
use crate::service::duration;

const COLLECTION: Method = Method {
    name: "GetCollectionStatistics",
    idempotent: true,
};
const TENANT: Method = Method {
    name: "GetTenantStatistics",
    idempotent: true,
};
const RECALL: Method = Method {
    name: "CheckRecall",
    idempotent: true,
};

/// Size, memory and use of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionStatistics {
    /// What never changes about it.
    pub collection: CollectionInfo,
    /// Points in it.
    pub points: u64,
    /// Bytes of device memory.
    pub device_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes of host memory that the index of its sparse vectors takes.
    pub sparse_index_bytes: u64,
    /// Where it is searched.
    pub device: String,
    /// What was done to it since the server started.
    pub usage: CollectionUsage,
}

/// What was done to collections since the server started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionUsage {
    /// Calls that searched.
    pub searches: u64,
    /// Queries in them.
    pub queries: u64,
    /// Calls that wrote points.
    pub upserts: u64,
    /// Points in them.
    pub upserted_points: u64,
    /// Calls that removed points.
    pub deletes: u64,
    /// Points that they removed.
    pub deleted_points: u64,
    /// The end of the last write; None if there was none.
    pub last_write: Option<SystemTime>,
    /// How long searches took on the server; None if there was none.
    pub search_latency: Option<Latency>,
}

/// How long calls took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latency {
    /// Half of them took at most this long.
    pub p50: Duration,
    /// Nine in ten.
    pub p90: Duration,
    /// 99 in 100.
    pub p99: Duration,
    /// The longest one.
    pub max: Duration,
}

/// Sums over the collections of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenantStatistics {
    /// Collections that are served.
    pub collections: u32,
    /// Names of those that are damaged.
    pub damaged: Vec<String>,
    /// Points in them.
    pub points: u64,
    /// Bytes of device memory.
    pub device_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes of host memory that the indexes of their sparse vectors take.
    pub sparse_index_bytes: u64,
    /// What was done to them since the server started.
    pub usage: CollectionUsage,
}

/// What to check; 0 means the server's choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecallCheck {
    /// Stored points that are taken as queries.
    pub sample: u32,
    /// Nearest points that are compared for each.
    pub k: u32,
    /// Chooses the sample.
    pub seed: u64,
    /// Whether search by sparse vectors is checked, instead of that by dense ones.
    pub sparse: bool,
}

/// How search compares with float64.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Recall {
    /// Points that should have been found.
    pub expected: u64,
    /// Those of them that were.
    pub found: u64,
    /// found / expected.
    pub recall: f64,
    /// Queries that were compared.
    pub queries: u32,
    /// Queries for which a point was missing, or the order was wrong.
    pub mismatches: u32,
    /// The ids of the first of them.
    pub mismatched_ids: Vec<String>,
    /// Points that each query was compared with.
    pub points: u64,
}

impl VectorClient {
    /// Size, memory and use of a collection.
    pub async fn statistics(&self, name: String, options: &CallOptions) -> Result<CollectionStatistics, ClientError> {
        let call = self.caller.begin(COLLECTION, options)?;
        let send = |channel, request| async move {
            Stub::new(channel)
                .get_collection_statistics(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let message = || v1::GetCollectionStatisticsRequest {
            collection: name.clone(),
        };
        let found = self.caller.request(&call, message, send).await?.message;
        let Some(collection) = collection(found.collection, false) else {
            return Err(call.sign(broken(COLLECTION, "the answer has no collection".to_owned())));
        };
        Ok(CollectionStatistics {
            collection,
            points: found.points,
            device_bytes: found.device_bytes,
            disk_bytes: found.disk_bytes,
            sparse_index_bytes: found.sparse_index_bytes,
            device: found.device,
            usage: usage(found.usage),
        })
    }

    /// Sums over the tenant's collections.
    pub async fn tenant_statistics(&self, options: &CallOptions) -> Result<TenantStatistics, ClientError> {
        let call = self.caller.begin(TENANT, options)?;
        let send = |channel, request| async move {
            let mut stub = Stub::new(channel).max_decoding_message_size(medkg_proto::MAX_MESSAGE_BYTES);
            stub.get_tenant_statistics(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let message = || v1::GetTenantStatisticsRequest {};
        let found = self.caller.request(&call, message, send).await?.message;
        Ok(TenantStatistics {
            collections: found.collections,
            damaged: found.damaged,
            points: found.points,
            device_bytes: found.device_bytes,
            disk_bytes: found.disk_bytes,
            sparse_index_bytes: found.sparse_index_bytes,
            usage: usage(found.usage),
        })
    }

    /// Compares what search answers with the exact nearest points in float64. It takes as long as the server needs to read
    /// the whole collection: give it time in the options.
    pub async fn check_recall(
        &self,
        name: String,
        check: RecallCheck,
        options: &CallOptions,
    ) -> Result<Recall, ClientError> {
        let call = self.caller.begin(RECALL, options)?;
        let send = |channel, request| async move {
            Stub::new(channel)
                .check_recall(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let message = || v1::CheckRecallRequest {
            collection: name.clone(),
            sample: check.sample,
            k: check.k,
            seed: check.seed,
            sparse: check.sparse,
        };
        let told = self.caller.request(&call, message, send).await?.message;
        Ok(Recall {
            expected: told.expected,
            found: told.found,
            recall: told.recall,
            queries: told.queries,
            mismatches: told.mismatches,
            mismatched_ids: told.mismatched_ids,
            points: told.points,
        })
    }
}

fn usage(told: Option<v1::CollectionUsage>) -> CollectionUsage {
    let told = told.unwrap_or_default();
    CollectionUsage {
        searches: told.searches,
        queries: told.queries,
        upserts: told.upserts,
        upserted_points: told.upserted_points,
        deletes: told.deletes,
        deleted_points: told.deleted_points,
        last_write: told.last_write.and_then(|at| SystemTime::try_from(at).ok()),
        search_latency: told.search_latency.map(|latency| Latency {
            p50: duration(latency.p50),
            p90: duration(latency.p90),
            p99: duration(latency.p99),
            max: duration(latency.max),
        }),
    }
}
