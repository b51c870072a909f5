//! The command line and the environment, parsed once and validated whole before anything is bound or loaded.

mod arguments;
mod device_choice;
mod memory_thresholds;
pub mod models;
pub mod models_file;
pub mod operator;
mod production;
mod redis_stores;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

pub use arguments::Arguments;
pub use device_choice::DeviceChoice;
use medkg_registry::RegistryConfig;
pub use memory_thresholds::MemoryThresholds;
use models::{ModelSource, ModelSpec, Purpose};
use models_file::{Listed, ModelsFile};
use redis_stores::{lease_store, registry};

/// A service that this process offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Role {
    /// Device status and leases.
    Gpu,
    /// Texts to vectors.
    Embedding,
    /// Pairs to scores.
    Reranking,
    /// Collections and search.
    Vector,
}

impl Role {
    /// The name on the command line and in `GetStatus`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Embedding => "embedding",
            Self::Reranking => "reranking",
            Self::Vector => "vector",
        }
    }
}

/// Element type of the weights while computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ComputeType {
    /// 32-bit floats: equal to the reference implementation.
    F32,
    /// bfloat16: half the memory, faster where the device has instructions for it.
    Bf16,
    /// bf16 where the device is faster with it and the model's answers stay those of f32, else f32.
    Auto,
}

impl ComputeType {
    /// The name on the command line and in the models file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Auto => "auto",
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogStyle {
    /// One JSON object a line.
    Json,
    /// For a person at a terminal.
    Text,
}

/// Files of the server's identity.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Roots for client certificates, PEM; none: clients are not authenticated.
    pub client_ca: Option<PathBuf>,
}

/// The validated configuration.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address to serve on.
    pub listen: SocketAddr,
    /// Roles of this process.
    pub roles: BTreeSet<Role>,
    /// What to compute on.
    pub device: DeviceChoice,
    /// Whether to exit if that cannot be used at the start.
    pub require_gpu: bool,
    /// How long the loss of the GPU is told before the process exits.
    pub lost_grace: Duration,
    /// How long leases outlive the connection of their owner.
    pub lease_grace: Duration,
    /// Where the processes of a host tell each other of their leases.
    pub lease_store: Option<redis::Client>,
    /// Where this server says that it is there, and how clients reach it.
    pub registry: Option<(RegistryConfig, medkg_registry::Server)>,
    /// From which fractions on the GPU's memory is told to be short.
    pub memory_thresholds: MemoryThresholds,
    /// The models that flags name, in their order.
    pub models: Vec<ModelSpec>,
    /// The models file and what it says.
    pub models_file: Option<(ModelsFile, Listed)>,
    /// Most bytes of weights; 0 means no limit.
    pub model_memory: u64,
    /// Address for operators.
    pub admin_listen: Option<SocketAddr>,
    /// Address of the metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// Folder below which operators may load checkpoints, without links in its path.
    pub model_root: Option<PathBuf>,
    /// Folder of the backups, without links in its path.
    pub backup_root: Option<PathBuf>,
    /// Folder of the collections; present when the vector role is served.
    pub data_dir: Option<PathBuf>,
    /// Element type of the weights.
    pub compute_type: ComputeType,
    /// Threads that compute on the CPU.
    pub threads: usize,
    /// Most tokens of one forward pass.
    pub batch_tokens: usize,
    /// Tokens that may wait.
    pub queue_tokens: usize,
    /// How long running calls get after SIGTERM.
    pub drain_deadline: Duration,
    /// How long a connection takes new calls; none: without a limit.
    pub connection_age: Option<Duration>,
    /// How log lines look.
    pub log_style: LogStyle,
    /// `EnvFilter` directives.
    pub log_filter: String,
    /// Where spans go.
    pub otlp_endpoint: Option<String>,
    /// TLS identity; none: plaintext.
    pub tls: Option<TlsFiles>,
    /// Whether what production must not have is refused.
    pub production: bool,
}

impl ServerConfig {
    /// Checks everything at once.
    ///
    /// # Errors
    /// Every problem, each as one line that names the flag and says what to do.
    pub fn try_new(arguments: Arguments) -> Result<Self, Vec<String>> {
        let mut problems = production::problems(&arguments);
        let roles: BTreeSet<Role> = arguments.services.iter().copied().collect();
        let wants = |role| roles.contains(&role);
        if wants(Role::Vector) && arguments.data_dir.is_none() {
            problems.push("--data-dir: the vector role needs a folder for its collections".to_owned());
        }
        let models = models(&arguments, &roles, &mut problems);
        let models_file = models_file(&arguments, &models, &roles, &mut problems);
        let mut root = |flag: &str, root: Option<&PathBuf>| {
            let root = root?;
            let folder = root.canonicalize().and_then(|root| root.read_dir().map(|_| root));
            let tell = |error| problems.push(format!("{flag} {}: {error}", root.display()));
            folder.map_err(tell).ok()
        };
        let model_root = root("--model-root", arguments.model_root.as_ref());
        let backup_root = root("--backup-root", arguments.backup_root.as_ref());
        let lease_store = lease_store(arguments.lease_store.as_deref(), &mut problems);
        let registry = registry(&arguments, &roles, &mut problems);
        problems.extend(durations(&arguments));
        if arguments.require_gpu_at_start && arguments.device == DeviceChoice::Cpu {
            problems.push(
                "--require-gpu-at-start: --device cpu uses no GPU; leave one of the two out (MEDKG_REQUIRE_GPU_AT_START \
                 sets it too)"
                    .to_owned(),
            );
        }
        let memory = MemoryThresholds::try_new(arguments.gpu_memory_warn, arguments.gpu_memory_critical);
        let memory_thresholds = memory.map_err(|problem| problems.push(problem)).ok();
        if arguments.queue_tokens == 0 {
            problems.push("--queue-tokens: expected at least 1".to_owned());
        }
        problems.extend(addresses(&arguments));
        let Some(memory_thresholds) = memory_thresholds.filter(|_| problems.is_empty()) else {
            return Err(problems);
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let default_batch = match arguments.device {
            // Larger ones gain nothing on a CPU, and make others wait longer; a GPU needs enough rows to fill it.
            DeviceChoice::Cpu => 1_024,
            DeviceChoice::Cuda(_) => 32_768,
        };
        Ok(Self {
            listen: arguments.listen,
            models,
            models_file,
            model_memory: arguments.model_memory.0,
            admin_listen: arguments.admin_listen,
            metrics_listen: arguments.metrics_listen,
            model_root,
            backup_root,
            data_dir: arguments.data_dir.filter(|_| wants(Role::Vector)),
            roles,
            device: arguments.device,
            require_gpu: arguments.require_gpu_at_start,
            lost_grace: Duration::from_secs_f64(arguments.gpu_lost_grace),
            lease_grace: Duration::from_secs_f64(arguments.lease_grace),
            lease_store,
            registry,
            memory_thresholds,
            compute_type: arguments.dtype,
            threads: if arguments.threads == 0 {
                cores
            } else {
                arguments.threads
            },
            batch_tokens: if arguments.batch_tokens == 0 {
                default_batch
            } else {
                arguments.batch_tokens
            },
            queue_tokens: arguments.queue_tokens,
            drain_deadline: Duration::from_secs_f64(arguments.drain_deadline),
            connection_age: Some(arguments.connection_age)
                .filter(|&age| age > 0.0)
                .map(Duration::from_secs_f64),
            log_style: arguments.log_format,
            log_filter: arguments.log,
            production: arguments.production,
            otlp_endpoint: arguments.otlp_endpoint.filter(|endpoint| !endpoint.is_empty()),
            tls: arguments
                .tls_cert
                .zip(arguments.tls_key)
                .map(|(certificate, key)| TlsFiles {
                    certificate,
                    key,
                    client_ca: arguments.tls_client_ca,
                }),
        })
    }
}

/// What is wrong with the times.
fn durations(arguments: &Arguments) -> Vec<String> {
    let limits = [
        ("--drain-deadline", arguments.drain_deadline, 3600.0),
        ("--gpu-lost-grace", arguments.gpu_lost_grace, 3600.0),
        ("--lease-grace", arguments.lease_grace, 3600.0),
        ("--connection-age", arguments.connection_age, 30.0 * 24.0 * 3600.0),
    ];
    let wrong = limits
        .into_iter()
        .filter(|(_, seconds, most)| !(0.0..=*most).contains(seconds));
    wrong
        .map(|(flag, _, most)| format!("{flag}: expected 0 to {most} seconds"))
        .collect()
}

/// Addresses that other machines reach without TLS, which has to be asked for.
fn addresses(arguments: &Arguments) -> Vec<String> {
    let exposed = |address: &SocketAddr| {
        arguments.tls_cert.is_none() && !address.ip().is_loopback() && !arguments.allow_plaintext
    };
    [
        ("--listen", Some(arguments.listen)),
        ("--admin-listen", arguments.admin_listen),
        ("--metrics-listen", arguments.metrics_listen),
    ]
    .into_iter()
    .filter_map(|(flag, address)| Some((flag, address.filter(exposed)?)))
    .map(|(flag, address)| {
        format!(
            "{flag} {address}: other machines reach it, so give --tls-cert and --tls-key, or --allow-plaintext if you mean \
             it"
        )
    })
    .collect()
}

/// The models that flags name, of the roles that are served.
fn models(arguments: &Arguments, roles: &BTreeSet<Role>, problems: &mut Vec<String>) -> Vec<ModelSpec> {
    let mut specs = Vec::new();
    for (role, purpose, sources) in [
        (Role::Embedding, Purpose::Embedding, &arguments.embedding_model),
        (Role::Reranking, Purpose::Reranking, &arguments.reranking_model),
    ] {
        let flag = format!("--{}-model", purpose.name());
        let mut seen = BTreeSet::new();
        for source in sources {
            if !seen.insert(&source.name) {
                problems.push(format!("{flag}: the name {:?} is given twice", source.name));
            }
        }
        if !roles.contains(&role) {
            continue;
        }
        let elsewhere = arguments.models_file.is_some() || arguments.model_root.is_some();
        if sources.is_empty() && !elsewhere {
            problems.push(format!(
                "{flag}: the {} role needs at least one NAME=DIRECTORY, or a --models-file, or a --model-root",
                role.name()
            ));
        }
        let spec = |source: &ModelSource| ModelSpec::new(purpose, source.name.clone(), source.directory.clone());
        specs.extend(sources.iter().map(spec));
    }
    specs
}

/// The models file as it is now.
fn models_file(
    arguments: &Arguments,
    named: &[ModelSpec],
    roles: &BTreeSet<Role>,
    problems: &mut Vec<String>,
) -> Option<(ModelsFile, Listed)> {
    let path = arguments.models_file.clone()?;
    let served = [
        (Role::Embedding, Purpose::Embedding),
        (Role::Reranking, Purpose::Reranking),
    ];
    let file = ModelsFile {
        path,
        taken: named.iter().map(|spec| (spec.purpose, spec.name.clone())).collect(),
        purposes: served
            .into_iter()
            .filter_map(|(role, purpose)| roles.contains(&role).then_some(purpose))
            .collect(),
    };
    let read = std::fs::read(&file.path).map_err(|error| vec![error.to_string()]);
    match read.and_then(|text| file.parse(&text)) {
        Ok(listed) => Some((file, listed)),
        Err(found) => {
            let shown = file.path.display();
            problems.extend(
                found
                    .into_iter()
                    .map(|problem| format!("--models-file {shown}: {problem}")),
            );
            None
        }
    }
}

#[cfg(test)]
mod tests;
