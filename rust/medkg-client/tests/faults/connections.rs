//! The connection itself: shared, made once, replaced when it is lost, and never waited for one call after another.

use std::time::{Duration, Instant};

use medkg_client::policy::breaker::BreakerState;
use medkg_client::{CallOptions, ClientOptions, ErrorKind};
use medkg_testkit::{Behaviour, Fault, ScriptedServer, Toxic};

use crate::attempts::until;
use crate::{EMBED, answering, client, client_of, embed, embed_with, options, texts};

// requirement: isolation 13.1
#[tokio::test]
async fn all_calls_share_one_connection() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let client = client_of(&server);
    let calls = (0..50).map(|_| embed(&client, texts(1)));
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    assert_eq!((server.calls().len(), server.connections()), (50, 1));
}

// requirement: isolation 6.3
#[tokio::test]
async fn a_restarted_server_costs_an_idle_client_no_attempt() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let proxy = Toxic::start(server.address());
    let client = client(&ClientOptions {
        max_attempts: Some(1),
        ..options(&[proxy.uri()])
    });
    embed(&client, texts(1)).await.unwrap();
    // Open connections are cut, then new ones work again: a restart while nothing is in flight.
    proxy.set(Fault::Refuse);
    while tokio::net::TcpStream::connect(proxy.address()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // The reset is on its way to the client, which has no way to say that it has seen it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.set(Fault::None);
    while tokio::net::TcpStream::connect(proxy.address()).await.is_err() {
        tokio::task::yield_now().await;
    }
    let answer = embed(&client, texts(1)).await.unwrap();
    assert_eq!(answer.usage.retries, 0);
    let calls = server.calls();
    assert_eq!(calls.len(), 2);
    assert_ne!(calls[0].connection, calls[1].connection);
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_of_an_answer_is_a_failure_of_the_network() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let proxy = Toxic::start(server.address());
    proxy.set(Fault::ResetAfter(2_000));
    let client = client(&ClientOptions {
        max_attempts: Some(2),
        ..options(&[proxy.uri()])
    });
    let error = embed(&client, texts(1000)).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (ErrorKind::Unavailable, 2), "{error}");
}

#[tokio::test]
async fn calls_that_wait_for_the_same_connection_learn_of_its_failure_together() {
    // A backlog that is full swallows further connections, as an unreachable host does.
    let full = FullBacklog::new();
    let connect_timeout = Duration::from_millis(300);
    let settings = ClientOptions {
        connect_timeout: Some(connect_timeout.as_secs_f64()),
        max_attempts: Some(1),
        breaker_failures: Some(1_000),
        ..options(&[full.uri()])
    };
    let client = client(&settings);
    let count = 20;
    let begun = Instant::now();
    for answer in futures_util::future::join_all((0..count).map(|_| embed(&client, texts(1)))).await {
        let error = answer.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(error.message.contains("cannot connect"), "{error}");
    }
    let elapsed = begun.elapsed();
    assert!(
        elapsed < connect_timeout * count / 2,
        "one after the other: {elapsed:?}"
    );
}

// requirement: isolation 5.4
#[tokio::test]
async fn a_dial_that_many_calls_wait_for_counts_once_for_the_breaker() {
    let full = FullBacklog::new();
    let settings = ClientOptions {
        connect_timeout: Some(0.1),
        max_attempts: Some(1),
        breaker_failures: Some(3),
        ..options(&[full.uri()])
    };
    let client = client(&settings);
    for state in [BreakerState::Closed, BreakerState::Closed, BreakerState::Open] {
        let answers = futures_util::future::join_all((0..20).map(|_| embed(&client, texts(1)))).await;
        let errors: Vec<_> = answers.into_iter().map(Result::unwrap_err).collect();
        for error in &errors {
            assert_eq!((error.kind, error.attempts), (ErrorKind::Unavailable, 1), "{error}");
        }
        assert_eq!(errors[19].breaker_state, Some(state));
    }
    let error = embed(&client, texts(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::CircuitOpen, "three dials failed");
}

#[tokio::test]
async fn a_host_that_accepts_and_never_answers_is_bounded_by_the_deadline() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client(&options(&[format!("http://{}", listener.local_addr().unwrap())]));
    let call = CallOptions {
        timeout: Some(Duration::from_millis(200)),
        ..CallOptions::default()
    };
    let error = embed_with(&client, texts(1), &call).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
}

#[tokio::test]
async fn an_answer_that_comes_in_small_late_pieces_is_an_answer() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let proxy = Toxic::start(server.address());
    proxy.set(Fault::Delay(Duration::from_millis(20)));
    let answer = embed(&client(&options(&[proxy.uri()])), texts(200)).await.unwrap();
    assert_eq!(answer.rows, 200);
}

#[tokio::test]
async fn a_server_without_the_role_is_told_apart() {
    let server = ScriptedServer::start();
    server.always(EMBED, Behaviour::fail(tonic::Code::Unimplemented, "", ""));
    let error = embed(&client_of(&server), texts(1)).await.unwrap_err();
    assert!(error.message.contains("role"), "{error}");
}

/// A listening socket whose queue of connections is full.
struct FullBacklog {
    listener: std::net::TcpListener,
    _waiting: Vec<std::net::TcpStream>,
}

impl FullBacklog {
    fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap().into_std().unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            waiting.push(stream);
        }
        Self {
            listener,
            _waiting: waiting,
        }
    }

    fn uri(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }
}

#[tokio::test]
async fn a_connection_that_is_old_is_replaced_and_no_call_notices() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let client = client(&ClientOptions {
        max_connection_age: Some(0.05),
        max_attempts: Some(1),
        ..options(&[server.uri()])
    });
    let begun = Instant::now();
    while server.connections() < 4 {
        embed(&client, texts(1)).await.unwrap();
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the first connection is kept"
        );
    }
}

#[tokio::test]
async fn another_connection_is_made_when_one_is_full_and_no_more_than_are_allowed() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering().after(Duration::from_millis(300)));
    let client = client(&ClientOptions {
        max_connections: Some(2),
        ..options(&[server.uri()])
    });
    let calls = (0..200).map(|_| embed(&client, texts(1)));
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn no_more_calls_are_out_than_an_address_may_have() {
    let server = ScriptedServer::start();
    server.always(EMBED, Behaviour::hang());
    let client = client(&ClientOptions {
        max_pending: Some(2),
        max_attempts: Some(1),
        ..options(&[server.uri()])
    });
    let out = std::iter::repeat_with(|| {
        let client = client.clone();
        tokio::spawn(async move { embed(&client, texts(1)).await })
    });
    let out: Vec<_> = out.take(2).collect();
    until(|| server.calls().len() == 2).await;
    let short = CallOptions {
        timeout: Some(Duration::from_millis(200)),
        ..CallOptions::default()
    };
    let calls = (0..4).map(|_| embed_with(&client, texts(1), &short));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.unwrap_err().kind, ErrorKind::Timeout);
    }
    assert_eq!(
        server.calls().len(),
        2,
        "the others waited here until their time was over"
    );
    out.iter().for_each(tokio::task::JoinHandle::abort);
}
