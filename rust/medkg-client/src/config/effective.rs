//! The options with the defaults written out: what a user who wrote only some of them gets.

use super::{
    ADDRESS, BACKOFF_INITIAL, BACKOFF_MAX, BREAKER_COOLDOWN, BREAKER_FAILURES, CACHE_BYTES, CACHE_TTL, CONNECT_TIMEOUT,
    CacheOptions, ClientOptions, CoalesceOptions, FallbackOptions, MAX_ATTEMPTS, MAX_BATCH_BYTES, MAX_BATCH_TEXTS,
    MAX_BATCH_TOKENS, MAX_CONCURRENT_BATCHES, MAX_CONNECTION_AGE, MAX_CONNECTIONS, MAX_PENDING, RETRY_BUDGET,
    RegistryOptions, TIMEOUT,
};

impl ClientOptions {
    /// The same with every default written out. What stays none is off, or as another option says.
    #[must_use]
    pub fn with_defaults(self) -> Self {
        let first = self.backoff_initial.unwrap_or(BACKOFF_INITIAL.as_secs_f64());
        let address = match (&self.addresses, &self.registry) {
            (None, None) => self.address.or_else(|| Some(ADDRESS.to_owned())),
            _ => self.address,
        };
        Self {
            address,
            addresses: self.addresses,
            registry: self.registry.map(|registry| RegistryOptions {
                redis: registry.redis,
                cluster: registry.cluster.or_else(|| Some(medkg_registry::CLUSTER.to_owned())),
            }),
            name_server: self.name_server,
            embedding_addresses: self.embedding_addresses,
            reranking_addresses: self.reranking_addresses,
            vector_addresses: self.vector_addresses,
            gpu_addresses: self.gpu_addresses,
            allow_plaintext: self.allow_plaintext.or(Some(false)),
            tenant: self.tenant,
            timeout: self.timeout.or(Some(TIMEOUT.as_secs_f64())),
            connect_timeout: self.connect_timeout.or(Some(CONNECT_TIMEOUT.as_secs_f64())),
            max_attempts: self.max_attempts.or(Some(MAX_ATTEMPTS)),
            backoff_initial: Some(first),
            backoff_max: self.backoff_max.or(Some(BACKOFF_MAX.as_secs_f64().max(first))),
            retry_budget: self.retry_budget.or(Some(RETRY_BUDGET)),
            breaker_failures: self.breaker_failures.or(Some(BREAKER_FAILURES)),
            breaker_cooldown: self.breaker_cooldown.or(Some(BREAKER_COOLDOWN.as_secs_f64())),
            max_connections: self.max_connections.or(Some(MAX_CONNECTIONS)),
            max_pending: self.max_pending.or(Some(MAX_PENDING as u64)),
            max_connection_age: self.max_connection_age.or(Some(MAX_CONNECTION_AGE.as_secs_f64())),
            hedge_after: self.hedge_after,
            max_batch_texts: self.max_batch_texts.or(Some(MAX_BATCH_TEXTS as u64)),
            max_batch_bytes: self.max_batch_bytes.or(Some(MAX_BATCH_BYTES as u64)),
            max_batch_tokens: self.max_batch_tokens.or(Some(MAX_BATCH_TOKENS as u64)),
            max_concurrent_batches: self.max_concurrent_batches.or(Some(MAX_CONCURRENT_BATCHES as u64)),
            tls: self.tls,
            cache: self.cache.map(|cache| CacheOptions {
                memory_bytes: cache.memory_bytes.or(Some(CACHE_BYTES)),
                ttl: cache.ttl.or(Some(CACHE_TTL.as_secs_f64())),
                redis: cache.redis,
            }),
            fallback: self.fallback.map(|fallback| FallbackOptions {
                addresses: fallback.addresses,
                stale_cache: fallback.stale_cache.or(Some(false)),
                dense_order: fallback.dense_order.or(Some(false)),
            }),
            coalesce: self.coalesce.map(CoalesceOptions::with_defaults),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientConfig;

    #[test]
    fn defaults_that_are_written_out_change_nothing() {
        let cached = || ClientOptions {
            cache: Some(CacheOptions::default()),
            backoff_initial: Some(7.0),
            ..ClientOptions::default()
        };
        for options in [ClientOptions::default(), cached()] {
            let out = options.clone().with_defaults();
            let [short, long] = [options, out].map(|options| format!("{:?}", ClientConfig::try_new(&options).unwrap()));
            assert_eq!(short, long);
        }
    }
}
