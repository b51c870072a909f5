//! A span's place in the caller's trace.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetrySpanExt as _, SetParentError};

use crate::trace_context::TraceContext;

/// Why a span was not put under its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteParentError {
    /// Nobody traces: `init` was not called, or the span is filtered out.
    #[error("the span is not traced: logs are not set up, or its level is below INFO")]
    NotTraced,
    /// The span has been entered, or an event was logged in it, before its parent was known.
    #[error("the span has started already: set its remote parent before it is entered")]
    AlreadyStarted,
}

/// Makes `span` a child of the caller's span: the same trace id, and the caller's span id as its parent. Call it before
/// the span is entered for the first time.
pub fn set_remote_parent(span: &Span, caller: &TraceContext) -> Result<(), RemoteParentError> {
    let state = caller
        .tracestate()
        .and_then(|state| state.parse::<TraceState>().ok())
        .unwrap_or_default();
    let remote = SpanContext::new(
        TraceId::from_bytes(caller.trace_id()),
        SpanId::from_bytes(caller.span_id()),
        TraceFlags::new(caller.flags()),
        true,
        state,
    );
    span.set_parent(Context::new().with_remote_span_context(remote))
        .map_err(|error| match error {
            SetParentError::AlreadyStarted => RemoteParentError::AlreadyStarted,
            SetParentError::LayerNotFound | SetParentError::SpanDisabled => RemoteParentError::NotTraced,
        })
}

/// Where the current span stands, to be injected into a call that it makes. `None` outside of spans.
pub fn current_trace_context() -> Option<TraceContext> {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    let state = span.trace_state().header();
    let state = Some(state.as_str()).filter(|state| !state.is_empty());
    TraceContext::try_new(
        span.trace_id().to_bytes(),
        span.span_id().to_bytes(),
        span.trace_flags().to_u8(),
        state,
    )
    .ok()
}

/// The trace id of the current span, 32 hex digits. `None` outside of spans.
pub fn current_trace_id() -> Option<String> {
    current_trace_context().map(|context| context.trace_id_hex())
}
