//! Every option of the client, once: what is listed here can be given by argument, variable and file.

use super::reader::Reader;
use super::{CacheOptions, ClientOptions, CoalesceOptions, FallbackOptions, RegistryOptions, TlsOptions};

/// The options that the sources say, over those that are `given` as arguments.
pub(super) fn read(reader: &mut Reader<'_>, given: ClientOptions) -> ClientOptions {
    reader.one_of(
        &["address", "addresses"],
        given.address.is_some() || given.addresses.is_some(),
    );
    ClientOptions {
        address: reader.option("address", given.address),
        addresses: reader.option("addresses", given.addresses),
        registry: registry(reader, given.registry),
        name_server: reader.option("name_server", given.name_server),
        embedding_addresses: reader.option("embedding_addresses", given.embedding_addresses),
        reranking_addresses: reader.option("reranking_addresses", given.reranking_addresses),
        vector_addresses: reader.option("vector_addresses", given.vector_addresses),
        gpu_addresses: reader.option("gpu_addresses", given.gpu_addresses),
        allow_plaintext: reader.option("allow_plaintext", given.allow_plaintext),
        tenant: reader.option("tenant", given.tenant),
        timeout: reader.option("timeout", given.timeout),
        connect_timeout: reader.option("connect_timeout", given.connect_timeout),
        max_attempts: reader.option("max_attempts", given.max_attempts),
        backoff_initial: reader.option("backoff_initial", given.backoff_initial),
        backoff_max: reader.option("backoff_max", given.backoff_max),
        retry_budget: reader.option("retry_budget", given.retry_budget),
        breaker_failures: reader.option("breaker_failures", given.breaker_failures),
        breaker_cooldown: reader.option("breaker_cooldown", given.breaker_cooldown),
        max_connections: reader.option("max_connections", given.max_connections),
        max_pending: reader.option("max_pending", given.max_pending),
        max_connection_age: reader.option("max_connection_age", given.max_connection_age),
        hedge_after: reader.option("hedge_after", given.hedge_after),
        max_batch_texts: reader.option("max_batch_texts", given.max_batch_texts),
        max_batch_bytes: reader.option("max_batch_bytes", given.max_batch_bytes),
        max_batch_tokens: reader.option("max_batch_tokens", given.max_batch_tokens),
        max_concurrent_batches: reader.option("max_concurrent_batches", given.max_concurrent_batches),
        tls: tls(reader, given.tls),
        cache: cache(reader, given.cache),
        fallback: fallback(reader, given.fallback),
        coalesce: coalesce(reader, given.coalesce),
    }
}

fn coalesce(reader: &mut Reader<'_>, given: Option<CoalesceOptions>) -> Option<CoalesceOptions> {
    let (is_given, given) = (given.is_some(), given.unwrap_or_default());
    reader.group("coalesce", is_given, |reader| CoalesceOptions {
        max_wait: reader.option("max_wait", given.max_wait),
        max_texts: reader.option("max_texts", given.max_texts),
    })
}

fn fallback(reader: &mut Reader<'_>, given: Option<FallbackOptions>) -> Option<FallbackOptions> {
    let (is_given, given) = (given.is_some(), given.unwrap_or_default());
    reader.group("fallback", is_given, |reader| FallbackOptions {
        addresses: reader.option("addresses", given.addresses),
        stale_cache: reader.option("stale_cache", given.stale_cache),
        dense_order: reader.option("dense_order", given.dense_order),
    })
}

fn tls(reader: &mut Reader<'_>, given: Option<TlsOptions>) -> Option<TlsOptions> {
    let (is_given, given) = (given.is_some(), given.unwrap_or_default());
    reader.group("tls", is_given, |reader| TlsOptions {
        ca_file: reader.path("ca_file", given.ca_file),
        cert_file: reader.path("cert_file", given.cert_file),
        key_file: reader.path("key_file", given.key_file),
        server_name: reader.option("server_name", given.server_name),
    })
}

fn registry(reader: &mut Reader<'_>, given: Option<RegistryOptions>) -> Option<RegistryOptions> {
    let (is_given, given) = (given.is_some(), given.unwrap_or_default());
    reader.group("registry", is_given, |reader| RegistryOptions {
        redis: reader.option("redis", given.redis),
        cluster: reader.option("cluster", given.cluster),
    })
}

fn cache(reader: &mut Reader<'_>, given: Option<CacheOptions>) -> Option<CacheOptions> {
    let (is_given, given) = (given.is_some(), given.unwrap_or_default());
    reader.group("cache", is_given, |reader| CacheOptions {
        memory_bytes: reader.option("memory_bytes", given.memory_bytes),
        ttl: reader.option("ttl", given.ttl),
        redis: reader.option("redis", given.redis),
    })
}
