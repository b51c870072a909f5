//! The command line and the environment, parsed once and validated whole before anything is bound or loaded.

mod device_choice;
mod memory_thresholds;
pub mod models;
pub mod models_file;
mod production;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

pub use device_choice::DeviceChoice;
pub use memory_thresholds::MemoryThresholds;
use models::{Bytes, ModelSource, ModelSpec, Purpose};
use models_file::{Listed, ModelsFile};

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

/// medkg's inference server: embeddings, reranking and vector search over gRPC, computed by libtorch.
///
/// It computes on CUDA unless `--device cpu` is typed, and refuses to serve without the device it was told to use.
/// Exit codes: 0 stopped as asked; 64 the configuration is wrong; 69 the address cannot be bound, or there is no GPU and
/// --require-gpu-at-start is given; 70 a fault of the server; 75 the GPU was lost: start it again.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpu-server", version)]
pub struct Arguments {
    /// Address to serve on; port 0 takes a free one and logs it.
    #[arg(long, env = "MEDKG_LISTEN", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Roles of this process.
    #[arg(
        long,
        env = "MEDKG_SERVICES",
        value_enum,
        value_delimiter = ',',
        default_value = "gpu,embedding,reranking,vector"
    )]
    services: Vec<Role>,
    /// cpu, cuda or cuda:N.
    #[arg(long, env = "MEDKG_DEVICE", default_value = "cuda")]
    device: DeviceChoice,
    /// Exit with 69 instead of refusing every call if the GPU cannot be used at the start.
    #[arg(long, env = "MEDKG_REQUIRE_GPU_AT_START", value_parser = clap::builder::BoolishValueParser::new())]
    require_gpu_at_start: bool,
    /// Seconds in which calls and health checks are told that the GPU is lost, before the process exits with 75.
    #[arg(long, env = "MEDKG_GPU_LOST_GRACE", default_value = "10")]
    gpu_lost_grace: f64,
    /// Fraction of the GPU's memory in use from which on it is warned of.
    #[arg(long, env = "MEDKG_GPU_MEMORY_WARN", default_value = "0.85")]
    gpu_memory_warn: f64,
    /// Fraction of the GPU's memory in use from which on it is told to be critical.
    #[arg(long, env = "MEDKG_GPU_MEMORY_CRITICAL", default_value = "0.95")]
    gpu_memory_critical: f64,
    /// An embedding model as NAME=DIRECTORY; may be repeated; the first one is the default.
    #[arg(long, env = "MEDKG_EMBEDDING_MODELS", value_delimiter = ',')]
    embedding_model: Vec<ModelSource>,
    /// A reranking model as NAME=DIRECTORY; may be repeated; the first one is the default.
    #[arg(long, env = "MEDKG_RERANKING_MODELS", value_delimiter = ',')]
    reranking_model: Vec<ModelSource>,
    /// JSON file with further models, followed while the server runs.
    #[arg(long, env = "MEDKG_MODELS_FILE")]
    models_file: Option<PathBuf>,
    /// Most bytes that the weights of all models may hold, e.g. 8GiB; 0 means no limit.
    #[arg(long, env = "MEDKG_MODEL_MEMORY", default_value = "0")]
    model_memory: Bytes,
    /// Address for operators, where models are loaded and unloaded; none by default.
    #[arg(long, env = "MEDKG_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// Folder below which checkpoints may be loaded over the admin address.
    #[arg(long, env = "MEDKG_MODEL_ROOT", requires = "admin_listen")]
    model_root: Option<PathBuf>,
    /// Folder that holds the vector collections.
    #[arg(long, env = "MEDKG_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Element type of the weights while computing.
    #[arg(long, env = "MEDKG_DTYPE", value_enum, default_value = "auto")]
    dtype: ComputeType,
    /// Threads that compute on the CPU; 0 means one per core.
    #[arg(long, env = "MEDKG_THREADS", default_value_t = 0)]
    threads: usize,
    /// Most tokens of one forward pass; 0 means the device's own default.
    #[arg(long, env = "MEDKG_BATCH_TOKENS", default_value_t = 0)]
    batch_tokens: usize,
    /// Tokens that may wait before calls are refused with `RESOURCE_EXHAUSTED`.
    #[arg(long, env = "MEDKG_QUEUE_TOKENS", default_value_t = 4_000_000)]
    queue_tokens: usize,
    /// Seconds that running calls get to end after SIGTERM.
    #[arg(long, env = "MEDKG_DRAIN_DEADLINE", default_value_t = 30.0)]
    drain_deadline: f64,
    /// How log lines look.
    #[arg(long, env = "MEDKG_LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogStyle,
    /// What is logged, in tracing-subscriber's `EnvFilter` syntax.
    #[arg(long, env = "MEDKG_LOG", default_value = "info")]
    log: String,
    /// OTLP/gRPC collector that gets the spans, e.g. <http://collector:4317>.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// PEM file with the server's certificate chain. TLS 1.3 is served when it is given.
    #[arg(long, env = "MEDKG_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the server's private key.
    #[arg(long, env = "MEDKG_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// PEM file with the roots that client certificates must chain to. Without it clients are not authenticated.
    #[arg(long, env = "MEDKG_TLS_CLIENT_CA", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Serve without TLS on an address that other machines reach.
    #[arg(long, env = "MEDKG_ALLOW_PLAINTEXT", value_parser = clap::builder::BoolishValueParser::new())]
    allow_plaintext: bool,
    /// Refuse what production must not have: --device cpu, plaintext, clients without a certificate.
    #[arg(long, env = "MEDKG_PRODUCTION", value_parser = clap::builder::BoolishValueParser::new())]
    production: bool,
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
    /// Folder below which operators may load checkpoints, without links in its path.
    pub model_root: Option<PathBuf>,
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
    /// How log lines look.
    pub log_style: LogStyle,
    /// `EnvFilter` directives.
    pub log_filter: String,
    /// Where spans go.
    pub otlp_endpoint: Option<String>,
    /// TLS identity; none: plaintext.
    pub tls: Option<TlsFiles>,
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
        let model_root = arguments.model_root.as_ref().and_then(|root| {
            let folder = root.canonicalize().and_then(|root| root.read_dir().map(|_| root));
            let tell = |error| problems.push(format!("--model-root {}: {error}", root.display()));
            folder.map_err(tell).ok()
        });
        for (flag, seconds) in [
            ("--drain-deadline", arguments.drain_deadline),
            ("--gpu-lost-grace", arguments.gpu_lost_grace),
        ] {
            if !(0.0..=3600.0).contains(&seconds) {
                problems.push(format!("{flag}: expected 0 to 3600 seconds"));
            }
        }
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
        for (flag, address) in [
            ("--listen", Some(arguments.listen)),
            ("--admin-listen", arguments.admin_listen),
        ] {
            if let Some(address) = address
                && arguments.tls_cert.is_none()
                && !address.ip().is_loopback()
                && !arguments.allow_plaintext
            {
                problems.push(format!(
                    "{flag} {address}: other machines reach it, so give --tls-cert and --tls-key, or --allow-plaintext \
                     if you mean it"
                ));
            }
        }
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
            model_root,
            data_dir: arguments.data_dir.filter(|_| wants(Role::Vector)),
            roles,
            device: arguments.device,
            require_gpu: arguments.require_gpu_at_start,
            lost_grace: Duration::from_secs_f64(arguments.gpu_lost_grace),
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
            log_style: arguments.log_format,
            log_filter: arguments.log,
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
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<ServerConfig, Vec<String>> {
        let arguments = Arguments::try_parse_from(line.split_whitespace()).map_err(|e| vec![e.to_string()])?;
        ServerConfig::try_new(arguments)
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let problems = parse("gpu-server --listen 0.0.0.0:1").unwrap_err();
        for flag in ["--embedding-model", "--reranking-model", "--data-dir", "--listen"] {
            assert!(
                problems.iter().any(|p| p.starts_with(flag)),
                "{flag} is not named in {problems:?}"
            );
        }
    }

    #[test]
    fn cuda_is_the_default_and_cpu_must_be_typed() {
        assert_eq!(
            parse("gpu-server --services gpu").unwrap().device,
            DeviceChoice::Cuda(0)
        );
        assert_eq!(
            parse("gpu-server --services gpu --device cpu").unwrap().device,
            DeviceChoice::Cpu
        );
        assert!(parse("gpu-server --services gpu --device mps").is_err());
    }

    #[test]
    fn a_gpu_cannot_be_required_of_the_cpu() {
        let line = "gpu-server --services gpu --require-gpu-at-start";
        assert!(parse(line).unwrap().require_gpu);
        let problems = parse(&format!("{line} --device cpu")).unwrap_err();
        assert!(problems[0].starts_with("--require-gpu-at-start"), "{problems:?}");
        for nonsense in ["-1", "NaN", "inf", "3601"] {
            let problems = parse(&format!("gpu-server --services gpu --gpu-lost-grace={nonsense}")).unwrap_err();
            assert!(problems[0].starts_with("--gpu-lost-grace"), "{problems:?}");
        }
    }

    #[test]
    fn the_thresholds_of_memory_are_checked() {
        let line = "gpu-server --services gpu";
        let usual = MemoryThresholds::try_new(0.85, 0.95).unwrap();
        assert_eq!(parse(line).unwrap().memory_thresholds, usual);
        let problems = parse(&format!("{line} --gpu-memory-warn 0.96")).unwrap_err();
        assert!(problems[0].starts_with("--gpu-memory-warn 0.96"), "{problems:?}");
        assert!(parse(&format!("{line} --gpu-memory-warn 0.96 --gpu-memory-critical 1")).is_ok());
    }

    #[test]
    fn a_role_that_is_not_served_needs_nothing() {
        let config = parse("gpu-server --services embedding --embedding-model m=/models/m --data-dir /d").unwrap();
        assert!(config.data_dir.is_none() && config.models.len() == 1);
    }

    #[test]
    fn the_same_name_twice_is_refused() {
        let problems = parse("gpu-server --services embedding --embedding-model m=/a,m=/b").unwrap_err();
        assert!(problems[0].contains("given twice"));
    }

    #[test]
    fn a_models_file_is_read_whole_at_the_start_and_its_mistakes_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.json");
        let line = format!("gpu-server --services embedding --models-file {}", path.display());
        assert!(parse(&line).unwrap_err()[0].starts_with("--models-file"));
        std::fs::write(&path, r#"{"models": [{"role": "embedding", "name": "m"}]}"#).unwrap();
        assert!(parse(&line).unwrap_err()[0].contains("models[0].directory"));
        std::fs::write(
            &path,
            r#"{"models": [{"role": "embedding", "name": "m", "directory": "d"}]}"#,
        )
        .unwrap();
        let (_, listed) = parse(&line).unwrap().models_file.unwrap();
        assert_eq!(listed.models[0].directory, folder.path().join("d"));
    }

    #[test]
    fn the_admin_address_is_loopback_unless_it_is_asked_for() {
        let line = "gpu-server --services gpu --admin-listen";
        assert!(parse(&format!("{line} 0.0.0.0:1")).unwrap_err()[0].starts_with("--admin-listen"));
        assert!(parse(&format!("{line} 0.0.0.0:1 --allow-plaintext")).is_ok());
        assert!(
            parse(&format!("{line} 127.0.0.1:1 --model-root /nowhere")).unwrap_err()[0].starts_with("--model-root")
        );
        assert!(
            parse("gpu-server --services gpu --model-root /").is_err(),
            "nobody could ask for it"
        );
    }
}
