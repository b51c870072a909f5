//! What the client tells on its way (a breaker that opens, a server that is left out) for Python's logging.
//!
//! Events come about on the runtime's threads, which never enter the interpreter (`awaiting`). So they are put into a short
//! list, and whoever comes by with the GIL hands them on to the logger `medkg.client`: the start of a call, the end of a wait, the
//! inbox of an event loop. Where nobody comes by for long, the newest are dropped and counted.

use std::collections::VecDeque;
use std::fmt::{Debug, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Most events that wait.
const ROOM: usize = 1024;

/// Something that happened.
#[derive(Debug)]
struct Told {
    at: SystemTime,
    level: Level,
    message: String,
    fields: Vec<(&'static str, String)>,
}

/// What waits for a thread with the GIL.
#[derive(Debug, Default)]
struct Waiting {
    events: Mutex<VecDeque<Told>>,
    dropped: AtomicUsize,
    any: AtomicBool,
}

/// A forked child gets a list of its own: its parent's may have been locked when it was forked.
static WAITING: LazyLock<ArcSwap<Waiting>> = LazyLock::new(ArcSwap::default);

/// Begins to listen; once.
pub(crate) fn begin() {
    static BEGUN: Once = Once::new();
    // Made now: a child must not find it half made.
    LazyLock::force(&WAITING);
    // Nobody else sets it: the extension has a `tracing` of its own.
    BEGUN.call_once(|| drop(tracing::subscriber::set_global_default(Listener)));
}

/// Forgets what a forked child inherited, without touching it.
pub(crate) fn forget_inherited() {
    std::mem::forget(WAITING.swap(Arc::default()));
}

/// Hands on what has happened. What goes wrong with that is nobody's error.
pub(crate) fn hand_on(py: Python<'_>) {
    let waiting = WAITING.load();
    if !waiting.any.load(Ordering::Acquire) || !waiting.any.swap(false, Ordering::AcqRel) {
        return;
    }
    let events = std::mem::take(&mut *waiting.events.lock().unwrap_or_else(PoisonError::into_inner));
    let dropped = waiting.dropped.swap(0, Ordering::AcqRel);
    drop(waiting);
    if let Err(error) = hand(py, events, dropped) {
        error.write_unraisable(py, None);
    }
}

fn hand(py: Python<'_>, events: VecDeque<Told>, dropped: usize) -> PyResult<()> {
    let tell = py.import("medkg.events")?.getattr("tell")?;
    let lost = (dropped > 0).then(|| Told {
        at: SystemTime::now(),
        level: Level::WARN,
        message: "events were dropped, because no call came by to hand them on".to_owned(),
        fields: vec![("dropped", dropped.to_string())],
    });
    for event in events.into_iter().chain(lost) {
        let fields = PyDict::new(py);
        for (name, value) in &event.fields {
            fields.set_item(*name, value)?;
        }
        let at = event.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        tell.call1((event.level.as_str(), at, event.message, fields))?;
    }
    Ok(())
}

/// Takes events of medkg's crates, from INFO on, and no spans.
struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO && metadata.target().starts_with("medkg")
    }

    fn event(&self, event: &Event<'_>) {
        let mut told = Told {
            at: SystemTime::now(),
            level: *event.metadata().level(),
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut told);
        let waiting = WAITING.load();
        let mut events = waiting.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < ROOM {
            events.push_back(told);
        } else {
            waiting.dropped.fetch_add(1, Ordering::AcqRel);
        }
        waiting.any.store(true, Ordering::Release);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        // Never asked for: no span is enabled.
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Told {
    fn take(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, value)),
        }
    }
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = write!(text, "{value:?}");
        self.take(field, text);
    }
}
