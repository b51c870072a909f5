//! What calls may make do with where the network fails. Nothing unless it is asked for, and an answer that rests on it
//! says so.

use super::check::Checker;
use super::{ClientConfig, ClientOptions, Target};
use crate::policy::classify::Service;

/// What a user allows where the network fails. None means no.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FallbackOptions {
    /// Servers of another cluster, for embedding and reranking: those that take a request that all of `addresses` failed.
    pub addresses: Option<Vec<String>>,
    /// Whether embeddings may come from the cache alone where no server says which model it has now.
    pub stale_cache: Option<bool>,
    /// Whether documents that cannot be reranked may come in the order of their first-stage scores.
    pub dense_order: Option<bool>,
}

/// What calls may make do with.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct FallbackConfig {
    /// Where a second cluster is found; none if it is empty.
    pub targets: Vec<Target>,
    /// See [`FallbackOptions::stale_cache`].
    pub stale_cache: bool,
    /// See [`FallbackOptions::dense_order`].
    pub dense_order: bool,
}

impl Checker {
    pub(super) fn fallback(&mut self, options: &ClientOptions) -> FallbackConfig {
        let Some(fallback) = &options.fallback else {
            return FallbackConfig::default();
        };
        let stale_cache = fallback.stale_cache.unwrap_or(false);
        if stale_cache && options.cache.is_none() {
            self.problem("fallback.stale_cache", "is set, but there is no cache; give cache too");
        }
        let addresses = fallback.addresses.as_deref();
        FallbackConfig {
            targets: addresses.map_or_else(Vec::new, |texts| self.targets("fallback.addresses", texts, true)),
            stale_cache,
            dense_order: fallback.dense_order.unwrap_or(false),
        }
    }
}

impl ClientConfig {
    /// The configuration of calls to the second cluster, if there is one for the service.
    pub(crate) fn second(&self, service: Service) -> Option<Self> {
        if service.has_state() || self.fallback.targets.is_empty() {
            return None;
        }
        let mut second = self.clone();
        let targets = std::mem::take(&mut second.fallback).targets;
        second.targets = std::array::from_fn(|_| targets.clone());
        Some(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CacheOptions;

    fn options(fallback: FallbackOptions) -> ClientOptions {
        ClientOptions {
            fallback: Some(fallback),
            ..ClientOptions::default()
        }
    }

    fn problems(options: &ClientOptions) -> Vec<String> {
        let error = ClientConfig::try_new(options).unwrap_err();
        error.problems.into_iter().map(|problem| problem.field).collect()
    }

    #[test]
    fn addresses_are_checked_as_all_others_are() {
        let wrong = [
            "http://127.0.0.1:1",
            "localhost:1",
            "http://gpu.example.org:1",
            "https://b:1",
        ];
        let wrong = options(FallbackOptions {
            addresses: Some(wrong.map(str::to_owned).to_vec()),
            stale_cache: Some(true),
            ..FallbackOptions::default()
        });
        let expected = [
            "fallback.stale_cache",
            "fallback.addresses[1]",
            "fallback.addresses[2]",
            "tls",
        ];
        assert_eq!(problems(&wrong), expected);
        let empty = FallbackOptions {
            addresses: Some(Vec::new()),
            ..FallbackOptions::default()
        };
        assert_eq!(problems(&options(empty)), ["fallback.addresses"]);
    }

    #[test]
    fn a_second_cluster_is_for_services_without_state_and_has_no_third() {
        let config = ClientConfig::try_new(&ClientOptions {
            cache: Some(CacheOptions::default()),
            ..options(FallbackOptions {
                addresses: Some(vec!["http://127.0.0.1:2".to_owned()]),
                stale_cache: Some(true),
                dense_order: Some(true),
            })
        });
        let config = config.unwrap();
        for service in [Service::Embedding, Service::Reranking] {
            let second = config.second(service).unwrap();
            assert_eq!(second.targets(service), config.fallback.targets);
            assert!(second.second(service).is_none());
        }
        assert!(config.second(Service::Vector).is_none() && config.second(Service::Gpu).is_none());
    }
}
