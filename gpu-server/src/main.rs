//! `gpu-server`: one binary that holds all of medkg's libtorch inference.
//!
//! Parse, check, serve, drain. The roles of a process are chosen on its command line, so one image makes every container.

mod config;
mod device;
mod engine;
mod error;
mod index;
mod inflight;
mod lingering;
mod metrics;
mod model;
mod server;
mod service;
mod shutdown;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use medkg_telemetry::logging::{LogConfig, LogFormat, init};

use config::operator::Command;
use config::{Arguments, LogStyle, ServerConfig};
use server::ServeError;

/// BSD's sysexits: the command line was wrong, something needed is unavailable, the program failed, it may work again.
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const SOFTWARE: u8 = 70;
const AGAIN: u8 = 75;

fn main() -> ExitCode {
    let typed: Vec<_> = std::env::args_os().collect();
    if Command::is_meant(&typed) {
        return operate(typed);
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // --help and --version come this way too, and are no mistakes.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return code.into();
        }
    };
    let config = match ServerConfig::try_new(arguments) {
        Ok(config) => config,
        Err(problems) => return complain(USAGE, &problems),
    };
    run(&config, server::serve(config.clone()))
}

/// Runs a server of this configuration to its end; only a log that cannot be started comes back.
fn run(config: &ServerConfig, server: impl Future<Output = Result<(), ServeError>>) -> ExitCode {
    let logs = LogConfig {
        format: match config.log_style {
            LogStyle::Json => LogFormat::Json,
            LogStyle::Text => LogFormat::Text,
        },
        filter: config.log_filter.clone(),
        service_name: "gpu-server".to_owned(),
        otlp_endpoint: config.otlp_endpoint.clone(),
    };
    let guard = match init(&logs) {
        Ok(guard) => guard,
        Err(error) => return complain(USAGE, &[error.to_string()]),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(SOFTWARE, &[format!("the runtime cannot be started: {error}")]),
    };
    let outcome = runtime.block_on(server);
    // Calls that were cut off may hold threads; nobody waits for them.
    runtime.shutdown_background();
    let code = match outcome {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "not serving");
            match error {
                ServeError::Bind { .. } | ServeError::NoGpu(_) => UNAVAILABLE,
                ServeError::Lost { .. } => AGAIN,
                ServeError::Tls(_) => USAGE,
                ServeError::Engine(_) | ServeError::Transport(_) | ServeError::Signals(_) => SOFTWARE,
            }
        }
    };
    if let Err(error) = guard.shutdown(Duration::from_secs(2)) {
        let _ = writeln!(std::io::stderr(), "gpu-server: {error}");
    }
    device::exit::at_once(code)
}

/// Carries out a command for operators.
fn operate(typed: Vec<std::ffi::OsString>) -> ExitCode {
    let command = match Command::try_parse_from(typed) {
        Ok(command) => command,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return code.into();
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(SOFTWARE, &[format!("the runtime cannot be started: {error}")]),
    };
    let ended = runtime.block_on(service::operator::run(command));
    complain(ended.code, ended.problem.as_slice())
}

fn complain(code: u8, problems: &[String]) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    for problem in problems {
        // A closed stderr leaves only the exit code to tell.
        let _ = writeln!(stderr, "gpu-server: {problem}");
    }
    code.into()
}
