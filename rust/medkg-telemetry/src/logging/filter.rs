//! What reaches which layer.
//!
//! A log level must not decide whether a trace exists: with `filter = "warn"` a span of level `INFO` would vanish, and
//! with it the trace id and the tenant of every warning inside it. So the log filter judges events, and spans of our own
//! code pass it.

use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

/// Libraries under us whose spans are no part of a trace: they describe frames and sockets.
const PLUMBING: [&str; 5] = ["h2", "hyper", "hyper_util", "tonic", "tower"];

fn is_kept_span(metadata: &Metadata<'_>) -> bool {
    let root = metadata.target().split("::").next().unwrap_or_default();
    metadata.is_span() && *metadata.level() <= Level::INFO && !PLUMBING.contains(&root) && !is_detail(metadata)
}

fn is_detail(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == super::DETAIL
}

/// Who changed what must not be lost to a quiet log.
fn is_audit(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && metadata.target() == "audit"
}

/// For the tracer: spans of level `INFO` and above, and the events of level `INFO` and above inside them.
pub(super) struct Spans {
    /// Whether anybody sees the spans of [`DETAIL`](super::DETAIL).
    pub(super) detail: bool,
}

impl Spans {
    fn keeps(&self, metadata: &Metadata<'_>) -> bool {
        is_kept_span(metadata)
            || (self.detail && is_detail(metadata))
            || (metadata.is_event() && *metadata.level() <= Level::INFO)
    }
}

impl<S> Filter<S> for Spans {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.keeps(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.keeps(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }
}

/// For the log: what the user's filter says, and all spans that say whose a line is.
pub(super) struct Events(pub(super) EnvFilter);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Filter<S> for Events {
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        !is_detail(metadata)
            && (is_kept_span(metadata) || is_audit(metadata) || Filter::<S>::enabled(&self.0, metadata, context))
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        // EnvFilter prepares its dynamic directives here, so it is asked in any case.
        let interest = Filter::<S>::callsite_enabled(&self.0, metadata);
        if is_detail(metadata) {
            Interest::never()
        } else if is_kept_span(metadata) || is_audit(metadata) {
            Interest::always()
        } else {
            interest
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Filter::<S>::max_level_hint(&self.0).map(|hint| hint.max(LevelFilter::INFO))
    }

    fn on_new_span(&self, attributes: &tracing::span::Attributes<'_>, id: &tracing::Id, context: Context<'_, S>) {
        Filter::<S>::on_new_span(&self.0, attributes, id, context);
    }

    fn on_record(&self, id: &tracing::Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        Filter::<S>::on_record(&self.0, id, values, context);
    }

    fn on_enter(&self, id: &tracing::Id, context: Context<'_, S>) {
        Filter::<S>::on_enter(&self.0, id, context);
    }

    fn on_exit(&self, id: &tracing::Id, context: Context<'_, S>) {
        Filter::<S>::on_exit(&self.0, id, context);
    }

    fn on_close(&self, id: tracing::Id, context: Context<'_, S>) {
        Filter::<S>::on_close(&self.0, id, context);
    }
}
