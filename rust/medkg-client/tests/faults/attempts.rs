//! One endpoint: what is tried again, when, and what every attempt carries.

use std::time::Duration;

use medkg_client::service::gpu::AllocateRequest;
use medkg_client::{CallOptions, ClientOptions, ErrorKind};
use medkg_testkit::{Behaviour, ScriptedServer};
use tonic::Code;

use crate::{ALLOCATE, EMBED, STATUS, answering, client, client_of, embed, embed_with, options, texts};

// requirement: isolation 6.3
#[tokio::test]
async fn transient_failures_are_retried_until_the_answer_comes() {
    let server = ScriptedServer::start();
    server.next(EMBED, Behaviour::fail(Code::Unavailable, "SHUTTING_DOWN", "going away"));
    server.next(EMBED, Behaviour::reset());
    server.next(
        EMBED,
        Behaviour::fail(Code::DeadlineExceeded, "DEADLINE_EXPIRED", "too slow"),
    );
    server.always(EMBED, answering());
    let answer = embed(&client_of(&server), texts(1)).await.unwrap();
    assert_eq!(answer.usage.retries, 3);
    assert_eq!(server.calls().len(), 4);
}

// requirement: isolation 6.3
#[tokio::test]
async fn attempts_are_bounded_and_the_error_says_what_was_done() {
    let server = ScriptedServer::start();
    server.always(EMBED, Behaviour::fail(Code::Unavailable, "SHUTTING_DOWN", "going away"));
    let error = embed(&client_of(&server), texts(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(
        (error.code, error.reason.as_str(), error.attempts),
        (Code::Unavailable, "SHUTTING_DOWN", 4)
    );
    assert_eq!(
        (error.endpoint.as_str(), error.tenant.as_str()),
        (server.uri().as_str(), "demo")
    );
    assert!(!error.retryable, "an exhausted retry is never marked retryable again");
    assert_eq!(server.calls().len(), 4);
    let text = error.to_string();
    for part in [
        "EmbeddingService/GenerateEmbeddings",
        &server.uri(),
        "going away",
        &error.request_id,
        &error.trace_id,
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[tokio::test]
async fn permanent_failures_are_not_retried() {
    let permanent = [
        (Code::InvalidArgument, "INVALID_FIELD", ErrorKind::InvalidArgument),
        (Code::OutOfRange, "", ErrorKind::InvalidArgument),
        (Code::NotFound, "MODEL_NOT_FOUND", ErrorKind::ModelNotFound),
        (
            Code::FailedPrecondition,
            "MODEL_LOAD_FAILED",
            ErrorKind::FailedPrecondition,
        ),
        (Code::Unauthenticated, "", ErrorKind::Unauthenticated),
        (Code::PermissionDenied, "", ErrorKind::PermissionDenied),
        (Code::Internal, "INTERNAL", ErrorKind::Internal),
        (Code::Unknown, "", ErrorKind::Internal),
        (Code::DataLoss, "COLLECTION_DAMAGED", ErrorKind::Internal),
        (Code::Unimplemented, "", ErrorKind::Unimplemented),
        (Code::Internal, "A_REASON_OF_THE_FUTURE", ErrorKind::Internal),
    ];
    for (code, reason, kind) in permanent {
        let server = ScriptedServer::start();
        server.always(EMBED, Behaviour::fail(code, reason, "no"));
        let error = embed(&client_of(&server), texts(1)).await.unwrap_err();
        assert_eq!(
            (error.kind, error.attempts, error.retryable),
            (kind, 1, false),
            "{code:?} {reason}"
        );
        assert_eq!(error.reason, reason);
        assert_eq!(server.calls().len(), 1, "{code:?} {reason}");
    }
}

// requirement: isolation 5.2
#[tokio::test]
async fn tenant_trace_and_request_id_are_on_every_attempt() {
    let server = ScriptedServer::start();
    server.next(EMBED, Behaviour::fail(Code::Unavailable, "", ""));
    server.next(EMBED, Behaviour::reset());
    server.always(EMBED, answering());
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let call = CallOptions {
        tenant: Some("clinic-7".to_owned()),
        traceparent: Some(parent.to_owned()),
        tracestate: Some("vendor=1".to_owned()),
        request_id: Some("order-66".to_owned()),
        timeout: Some(Duration::from_secs(20)),
    };
    let answer = embed_with(&client_of(&server), texts(1), &call).await.unwrap();
    assert_eq!(answer.request_id, "order-66");
    assert_eq!(answer.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
    let calls = server.calls();
    assert_eq!(calls.len(), 3);
    for call in &calls {
        assert_eq!(call.tenant.as_deref(), Some("clinic-7"));
        assert_eq!(call.traceparent.as_deref(), Some(parent));
        assert_eq!(call.tracestate.as_deref(), Some("vendor=1"));
        assert_eq!(call.request_id.as_deref(), Some("order-66"));
    }
}

#[tokio::test]
async fn every_attempt_is_given_what_is_left_of_the_deadline() {
    let server = ScriptedServer::start();
    let slow = Duration::from_millis(100);
    server.next(EMBED, Behaviour::fail(Code::Unavailable, "", "").after(slow));
    server.next(EMBED, Behaviour::fail(Code::Unavailable, "", "").after(slow));
    server.always(EMBED, answering());
    embed(&client_of(&server), texts(1)).await.unwrap();
    let given: Vec<_> = server.calls().iter().map(|call| call.timeout.unwrap()).collect();
    assert!(given[0] <= Duration::from_secs(20));
    assert!(given[1] + slow <= given[0] && given[2] + slow <= given[1], "{given:?}");
}

#[tokio::test]
async fn a_call_without_identity_gets_one_of_its_own() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let client = client_of(&server);
    let (first, second) = (
        embed(&client, texts(1)).await.unwrap(),
        embed(&client, texts(1)).await.unwrap(),
    );
    assert_ne!(first.trace_id, second.trace_id);
    assert_ne!(first.request_id, second.request_id);
    let calls = server.calls();
    assert!(calls[0].traceparent.as_ref().unwrap().contains(&first.trace_id));
    assert_eq!(calls[0].request_id.as_ref(), Some(&first.request_id));
}

#[tokio::test]
async fn what_is_wrong_with_the_call_itself_is_said_before_anything_is_sent() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let nobody = client(&ClientOptions {
        tenant: None,
        ..options(&[server.uri()])
    });
    let error = embed(&nobody, texts(1)).await.unwrap_err();
    assert_eq!(
        (error.kind, error.reason.as_str()),
        (ErrorKind::InvalidArgument, "TENANT_MISSING")
    );
    assert_eq!(error.field_violations[0].field, "tenant");
    let client = client_of(&server);
    let wrong = [
        (
            "tenant",
            CallOptions {
                tenant: Some("a b".into()),
                ..CallOptions::default()
            },
        ),
        (
            "traceparent",
            CallOptions {
                traceparent: Some("00-xyz".into()),
                ..CallOptions::default()
            },
        ),
        (
            "request_id",
            CallOptions {
                request_id: Some("two words".into()),
                ..CallOptions::default()
            },
        ),
        (
            "timeout",
            CallOptions {
                timeout: Some(Duration::ZERO),
                ..CallOptions::default()
            },
        ),
    ];
    for (field, call) in wrong {
        let error = embed_with(&client, texts(1), &call).await.unwrap_err();
        assert_eq!((error.field_violations[0].field.as_str(), error.attempts), (field, 0));
    }
    assert!(server.calls().is_empty());
}

// requirement: isolation 6.3
#[tokio::test]
async fn a_full_queue_is_waited_for_as_the_server_says_however_often_it_says_so() {
    let server = ScriptedServer::start();
    let told = Duration::from_millis(50);
    for _ in 0..6 {
        server.next(
            EMBED,
            Behaviour::fail(Code::ResourceExhausted, "QUEUE_FULL", "full").retry_after(told),
        );
    }
    server.always(EMBED, answering());
    let answer = embed(&client_of(&server), texts(1)).await.unwrap();
    assert_eq!(
        answer.usage.retries, 6,
        "more than max_attempts: waits that the server asks for do not count"
    );
    let calls = server.calls();
    for pair in calls.windows(2) {
        assert!(
            pair[1].at - pair[0].at >= told,
            "came back after {:?}",
            pair[1].at - pair[0].at
        );
    }
}

#[tokio::test]
async fn a_wait_that_does_not_fit_is_handed_to_the_caller() {
    let server = ScriptedServer::start();
    let told = Duration::from_secs(3600);
    server.always(
        EMBED,
        Behaviour::fail(Code::ResourceExhausted, "QUEUE_FULL", "full").retry_after(told),
    );
    let error = embed(&client_of(&server), texts(1)).await.unwrap_err();
    assert_eq!(
        (error.kind, error.attempts, error.retry_after),
        (ErrorKind::RateLimited, 1, Some(told))
    );
    assert!(error.retryable, "the caller can wait longer than the call could");
}

#[tokio::test]
async fn work_that_must_not_be_done_twice_is_not_sent_twice() {
    let server = ScriptedServer::start();
    for behaviour in [
        Behaviour::fail(Code::Unavailable, "SHUTTING_DOWN", "going away"),
        Behaviour::reset(),
        Behaviour::fail(Code::ResourceExhausted, "GPU_MEMORY_EXHAUSTED", "none left").retry_after(Duration::ZERO),
    ] {
        server.always(ALLOCATE, behaviour);
        let before = server.calls().len();
        let request = AllocateRequest {
            memory_bytes: 1,
            ..AllocateRequest::default()
        };
        let error = client_of(&server)
            .gpu()
            .allocate(request, &CallOptions::default())
            .await
            .unwrap_err();
        assert_eq!(error.attempts, 1, "{error}");
        assert!(error.retryable, "the caller may know that twice is fine: {error}");
        assert_eq!(server.calls().len() - before, 1);
    }
}

#[tokio::test]
async fn work_that_was_never_sent_may_be_sent_again_whatever_it_is() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let client = client(&options(&[format!("http://{port}")]));
    let request = AllocateRequest {
        memory_bytes: 1,
        ..AllocateRequest::default()
    };
    let error = client
        .gpu()
        .allocate(request, &CallOptions::default())
        .await
        .unwrap_err();
    assert_eq!((error.kind, error.attempts), (ErrorKind::Unavailable, 4));
}

// requirement: isolation 6.3
#[tokio::test]
async fn an_answer_that_never_comes_is_a_timeout_and_the_server_hears_of_it() {
    let server = ScriptedServer::start();
    server.always(EMBED, Behaviour::hang());
    let call = CallOptions {
        timeout: Some(Duration::from_millis(200)),
        ..CallOptions::default()
    };
    let error = embed_with(&client_of(&server), texts(1), &call).await.unwrap_err();
    assert_eq!(
        (error.kind, error.code, error.attempts),
        (ErrorKind::Timeout, Code::DeadlineExceeded, 1)
    );
    until(|| server.calls()[0].over).await;
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_cancelled_at_the_server() {
    let server = ScriptedServer::start();
    server.always(EMBED, Behaviour::hang());
    let client = client_of(&server);
    let task = tokio::spawn(async move { embed(&client, texts(1)).await });
    until(|| !server.calls().is_empty()).await;
    assert!(!server.calls()[0].over);
    task.abort();
    until(|| server.calls()[0].over).await;
}

// requirement: isolation 6.3
#[tokio::test]
async fn the_budget_keeps_retries_from_multiplying_the_load() {
    let server = ScriptedServer::start();
    server.always(STATUS, Behaviour::fail(Code::Unavailable, "", "down"));
    // A breaker that never opens, so that only the budget is in the way.
    let client = client(&ClientOptions {
        breaker_failures: Some(1_000_000),
        ..options(&[server.uri()])
    });
    let calls = 100;
    for _ in 0..calls {
        client.gpu().status(&CallOptions::default()).await.unwrap_err();
    }
    let sent = server.calls().len();
    // A reserve of 10, a fifth of a retry per call, and what the reserve regains in the time this takes.
    assert!(
        sent >= calls + 10 && sent < calls * 2,
        "{sent} attempts for {calls} calls"
    );
}

pub(crate) async fn until(condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), met).await.unwrap();
}
