//! Redis beside the cache of this process. It may be down, slow, or full of something else: then it costs a call 5 ms at most,
//! and never an error. It is asked for many entries at once (MGET), and written to in the background.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::key::{Key, prefix};
use super::{Counts, add, entry};

/// How long a call waits for its next answer.
const PATIENCE: Duration = Duration::from_millis(5);
/// How long it is left alone after it failed.
const REST: Duration = Duration::from_secs(1);
/// For what nobody waits for: connecting, writing, forgetting.
const BACKGROUND: Duration = Duration::from_secs(2);
/// Entries of one MGET: some hundred KiB.
const AT_ONCE: usize = 256;
/// Calls whose entries are being written.
const WRITERS: usize = 8;

#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    ttl: Duration,
    counts: Arc<Counts>,
    link: Mutex<Link>,
    connecting: AtomicBool,
    writers: Arc<Semaphore>,
}

/// The connection, or when there may be one again.
#[derive(Debug, Clone)]
enum Link {
    None { not_before: Option<Instant> },
    Open(MultiplexedConnection),
}

impl Remote {
    pub(super) fn new(client: Client, ttl: Duration, counts: Arc<Counts>) -> Self {
        Self {
            client,
            ttl,
            counts,
            link: Mutex::new(Link::None { not_before: None }),
            connecting: AtomicBool::new(false),
            writers: Arc::new(Semaphore::new(WRITERS)),
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection; where there is none, one is made, which is waited for by nobody but the first call.
    async fn connection(self: &Arc<Self>) -> Option<MultiplexedConnection> {
        match self.link().clone() {
            Link::Open(connection) => return Some(connection),
            Link::None { not_before: Some(then) } if Instant::now() < then => return None,
            Link::None { .. } => {}
        }
        if self.connecting.swap(true, Ordering::AcqRel) {
            return None;
        }
        let own = Arc::clone(self);
        let connecting = tokio::spawn(async move {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(BACKGROUND))
                .set_response_timeout(Some(BACKGROUND));
            let made = own.client.get_multiplexed_async_connection_with_config(&config).await;
            match made {
                Ok(connection) => *own.link() = Link::Open(connection),
                Err(error) => own.failed(&error),
            }
            own.connecting.store(false, Ordering::Release);
        });
        let _ = tokio::time::timeout(PATIENCE, connecting).await;
        match self.link().clone() {
            Link::Open(connection) => Some(connection),
            Link::None { .. } => None,
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        add(&self.counts.remote_errors, 1);
        let mut link = self.link();
        if matches!(*link, Link::Open(_) | Link::None { not_before: None }) {
            tracing::warn!(%error, "the cache's Redis fails; embeddings are computed instead until it answers");
        }
        *link = Link::None {
            not_before: Some(Instant::now() + REST),
        };
    }

    /// The entries of `keys`, in their order. All of them are asked for at once, and waited for as long as answers come.
    pub(super) async fn get(self: &Arc<Self>, keys: &[&Key]) -> Vec<Option<Bytes>> {
        let mut found = vec![None; keys.len()];
        let Some(connection) = self.connection().await else {
            return found;
        };
        let mut asked: FuturesUnordered<_> = keys
            .chunks(AT_ONCE)
            .enumerate()
            .map(|(number, part)| {
                let names: Vec<String> = part.iter().map(|key| key.name()).collect();
                let (mut connection, mut call) = (connection.clone(), redis::cmd("MGET"));
                call.arg(&names);
                async move {
                    let values = call.query_async::<Vec<Option<Vec<u8>>>>(&mut connection).await;
                    (number * AT_ONCE, names, values)
                }
            })
            .collect();
        loop {
            match tokio::time::timeout(PATIENCE, asked.next()).await {
                Ok(None) => return found,
                Ok(Some((start, names, Ok(values)))) => {
                    for (at, (name, value)) in names.iter().zip(values).enumerate() {
                        let Some(value) = value else { continue };
                        let entry = entry::open(name, value);
                        add(&self.counts.corrupt, usize::from(entry.is_none()));
                        found[start + at] = entry;
                    }
                }
                Ok(Some((_, _, Err(error)))) => {
                    self.failed(&error);
                    return found;
                }
                Err(late) => {
                    self.failed(&late);
                    return found;
                }
            }
        }
    }

    /// Writes entries, or drops them where too many are being written.
    pub(super) fn put(self: &Arc<Self>, entries: Vec<(Key, Bytes)>) {
        let Ok(permit) = Arc::clone(&self.writers).try_acquire_owned() else {
            return add(&self.counts.dropped, entries.len());
        };
        let own = Arc::clone(self);
        tokio::spawn(async move {
            let _permit = permit;
            let Some(mut connection) = own.connection().await else {
                return add(&own.counts.dropped, entries.len());
            };
            let seconds = own.ttl.as_secs().max(1);
            for part in entries.chunks(AT_ONCE) {
                let mut calls = redis::pipe();
                for (key, bytes) in part {
                    let name = key.name();
                    let sealed = entry::seal(&name, bytes);
                    calls.cmd("SET").arg(name).arg(sealed).arg("EX").arg(seconds).ignore();
                }
                if let Err(error) = calls.query_async::<()>(&mut connection).await {
                    own.failed(&error);
                    return add(&own.counts.dropped, part.len());
                }
            }
        });
    }

    /// Removes the entries of a tenant, of one model or of all; how many there were.
    pub(super) async fn forget(&self, tenant: &str, digest: Option<&str>) -> Result<u64, String> {
        let forget = async {
            let mut connection = self.client.get_multiplexed_async_connection().await?;
            let (mut cursor, mut removed) = (0_u64, 0_u64);
            loop {
                let mut call = redis::cmd("SCAN");
                call.arg(cursor)
                    .arg("MATCH")
                    .arg(format!("{}*", prefix(tenant, digest)));
                let (next, names): (u64, Vec<String>) =
                    call.arg("COUNT").arg(1_000).query_async(&mut connection).await?;
                if !names.is_empty() {
                    removed += redis::cmd("UNLINK")
                        .arg(&names)
                        .query_async::<u64>(&mut connection)
                        .await?;
                }
                cursor = next;
                if cursor == 0 {
                    return Ok::<u64, RedisError>(removed);
                }
            }
        };
        forget.await.map_err(|error| error.to_string())
    }
}
