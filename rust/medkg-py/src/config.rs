//! `medkg.ClientConfig` as the client's options. Everything is passed through; only types are checked here.

use medkg_client::config::{
    CacheOptions, ClientConfig, ClientOptions, ConfigError, Problem, RegistryOptions, TlsOptions,
};
use pyo3::prelude::*;

use crate::errors;

/// A valid configuration, or a `ConfigError` that lists every problem.
pub(crate) fn read(config: &Bound<'_, PyAny>) -> PyResult<ClientConfig> {
    let py = config.py();
    let mut reader = Reader { problems: Vec::new() };
    let options = reader.options(config)?;
    if !reader.problems.is_empty() {
        return Err(errors::config(py, &ConfigError::new(reader.problems)));
    }
    ClientConfig::try_new(&options).map_err(|error| errors::config(py, &error))
}

struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn options(&mut self, config: &Bound<'_, PyAny>) -> PyResult<ClientOptions> {
        let (tls, cache) = (config.getattr("tls")?, config.getattr("cache")?);
        let registry = config.getattr("registry")?;
        Ok(ClientOptions {
            address: self.get(config, "address", "a str")?,
            addresses: self.get(config, "addresses", "a list of str")?,
            registry: if registry.is_none() {
                None
            } else {
                Some(self.registry(&registry)?)
            },
            name_server: self.get(config, "name_server", "a str")?,
            embedding_addresses: self.get(config, "embedding_addresses", "a list of str")?,
            reranking_addresses: self.get(config, "reranking_addresses", "a list of str")?,
            vector_addresses: self.get(config, "vector_addresses", "a list of str")?,
            gpu_addresses: self.get(config, "gpu_addresses", "a list of str")?,
            tenant: self.get(config, "tenant", "a str")?,
            timeout: self.get(config, "timeout", "seconds, as a float")?,
            connect_timeout: self.get(config, "connect_timeout", "seconds, as a float")?,
            max_attempts: self.get(config, "max_attempts", "an int from 1 on")?,
            backoff_initial: self.get(config, "backoff_initial", "seconds, as a float")?,
            backoff_max: self.get(config, "backoff_max", "seconds, as a float")?,
            retry_budget: self.get(config, "retry_budget", "a float")?,
            breaker_failures: self.get(config, "breaker_failures", "an int from 1 on")?,
            breaker_cooldown: self.get(config, "breaker_cooldown", "seconds, as a float")?,
            max_connections: self.get(config, "max_connections", "an int from 1 on")?,
            max_pending: self.get(config, "max_pending", "an int from 1 on")?,
            max_connection_age: self.get(config, "max_connection_age", "seconds, as a float")?,
            max_batch_texts: self.get(config, "max_batch_texts", "an int from 1 on")?,
            max_batch_bytes: self.get(config, "max_batch_bytes", "an int from 1 on")?,
            max_concurrent_batches: self.get(config, "max_concurrent_batches", "an int from 1 on")?,
            tls: if tls.is_none() { None } else { Some(self.tls(&tls)?) },
            cache: if cache.is_none() {
                None
            } else {
                Some(self.cache(&cache)?)
            },
        })
    }

    fn tls(&mut self, tls: &Bound<'_, PyAny>) -> PyResult<TlsOptions> {
        Ok(TlsOptions {
            ca_file: self.get(tls, "ca_file", "a path")?,
            cert_file: self.get(tls, "cert_file", "a path")?,
            key_file: self.get(tls, "key_file", "a path")?,
            server_name: self.get(tls, "server_name", "a str")?,
        })
    }

    fn registry(&mut self, registry: &Bound<'_, PyAny>) -> PyResult<RegistryOptions> {
        Ok(RegistryOptions {
            redis: self.get(registry, "redis", "a str")?,
            cluster: self.get(registry, "cluster", "a str")?,
        })
    }

    fn cache(&mut self, cache: &Bound<'_, PyAny>) -> PyResult<CacheOptions> {
        Ok(CacheOptions {
            memory_bytes: self.get(cache, "memory_bytes", "an int from 1 on")?,
            ttl: self.get(cache, "ttl", "seconds, as a float")?,
            redis: self.get(cache, "redis", "a str")?,
        })
    }

    fn get<'py, T>(&mut self, from: &Bound<'py, PyAny>, field: &str, wanted: &str) -> PyResult<Option<T>>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        let value = from.getattr(field)?;
        if value.is_none() {
            return Ok(None);
        }
        if let Ok(value) = value.extract() {
            return Ok(Some(value));
        }
        let description = format!("is {}; give {wanted}", value.repr()?);
        self.problems.push(Problem {
            field: field.to_owned(),
            description,
        });
        Ok(None)
    }
}
