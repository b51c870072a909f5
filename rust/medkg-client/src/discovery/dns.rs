//! Names in the DNS: A and AAAA (RFC 1035, RFC 3596) and SRV (RFC 2782).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

use crate::config::{Address, Name};

/// For one name server and one try; there are two tries.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the system's name servers, or the one that is named.
pub(super) fn resolver(name_server: Option<SocketAddr>) -> Result<TokioResolver, String> {
    let mut builder = match name_server {
        None => TokioResolver::builder_tokio().map_err(|error| error.to_string())?,
        Some(at) => {
            let through = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = at.port();
                connection
            });
            let server = NameServerConfig::new(at.ip(), true, through.into());
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options: &mut ResolverOpts = builder.options_mut();
    // What was found is kept by `Discovery`, which must be able to look again before the TTL is over.
    options.cache_size = 0;
    options.timeout = PATIENCE;
    builder.build().map_err(|error| error.to_string())
}

/// The servers to which a name leads, and for how long that holds.
pub(super) async fn lookup(resolver: &TokioResolver, name: &Name) -> Result<(Vec<Address>, Duration), String> {
    match name.port() {
        Some(port) => addresses(resolver, name, (name.host(), port)).await,
        None => services(resolver, name).await,
    }
}

/// IPv4 where there is any, otherwise IPv6: a host that has both is one server.
async fn addresses(
    resolver: &TokioResolver,
    name: &Name,
    (host, port): (&str, u16),
) -> Result<(Vec<Address>, Duration), String> {
    let found = resolver.lookup_ip(host).await.map_err(|error| error.to_string())?;
    let holds = found.valid_until().saturating_duration_since(Instant::now());
    let found = found.iter().map(|ip| name.at(ip, port, host));
    Ok((found.collect::<Result<_, _>>()?, holds))
}

/// The servers of the most preferred priority. Weights are left to the balancer, which knows how loaded each server is.
async fn services(resolver: &TokioResolver, name: &Name) -> Result<(Vec<Address>, Duration), String> {
    let found = resolver
        .srv_lookup(name.host())
        .await
        .map_err(|error| error.to_string())?;
    let mut holds = found.valid_until().saturating_duration_since(Instant::now());
    let records: Vec<_> = found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        })
        .collect();
    let first = records.iter().map(|srv| srv.priority).min();
    let mut servers = Vec::new();
    let mut problem = None;
    for srv in records.iter().filter(|srv| Some(srv.priority) == first) {
        // The same name servers: those of a cluster may be the only ones that know its hosts.
        let host = srv.target.to_string();
        match addresses(resolver, name, (&host, srv.port)).await {
            Ok((found, ttl)) => {
                servers.extend(found);
                holds = holds.min(ttl);
            }
            Err(error) => problem = Some(error),
        }
    }
    match problem {
        Some(problem) if servers.is_empty() => Err(problem),
        _ => Ok((servers, holds)),
    }
}
