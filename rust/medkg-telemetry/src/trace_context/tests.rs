//! Tests of the parser against the recommendation's own rules.

use http::HeaderMap;
use proptest::prelude::*;
use tonic::metadata::MetadataMap;

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn parse(text: &str) -> Result<TraceContext, TraceContextError> {
    text.parse()
}

#[test]
fn a_legal_traceparent_is_read_and_written_back() {
    let text = format!("00-{TRACE}-{SPAN}-01");
    let context = parse(&text).unwrap();
    assert_eq!(context.trace_id_hex(), TRACE);
    assert_eq!(context.span_id_hex(), SPAN);
    assert!(context.is_sampled());
    assert_eq!(context.to_string(), text);
}

#[test]
fn flags_of_the_future_are_not_forwarded() {
    assert_eq!(
        parse(&format!("00-{TRACE}-{SPAN}-fe")).unwrap().to_string(),
        format!("00-{TRACE}-{SPAN}-02")
    );
}

#[test]
fn later_versions_are_read_as_version_00() {
    for tail in ["", "-", "-what-the-future-brings"] {
        let context = parse(&format!("cc-{TRACE}-{SPAN}-01{tail}")).unwrap();
        assert_eq!(context.to_string(), format!("00-{TRACE}-{SPAN}-01"));
    }
    assert_eq!(parse(&format!("cc-{TRACE}-{SPAN}-01.x")), Err(TraceContextError::Shape));
}

#[test]
fn broken_traceparents_are_refused() {
    let zeros = "0".repeat(32);
    let cases = [
        (String::new(), TraceContextError::Shape),
        (format!("00-{TRACE}-{SPAN}"), TraceContextError::Shape),
        (format!("00-{TRACE}-{SPAN}-01-"), TraceContextError::Shape),
        (format!("00-{TRACE}-{SPAN}-01-more"), TraceContextError::Shape),
        (format!("00_{TRACE}_{SPAN}_01"), TraceContextError::Shape),
        (format!("ff-{TRACE}-{SPAN}-01"), TraceContextError::Version),
        (
            format!("0G-{TRACE}-{SPAN}-01"),
            TraceContextError::Hex { part: "version" },
        ),
        (
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            TraceContextError::Hex { part: "trace id" },
        ),
        (
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            TraceContextError::Hex { part: "span id" },
        ),
        (
            format!("00-{TRACE}-{SPAN}-0x"),
            TraceContextError::Hex { part: "flags field" },
        ),
        (
            format!("00-{zeros}-{SPAN}-01"),
            TraceContextError::Zero { part: "trace id" },
        ),
        (
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            TraceContextError::Zero { part: "span id" },
        ),
    ];
    for (text, error) in cases {
        assert_eq!(parse(&text), Err(error), "{text}");
    }
}

#[test]
fn children_stay_in_the_trace() {
    let parent = TraceContext::parse(&format!("00-{TRACE}-{SPAN}-01"), Some("a=1")).unwrap();
    let child = parent.child();
    assert_eq!(child.trace_id(), parent.trace_id());
    assert_ne!(child.span_id(), parent.span_id());
    assert_eq!((child.flags(), child.tracestate()), (1, Some("a=1")));
    assert_ne!(TraceContext::random().trace_id(), TraceContext::random().trace_id());
}

#[test]
fn the_context_travels_in_grpc_metadata() {
    let sent = TraceContext::parse(&format!("00-{TRACE}-{SPAN}-01"), Some("rojo=00f067,congo=t61")).unwrap();
    let mut metadata = MetadataMap::new();
    sent.inject(&mut metadata);
    assert_eq!(
        metadata.get("traceparent").unwrap(),
        format!("00-{TRACE}-{SPAN}-01").as_str()
    );
    assert_eq!(TraceContext::extract(&metadata), Some(sent));
}

#[test]
fn several_tracestate_headers_are_one_list() {
    let mut headers = HeaderMap::new();
    headers.insert(TRACEPARENT, format!("00-{TRACE}-{SPAN}-00").parse().unwrap());
    headers.append(TRACESTATE, "a=1 , b=2,".parse().unwrap());
    headers.append(TRACESTATE, "c=3".parse().unwrap());
    assert_eq!(
        TraceContext::extract(&headers).unwrap().tracestate(),
        Some("a=1,b=2,c=3")
    );
    headers.append(TRACESTATE, "no-pair".parse().unwrap());
    let context = TraceContext::extract(&headers).unwrap();
    assert_eq!(
        context.tracestate(),
        None,
        "a broken list is dropped, the parent is kept"
    );
}

#[test]
fn two_traceparents_or_a_broken_one_start_a_new_trace() {
    let mut headers = HeaderMap::new();
    assert_eq!(TraceContext::extract(&headers), None);
    headers.append(TRACEPARENT, format!("00-{TRACE}-{SPAN}-00").parse().unwrap());
    headers.append(TRACEPARENT, format!("00-{TRACE}-{SPAN}-00").parse().unwrap());
    assert_eq!(TraceContext::extract(&headers), None);
    headers.insert(TRACEPARENT, "junk".parse().unwrap());
    assert_eq!(TraceContext::extract(&headers), None);
}

#[test]
fn too_long_a_tracestate_is_refused() {
    let traceparent = format!("00-{TRACE}-{SPAN}-00");
    let many = (0..33).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
    assert_eq!(
        TraceContext::parse(&traceparent, Some(&many)),
        Err(TraceContextError::State)
    );
    assert_eq!(
        TraceContext::parse(&traceparent, Some("a=\u{e9}")),
        Err(TraceContextError::State)
    );
    assert_eq!(TraceContext::parse(&traceparent, Some(" ")).unwrap().tracestate(), None);
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "\\PC{0,80}") {
        let _ = parse(&text);
    }

    #[test]
    fn nearly_legal_texts_never_panic(text in "[0-9a-fA-F-]{50,60}") {
        let _ = parse(&text);
    }

    #[test]
    fn what_is_written_is_read_back(trace_id: [u8; 16], span_id: [u8; 8], flags in 0_u8..4) {
        prop_assume!(trace_id != [0; 16] && span_id != [0; 8]);
        let context = TraceContext::try_new(trace_id, span_id, flags, None).unwrap();
        prop_assert_eq!(parse(&context.to_string()), Ok(context));
    }
}
