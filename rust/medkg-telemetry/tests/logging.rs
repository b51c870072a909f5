//! Lines and spans as an operator sees them: real subscriber, real collector on a real socket.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use medkg_telemetry::logging::{
    DETAIL, LogConfig, LogFormat, LoggingError, RemoteParentError, build, current_trace_context, current_trace_id,
    set_remote_parent,
};
use medkg_telemetry::trace_context::TraceContext;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tracing::dispatcher::with_default;

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn objects(&self) -> Vec<serde_json::Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn config(format: LogFormat, filter: &str) -> LogConfig {
    LogConfig {
        format,
        filter: filter.to_owned(),
        service_name: "under-test".to_owned(),
        otlp_endpoint: None,
    }
}

/// What a server does with a call.
fn serve_a_call() {
    let span = tracing::info_span!(
        "embed",
        tenant = "demo",
        request_id = "r-1",
        texts = 3,
        model = tracing::field::Empty
    );
    set_remote_parent(&span, &CALLER.parse().unwrap()).unwrap();
    span.in_scope(|| {
        tracing::debug!("hidden");
        tracing::Span::current().record("model", "minilm");
        let detail = tracing::info_span!(target: DETAIL, "queue", waiting = 7);
        detail.in_scope(|| {
            tracing::info_span!("forward", batch = 1).in_scope(|| tracing::warn!(tokens = 12_u64, "slow\nforged line"));
        });
        assert_eq!(current_trace_id().as_deref(), Some(TRACE));
        assert_ne!(current_trace_context().unwrap().span_id_hex(), "00f067aa0ba902b7");
    });
}

#[test]
fn a_json_line_tells_who_called_in_which_trace() {
    let sink = Sink::default();
    let writer = sink.clone();
    // The filter hides INFO events; the spans around a warning are known all the same.
    let (dispatch, guard) = build(&config(LogFormat::Json, "warn"), move || writer.clone()).unwrap();
    with_default(&dispatch, || {
        serve_a_call();
        tracing::warn!(span = "mine", "outside");
    });
    drop(guard);
    let lines = sink.objects();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let expected = serde_json::json!({
        "level": "WARN", "service": "under-test", "target": "logging", "message": "slow\nforged line", "span": "forward",
        "tenant": "demo", "request_id": "r-1", "texts": 3, "model": "minilm", "batch": 1, "tokens": 12, "trace_id": TRACE,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(lines[0].get(key), Some(value), "{key}");
    }
    assert_eq!(lines[0].get("waiting"), None, "a detail is the trace's alone");
    assert_eq!(lines[0]["span_id"].as_str().unwrap().len(), 16);
    assert!(lines[0]["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(lines[1].get("trace_id"), None);
    assert_eq!(lines[1]["field.span"], "mine");
}

#[test]
fn a_text_line_cannot_be_forged() {
    let sink = Sink::default();
    let writer = sink.clone();
    let (dispatch, _guard) = build(&config(LogFormat::Text, "info"), move || writer.clone()).unwrap();
    with_default(&dispatch, || {
        serve_a_call();
        tracing::info!(answer = "two words\n2026 INFO forged", "it's done");
    });
    let text = sink.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains(" WARN  logging: slow\\nforged line "), "{text}");
    assert!(
        lines[0].contains(&format!(" trace_id={TRACE}")) && lines[0].contains(" tenant=demo"),
        "{text}"
    );
    assert!(
        lines[1].ends_with(r#" INFO  logging: it's done answer="two words\n2026 INFO forged""#),
        "{text}"
    );
}

#[test]
fn a_parent_that_comes_too_late_is_an_error() {
    let caller = TraceContext::random();
    let (dispatch, _guard) = build(&config(LogFormat::Json, "off"), std::io::sink).unwrap();
    with_default(&dispatch, || {
        let span = tracing::info_span!("late");
        span.in_scope(|| ());
        assert_eq!(
            set_remote_parent(&span, &caller),
            Err(RemoteParentError::AlreadyStarted)
        );
    });
    assert_eq!(
        set_remote_parent(&tracing::info_span!("unseen"), &caller),
        Err(RemoteParentError::NotTraced)
    );
    assert_eq!(current_trace_id(), None);
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let error = build(&config(LogFormat::Json, "info,=,"), std::io::sink)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, LoggingError::Filter { .. }), "{error}");
    let mut collector = config(LogFormat::Json, "info");
    for endpoint in ["not an address", "https://127.0.0.1:1"] {
        collector.otlp_endpoint = Some(endpoint.to_owned());
        let error = build(&collector, std::io::sink).map(drop).unwrap_err();
        assert!(error.to_string().contains(endpoint), "{error}");
    }
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let spans = request.into_inner().resource_spans.into_iter();
        let spans = spans.flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn a_detail_is_not_made_where_nobody_would_see_it() {
    let (dispatch, guard) = build(&config(LogFormat::Json, "trace"), std::io::sink).unwrap();
    with_default(&dispatch, || {
        assert!(tracing::info_span!(target: DETAIL, "queue").is_disabled());
        assert!(!tracing::info_span!("queue").is_disabled());
    });
    drop(guard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_collector_gets_spans_under_the_callers_span() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut with_collector = config(LogFormat::Json, "info");
    with_collector.otlp_endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    let (dispatch, guard) = build(&with_collector, std::io::sink).unwrap();
    with_default(&dispatch, serve_a_call);
    tokio::task::spawn_blocking(move || guard.shutdown(Duration::from_secs(20)))
        .await
        .unwrap()
        .unwrap();

    let spans = collector.0.lock().unwrap().clone();
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(spans.len(), 3);
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    assert_eq!(hex(&named("embed").parent_span_id), "00f067aa0ba902b7");
    assert_eq!(named("queue").parent_span_id, named("embed").span_id);
    assert_eq!(named("forward").parent_span_id, named("queue").span_id);
    assert!(
        named("embed")
            .attributes
            .iter()
            .any(|attribute| attribute.key == "tenant")
    );
}

#[test]
fn a_collector_that_is_not_there_holds_nothing_up() {
    // Bound and never accepted, then closed: nobody listens there.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let sink = Sink::default();
    let writer = sink.clone();
    let mut unreachable = config(LogFormat::Json, "info");
    unreachable.otlp_endpoint = Some(format!("http://{address}"));
    let (dispatch, guard) = build(&unreachable, move || writer.clone()).unwrap();
    with_default(&dispatch, || {
        for _ in 0..20_000 {
            tracing::info_span!("call").in_scope(|| ());
        }
    });
    let bound = Duration::from_millis(200);
    let started = Instant::now();
    // Thousands of spans wait and each batch is refused: whether it reports that or not, it gives up in time.
    drop(guard.shutdown(bound));
    assert!(started.elapsed() < bound * 50, "shutdown did not keep its bound");
}
