//! `--production`: what may be convenient elsewhere, and must not happen where patients' data is.
//!
//! It grants nothing and changes no default; it refuses. A flag that was copied from a laptop's command line ends the
//! process before it binds, instead of being found later in an audit.

use super::{Arguments, DeviceChoice};

/// What the configuration has that production must not have; one line each, with what to do.
pub fn problems(arguments: &Arguments) -> Vec<String> {
    if !arguments.production {
        return Vec::new();
    }
    let mut problems = Vec::new();
    if arguments.device == DeviceChoice::Cpu {
        problems.push(
            "--device cpu: refused by --production, where a missing GPU must be seen; give cuda or cuda:N (MEDKG_DEVICE sets \
             it too)"
                .to_owned(),
        );
    }
    if arguments.tls_cert.is_none() {
        problems.push("--tls-cert: --production serves TLS only; give --tls-cert and --tls-key".to_owned());
    }
    if arguments.tls_client_ca.is_none() {
        problems.push(
            "--tls-client-ca: --production serves only clients that prove who they are; give the roots of their certificates"
                .to_owned(),
        );
    }
    if arguments.allow_plaintext {
        problems.push(
            "--allow-plaintext: refused by --production; leave it out (MEDKG_ALLOW_PLAINTEXT sets it too)".to_owned(),
        );
    }
    problems
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn flags(line: &str) -> Vec<String> {
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        let told = problems(&arguments);
        told.iter()
            .map(|problem| problem.split([' ', ':']).next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn everything_that_production_must_not_have_is_told_at_once() {
        let line = "gpu-server --production --device cpu --allow-plaintext";
        assert_eq!(
            flags(line),
            ["--device", "--tls-cert", "--tls-client-ca", "--allow-plaintext"]
        );
    }

    #[test]
    fn a_gpu_and_mutual_tls_are_accepted() {
        let line = "gpu-server --production --tls-cert c --tls-key k --tls-client-ca r";
        assert!(flags(line).is_empty());
        assert!(
            flags("gpu-server --device cpu --allow-plaintext").is_empty(),
            "only production refuses"
        );
    }
}
