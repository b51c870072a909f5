//! `init` owns the process, so it has a test binary of its own.

use std::time::Duration;

use medkg_telemetry::logging::{LogConfig, LoggingError, current_trace_id, init, set_remote_parent};
use medkg_telemetry::trace_context::TraceContext;

#[test]
fn it_applies_to_every_thread_and_only_once() {
    let guard = init(&LogConfig::default()).unwrap();
    assert!(matches!(
        init(&LogConfig::default()),
        Err(LoggingError::AlreadyInitialised)
    ));
    let caller = TraceContext::random();
    let expected = caller.trace_id_hex();
    let seen = std::thread::spawn(move || {
        let span = tracing::info_span!("call");
        set_remote_parent(&span, &caller).unwrap();
        span.in_scope(current_trace_id)
    });
    assert_eq!(seen.join().unwrap(), Some(expected));
    guard.shutdown(Duration::from_secs(5)).unwrap();
}
