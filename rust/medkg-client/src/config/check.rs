//! The checks behind [`ClientConfig::try_new`](super::ClientConfig::try_new). Each notes what is wrong and goes on with
//! something harmless, so that one pass finds everything.

use std::fmt;
use std::time::Duration;

use super::{
    ADDRESS, CACHE_BYTES, CACHE_TTL, CacheConfig, CacheOptions, ClientOptions, Problem, RegistryConfig,
    RegistryOptions, Target, TlsOptions,
};
use crate::cache::RedisUrl;

/// Collects problems.
#[derive(Default)]
pub(super) struct Checker {
    /// Whether plaintext may go to other machines.
    pub(super) allow_plaintext: bool,
    pub(super) problems: Vec<Problem>,
}

impl Checker {
    pub(super) fn problem(&mut self, field: &str, description: impl fmt::Display) {
        self.problems.push(Problem {
            field: field.to_owned(),
            description: description.to_string(),
        });
    }

    pub(super) fn keep<T>(&mut self, field: &str, result: Result<T, impl fmt::Display>) -> Option<T> {
        result.map_err(|error| self.problem(field, error)).ok()
    }

    pub(super) fn some<T>(&mut self, field: &str, value: Option<T>, description: impl FnOnce() -> String) -> Option<T> {
        // What was reported already needs no second report under another name.
        if value.is_none() && !self.problems.iter().any(|problem| problem.field == field) {
            self.problem(field, description());
        }
        value
    }

    pub(super) fn seconds(&mut self, field: &str, seconds: Option<f64>, default: Duration) -> Duration {
        let Some(seconds) = seconds else { return default };
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if !duration.is_zero() => duration,
            _ => {
                self.problem(field, format!("is {seconds}; give seconds, more than 0"));
                default
            }
        }
    }

    pub(super) fn cache(&mut self, options: &CacheOptions) -> CacheConfig {
        let memory_bytes = options.memory_bytes.unwrap_or(CACHE_BYTES);
        self.at_least_one("cache.memory_bytes", memory_bytes);
        let redis = options.redis.as_deref().map(RedisUrl::try_new);
        CacheConfig {
            memory_bytes,
            ttl: self.seconds("cache.ttl", options.ttl, CACHE_TTL),
            redis: redis.and_then(|url| self.keep("cache.redis", url)),
        }
    }

    pub(super) fn at_least_one(&mut self, field: &str, value: u64) {
        if value == 0 {
            self.problem(field, "is 0; give at least 1");
        }
    }

    pub(super) fn size(&mut self, field: &str, value: Option<u64>, default: usize) -> usize {
        let Some(value) = value else { return default };
        self.at_least_one(field, value);
        usize::try_from(value).unwrap_or(usize::MAX)
    }

    pub(super) fn registry(&mut self, options: &RegistryOptions) -> Option<RegistryConfig> {
        let url = self.some("registry.redis", options.redis.as_deref(), || {
            "is missing; give redis://HOST:PORT".to_owned()
        })?;
        let made = RegistryConfig::try_new(url, options.cluster.as_deref());
        let field = match made {
            Err(medkg_registry::RegistryError::Cluster(_)) => "registry.cluster",
            _ => "registry.redis",
        };
        self.keep(field, made)
    }

    pub(super) fn all_targets(
        &mut self,
        options: &ClientOptions,
        registry: Option<RegistryConfig>,
    ) -> [Vec<Target>; 4] {
        let ways = [
            ("address", options.address.is_some()),
            ("addresses", options.addresses.is_some()),
            ("registry", options.registry.is_some()),
        ];
        let given: Vec<&str> = ways.iter().filter_map(|(name, given)| given.then_some(*name)).collect();
        if let [first, second, ..] = given[..] {
            self.problem(first, format!("is given together with {second}; give one of the two"));
        }
        let shared = match (&options.address, &options.addresses, &options.registry) {
            (Some(one), None, None) => self.targets("address", std::slice::from_ref(one), false),
            (None, Some(many), None) => self.targets("addresses", many, true),
            (None, None, None) => self.targets("address", &[ADDRESS.to_owned()], false),
            _ => registry.map(Target::Registry).into_iter().collect(),
        };
        // A server holds its own collections and leases: calls that are spread over several would each see a part.
        [
            ("embedding_addresses", &options.embedding_addresses, usize::MAX),
            ("reranking_addresses", &options.reranking_addresses, usize::MAX),
            ("vector_addresses", &options.vector_addresses, 1),
            ("gpu_addresses", &options.gpu_addresses, 1),
        ]
        .map(|(field, own, most)| match own {
            None => shared.iter().take(most).cloned().collect(),
            Some(own) => {
                if own.len() > most {
                    let count = own.len();
                    self.problem(
                        field,
                        format!(
                            "has {count} addresses, but each server holds its own collections and leases, so an answer \
                             would be a part of the whole; give one address"
                        ),
                    );
                }
                self.targets(field, own, true)
            }
        })
    }

    pub(super) fn targets(&mut self, field: &str, texts: &[String], indexed: bool) -> Vec<Target> {
        if texts.is_empty() {
            self.problem(field, "is an empty list; give at least one address, or leave it out");
        }
        let mut targets = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let field = if indexed {
                format!("{field}[{index}]")
            } else {
                field.to_owned()
            };
            if let Some(target) = self.keep(&field, Target::try_new(text)) {
                if targets.contains(&target) {
                    self.problem(&field, format!("{text:?} is there twice"));
                } else if target.is_open_to_others() && !self.allow_plaintext {
                    self.problem(
                        &field,
                        format!(
                            "{text:?} would send texts in plaintext to another machine; use https, or set \
                             allow_plaintext if the network itself is trusted"
                        ),
                    );
                } else {
                    targets.push(target);
                }
            }
        }
        targets
    }

    pub(super) fn tls<'a>(
        &mut self,
        tls: Option<&TlsOptions>,
        mut targets: impl Iterator<Item = &'a Target> + Clone,
    ) -> Option<TlsOptions> {
        // What a registry leads to may be https.
        let may_be = targets.clone().any(|target| matches!(target, Target::Registry(_)));
        let any_tls = targets.any(Target::is_tls);
        match tls {
            None => {
                if any_tls {
                    self.problem("tls", "is missing, but an address is https; give tls.ca_file");
                }
                None
            }
            Some(tls) => {
                if !any_tls && !may_be {
                    self.problem(
                        "tls",
                        "is given, but no address is https; plaintext would go out unprotected",
                    );
                }
                if tls.ca_file.is_none() {
                    self.problem(
                        "tls.ca_file",
                        "is missing; give the PEM file of the authorities of the servers",
                    );
                }
                match (&tls.cert_file, &tls.key_file) {
                    (Some(_), None) => self.problem("tls.key_file", "is missing, but tls.cert_file is given"),
                    (None, Some(_)) => self.problem("tls.cert_file", "is missing, but tls.key_file is given"),
                    _ => {}
                }
                Some(tls.clone())
            }
        }
    }
}
