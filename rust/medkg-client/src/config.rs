//! How a client behaves. The defaults of medkg are here and nowhere else; the Python layer passes `None` through.
//!
//! [`ClientOptions`] is what a user writes; [`ClientConfig::try_new`] checks all of it at once and lists every problem,
//! so that nobody has to fix a configuration one error at a time. A [`ClientConfig`] is valid by construction. Nothing
//! is dialled or resolved here. [`Sources`] reads options from a file and the environment; [`Followed`] reads them again
//! when the file has changed.

mod check;
mod coalescing;
mod document;
mod effective;
mod environment;
mod fallback;
mod following;
mod loading;
mod options;
mod reader;
mod setting;
mod target;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use medkg_registry::RegistryConfig;
use medkg_telemetry::tenant::TenantId;

pub use crate::cache::CacheConfig;
use crate::policy::backoff::Backoff;
use crate::policy::breaker::BreakerConfig;
use crate::policy::budget::RetryBudget;
use crate::policy::classify::Service;
use check::Checker;
pub use coalescing::{CoalesceConfig, CoalesceOptions};
pub use environment::{Environment, variable};
pub use fallback::{FallbackConfig, FallbackOptions};
pub use following::{Candidate, Followed};
pub use loading::{Loaded, Sources};
pub use reader::Origin;
pub use target::{Address, Name, Target};

/// Where gpu-server listens unless it is told otherwise.
const ADDRESS: &str = "http://127.0.0.1:7070";
/// One request, retries included: a batch of long texts on two CPU cores stays well below it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// TCP and TLS handshake across a continent, with one lost packet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Three retries span about two seconds, enough for a server behind a load balancer to be replaced.
const MAX_ATTEMPTS: u32 = 4;
const BACKOFF_INITIAL: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Retries per call, over all calls.
const RETRY_BUDGET: f64 = 0.2;
const BREAKER_FAILURES: u32 = 5;
const BREAKER_COOLDOWN: Duration = Duration::from_secs(5);
/// Of one address; each is driven by one thread at a time and carries some sixty calls before another one is made.
const MAX_CONNECTIONS: u32 = 4;
/// At one address at once; what is more waits here, where it can go elsewhere, instead of in the server's queue.
const MAX_PENDING: usize = 1024;
/// New calls go over a new connection then, so that names are looked up and certificates shown again.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);
/// With four requests in flight this keeps a server busy, and each stays far below the timeout.
const MAX_BATCH_TEXTS: usize = 128;
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// 128 texts of 512 tokens.
const MAX_BATCH_TOKENS: usize = 65_536;
const MAX_CONCURRENT_BATCHES: usize = 4;
/// 160,000 embeddings of 384 f32.
const CACHE_BYTES: u64 = 256 * 1024 * 1024;
const CACHE_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// Files of a TLS identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TlsOptions {
    /// PEM file of the authorities that servers are checked against.
    pub ca_file: Option<PathBuf>,
    /// PEM file of this client's certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file of its private key.
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must have, where it is not the host of the address.
    pub server_name: Option<String>,
}

/// What a user sets. None means the default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClientOptions {
    /// One address; same as a list of one in `addresses`.
    pub address: Option<String>,
    /// Addresses of interchangeable servers: `http://host:port` (plaintext), `https://host:port` (TLS 1.3), or names that
    /// lead to several: `dns+https://host:port` (each A or AAAA record) and `srv+https://name` (each SRV record). Vector
    /// and GPU calls go to the first only: each server holds its own collections and leases.
    pub addresses: Option<Vec<String>>,
    /// Servers are those that are registered there, instead of `addresses`.
    pub registry: Option<RegistryOptions>,
    /// `IP:PORT` of the name server that is asked for names, instead of the system's.
    pub name_server: Option<String>,
    /// Addresses for one service only, instead of `addresses`.
    pub embedding_addresses: Option<Vec<String>>,
    /// As `embedding_addresses`.
    pub reranking_addresses: Option<Vec<String>>,
    /// The one address for the vector service, instead of the first of `addresses`.
    pub vector_addresses: Option<Vec<String>>,
    /// The one address for the GPU service, instead of the first of `addresses`.
    pub gpu_addresses: Option<Vec<String>>,
    /// Whether `http` may go to other machines; without it, it stays on the loopback.
    pub allow_plaintext: Option<bool>,
    /// Tenant of calls that name none.
    pub tenant: Option<String>,
    /// Seconds that one request may take, retries included.
    pub timeout: Option<f64>,
    /// Seconds that making a connection may take, TLS included.
    pub connect_timeout: Option<f64>,
    /// Most attempts for one request; 1 means no retries.
    pub max_attempts: Option<u32>,
    /// Seconds of the shortest back-off.
    pub backoff_initial: Option<f64>,
    /// Seconds of the longest back-off.
    pub backoff_max: Option<f64>,
    /// Retries per call, over all calls, beyond a small reserve; 0 means no retries.
    pub retry_budget: Option<f64>,
    /// Failures of the network in a row after which an endpoint's breaker opens.
    pub breaker_failures: Option<u32>,
    /// Seconds for which it opens at first.
    pub breaker_cooldown: Option<f64>,
    /// Most connections to one address; another one is made once the others carry some sixty calls each.
    pub max_connections: Option<u32>,
    /// Most calls that are out at one address at once; more wait.
    pub max_pending: Option<u64>,
    /// Seconds after which new calls go over a new connection.
    pub max_connection_age: Option<f64>,
    /// Seconds after which a small call that may be made twice is made at another server too; None: never.
    pub hedge_after: Option<f64>,
    /// Most texts, or pairs of a query and a document, in one request; more are split, but not the documents of one
    /// query. Upserts, deletes and searches are split by the limits of the wire and by bytes only.
    pub max_batch_texts: Option<u64>,
    /// Most bytes of texts or vectors in one request; more are split.
    pub max_batch_bytes: Option<u64>,
    /// Most tokens of texts in one request, estimated as a quarter of their bytes; more are split.
    pub max_batch_tokens: Option<u64>,
    /// Most requests of one call that are out at once.
    pub max_concurrent_batches: Option<u64>,
    /// TLS identity and authorities.
    pub tls: Option<TlsOptions>,
    /// Keeps embeddings; None: every text is embedded each time.
    pub cache: Option<CacheOptions>,
    /// What calls may make do with where the network fails; None: with nothing.
    pub fallback: Option<FallbackOptions>,
    /// Sends small calls that are made at the same time in one request; None: each has its own.
    pub coalesce: Option<CoalesceOptions>,
}

/// What a user sets of the cache of embeddings. None means the default.
#[derive(Clone, PartialEq, Default)]
pub struct CacheOptions {
    /// Most bytes in this process.
    pub memory_bytes: Option<u64>,
    /// Seconds that an entry holds.
    pub ttl: Option<f64>,
    /// `redis://`, `rediss://` or `unix://`: shared with other processes.
    pub redis: Option<String>,
}

/// Where servers are registered.
#[derive(Clone, PartialEq, Default)]
pub struct RegistryOptions {
    /// `redis://`, `rediss://` or `unix://`.
    pub redis: Option<String>,
    /// Of which cluster; servers of one cluster are interchangeable.
    pub cluster: Option<String>,
}

impl fmt::Debug for RegistryOptions {
    /// The address may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryOptions")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CacheOptions {
    /// The address may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheOptions")
            .field("memory_bytes", &self.memory_bytes)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The option, with its index, e.g. `addresses[1]`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub description: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", list(.problems))]
#[non_exhaustive]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// An error with these problems.
    pub fn new(problems: Vec<Problem>) -> Self {
        Self { problems }
    }
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems
        .iter()
        .map(|p| format!("{}: {}", p.field, p.description))
        .collect();
    match lines.as_slice() {
        [one] => format!("the client configuration cannot be used: {one}"),
        many => format!("the client configuration cannot be used:\n  - {}", many.join("\n  - ")),
    }
}

/// How endpoints are dialled and judged; endpoints with equal settings can be shared by several clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointConfig {
    /// For making a connection, TLS included.
    pub connect_timeout: Duration,
    /// The breaker.
    pub breaker: BreakerConfig,
    /// Most connections to the address.
    pub max_connections: u32,
    /// Most calls that are out at once.
    pub max_pending: usize,
    /// After this time new calls go over a new connection.
    pub max_connection_age: Duration,
    /// TLS identity and authorities.
    pub tls: Option<TlsOptions>,
}

/// How large inputs are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchConfig {
    /// Most texts or pairs in one request.
    pub max_items: usize,
    /// Most bytes of items in one request; a single larger item travels alone.
    pub max_bytes: usize,
    /// Most tokens of texts in one request, estimated: see [`BatchConfig::max_text_bytes`].
    pub max_tokens: usize,
    /// Most requests of one call that are out at once.
    pub max_concurrent: usize,
}

impl BatchConfig {
    /// Most bytes of texts in one request, by the limit of bytes and by that of tokens. Four bytes are taken for a token:
    /// about what vocabularies make of English; the client has no tokenizer.
    pub fn max_text_bytes(&self) -> usize {
        self.max_bytes.min(self.max_tokens.saturating_mul(4))
    }
}

/// A configuration that can be used.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    targets: [Vec<Target>; 4],
    /// Where servers are registered, if they are.
    pub registry: Option<RegistryConfig>,
    /// The name server that is asked for names; none: the system's.
    pub name_server: Option<SocketAddr>,
    /// Whether plaintext may go to other machines.
    pub allow_plaintext: bool,
    /// Tenant of calls that name none.
    pub tenant: Option<TenantId>,
    /// For one request, retries included.
    pub timeout: Duration,
    /// How endpoints are dialled and judged.
    pub endpoint: EndpointConfig,
    /// Most attempts for one request.
    pub max_attempts: u32,
    /// The delays between attempts.
    pub backoff: Backoff,
    /// Retries per call, over all calls.
    pub retry_budget: f64,
    /// When a small call that may be made twice is made elsewhere too; none: never.
    pub hedge_after: Option<Duration>,
    /// How large inputs are split.
    pub batch: BatchConfig,
    /// What is kept of embeddings.
    pub cache: Option<CacheConfig>,
    /// What calls may make do with where the network fails.
    pub fallback: FallbackConfig,
    /// How small calls share a request, if they do.
    pub coalesce: Option<CoalesceConfig>,
}

impl ClientConfig {
    /// Checks everything; the error lists every problem.
    pub fn try_new(options: &ClientOptions) -> Result<Self, ConfigError> {
        let mut check = Checker {
            allow_plaintext: options.allow_plaintext.unwrap_or(false),
            problems: Vec::new(),
        };
        let registry = options.registry.as_ref().and_then(|registry| check.registry(registry));
        let targets = check.all_targets(options, registry.clone());
        let fallback = check.fallback(options);
        let tls = check.tls(options.tls.as_ref(), targets.iter().flatten().chain(&fallback.targets));
        let name_server = options.name_server.as_ref().and_then(|text| {
            let parsed = text
                .parse()
                .map_err(|_| format!("{text:?} is no IP:PORT, for example 10.0.0.2:53"));
            check.keep("name_server", parsed)
        });
        let tenant = options
            .tenant
            .as_deref()
            .and_then(|text| check.keep("tenant", TenantId::try_new(text)));
        let timeout = check.seconds("timeout", options.timeout, TIMEOUT);
        let connect_timeout = check.seconds("connect_timeout", options.connect_timeout, CONNECT_TIMEOUT);
        let initial = check.seconds("backoff_initial", options.backoff_initial, BACKOFF_INITIAL);
        let max = check.seconds("backoff_max", options.backoff_max, BACKOFF_MAX.max(initial));
        let backoff = check.some("backoff_max", Backoff::try_new(initial, max), || {
            format!(
                "{} s is less than backoff_initial ({} s)",
                max.as_secs_f64(),
                initial.as_secs_f64()
            )
        });
        let retry_budget = options.retry_budget.unwrap_or(RETRY_BUDGET);
        check.some(
            "retry_budget",
            RetryBudget::try_new(retry_budget, Instant::now()),
            || format!("is {retry_budget}; give retries per call, from 0 to 10"),
        );
        let failures = options.breaker_failures.unwrap_or(BREAKER_FAILURES);
        let cooldown = check.seconds("breaker_cooldown", options.breaker_cooldown, BREAKER_COOLDOWN);
        let breaker = check.some("breaker_failures", BreakerConfig::try_new(failures, cooldown), || {
            "is 0; give at least 1".to_owned()
        });
        let max_connections = options.max_connections.unwrap_or(MAX_CONNECTIONS);
        check.at_least_one("max_connections", u64::from(max_connections));
        let max_pending = check.size("max_pending", options.max_pending, MAX_PENDING);
        let max_connection_age = check.seconds("max_connection_age", options.max_connection_age, MAX_CONNECTION_AGE);
        let hedge_after = options
            .hedge_after
            .map(|seconds| check.seconds("hedge_after", Some(seconds), TIMEOUT));
        let max_attempts = options.max_attempts.unwrap_or(MAX_ATTEMPTS);
        check.at_least_one("max_attempts", u64::from(max_attempts));
        let batch = BatchConfig {
            max_items: check.size("max_batch_texts", options.max_batch_texts, MAX_BATCH_TEXTS),
            max_bytes: check.size("max_batch_bytes", options.max_batch_bytes, MAX_BATCH_BYTES),
            max_tokens: check.size("max_batch_tokens", options.max_batch_tokens, MAX_BATCH_TOKENS),
            max_concurrent: check.size(
                "max_concurrent_batches",
                options.max_concurrent_batches,
                MAX_CONCURRENT_BATCHES,
            ),
        };
        let cache = options.cache.as_ref().map(|cache| check.cache(cache));
        let coalesce = options.coalesce.as_ref().map(|coalesce| check.coalesce(coalesce));
        match (backoff, breaker, check.problems.is_empty()) {
            (Some(backoff), Some(breaker), true) => Ok(Self {
                allow_plaintext: check.allow_plaintext,
                targets,
                registry,
                name_server,
                tenant,
                timeout,
                endpoint: EndpointConfig {
                    connect_timeout,
                    breaker,
                    max_connections,
                    max_pending,
                    max_connection_age,
                    tls,
                },
                max_attempts,
                backoff,
                retry_budget,
                hedge_after,
                batch,
                cache,
                fallback,
                coalesce,
            }),
            _ => Err(ConfigError {
                problems: check.problems,
            }),
        }
    }

    /// Where a service is found; at least one target.
    pub fn targets(&self, service: Service) -> &[Target] {
        let [embedding, reranking, vector, gpu] = &self.targets;
        match service {
            Service::Embedding => embedding,
            Service::Reranking => reranking,
            Service::Vector => vector,
            Service::Gpu => gpu,
        }
    }
}
