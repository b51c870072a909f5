//! Where the servers of a service are found.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::Uri;
use medkg_registry::RegistryConfig;

const SHAPE: &str = "write http://HOST:PORT, https://HOST:PORT for TLS, dns+http://HOST:PORT (or dns+https) for every address of \
                     a name, or srv+http://NAME (or srv+https) for every server of an SRV record";

/// The address of a server.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    uri: Uri,
    text: String,
    /// The name that a certificate must have, where it is not the host of the address.
    name: Option<String>,
}

impl Address {
    pub(crate) fn try_new(text: &str) -> Result<Self, String> {
        // The text is not repeated where it may hold a password.
        if text.contains('@') {
            return Err("has a user name or password; give only host and port, and use TLS certificates".to_owned());
        }
        let uri: Uri = text
            .parse()
            .map_err(|error| format!("{text:?} is no address ({error}); {SHAPE}"))?;
        match uri.scheme_str() {
            Some("http" | "https") => {}
            _ => return Err(format!("{text:?} has no scheme that medkg speaks; {SHAPE}")),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(format!("{text:?} has no host; {SHAPE}"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(format!("{text:?} has a path; {SHAPE}"));
        }
        let text = text.trim_end_matches('/').to_owned();
        Ok(Self { uri, text, name: None })
    }

    /// An address that a name led to.
    fn found(scheme: Scheme, at: SocketAddr, name: &str) -> Result<Self, String> {
        let address = Self::try_new(&format!("{}://{at}", scheme.as_str()))?;
        let name = Some(name.trim_end_matches('.').to_owned());
        Ok(Self { name, ..address })
    }

    /// The address as a URI.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The address as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// True for `https`.
    pub fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// True if what is sent there can be read on the way.
    pub(crate) fn is_open_to_others(&self) -> bool {
        let host = self.uri.host().unwrap_or_default();
        let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_near = ip.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback());
        !self.is_tls() && !is_near
    }

    /// The name that its certificate must have, where it is not the host of the address.
    pub(crate) fn certified_name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether there is TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A name that leads to servers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    text: String,
    scheme: Scheme,
    host: String,
    /// None: the port is in the SRV record.
    port: Option<u16>,
}

impl Name {
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// None: the name is that of an SRV record, which says the ports.
    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }

    /// The server at an address to which `certified` led.
    pub(crate) fn at(&self, ip: IpAddr, port: u16, certified: &str) -> Result<Address, String> {
        Address::found(self.scheme, SocketAddr::new(ip, port), certified)
    }
}

/// Where servers of a service are found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// At an address.
    Server(Address),
    /// By DNS.
    Name(Name),
    /// In a registry.
    Registry(RegistryConfig),
}

impl Target {
    pub(crate) fn try_new(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once('+').unwrap_or(("", text));
        let is_srv = match kind {
            "" => return Address::try_new(text).map(Self::Server),
            "dns" => false,
            "srv" => true,
            _ => return Err(format!("{text:?} has no scheme that medkg speaks; {SHAPE}")),
        };
        let address = Address::try_new(rest)?;
        let host = address.uri.host().unwrap_or_default().to_owned();
        let port = address.uri.port_u16();
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Err(format!("{text:?} is an address already; leave {kind}+ out"));
        }
        match (is_srv, port) {
            (true, Some(port)) => {
                return Err(format!(
                    "{text:?} has the port {port}, but an SRV record says the ports; leave it out"
                ));
            }
            (false, None) => return Err(format!("{text:?} has no port; {SHAPE}")),
            _ => {}
        }
        Ok(Self::Name(Name {
            text: text.trim_end_matches('/').to_owned(),
            scheme: if address.is_tls() { Scheme::Https } else { Scheme::Http },
            host,
            port,
        }))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Server(address) => address.as_str(),
            Self::Name(name) => &name.text,
            Self::Registry(registry) => registry.cluster(),
        }
    }

    /// True for TLS. What a registry leads to says so itself.
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Server(address) => address.is_tls(),
            Self::Name(name) => name.scheme == Scheme::Https,
            Self::Registry(_) => false,
        }
    }

    /// True if what is sent there can be read on the way. Names and registries: what they lead to is looked at instead.
    pub(crate) fn is_open_to_others(&self) -> bool {
        match self {
            Self::Server(address) => address.is_open_to_others(),
            Self::Name(_) | Self::Registry(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_addresses_whose_certificates_have_the_name() {
        let Target::Name(name) = Target::try_new("dns+https://gpu.example:7070").unwrap() else {
            panic!("no name");
        };
        assert_eq!((name.host(), name.port()), ("gpu.example", Some(7070)));
        let address = name.at("10.0.0.3".parse().unwrap(), 7070, "gpu.example.").unwrap();
        assert_eq!(address.as_str(), "https://10.0.0.3:7070");
        assert_eq!(address.certified_name(), Some("gpu.example"));
        let address = name.at("fd00::1".parse().unwrap(), 1, "gpu.example").unwrap();
        assert_eq!(address.as_str(), "https://[fd00::1]:1");
    }

    #[test]
    fn a_record_of_services_says_the_ports_itself() {
        let target = Target::try_new("srv+http://_medkg._tcp.example").unwrap();
        assert!(matches!(&target, Target::Name(name) if name.port().is_none()));
        assert_eq!(target.as_str(), "srv+http://_medkg._tcp.example");
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (text, told) in [
            ("dns+http://gpu.example", "no port"),
            ("srv+http://gpu.example:1", "leave it out"),
            ("dns+http://10.0.0.1:7070", "leave dns+ out"),
            ("dns+http://[::1]:7070", "leave dns+ out"),
            ("tcp+http://gpu.example:1", "no scheme"),
            ("dns+http://me:hunter2@gpu.example:1", "user name"),
            ("dns+ftp://gpu.example:1", "no scheme"),
        ] {
            let problem = Target::try_new(text).unwrap_err();
            assert!(problem.contains(told), "{text}: {problem}");
            assert!(!problem.contains("hunter2"));
        }
    }
}
