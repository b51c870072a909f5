//! `VectorService`.

mod answers;
mod export;
mod filter;
mod limits;
mod sparse;
mod statistics;

use std::sync::Arc;
use std::time::{Duration, Instant};

use medkg_proto::v1;
use medkg_proto::v1::vector_service_server::VectorService;
use tokio::sync::{OnceCell, Semaphore};
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use self::answers::{describe, hits};
pub(super) use self::limits::name;
use self::limits::{fits_f16, ids, payloads, score_threshold};
use super::{call, device_id, validate};
use crate::engine::Engine;
use crate::error::Error;
use crate::index::Collections;
use crate::index::ask::Ask;
use crate::index::store::{Metric, Points, Properties, Storage, Wanted};

const MAX_DIMENSION: u32 = 8_192;
const MAX_POINTS: usize = 65_536;
const MAX_QUERIES: usize = 1_024;
const MAX_K: u32 = 10_000;
/// Points in one answer, over all queries.
const MAX_FOUND: usize = 200_000;

/// Collections and search.
#[derive(Debug, Clone)]
pub struct Vectors {
    engine: Arc<Engine>,
    /// Set once the collections are on the device.
    collections: Arc<OnceCell<Result<Collections, Error>>>,
    /// Recall checks that run.
    checks: Arc<Semaphore>,
    exports: export::Turns,
}

impl Vectors {
    /// Serves `collections` once they are there.
    pub fn new(engine: Arc<Engine>, collections: Arc<OnceCell<Result<Collections, Error>>>) -> Self {
        Self {
            engine,
            collections,
            checks: Arc::new(Semaphore::new(1)),
            exports: export::Turns::default(),
        }
    }

    pub(super) fn collections(&self) -> Result<&Collections, Error> {
        self.engine.check()?;
        match self.collections.get() {
            Some(opened) => opened.as_ref().map_err(Clone::clone),
            None => Err(Error::ModelNotReady {
                name: "vector collections".to_owned(),
                problem: "are still being opened".to_owned(),
                retry_after: Duration::from_secs(1),
            }),
        }
    }

    /// Runs `work` to its end even when the caller leaves: half a creation or a removal must not stay.
    async fn whole<T, F>(&self, work: impl FnOnce(Self) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let task = tokio::spawn(work(self.clone()).in_current_span());
        task.await.map_err(Error::internal)?
    }

    async fn create(
        &self,
        tenant: &str,
        request: v1::CreateCollectionRequest,
    ) -> Result<v1::CreateCollectionResponse, Error> {
        let wanted = request
            .collection
            .ok_or_else(|| Error::invalid("collection", "is missing"))?;
        name("collection.name", &wanted.name)?;
        if !(1..=MAX_DIMENSION).contains(&wanted.dimension) {
            let problem = format!("is {}; it must be 1 to {MAX_DIMENSION}", wanted.dimension);
            return Err(Error::invalid("collection.dimension", problem));
        }
        let metric = match v1::Metric::try_from(wanted.metric) {
            Ok(v1::Metric::Unspecified | v1::Metric::Cosine) => Metric::Cosine,
            Ok(v1::Metric::Dot) => Metric::Dot,
            Ok(v1::Metric::L2) => Metric::L2,
            Err(_) => {
                let problem = format!("{} is not a Metric that this server knows", wanted.metric);
                return Err(Error::invalid("collection.metric", problem));
            }
        };
        let storage = match v1::DataType::try_from(wanted.storage) {
            Ok(v1::DataType::Unspecified | v1::DataType::F32) => Storage::F32,
            Ok(v1::DataType::F16) => Storage::F16,
            Ok(v1::DataType::Bf16) => Storage::Bf16,
            Ok(v1::DataType::Int8 | v1::DataType::Binary) | Err(_) => {
                let problem = "must be DATA_TYPE_F32, DATA_TYPE_F16 or DATA_TYPE_BF16";
                return Err(Error::invalid("collection.storage", problem));
            }
        };
        let properties = Properties {
            dimension: wanted.dimension as usize,
            metric,
            storage,
            sparse_dimension: sparse::dimension(wanted.sparse_dimension)?,
        };
        let created = self
            .collections()?
            .create(tenant, &wanted.name, properties, request.exist_ok)
            .await?;
        Ok(v1::CreateCollectionResponse {
            collection: Some(describe(&wanted.name, properties)),
            created,
        })
    }

    async fn upsert(
        &self,
        tenant: &str,
        request: v1::UpsertVectorsRequest,
    ) -> Result<v1::UpsertVectorsResponse, Error> {
        let handle = self.collections()?.get(tenant, &request.collection)?;
        let collection = handle.open()?;
        ids(&request.ids)?;
        let Properties { dimension, metric, .. } = collection.properties;
        let vectors = validate::rows("vectors", request.vectors, dimension, metric == Metric::Cosine)?;
        let rows = vectors.len() / (dimension * size_of::<f32>());
        if rows != request.ids.len() {
            let ids = request.ids.len();
            return Err(Error::invalid(
                "vectors.shape",
                format!("has {rows} rows for {ids} ids"),
            ));
        }
        if metric != Metric::Cosine && collection.properties.storage == Storage::F16 {
            fits_f16(&vectors, dimension)?;
        }
        payloads(&request.payloads, request.ids.len())?;
        let sparse = request.sparse;
        let sparse = sparse
            .map(|given| sparse::rows("sparse", given, collection.properties))
            .transpose()?;
        if let Some(rows) = sparse.as_ref().filter(|rows| rows.len() != request.ids.len()) {
            let problem = format!(
                "has {} rows for {} ids; send one for each",
                rows.len(),
                request.ids.len()
            );
            return Err(Error::invalid("sparse.offsets", problem));
        }
        let total = request.ids.len() as u64;
        let inserted = collection
            .upsert(Points {
                ids: request.ids,
                vectors,
                payloads: request.payloads,
                sparse: sparse.unwrap_or_default(),
            })
            .await?;
        Ok(v1::UpsertVectorsResponse {
            inserted,
            replaced: total - inserted,
        })
    }

    async fn search(
        &self,
        tenant: &str,
        request: v1::SearchVectorsRequest,
    ) -> Result<v1::SearchVectorsResponse, Error> {
        let handle = self.collections()?.get(tenant, &request.collection)?;
        let collection = handle.open()?;
        if !(1..=MAX_K).contains(&request.k) {
            return Err(Error::invalid(
                "k",
                format!("is {}; it must be 1 to {MAX_K}", request.k),
            ));
        }
        let Properties { dimension, metric, .. } = collection.properties;
        let dense = request.queries.map(|queries| {
            let rows = validate::rows("queries", Some(queries), dimension, metric == Metric::Cosine)?;
            Ok::<Vec<f32>, Error>(validate::floats(&rows).collect())
        });
        let by_distance = metric == Metric::L2 && request.sparse_queries.is_none();
        let queries = sparse::queries(
            dense.transpose()?,
            request.sparse_queries,
            request.fusion,
            request.k,
            collection.properties,
        )?;
        let count = queries.count(dimension);
        validate::count("queries", count, MAX_QUERIES)?;
        if count * request.k as usize > MAX_FOUND {
            let problem = format!("times {count} queries is more than {MAX_FOUND} points; ask for fewer at once");
            return Err(Error::invalid("k", problem));
        }
        let threshold = request.score_threshold;
        score_threshold(threshold, by_distance)?;
        let ask = Ask {
            queries,
            k: request.k as usize,
            filter: request.filter.map(filter::read).transpose()?,
            threshold,
        };
        let started = Instant::now();
        let found = collection.search(ask, request.with_payload).await?;
        let usage = v1::Usage {
            batches: 1,
            compute_time: prost_types::Duration::try_from(started.elapsed()).ok(),
            device: device_id(&self.engine).to_owned(),
            ..v1::Usage::default()
        };
        Ok(v1::SearchVectorsResponse {
            hits: found.into_iter().map(hits).collect(),
            usage: Some(usage),
        })
    }

    async fn fetch(&self, tenant: &str, request: v1::FetchVectorsRequest) -> Result<v1::FetchVectorsResponse, Error> {
        let handle = self.collections()?.get(tenant, &request.collection)?;
        let collection = handle.open()?;
        validate::count("ids", request.ids.len(), MAX_POINTS)?;
        if request.with_sparse && collection.properties.sparse_dimension == 0 {
            let problem = "is true, but the collection keeps no sparse vectors";
            return Err(Error::invalid("with_sparse", problem));
        }
        let found = collection
            .fetch(
                request.ids,
                Wanted {
                    vectors: request.with_vectors,
                    payloads: request.with_payload,
                    sparse: request.with_sparse,
                },
            )
            .await?;
        let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let vectors = v1::Tensor {
            shape: vec![narrow(found.ids.len()), narrow(collection.properties.dimension)],
            dtype: v1::DataType::F32.into(),
            data: found.vectors.into(),
            scales: Vec::new(),
        };
        Ok(v1::FetchVectorsResponse {
            ids: found.ids,
            vectors: request.with_vectors.then_some(vectors),
            payloads: found.payloads,
            missing: found.missing,
            sparse: request.with_sparse.then(|| sparse::wire(found.sparse)),
        })
    }

    async fn count(&self, tenant: &str, request: v1::CountVectorsRequest) -> Result<v1::CountVectorsResponse, Error> {
        let handle = self.collections()?.get(tenant, &request.collection)?;
        let collection = handle.open()?;
        let count = match request.filter {
            None => collection.points(),
            Some(wanted) => collection.count(filter::read(wanted)?).await?,
        };
        Ok(v1::CountVectorsResponse { count })
    }

    async fn delete(
        &self,
        tenant: &str,
        request: v1::DeleteVectorsRequest,
    ) -> Result<v1::DeleteVectorsResponse, Error> {
        let handle = self.collections()?.get(tenant, &request.collection)?;
        validate::count("ids", request.ids.len(), MAX_POINTS)?;
        Ok(v1::DeleteVectorsResponse {
            deleted: handle.open()?.remove(request.ids).await?,
        })
    }
}

#[tonic::async_trait]
impl VectorService for Vectors {
    async fn create_collection(
        &self,
        request: Request<v1::CreateCollectionRequest>,
    ) -> Result<Response<v1::CreateCollectionResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| self.whole(|own| async move { own.create(call.tenant.as_str(), request).await });
        call::unary(&metadata, "VectorService/CreateCollection", serve).await
    }

    async fn list_collections(
        &self,
        request: Request<v1::ListCollectionsRequest>,
    ) -> Result<Response<v1::ListCollectionsResponse>, Status> {
        call::unary(request.metadata(), "VectorService/ListCollections", |call| async move {
            let found = self.collections()?.list(call.tenant.as_str());
            let collections = found
                .into_iter()
                .map(|(name, properties)| describe(&name, properties))
                .collect();
            Ok(v1::ListCollectionsResponse { collections })
        })
        .await
    }

    async fn drop_collection(
        &self,
        request: Request<v1::DropCollectionRequest>,
    ) -> Result<Response<v1::DropCollectionResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| {
            self.whole(|own| async move {
                let removed = own
                    .collections()?
                    .drop(call.tenant.as_str(), &request.collection)
                    .await?;
                Ok(v1::DropCollectionResponse { removed })
            })
        };
        call::unary(&metadata, "VectorService/DropCollection", serve).await
    }

    async fn upsert_vectors(
        &self,
        request: Request<v1::UpsertVectorsRequest>,
    ) -> Result<Response<v1::UpsertVectorsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.upsert(call.tenant.as_str(), request).await };
        call::unary(&metadata, "VectorService/UpsertVectors", serve).await
    }

    async fn delete_vectors(
        &self,
        request: Request<v1::DeleteVectorsRequest>,
    ) -> Result<Response<v1::DeleteVectorsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.delete(call.tenant.as_str(), request).await };
        call::unary(&metadata, "VectorService/DeleteVectors", serve).await
    }

    async fn search_vectors(
        &self,
        request: Request<v1::SearchVectorsRequest>,
    ) -> Result<Response<v1::SearchVectorsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.search(call.tenant.as_str(), request).await };
        call::unary(&metadata, "VectorService/SearchVectors", serve).await
    }

    async fn fetch_vectors(
        &self,
        request: Request<v1::FetchVectorsRequest>,
    ) -> Result<Response<v1::FetchVectorsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.fetch(call.tenant.as_str(), request).await };
        call::unary(&metadata, "VectorService/FetchVectors", serve).await
    }

    type ExportVectorsStream = export::Exported;

    async fn export_vectors(
        &self,
        request: Request<v1::ExportVectorsRequest>,
    ) -> Result<Response<Self::ExportVectorsStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.export(&metadata, &request)
    }

    async fn count_vectors(
        &self,
        request: Request<v1::CountVectorsRequest>,
    ) -> Result<Response<v1::CountVectorsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.count(call.tenant.as_str(), request).await };
        call::unary(&metadata, "VectorService/CountVectors", serve).await
    }

    async fn get_collection_statistics(
        &self,
        request: Request<v1::GetCollectionStatisticsRequest>,
    ) -> Result<Response<v1::GetCollectionStatisticsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.statistics(call.tenant.as_str(), &request.collection) };
        call::unary(&metadata, "VectorService/GetCollectionStatistics", serve).await
    }

    async fn get_tenant_statistics(
        &self,
        request: Request<v1::GetTenantStatisticsRequest>,
    ) -> Result<Response<v1::GetTenantStatisticsResponse>, Status> {
        let serve = |call: call::Call| async move { self.tenant_statistics(call.tenant.as_str()) };
        call::unary(request.metadata(), "VectorService/GetTenantStatistics", serve).await
    }

    async fn check_recall(
        &self,
        request: Request<v1::CheckRecallRequest>,
    ) -> Result<Response<v1::CheckRecallResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move {
            let tenant = call.tenant.as_str();
            self.check_recall(tenant, call.deadline, request).await
        };
        call::unary(&metadata, "VectorService/CheckRecall", serve).await
    }
}
