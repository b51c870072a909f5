//! What other gpu-servers hold of the same GPUs, kept in Redis where the operator names one (`--lease-store`).
//!
//! One hash per GPU, `medkg:gpu:<UUID>`, with one field per process: the bytes that its models, collections and leases hold
//! there, and until when that is believed. A UUID is unique in the world, so hosts may share a Redis. Each process says again
//! every second what it holds; a field that is not renewed is over with its process. Times are the Redis server's, so clocks
//! need not agree. Leases are checked and counted by one script, which Redis runs alone: two processes cannot promise the same
//! memory. Models and collections are checked against what the others said last, and told right after.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Script};
use tokio::sync::Notify;

use super::leases::Room;
use super::ledger::Ledger;
use crate::error::Error;

/// How often each process says what it holds, and when a call that could not ask Redis may come again.
const BEAT: Duration = Duration::from_secs(1);
/// How long that is believed.
const BELIEVED: Duration = Duration::from_secs(10);
/// Redis answers in less, or it is taken to be down.
const ANSWER: Duration = Duration::from_millis(500);

/// KEYS: the GPU. ARGV: the process, bytes that it holds or wants to, bytes of the GPU (0: hold them whatever others do), and
/// for how many milliseconds that is believed. Returns whether it holds them now, and what others hold.
const HOLD: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local others = 0
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
  if fields[at] ~= ARGV[1] then
    local bytes, believed = string.match(fields[at + 1], '^(%d+) (%d+)$')
    if not bytes or tonumber(believed) <= now then
      redis.call('HDEL', KEYS[1], fields[at])
    else
      others = others + tonumber(bytes)
    end
  end
end
if tonumber(ARGV[3]) > 0 and others + tonumber(ARGV[2]) > tonumber(ARGV[3]) then
  return {0, others}
end
if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. string.format('%d', now + ARGV[4]))
  redis.call('PEXPIRE', KEYS[1], 2 * ARGV[4])
end
return {1, others}
";

/// The GPU that models and collections are on.
#[derive(Debug, Clone)]
pub struct Home {
    /// As NVML writes it.
    pub uuid: String,
    /// "cuda:N".
    pub id: String,
}

/// One for all roles of a process.
#[derive(Debug)]
pub struct Neighbours {
    client: Client,
    /// Names this process among the others, also for people who look into Redis.
    me: String,
    script: Script,
    ledger: Ledger,
    home: Option<Home>,
    gpus: Mutex<BTreeMap<String, Share>>,
    /// One exchange at a time, so that an older one never overwrites a newer one.
    exchange: tokio::sync::Mutex<Option<MultiplexedConnection>>,
    /// Why Redis cannot be asked.
    trouble: Mutex<Option<String>>,
    /// Something is held no more that is not told yet.
    told: Notify,
    /// Others may hold less.
    freed: Notify,
    gone: AtomicBool,
}

/// Of one GPU, in bytes.
#[derive(Debug, Default, Clone, Copy)]
struct Share {
    /// What this process' leases hold.
    leased: u64,
    /// What other processes hold.
    others: u64,
}

/// What came of an attempt to hold more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It is held.
    Yes,
    /// Others hold too much, and that is known now.
    No,
    /// Redis does not answer; [`Neighbours::trouble`] says more.
    Unknown,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Neighbours {
    /// Begins to tell and to listen. Called inside the runtime; Redis need not be there yet.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system has no randomness for a name.
    pub fn open(client: Client, ledger: Ledger, home: Option<Home>) -> Result<Arc<Self>, Error> {
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(Error::internal)?;
        let gpus = home.iter().map(|home| (home.uuid.clone(), Share::default()));
        let neighbours = Arc::new(Self {
            client,
            me: format!("{}-{:016x}", std::process::id(), u64::from_be_bytes(random)),
            script: Script::new(HOLD),
            gpus: Mutex::new(gpus.collect()),
            ledger,
            home,
            exchange: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
            told: Notify::new(),
            freed: Notify::new(),
            gone: AtomicBool::new(false),
        });
        tokio::spawn(Arc::clone(&neighbours).follow());
        Ok(neighbours)
    }

    async fn follow(self: Arc<Self>) {
        while !self.gone.load(Ordering::Acquire) {
            self.tell().await;
            tokio::select! {
                () = tokio::time::sleep(BEAT) => {}
                () = self.told.notified() => {}
                () = self.ledger.moved() => {}
            }
        }
    }

    /// Says of each GPU what this process holds, and hears what others do.
    pub async fn tell(&self) {
        let mut connection = self.exchange.lock().await;
        let mut less = false;
        for uuid in self.uuids() {
            if self.gone.load(Ordering::Acquire) {
                return;
            }
            let before = lock(&self.trouble).is_some();
            match self.hold(&mut connection, &uuid, 0, 0).await {
                Ok((_, fewer)) => less |= fewer || before,
                Err(error) => return self.failed(&mut connection, &error),
            }
        }
        if less {
            self.freed.notify_one();
        }
    }

    /// Holds `bytes` more of a GPU for a lease, if others leave them.
    pub async fn take(&self, room: &Room, bytes: u64) -> Held {
        let mut connection = self.exchange.lock().await;
        match self.hold(&mut connection, &room.uuid, bytes, room.total).await {
            Ok((true, _)) => {
                lock(&self.gpus).entry(room.uuid.clone()).or_default().leased += bytes;
                Held::Yes
            }
            Ok((false, _)) => Held::No,
            Err(error) => {
                self.failed(&mut connection, &error);
                Held::Unknown
            }
        }
    }

    /// A lease on the GPU is over.
    pub fn give_back(&self, uuid: &str, bytes: u64) {
        if let Some(share) = lock(&self.gpus).get_mut(uuid) {
            share.leased = share.leased.saturating_sub(bytes);
        }
        self.told.notify_one();
    }

    /// Bytes that other processes hold of a GPU, as they said last.
    pub fn others(&self, uuid: &str) -> u64 {
        lock(&self.gpus).get(uuid).map_or(0, |share| share.others)
    }

    /// From now on it is asked what others hold of these.
    pub fn know(&self, rooms: &[Room]) {
        let mut gpus = lock(&self.gpus);
        for room in rooms {
            gpus.entry(room.uuid.clone()).or_default();
        }
    }

    /// Why nothing can be leased now.
    pub fn trouble(&self) -> Option<Error> {
        let detail = lock(&self.trouble).clone()?;
        Some(Error::LeaseStoreUnavailable {
            detail,
            retry_after: BEAT,
        })
    }

    /// Waits until others may hold less; what happened before is not missed.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// This process ends and holds nothing any more. If Redis does not hear of it, others know it within ten seconds.
    pub async fn leave(&self) {
        self.gone.store(true, Ordering::Release);
        let mut connection = self.exchange.lock().await;
        for uuid in self.uuids() {
            let run = self.run(&mut connection, &uuid, 0, 0);
            if let Err(error) = run.await {
                return tracing::warn!(%error, "the lease store was not told that this server stops");
            }
        }
    }

    fn uuids(&self) -> Vec<String> {
        lock(&self.gpus).keys().cloned().collect()
    }

    /// Holds what is held and `more`; whether it does now, and whether others hold less than they did.
    async fn hold(
        &self,
        connection: &mut Option<MultiplexedConnection>,
        uuid: &str,
        more: u64,
        total: u64,
    ) -> Result<(bool, bool), RedisError> {
        let leased = lock(&self.gpus).get(uuid).map_or(0, |share| share.leased);
        let at_home = self.home.as_ref().filter(|home| home.uuid == uuid);
        let own = at_home.map_or(0, |home| self.ledger.taken(&home.id));
        let bytes = leased.saturating_add(own).saturating_add(more);
        let (held, others) = self.run(connection, uuid, bytes, total).await?;
        if lock(&self.trouble).take().is_some() {
            tracing::info!("the lease store answers again");
        }
        if at_home.is_some() {
            self.ledger.set_neighbours(others);
        }
        let mut gpus = lock(&self.gpus);
        let share = gpus.entry(uuid.to_owned()).or_default();
        let before = std::mem::replace(&mut share.others, others);
        Ok((held, others < before))
    }

    async fn run(
        &self,
        connection: &mut Option<MultiplexedConnection>,
        uuid: &str,
        bytes: u64,
        total: u64,
    ) -> Result<(bool, u64), RedisError> {
        let mut open = if let Some(open) = connection.take() {
            open
        } else {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(ANSWER))
                .set_response_timeout(Some(ANSWER));
            self.client
                .get_multiplexed_async_connection_with_config(&config)
                .await?
        };
        let mut call = self.script.key(format!("medkg:gpu:{uuid}"));
        call.arg(&self.me).arg(bytes).arg(total);
        let answer = call
            .arg(u64::try_from(BELIEVED.as_millis()).unwrap_or(u64::MAX))
            .invoke_async(&mut open)
            .await?;
        *connection = Some(open);
        Ok(answer)
    }

    /// The next attempt connects anew.
    fn failed(&self, connection: &mut Option<MultiplexedConnection>, error: &RedisError) {
        *connection = None;
        let detail = error.to_string();
        if lock(&self.trouble).replace(detail).is_none() {
            tracing::warn!(%error, "the lease store does not answer: no memory is leased until it does; what is leased stays so");
        }
    }
}
