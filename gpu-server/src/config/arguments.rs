//! The flags and their environment variables, as they are typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

use super::models::{Bytes, ModelSource};
use super::{ComputeType, DeviceChoice, LogStyle, Role};

/// medkg's inference server: embeddings, reranking and vector search over gRPC, computed by libtorch.
///
/// It computes on CUDA unless `--device cpu` is typed, and refuses to serve without the device it was told to use.
/// `gpu-server backup` and `gpu-server restore` are commands for the operator of a running server; see their --help.
///
/// Exit codes: 0 stopped as asked; 64 the configuration is wrong; 69 the address cannot be bound, or there is no GPU and
/// --require-gpu-at-start is given; 70 a fault of the server; 75 the GPU was lost: start it again.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpu-server", version)]
pub struct Arguments {
    /// Address to serve on; port 0 takes a free one and logs it.
    #[arg(long, env = "MEDKG_LISTEN", default_value = "127.0.0.1:7070")]
    pub(super) listen: SocketAddr,
    /// Roles of this process.
    #[arg(
        long,
        env = "MEDKG_SERVICES",
        value_enum,
        value_delimiter = ',',
        default_value = "gpu,embedding,reranking,vector"
    )]
    pub(super) services: Vec<Role>,
    /// cpu, cuda or cuda:N.
    #[arg(long, env = "MEDKG_DEVICE", default_value = "cuda")]
    pub(super) device: DeviceChoice,
    /// Exit with 69 instead of refusing every call if the GPU cannot be used at the start.
    #[arg(long, env = "MEDKG_REQUIRE_GPU_AT_START", value_parser = clap::builder::BoolishValueParser::new())]
    pub(super) require_gpu_at_start: bool,
    /// Seconds in which calls and health checks are told that the GPU is lost, before the process exits with 75.
    #[arg(long, env = "MEDKG_GPU_LOST_GRACE", default_value = "10")]
    pub(super) gpu_lost_grace: f64,
    /// Seconds that a lease outlives the connection of its owner, who may renew it over another one meanwhile.
    #[arg(long, env = "MEDKG_LEASE_GRACE", default_value = "10")]
    pub(super) lease_grace: f64,
    /// Redis in which the gpu-servers of a host tell each other what they hold of its GPUs, e.g. <redis://127.0.0.1:6379>
    /// or <unix:///run/redis.sock>; with <rediss://> over TLS. Give a password in the environment, not here.
    #[arg(long, env = "MEDKG_LEASE_STORE", hide_env_values = true)]
    pub(super) lease_store: Option<String>,
    /// Redis in which this server says that it is there, so that clients find it, e.g. <redis://registry:6379>; with
    /// <rediss://> over TLS. Give a password in the environment, not here.
    #[arg(long, env = "MEDKG_REGISTRY", hide_env_values = true, requires = "advertise")]
    pub(super) registry: Option<String>,
    /// The cluster that it belongs to: clients take the servers of a cluster for interchangeable.
    #[arg(long, env = "MEDKG_REGISTRY_CLUSTER", default_value = medkg_registry::CLUSTER)]
    pub(super) registry_cluster: String,
    /// Address at which clients reach this server, e.g. <https://gpu-0.gpu:7070>.
    #[arg(long, env = "MEDKG_ADVERTISE")]
    pub(super) advertise: Option<String>,
    /// Fraction of the GPU's memory in use from which on it is warned of.
    #[arg(long, env = "MEDKG_GPU_MEMORY_WARN", default_value = "0.85")]
    pub(super) gpu_memory_warn: f64,
    /// Fraction of the GPU's memory in use from which on it is told to be critical.
    #[arg(long, env = "MEDKG_GPU_MEMORY_CRITICAL", default_value = "0.95")]
    pub(super) gpu_memory_critical: f64,
    /// An embedding model as NAME=DIRECTORY; may be repeated; the first one is the default.
    #[arg(long, env = "MEDKG_EMBEDDING_MODELS", value_delimiter = ',')]
    pub(super) embedding_model: Vec<ModelSource>,
    /// A reranking model as NAME=DIRECTORY; may be repeated; the first one is the default.
    #[arg(long, env = "MEDKG_RERANKING_MODELS", value_delimiter = ',')]
    pub(super) reranking_model: Vec<ModelSource>,
    /// JSON file with further models, followed while the server runs.
    #[arg(long, env = "MEDKG_MODELS_FILE")]
    pub(super) models_file: Option<PathBuf>,
    /// Most bytes that the weights of all models may hold, e.g. 8GiB; 0 means no limit.
    #[arg(long, env = "MEDKG_MODEL_MEMORY", default_value = "0")]
    pub(super) model_memory: Bytes,
    /// Address for operators, where models are loaded and unloaded; none by default.
    #[arg(long, env = "MEDKG_ADMIN_LISTEN")]
    pub(super) admin_listen: Option<SocketAddr>,
    /// Address where Prometheus reads `/metrics`; none by default.
    #[arg(long, env = "MEDKG_METRICS_LISTEN")]
    pub(super) metrics_listen: Option<SocketAddr>,
    /// Folder below which checkpoints may be loaded over the admin address.
    #[arg(long, env = "MEDKG_MODEL_ROOT", requires = "admin_listen")]
    pub(super) model_root: Option<PathBuf>,
    /// Folder for backups of collections, which are made and restored over the admin address.
    #[arg(long, env = "MEDKG_BACKUP_ROOT", requires = "admin_listen")]
    pub(super) backup_root: Option<PathBuf>,
    /// Folder that holds the vector collections.
    #[arg(long, env = "MEDKG_DATA_DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Element type of the weights while computing.
    #[arg(long, env = "MEDKG_DTYPE", value_enum, default_value = "auto")]
    pub(super) dtype: ComputeType,
    /// Threads that compute on the CPU; 0 means one per core.
    #[arg(long, env = "MEDKG_THREADS", default_value_t = 0)]
    pub(super) threads: usize,
    /// Most tokens of one forward pass; 0 means the device's own default.
    #[arg(long, env = "MEDKG_BATCH_TOKENS", default_value_t = 0)]
    pub(super) batch_tokens: usize,
    /// Tokens that may wait before calls are refused with `RESOURCE_EXHAUSTED`.
    #[arg(long, env = "MEDKG_QUEUE_TOKENS", default_value_t = 4_000_000)]
    pub(super) queue_tokens: usize,
    /// Seconds that running calls get to end after SIGTERM.
    #[arg(long, env = "MEDKG_DRAIN_DEADLINE", default_value_t = 30.0)]
    pub(super) drain_deadline: f64,
    /// Seconds after which a connection takes no new calls, so that its client shows its certificate anew; those that run
    /// are finished. 0 means no limit.
    #[arg(long, env = "MEDKG_CONNECTION_AGE", default_value_t = 3600.0)]
    pub(super) connection_age: f64,
    /// How log lines look.
    #[arg(long, env = "MEDKG_LOG_FORMAT", value_enum, default_value = "json")]
    pub(super) log_format: LogStyle,
    /// What is logged, in tracing-subscriber's `EnvFilter` syntax.
    #[arg(long, env = "MEDKG_LOG", default_value = "info")]
    pub(super) log: String,
    /// OTLP/gRPC collector that gets the spans, e.g. <http://collector:4317>.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub(super) otlp_endpoint: Option<String>,
    /// PEM file with the server's certificate chain. TLS 1.3 is served when it is given.
    #[arg(long, env = "MEDKG_TLS_CERT", requires = "tls_key")]
    pub(super) tls_cert: Option<PathBuf>,
    /// PEM file with the server's private key.
    #[arg(long, env = "MEDKG_TLS_KEY", requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// PEM file with the roots that client certificates must chain to. Without it clients are not authenticated.
    #[arg(long, env = "MEDKG_TLS_CLIENT_CA", requires = "tls_cert")]
    pub(super) tls_client_ca: Option<PathBuf>,
    /// Serve without TLS on an address that other machines reach.
    #[arg(long, env = "MEDKG_ALLOW_PLAINTEXT", value_parser = clap::builder::BoolishValueParser::new())]
    pub(super) allow_plaintext: bool,
    /// Refuse what production must not have: --device cpu, plaintext, clients without a certificate.
    #[arg(long, env = "MEDKG_PRODUCTION", value_parser = clap::builder::BoolishValueParser::new())]
    pub(super) production: bool,
}
