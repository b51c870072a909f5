//! Which gpu-servers there are, kept in Redis: servers say that they are there, clients read it.
//!
//! A cluster is a set of servers with the same models. Its index, the set `medkg:servers:{CLUSTER}`, holds addresses; each
//! address has an entry, `medkg:servers:{CLUSTER}:ADDRESS`, which is gone with its lease if the server does not say
//! again that it is there. (The braces keep the keys of a cluster together in a Redis cluster.) What the index names without
//! an entry is no server any more; whoever finds that tidies it up.
//!
//! The registry says where servers are, not that they are well: their health says that, over their own connection. So a
//! Redis that is down or empty for a while takes nothing away from a client that knows its servers.

#![forbid(unsafe_code)]

mod keeper;

use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo as _};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

pub use keeper::Keeper;

/// How long a server is believed to be there after it last said so, unless it is told otherwise.
pub const LEASE: Duration = Duration::from_secs(15);
/// The cluster of those that name none.
pub const CLUSTER: &str = "default";
/// Redis answers in less, or it is taken to be down.
const ANSWER: Duration = Duration::from_secs(1);

/// The registry cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The address of Redis makes no sense. It is not repeated: it may hold a password.
    #[error("{0}; give redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH")]
    Url(String),
    /// The name of the cluster makes no sense.
    #[error("{0:?} is no name of a cluster; give 1 to 64 letters, digits, '.', '_' or '-'")]
    Cluster(String),
    /// Redis cannot be reached, or answers with an error.
    #[error("the registry's Redis does not answer: {0}")]
    Redis(String),
}

impl From<redis::RedisError> for RegistryError {
    fn from(error: redis::RedisError) -> Self {
        Self::Redis(error.to_string())
    }
}

/// A server as it is registered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Server {
    /// `http://HOST:PORT` or `https://HOST:PORT`, as clients reach it.
    pub address: String,
    /// What it serves: `embedding`, `reranking`, `vector`, `gpu`.
    pub services: Vec<String>,
}

/// Where a registry is, and of which cluster.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RegistryConfig {
    url: String,
    cluster: String,
}

impl RegistryConfig {
    /// Checks both; nothing is dialled. `cluster` is [`CLUSTER`] where none is given.
    ///
    /// # Errors
    /// [`RegistryError::Url`], [`RegistryError::Cluster`].
    pub fn try_new(url: &str, cluster: Option<&str>) -> Result<Self, RegistryError> {
        url.into_connection_info()
            .map_err(|error| RegistryError::Url(error.to_string()))?;
        let cluster = cluster.unwrap_or(CLUSTER);
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !(1..=64).contains(&cluster.len()) || !cluster.chars().all(known) {
            return Err(RegistryError::Cluster(cluster.to_owned()));
        }
        Ok(Self {
            url: url.to_owned(),
            cluster: cluster.to_owned(),
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }
}

impl fmt::Debug for RegistryConfig {
    /// The address may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistryConfig({})", self.cluster)
    }
}

/// A registry. Belongs to the tokio runtime in which it is first used.
#[derive(Debug)]
pub struct Registry {
    client: Client,
    config: RegistryConfig,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Registry {
    /// Nothing is dialled until it is used.
    ///
    /// # Errors
    /// [`RegistryError::Url`].
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        let client = Client::open(config.url.as_str()).map_err(|error| RegistryError::Url(error.to_string()))?;
        Ok(Self {
            client,
            config,
            connection: Mutex::default(),
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> &str {
        &self.config.cluster
    }

    fn index(&self) -> String {
        format!("medkg:servers:{{{}}}", self.config.cluster)
    }

    fn entry(&self, address: &str) -> String {
        format!("{}:{address}", self.index())
    }

    /// Says that a server is there, and is believed for `lease`.
    ///
    /// # Errors
    /// [`RegistryError::Redis`].
    pub async fn register(&self, server: &Server, lease: Duration) -> Result<(), RegistryError> {
        let text = serde_json::to_string(server).map_err(|error| RegistryError::Redis(error.to_string()))?;
        let milliseconds = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut calls = redis::pipe();
        calls.atomic();
        calls.cmd("SADD").arg(self.index()).arg(&server.address).ignore();
        let set = calls.cmd("SET").arg(self.entry(&server.address)).arg(text);
        set.arg("PX").arg(milliseconds).ignore();
        self.ask(&calls).await
    }

    /// Takes a server out; true if it was there.
    ///
    /// # Errors
    /// [`RegistryError::Redis`].
    pub async fn deregister(&self, address: &str) -> Result<bool, RegistryError> {
        let mut calls = redis::pipe();
        calls.atomic();
        calls.cmd("DEL").arg(self.entry(address));
        calls.cmd("SREM").arg(self.index()).arg(address).ignore();
        let (removed,): (u64,) = self.ask(&calls).await?;
        Ok(removed > 0)
    }

    /// The servers that are there, in the order of their addresses. An entry that is not one of ours is left out.
    ///
    /// # Errors
    /// [`RegistryError::Redis`].
    pub async fn servers(&self) -> Result<Vec<Server>, RegistryError> {
        let mut members = redis::pipe();
        members.cmd("SMEMBERS").arg(self.index());
        let (mut addresses,): (Vec<String>,) = self.ask(&members).await?;
        addresses.sort_unstable();
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<String> = addresses.iter().map(|address| self.entry(address)).collect();
        let mut entries = redis::pipe();
        entries.cmd("MGET").arg(&names);
        let (entries,): (Vec<Option<String>>,) = self.ask(&entries).await?;
        let gone: Vec<&String> = addresses
            .iter()
            .zip(&entries)
            .filter_map(|(address, entry)| entry.is_none().then_some(address))
            .collect();
        if !gone.is_empty() {
            let mut tidy = redis::pipe();
            tidy.cmd("SREM").arg(self.index()).arg(&gone).ignore();
            // One that has come back meanwhile says so again within its lease.
            let _: Result<(), RegistryError> = self.ask(&tidy).await;
        }
        let servers = entries.iter().flatten().filter_map(|entry| {
            let server = serde_json::from_str(entry);
            server
                .inspect_err(|error| tracing::warn!(%error, "an entry of the registry is no server; it is left out"))
                .ok()
        });
        Ok(servers.collect())
    }

    /// One exchange, over a new connection where the old one is gone.
    async fn ask<T: redis::FromRedisValue>(&self, calls: &redis::Pipeline) -> Result<T, RegistryError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_mut() {
            match calls.query_async(connection).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    tracing::debug!(%error, "the connection to the registry is made anew");
                    *kept = None;
                }
            }
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER));
        let mut connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let answer = calls.query_async(&mut connection).await?;
        *kept = Some(connection);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_without_repeating_a_password() {
        let error = RegistryConfig::try_new("http://me:hunter2@host", None).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        for cluster in ["", "a b", "{a}", &"x".repeat(65)] {
            let error = RegistryConfig::try_new("redis://host", Some(cluster)).unwrap_err();
            assert!(matches!(error, RegistryError::Cluster(_)), "{error}");
        }
        let config = RegistryConfig::try_new("redis://:hunter2@host:1", None).unwrap();
        assert_eq!(config.cluster(), CLUSTER);
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn nobody_at_the_address_is_an_error_that_says_so() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        drop(listener);
        let registry = Registry::new(RegistryConfig::try_new(&url, None).unwrap()).unwrap();
        let error = registry.servers().await.unwrap_err();
        assert!(matches!(error, RegistryError::Redis(_)), "{error}");
    }
}
