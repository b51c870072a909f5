//! Embeddings that were computed before: in this process, by weight, and in Redis for all processes.
//!
//! | | |
//! |---|---|
//! | `key` | what makes two embeddings the same |
//! | `entry` | an embedding as bytes |
//! | `remote` | Redis, which may be down, slow or wrong at any time |
//! | `flights` | texts that somebody is embedding right now |
//!
//! An entry is a tenant's own. It is kept as it came: compression does not pay for embeddings (zlib saves 4 % of MiniLM's f32
//! vectors, at 60 µs each: docs/adr/0016-embedding-cache.md).

pub(crate) mod entry;
pub(crate) mod flights;
pub(crate) mod key;
mod remote;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use flights::Flights;
use key::Key;
use remote::Remote;

/// Beside its bytes an entry costs its key and its place in the map.
const OVERHEAD: usize = 200;

/// What a cache may hold, and where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheConfig {
    /// Bytes in this process.
    pub memory_bytes: u64,
    /// How long an entry holds.
    pub ttl: Duration,
    /// Redis; none: only this process.
    pub redis: Option<RedisUrl>,
}

/// The address of Redis; it may hold a password and is never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// Checks it.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it.
    pub fn try_new(url: &str) -> Result<Self, String> {
        let problem = |error| format!("{error}; give redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH");
        redis::Client::open(url).map_err(problem)?;
        Ok(Self(url.to_owned()))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl(..)")
    }
}

/// What a cache did since it was made, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CacheStats {
    /// Texts found in this process.
    pub hits: u64,
    /// Texts found in Redis.
    pub remote_hits: u64,
    /// Texts found nowhere.
    pub misses: u64,
    /// Texts that another call was embedding already.
    pub shared: u64,
    /// Times that Redis was down, or did not answer in time.
    pub remote_errors: u64,
    /// Entries of Redis that were not what was written.
    pub corrupt: u64,
    /// Entries that were not written to Redis because it was too slow for them.
    pub dropped: u64,
    /// Entries in this process.
    pub entries: u64,
    /// Their bytes, keys included.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    remote_hits: AtomicU64,
    misses: AtomicU64,
    shared: AtomicU64,
    remote_errors: AtomicU64,
    corrupt: AtomicU64,
    dropped: AtomicU64,
}

fn add(count: &AtomicU64, more: usize) {
    count.fetch_add(more as u64, Ordering::Relaxed);
}

/// Shared by all clients of a process that have the same settings.
#[derive(Debug)]
pub(crate) struct Cache {
    memory: moka::sync::Cache<Key, Bytes>,
    remote: Option<Arc<Remote>>,
    pub(crate) flights: Flights,
    counts: Arc<Counts>,
}

impl Cache {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        let weight = |_: &Key, entry: &Bytes| u32::try_from(entry.len() + OVERHEAD).unwrap_or(u32::MAX);
        let memory = moka::sync::Cache::builder()
            .max_capacity(config.memory_bytes)
            .weigher(weight)
            .time_to_live(config.ttl)
            .support_invalidation_closures()
            .build();
        let counts = Arc::new(Counts::default());
        let redis = config.redis.as_ref();
        // It was parsed when the configuration was checked.
        let client = redis.and_then(|RedisUrl(url)| redis::Client::open(url.as_str()).ok());
        Self {
            memory,
            remote: client.map(|client| Arc::new(Remote::new(client, config.ttl, Arc::clone(&counts)))),
            flights: Flights::default(),
            counts,
        }
    }

    /// The entries of `keys`, in their order. Redis is asked only for what is not in this process, and not waited for long.
    pub(crate) async fn get(&self, keys: &[Key]) -> Vec<Option<Bytes>> {
        let mut found: Vec<Option<Bytes>> = keys.iter().map(|key| self.memory.get(key)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|&at| found[at].is_none()).collect();
        add(&self.counts.hits, keys.len() - missing.len());
        let mut left = missing.len();
        if let Some(remote) = self.remote.as_ref().filter(|_| !missing.is_empty()) {
            let wanted: Vec<&Key> = missing.iter().map(|&at| &keys[at]).collect();
            for (at, entry) in missing.iter().zip(remote.get(&wanted).await) {
                let Some(entry) = entry else { continue };
                self.memory.insert(keys[*at].clone(), entry.clone());
                found[*at] = Some(entry);
                left -= 1;
            }
            add(&self.counts.remote_hits, missing.len() - left);
        }
        add(&self.counts.misses, left);
        found
    }

    /// What another call has put here in the meantime.
    pub(crate) fn shared(&self, key: &Key) -> Option<Bytes> {
        let found = self.memory.get(key);
        add(&self.counts.shared, usize::from(found.is_some()));
        found
    }

    /// Keeps entries; Redis gets them in the background.
    pub(crate) fn put(&self, entries: Vec<(Key, Bytes)>) {
        for (key, entry) in &entries {
            self.memory.insert(key.clone(), entry.clone());
        }
        if let Some(remote) = &self.remote {
            remote.put(entries);
        }
    }

    /// Forgets what a tenant has, of one model or of all; how many entries Redis had.
    ///
    /// # Errors
    /// Redis cannot be asked; this process has forgotten them then.
    pub(crate) async fn forget(&self, tenant: &str, digest: Option<&str>) -> Result<u64, String> {
        let (of, model) = (tenant.to_owned(), digest.map(str::to_owned));
        let concerned = move |key: &Key, _: &Bytes| key.is_of(&of, model.as_deref());
        self.memory
            .invalidate_entries_if(concerned)
            .map_err(|error| error.to_string())?;
        match &self.remote {
            Some(remote) => remote.forget(tenant, digest).await,
            None => Ok(0),
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.memory.run_pending_tasks();
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        CacheStats {
            hits: read(&counts.hits),
            remote_hits: read(&counts.remote_hits),
            misses: read(&counts.misses),
            shared: read(&counts.shared),
            remote_errors: read(&counts.remote_errors),
            corrupt: read(&counts.corrupt),
            dropped: read(&counts.dropped),
            entries: self.memory.entry_count(),
            bytes: self.memory.weighted_size(),
        }
    }
}
