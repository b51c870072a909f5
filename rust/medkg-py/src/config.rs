//! `medkg.ClientConfig` as the client's options, and back. Everything is passed through; only types are checked here.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use medkg_client::config::{
    CacheOptions, ClientConfig, ClientOptions, CoalesceOptions, ConfigError, Environment, FallbackOptions, Origin,
    Problem, RegistryOptions, Sources, TlsOptions,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyTuple};

use crate::errors;

/// A valid configuration and what it was made of, or a `ConfigError` that lists every problem.
pub(crate) fn read(config: &Bound<'_, PyAny>) -> PyResult<(ClientOptions, ClientConfig)> {
    let (options, problems) = options(config)?;
    let checked = all(config.py(), problems, ClientConfig::try_new(&options))?;
    Ok((options, checked))
}

/// The sources of a configuration; `arguments` is a `medkg.ClientConfig` of what the program says itself.
pub(crate) fn sources(
    file: Option<PathBuf>,
    environment: HashMap<OsString, OsString>,
    arguments: &Bound<'_, PyAny>,
) -> PyResult<Sources> {
    let (options, problems) = options(arguments)?;
    let sources = Sources {
        arguments: options,
        environment: Environment::new(environment),
        file,
    };
    if !problems.is_empty() {
        all(arguments.py(), problems, sources.load())?;
    }
    Ok(sources)
}

/// The configuration out of all sources; the same with the defaults written out; and where each option that is not the
/// default comes from.
#[pyfunction]
pub(crate) fn load_config<'py>(
    py: Python<'py>,
    path: Option<PathBuf>,
    environment: HashMap<OsString, OsString>,
    arguments: &Bound<'py, PyAny>,
) -> PyResult<(Py<PyAny>, Py<PyAny>, Bound<'py, PyDict>)> {
    let sources = sources(path, environment, arguments)?;
    let loaded = py.detach(|| sources.load());
    let loaded = loaded.map_err(|error| errors::config(py, &error))?;
    let file = sources.file().map(|path| path.display().to_string());
    let origins = PyDict::new(py);
    for (option, origin) in loaded.origins {
        match origin {
            Origin::Argument => origins.set_item(option, "argument")?,
            Origin::Variable(name) => origins.set_item(option, name)?,
            Origin::File => origins.set_item(option, &file)?,
        }
    }
    let shown = show(py, &loaded.options)?;
    Ok((shown, show(py, &loaded.options.with_defaults())?, origins))
}

/// As a `medkg.ClientConfig`.
pub(crate) fn show(py: Python<'_>, options: &ClientOptions) -> PyResult<Py<PyAny>> {
    let module = py.import("medkg.config")?;
    let fields = PyDict::new(py);
    let list = |list: &Option<Vec<String>>| list.as_ref().map(|items| PyTuple::new(py, items)).transpose();
    fields.set_item("address", &options.address)?;
    fields.set_item("addresses", list(&options.addresses)?)?;
    fields.set_item("name_server", &options.name_server)?;
    fields.set_item("embedding_addresses", list(&options.embedding_addresses)?)?;
    fields.set_item("reranking_addresses", list(&options.reranking_addresses)?)?;
    fields.set_item("vector_addresses", list(&options.vector_addresses)?)?;
    fields.set_item("gpu_addresses", list(&options.gpu_addresses)?)?;
    fields.set_item("allow_plaintext", options.allow_plaintext)?;
    fields.set_item("tenant", &options.tenant)?;
    fields.set_item("timeout", options.timeout)?;
    fields.set_item("connect_timeout", options.connect_timeout)?;
    fields.set_item("max_attempts", options.max_attempts)?;
    fields.set_item("backoff_initial", options.backoff_initial)?;
    fields.set_item("backoff_max", options.backoff_max)?;
    fields.set_item("retry_budget", options.retry_budget)?;
    fields.set_item("breaker_failures", options.breaker_failures)?;
    fields.set_item("breaker_cooldown", options.breaker_cooldown)?;
    fields.set_item("max_connections", options.max_connections)?;
    fields.set_item("max_pending", options.max_pending)?;
    fields.set_item("max_connection_age", options.max_connection_age)?;
    fields.set_item("hedge_after", options.hedge_after)?;
    fields.set_item("max_batch_texts", options.max_batch_texts)?;
    fields.set_item("max_batch_bytes", options.max_batch_bytes)?;
    fields.set_item("max_batch_tokens", options.max_batch_tokens)?;
    fields.set_item("max_concurrent_batches", options.max_concurrent_batches)?;
    if let Some(tls) = &options.tls {
        let inner = PyDict::new(py);
        inner.set_item("ca_file", &tls.ca_file)?;
        inner.set_item("cert_file", &tls.cert_file)?;
        inner.set_item("key_file", &tls.key_file)?;
        inner.set_item("server_name", &tls.server_name)?;
        fields.set_item("tls", module.getattr("TlsConfig")?.call((), Some(&inner))?)?;
    }
    if let Some(registry) = &options.registry {
        let inner = PyDict::new(py);
        inner.set_item("redis", &registry.redis)?;
        inner.set_item("cluster", &registry.cluster)?;
        fields.set_item("registry", module.getattr("RegistryConfig")?.call((), Some(&inner))?)?;
    }
    if let Some(cache) = &options.cache {
        let inner = PyDict::new(py);
        inner.set_item("memory_bytes", cache.memory_bytes)?;
        inner.set_item("ttl", cache.ttl)?;
        inner.set_item("redis", &cache.redis)?;
        fields.set_item("cache", module.getattr("CacheConfig")?.call((), Some(&inner))?)?;
    }
    if let Some(fallback) = &options.fallback {
        let inner = PyDict::new(py);
        inner.set_item("addresses", list(&fallback.addresses)?)?;
        inner.set_item("stale_cache", fallback.stale_cache)?;
        inner.set_item("dense_order", fallback.dense_order)?;
        fields.set_item("fallback", module.getattr("FallbackConfig")?.call((), Some(&inner))?)?;
    }
    if let Some(coalesce) = &options.coalesce {
        let inner = PyDict::new(py);
        inner.set_item("max_wait", coalesce.max_wait)?;
        inner.set_item("max_texts", coalesce.max_texts)?;
        fields.set_item("coalesce", module.getattr("CoalesceConfig")?.call((), Some(&inner))?)?;
    }
    let shown = module.getattr("ClientConfig")?.call((), Some(&fields))?;
    Ok(shown.unbind())
}

/// What came of a check, with the problems that were found before it.
fn all<T>(py: Python<'_>, mut problems: Vec<Problem>, checked: Result<T, ConfigError>) -> PyResult<T> {
    match checked {
        Ok(checked) if problems.is_empty() => Ok(checked),
        checked => {
            problems.extend(checked.err().map_or_else(Vec::new, |error| error.problems));
            Err(errors::config(py, &ConfigError::new(problems)))
        }
    }
}

fn options(config: &Bound<'_, PyAny>) -> PyResult<(ClientOptions, Vec<Problem>)> {
    let py = config.py();
    if !config.is_instance(&py.import("medkg.config")?.getattr("ClientConfig")?)? {
        let kind = config.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "the configuration is a {kind}; give a medkg.ClientConfig, or its fields by name: address=..., tenant=..."
        )));
    }
    let mut reader = Reader { problems: Vec::new() };
    let options = reader.options(config)?;
    Ok((options, reader.problems))
}

struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn options(&mut self, config: &Bound<'_, PyAny>) -> PyResult<ClientOptions> {
        let (tls, cache) = (config.getattr("tls")?, config.getattr("cache")?);
        let (registry, fallback) = (config.getattr("registry")?, config.getattr("fallback")?);
        let coalesce = config.getattr("coalesce")?;
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
            allow_plaintext: self.get(config, "allow_plaintext", "a bool")?,
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
            hedge_after: self.get(config, "hedge_after", "seconds, as a float")?,
            max_batch_texts: self.get(config, "max_batch_texts", "an int from 1 on")?,
            max_batch_bytes: self.get(config, "max_batch_bytes", "an int from 1 on")?,
            max_batch_tokens: self.get(config, "max_batch_tokens", "an int from 1 on")?,
            max_concurrent_batches: self.get(config, "max_concurrent_batches", "an int from 1 on")?,
            tls: if tls.is_none() { None } else { Some(self.tls(&tls)?) },
            cache: if cache.is_none() {
                None
            } else {
                Some(self.cache(&cache)?)
            },
            fallback: if fallback.is_none() {
                None
            } else {
                Some(self.fallback(&fallback)?)
            },
            coalesce: if coalesce.is_none() {
                None
            } else {
                Some(self.coalesce(&coalesce)?)
            },
        })
    }

    fn tls(&mut self, tls: &Bound<'_, PyAny>) -> PyResult<TlsOptions> {
        Ok(TlsOptions {
            ca_file: self.get(tls, "tls.ca_file", "a path")?,
            cert_file: self.get(tls, "tls.cert_file", "a path")?,
            key_file: self.get(tls, "tls.key_file", "a path")?,
            server_name: self.get(tls, "tls.server_name", "a str")?,
        })
    }

    fn registry(&mut self, registry: &Bound<'_, PyAny>) -> PyResult<RegistryOptions> {
        Ok(RegistryOptions {
            redis: self.get(registry, "registry.redis", "a str")?,
            cluster: self.get(registry, "registry.cluster", "a str")?,
        })
    }

    fn cache(&mut self, cache: &Bound<'_, PyAny>) -> PyResult<CacheOptions> {
        Ok(CacheOptions {
            memory_bytes: self.get(cache, "cache.memory_bytes", "an int from 1 on")?,
            ttl: self.get(cache, "cache.ttl", "seconds, as a float")?,
            redis: self.get(cache, "cache.redis", "a str")?,
        })
    }

    fn fallback(&mut self, fallback: &Bound<'_, PyAny>) -> PyResult<FallbackOptions> {
        Ok(FallbackOptions {
            addresses: self.get(fallback, "fallback.addresses", "a list of str")?,
            stale_cache: self.get(fallback, "fallback.stale_cache", "a bool")?,
            dense_order: self.get(fallback, "fallback.dense_order", "a bool")?,
        })
    }

    fn coalesce(&mut self, coalesce: &Bound<'_, PyAny>) -> PyResult<CoalesceOptions> {
        Ok(CoalesceOptions {
            max_wait: self.get(coalesce, "coalesce.max_wait", "seconds, as a float")?,
            max_texts: self.get(coalesce, "coalesce.max_texts", "an int from 1 on")?,
        })
    }

    /// A field by its name, in a group by the last part of it.
    fn get<'py, T>(&mut self, from: &Bound<'py, PyAny>, field: &str, wanted: &str) -> PyResult<Option<T>>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        let value = from.getattr(field.rsplit('.').next().unwrap_or(field))?;
        if value.is_none() {
            return Ok(None);
        }
        if let Ok(value) = value.extract() {
            return Ok(Some(value));
        }
        // Anything but a number may be a password in the wrong place.
        let number = value.is_instance_of::<PyInt>() || value.is_instance_of::<PyFloat>();
        let what = if number || value.is_instance_of::<PyBool>() {
            value.repr()?.to_string()
        } else {
            format!("of type {}", value.get_type().name()?)
        };
        self.problems.push(Problem {
            field: field.to_owned(),
            description: format!("is {what}; give {wanted}"),
        });
        Ok(None)
    }
}
