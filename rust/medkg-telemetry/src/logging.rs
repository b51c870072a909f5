//! Logs on stderr and spans to a collector, both under the trace of the caller.
//!
//! One line per event, JSON or text. Every line inside a span carries the fields of the spans around it (`tenant`,
//! `request_id`, …) and `trace_id`/`span_id`, whether or not a collector is named: the ids always come from the same
//! OpenTelemetry tracer, which without a collector just has nowhere to send to.
//!
//! Spans go out in batches from a thread and a runtime of their own. A collector that cannot be reached costs the spans,
//! never a call; it is reported once, and once more when it is back. Filters decide which events are written; spans of
//! level `INFO` and above are kept in any case, or a quiet log would break traces.

mod filter;
mod otlp;
mod output;
mod span;

use std::io::Write;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry};

pub use self::span::{RemoteParentError, current_trace_context, current_trace_id, set_remote_parent};

/// How long [`Guard`] flushes when it is dropped without [`Guard::shutdown`].
const DROP_BOUND: Duration = Duration::from_secs(2);

/// Target of spans that only a trace shows: they are made where a collector is named, and no log line has their fields.
pub const DETAIL: &str = "medkg::detail";

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One JSON object per line, for machines.
    #[default]
    Json,
    /// One line of text per event, for people.
    Text,
}

/// What to log, how, and where spans go.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// Which events are written: directives such as `info,h2=warn`.
    pub filter: String,
    /// Name of this process in logs and traces.
    pub service_name: String,
    /// Address of an OTLP/gRPC collector, e.g. `http://127.0.0.1:4317`; none: spans are sent nowhere.
    pub otlp_endpoint: Option<String>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: "info".to_owned(),
            service_name: "medkg".to_owned(),
            otlp_endpoint: None,
        }
    }
}

/// Why logs could not be set up or flushed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoggingError {
    /// The filter cannot be read.
    #[error("log filter {filter:?}: {reason}; write directives such as `info` or `info,h2=warn`")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The collector's address cannot be used.
    #[error("trace collector {endpoint:?}: {reason}; give the address of an OTLP/gRPC collector, http://HOST:PORT")]
    Collector {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The thread that talks to the collector could not be started.
    #[error("the thread that exports traces could not be started: {0}")]
    Runtime(#[source] std::io::Error),
    /// The process has a subscriber already.
    #[error("logs are set up already in this process; call `init` once")]
    AlreadyInitialised,
    /// The last spans could not be sent.
    #[error("the last spans were not sent to the collector: {0}; traces may lack their end, calls are not affected")]
    Flush(String),
}

/// Keeps logs and traces going; flush it at the end with [`Guard::shutdown`].
#[must_use = "dropping the guard ends the export of traces"]
#[derive(Debug)]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Guard {
    /// Sends the spans that are left, for at most `bound`, and ends the export. Blocks the calling thread; inside a
    /// runtime call it at the very end or from `spawn_blocking`. Lines that are logged later carry no trace id.
    pub fn shutdown(mut self, bound: Duration) -> Result<(), LoggingError> {
        self.finish(bound)
    }

    fn finish(&mut self, bound: Duration) -> Result<(), LoggingError> {
        let result = self.provider.take().map_or(Ok(()), |provider| {
            provider
                .shutdown_with_timeout(bound)
                .map_err(|error| LoggingError::Flush(error.to_string()))
        });
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        result
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = self.finish(DROP_BOUND) {
            tracing::warn!(%error, "traces were cut short");
        }
    }
}

/// Sets logs and traces up for the whole process. Call it once, from anywhere.
pub fn init(config: &LogConfig) -> Result<Guard, LoggingError> {
    let (dispatch, guard) = build(config, std::io::stderr)?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| LoggingError::AlreadyInitialised)?;
    Ok(guard)
}

/// As [`init`], but writes to `writer` and leaves it to the caller where the subscriber applies (see
/// [`tracing::dispatcher::with_default`]). `writer` is called for each line.
pub fn build<W: Write>(
    config: &LogConfig,
    writer: impl Fn() -> W + Send + Sync + 'static,
) -> Result<(Dispatch, Guard), LoggingError> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| LoggingError::Filter {
        filter: config.filter.clone(),
        reason: error.to_string(),
    })?;
    let (provider, runtime) = otlp::provider(config)?;
    let tracer = provider.tracer("medkg");
    let guard = Guard {
        provider: Some(provider),
        runtime,
    };
    let lines = output::Lines::new(config.format, &config.service_name, writer);
    let subscriber = Registry::default()
        .with(
            tracing_opentelemetry::layer()
                .with_tracer(tracer)
                .with_location(false)
                .with_threads(false)
                .with_filter(filter::Spans {
                    detail: config.otlp_endpoint.is_some(),
                }),
        )
        .with(lines.with_filter(filter::Events(filter)));
    Ok((Dispatch::new(subscriber), guard))
}
