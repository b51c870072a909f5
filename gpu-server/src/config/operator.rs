//! The commands for operators, as they are typed. They are parsed apart from the server's flags, whose environment variables
//! may be set wherever an operator works.

use std::path::PathBuf;

use clap::{Args, Parser};

/// Copies collections of a running gpu-server, or puts them back.
///
/// Exit codes: 0 done; 64 the command line is wrong; 65 the backup or a collection is damaged; 66 there is no such backup or
/// collection; 69 the server cannot be reached, or its GPU cannot be used; 70 the server failed; 73 it is there already, or the disk
/// is full; 75 the server is not ready; 77 the server lets you not in; 130 interrupted.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpu-server", version)]
pub enum Command {
    /// Copies collections into a new backup below the server's --backup-root, while it serves.
    Backup {
        #[command(flatten)]
        server: Server,
        /// What the backup will be called.
        #[arg(long, value_name = "NAME")]
        to: String,
        #[command(flatten)]
        target: Target,
    },
    /// Checks a backup and puts its collections back, while the server serves.
    Restore {
        #[command(flatten)]
        server: Server,
        /// The backup's name.
        #[arg(long, value_name = "NAME")]
        from: String,
        #[command(flatten)]
        target: Target,
        /// Replace collections that are there; else they are refused before anything is changed.
        #[arg(long)]
        replace: bool,
        /// Check the backup and change nothing.
        #[arg(long, conflicts_with = "replace")]
        check: bool,
    },
}

/// Which collections are meant.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Only this tenant's collections.
    #[arg(long)]
    pub tenant: Option<String>,
    /// Only this collection of the tenant.
    #[arg(long, requires = "tenant")]
    pub collection: Option<String>,
}

/// The server, and how to get in.
#[derive(Debug, Clone, Args)]
pub struct Server {
    /// The server's address for operators (its --admin-listen), e.g. <http://127.0.0.1:7071>.
    #[arg(long, value_name = "URL")]
    pub admin: String,
    /// Who asks, for the server's audit log; written as a tenant is.
    #[arg(long, default_value = "operator", value_name = "NAME")]
    pub operator: String,
    /// PEM file with the roots that the server's certificate must chain to.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file with the certificate to show.
    #[arg(long, requires = "tls_key", requires = "tls_ca", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Name to expect in the server's certificate; without it, the host of the address.
    #[arg(long, requires = "tls_ca", value_name = "NAME")]
    pub tls_server_name: Option<String>,
}

impl Command {
    /// Whether the first argument names a command.
    pub fn is_meant(arguments: &[std::ffi::OsString]) -> bool {
        let first = arguments.get(1).and_then(|first| first.to_str());
        first.is_some_and(|first| ["backup", "restore"].contains(&first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Command::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn a_command_is_the_first_argument_and_flags_are_none() {
        let meant = |line: &str| {
            let arguments: Vec<_> = line.split_whitespace().map(Into::into).collect();
            Command::is_meant(&arguments)
        };
        assert!(meant("gpu-server backup") && meant("gpu-server restore --help"));
        assert!(!meant("gpu-server") && !meant("gpu-server --data-dir backup") && !meant("gpu-server serve"));
    }

    #[test]
    fn what_belongs_together_is_asked_for_together() {
        let server = "--admin http://h:1";
        assert!(parse(&format!("gpu-server backup {server} --to n --tenant t --collection c")).is_ok());
        assert!(parse(&format!("gpu-server backup {server} --to n --collection c")).is_err());
        assert!(parse("gpu-server backup --to n").is_err());
        assert!(parse(&format!("gpu-server restore {server}")).is_err());
        assert!(parse(&format!("gpu-server restore {server} --from n --check --replace")).is_err());
        assert!(
            parse(&format!(
                "gpu-server restore {server} --from n --tls-cert c --tls-key k"
            ))
            .is_err()
        );
        assert!(
            parse(&format!(
                "gpu-server restore {server} --from n --tls-ca r --tls-cert c --tls-key k"
            ))
            .is_ok()
        );
    }
}
