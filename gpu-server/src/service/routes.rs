//! The gRPC services of a process's roles and of its operators, with the wire's limit on message sizes.

use std::convert::Infallible;
use std::sync::Arc;

use medkg_proto::MAX_MESSAGE_BYTES;
use medkg_proto::v1::backup_service_server::BackupServiceServer;
use medkg_proto::v1::embedding_service_server::EmbeddingServiceServer;
use medkg_proto::v1::gpu_service_server::GpuServiceServer;
use medkg_proto::v1::model_service_server::ModelServiceServer;
use medkg_proto::v1::reranking_service_server::RerankingServiceServer;
use medkg_proto::v1::vector_service_server::VectorServiceServer;
use tokio::sync::{OnceCell, watch};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::service::Routes;

use super::backup::Backup;
use super::embedding::Embedding;
use super::gpu::Gpu;
use super::model::Models;
use super::reranking::Reranking;
use super::vector::Vectors;
use crate::config::{Role, ServerConfig};
use crate::engine::Engine;
use crate::error::Error;
use crate::index::Collections;

/// `health`, and what the configured roles offer.
pub fn routes<H>(
    config: &ServerConfig,
    engine: &Arc<Engine>,
    collections: &Arc<OnceCell<Result<Collections, Error>>>,
    stopping: &watch::Receiver<bool>,
    health: H,
) -> Routes
where
    H: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>,
    H: NamedService + Clone + Send + Sync + 'static,
{
    let mut routes = Routes::new(health);
    macro_rules! offer {
        ($role:expr, $server:ident, $service:expr) => {
            if config.roles.contains(&$role) {
                routes = routes.add_service(
                    $server::new($service)
                        .max_decoding_message_size(MAX_MESSAGE_BYTES)
                        .max_encoding_message_size(MAX_MESSAGE_BYTES),
                );
            }
        };
    }
    offer!(
        Role::Gpu,
        GpuServiceServer,
        Gpu::new(Arc::clone(engine), config, stopping.clone())
    );
    offer!(
        Role::Embedding,
        EmbeddingServiceServer,
        Embedding::new(Arc::clone(engine), stopping.clone())
    );
    offer!(
        Role::Reranking,
        RerankingServiceServer,
        Reranking::new(Arc::clone(engine))
    );
    offer!(
        Role::Vector,
        VectorServiceServer,
        Vectors::new(Arc::clone(engine), Arc::clone(collections))
    );
    routes
}

/// `health`, and what operators are offered on an address of their own.
pub fn admin_routes<H>(
    config: &ServerConfig,
    engine: &Arc<Engine>,
    collections: &Arc<OnceCell<Result<Collections, Error>>>,
    health: H,
) -> Routes
where
    H: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>,
    H: NamedService + Clone + Send + Sync + 'static,
{
    let models = Models::new(
        Arc::clone(engine),
        config.roles.iter().copied(),
        config.model_root.clone(),
    );
    let routes = Routes::new(health).add_service(
        ModelServiceServer::new(models)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    );
    if !config.roles.contains(&Role::Vector) {
        return routes;
    }
    let vectors = Vectors::new(Arc::clone(engine), Arc::clone(collections));
    routes.add_service(BackupServiceServer::new(Backup::new(
        vectors,
        config.backup_root.clone(),
    )))
}
