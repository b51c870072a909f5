//! The lines of the log.
//!
//! The formatter of `tracing-subscriber` nests the fields of spans; people and machines who look for a tenant or a trace
//! want them at the top. So: one flat object per event. A field of the event wins over the same field of a span, an inner
//! span over an outer one. In text, values with spaces, quotes or control characters are quoted and escaped, so that
//! nothing a caller sends can forge a line.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::OnceLock;

use opentelemetry::trace::TraceContextExt as _;
use serde_json::{Map, Value};
use tracing::dispatcher::WeakDispatch;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::LogFormat;

/// Keys that the line itself uses; a field of that name is written as `field.<name>`.
const RESERVED: [&str; 5] = ["timestamp", "level", "target", "service", "span"];

/// Writes one line per event.
pub(super) struct Lines<F> {
    format: LogFormat,
    service: String,
    writer: F,
    dispatch: OnceLock<WeakDispatch>,
}

/// The fields of one span.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl<F> Lines<F> {
    pub(super) fn new(format: LogFormat, service: &str, writer: F) -> Self {
        Self {
            format,
            service: service.to_owned(),
            writer,
            dispatch: OnceLock::new(),
        }
    }

    /// Trace and span id of a span, as the tracer knows them.
    fn ids(&self, span: &Id) -> Option<(String, String)> {
        let dispatch = self.dispatch.get()?.upgrade()?;
        let context = tracing_opentelemetry::get_otel_context(span, &dispatch)?;
        let span = context.span();
        let span = span.span_context();
        span.is_valid()
            .then(|| (span.trace_id().to_string(), span.span_id().to_string()))
    }
}

impl<S, W, F> Layer<S> for Lines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write,
    F: Fn() -> W + 'static,
{
    fn on_register_dispatch(&self, subscriber: &Dispatch) {
        let _ = self.dispatch.set(subscriber.downgrade());
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        let mut innermost = None;
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(tracing_subscriber::registry::Scope::from_root)
        {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields
                    .0
                    .extend(outer.0.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
            innermost = Some((span.id(), span.name()));
        }
        if let Some((id, name)) = innermost {
            // No extensions are borrowed here: the tracer takes their lock.
            if let Some((trace, span)) = self.ids(&id) {
                fields.0.insert("trace_id".to_owned(), trace.into());
                fields.0.insert("span_id".to_owned(), span.into());
            }
            fields.0.insert("span".to_owned(), name.into());
        }
        event.record(&mut fields);
        let line = match self.format {
            LogFormat::Json => self.json(event, fields.0),
            LogFormat::Text => text(event, fields.0),
        };
        // Nobody is left to tell that stderr is closed.
        let _ = (self.writer)().write_all(line.as_bytes());
    }
}

impl<F> Lines<F> {
    fn json(&self, event: &Event<'_>, fields: Map<String, Value>) -> String {
        let metadata = event.metadata();
        let mut object = Map::new();
        object.insert("timestamp".to_owned(), now().into());
        object.insert("level".to_owned(), metadata.level().as_str().into());
        object.insert("service".to_owned(), self.service.as_str().into());
        object.insert("target".to_owned(), metadata.target().into());
        object.extend(fields);
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        line
    }
}

fn text(event: &Event<'_>, mut fields: Map<String, Value>) -> String {
    let metadata = event.metadata();
    let message = match fields.remove("message") {
        Some(Value::String(message)) => message
            .escape_debug()
            .to_string()
            .replace("\\'", "'")
            .replace("\\\"", "\""),
        other => other.unwrap_or_default().to_string(),
    };
    let mut line = format!(
        "{} {:5} {}: {message}",
        now(),
        metadata.level().as_str(),
        metadata.target()
    );
    for (key, value) in fields {
        let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '"');
        let _ = match value {
            Value::String(value) if plain(&value) => write!(line, " {key}={value}"),
            other => write!(line, " {key}={other}"),
        };
    }
    line.push('\n');
    line
}

fn now() -> String {
    let mut text = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        let name = field.name();
        if name.starts_with("otel.") {
            return;
        }
        let key = if RESERVED.contains(&name) {
            format!("field.{name}")
        } else {
            name.to_owned()
        };
        self.0.insert(key, value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}
