//! The tracer, and the way of its spans to a collector.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use tokio::runtime::Runtime;

use super::{LogConfig, LoggingError};

/// How long one batch may take. A collector that hangs holds up the next batch, not a call.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Spans that wait for the collector; the rest is dropped.
const QUEUE: usize = 8192;
/// How long a span waits for company.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// A tracer provider, with an exporter and the runtime that it works on if a collector is named.
pub(super) fn provider(config: &LogConfig) -> Result<(SdkTracerProvider, Option<Runtime>), LoggingError> {
    let builder = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
        .with_resource(
            Resource::builder_empty()
                .with_service_name(config.service_name.clone())
                .build(),
        );
    let Some(endpoint) = &config.otlp_endpoint else {
        return Ok((builder.build(), None));
    };

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("medkg-otlp")
        .enable_io()
        .enable_time()
        .build()
        .map_err(LoggingError::Runtime)?;
    let exporter = {
        // The exporter's channel starts its task on the runtime that is current.
        let _context = runtime.enter();
        OtlpExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
    }
    .map_err(|error| LoggingError::Collector {
        endpoint: endpoint.clone(),
        reason: error.to_string(),
    })?;
    let reporting = Reporting {
        exporter,
        endpoint: endpoint.clone(),
        failing: AtomicBool::new(false),
    };
    let processor = BatchSpanProcessor::builder(reporting)
        .with_batch_config(
            BatchConfigBuilder::default()
                .with_max_queue_size(QUEUE)
                .with_scheduled_delay(BATCH_DELAY)
                .build(),
        )
        .build();
    Ok((builder.with_span_processor(processor).build(), Some(runtime)))
}

/// Says once that spans are lost, and once that they are not any more.
#[derive(Debug)]
struct Reporting {
    exporter: OtlpExporter,
    endpoint: String,
    failing: AtomicBool,
}

impl SpanExporter for Reporting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        let was_failing = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !was_failing => tracing::warn!(
                endpoint = self.endpoint, spans, %error,
                "spans cannot be sent to the trace collector and are dropped until it answers; calls are not affected"
            ),
            Ok(()) if was_failing => tracing::info!(endpoint = self.endpoint, "the trace collector answers again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
