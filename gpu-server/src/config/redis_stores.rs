//! What is kept in Redis: the leases of a host, and which servers there are.

use std::collections::BTreeSet;

use medkg_registry::{RegistryConfig, RegistryError};

use super::{Arguments, Role};

/// The Redis of the leases. A problem is told without the URL, which may hold a password.
pub(super) fn lease_store(url: Option<&str>, problems: &mut Vec<String>) -> Option<redis::Client> {
    let client = redis::Client::open(url.filter(|url| !url.is_empty())?);
    let tell = |error| {
        problems.push(format!(
            "--lease-store: {error}; expected redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH"
        ));
    };
    client.map_err(tell).ok()
}

/// Where this server says that it is there. A problem is told without the URL, which may hold a password.
pub(super) fn registry(
    arguments: &Arguments,
    roles: &BTreeSet<Role>,
    problems: &mut Vec<String>,
) -> Option<(RegistryConfig, medkg_registry::Server)> {
    let url = arguments.registry.as_deref().filter(|url| !url.is_empty())?;
    let config = RegistryConfig::try_new(url, Some(&arguments.registry_cluster)).map_err(|error| {
        let flag = match error {
            RegistryError::Cluster(_) => "--registry-cluster",
            _ => "--registry",
        };
        problems.push(format!("{flag}: {error}"));
    });
    let address = arguments.advertise.clone().unwrap_or_default();
    let scheme = if arguments.tls_cert.is_some() { "https" } else { "http" };
    let uri: Option<http::Uri> = address.parse().ok();
    let fits = uri.is_some_and(|uri| {
        uri.scheme_str() == Some(scheme)
            && uri.host().is_some()
            && uri.port().is_some()
            && matches!(uri.path(), "" | "/")
    });
    if !fits {
        problems.push(format!(
            "--advertise {address}: expected {scheme}://HOST:PORT, as clients reach this server"
        ));
        return None;
    }
    let services = roles.iter().map(|role| role.name().to_owned()).collect();
    let address = address.trim_end_matches('/').to_owned();
    Some((config.ok()?, medkg_registry::Server { address, services }))
}
