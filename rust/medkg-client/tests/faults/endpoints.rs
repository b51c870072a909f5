//! Several endpoints: the next one where the network fails, never for a fault of the GPU, and breakers.

use std::time::Duration;

use medkg_client::policy::breaker::BreakerState;
use medkg_client::{CallOptions, Client, ClientConfig, ClientOptions, Endpoints, ErrorKind};
use medkg_proto::v1;
use medkg_testkit::{Behaviour, Fault, ScriptedServer, Toxic};
use tonic::Code;

use crate::{EMBED, STATUS, answering, client, embed, options, texts};

fn unused_address() -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    format!("http://127.0.0.1:{port}")
}

// requirement: isolation 5.4
// requirement: isolation 6.3
#[tokio::test]
async fn the_next_endpoint_answers_where_one_is_down() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let client = client(&options(&[unused_address(), server.uri()]));
    for _ in 0..20 {
        embed(&client, texts(1)).await.unwrap();
    }
    assert_eq!(server.calls().len(), 20);
}

#[tokio::test]
async fn calls_for_what_a_server_holds_go_to_one_server() {
    let (first, second) = (ScriptedServer::start(), ScriptedServer::start());
    for server in [&first, &second] {
        server.always(STATUS, Behaviour::reply(|()| v1::GetStatusResponse::default()));
        let collections = |()| v1::ListCollectionsResponse::default();
        server.always("/medkg.v1.VectorService/ListCollections", Behaviour::reply(collections));
    }
    let client = client(&options(&[first.uri(), second.uri()]));
    for _ in 0..5 {
        client.vector().collections(&CallOptions::default()).await.unwrap();
        client.gpu().status(&CallOptions::default()).await.unwrap();
    }
    assert_eq!((first.calls().len(), second.calls().len()), (10, 0));
}

#[tokio::test]
async fn the_next_endpoint_answers_where_one_says_that_it_cannot_serve() {
    let (leaving, well) = (ScriptedServer::start(), ScriptedServer::start());
    leaving.always(EMBED, Behaviour::fail(Code::Unavailable, "SHUTTING_DOWN", "going away"));
    well.always(EMBED, answering());
    let client = client(&options(&[leaving.uri(), well.uri()]));
    for _ in 0..20 {
        embed(&client, texts(1)).await.unwrap();
    }
    assert_eq!(well.calls().len(), 20);
    assert_eq!(leaving.calls().len(), 5, "the breaker opened after five failures");
}

// requirement: isolation 5.4
// requirement: observability 3.1
#[tokio::test]
async fn a_gpu_fault_is_neither_retried_nor_rerouted_nor_counted() {
    for (reason, kind) in [
        ("GPU_UNAVAILABLE", ErrorKind::GpuUnavailable),
        ("GPU_LOST", ErrorKind::GpuLost),
        ("GPU_OUT_OF_MEMORY", ErrorKind::GpuOutOfMemory),
    ] {
        let (broken, well) = (ScriptedServer::start(), ScriptedServer::start());
        let fault = Behaviour::fail(Code::FailedPrecondition, reason, "no CUDA device");
        broken.always(EMBED, fault.retry_after(Duration::ZERO));
        well.always(EMBED, answering());
        let client = client(&ClientOptions {
            breaker_failures: Some(1),
            ..options(&[broken.uri(), well.uri()])
        });
        let mut failed = 0;
        // All at once: calls in flight are what balances them, however long the first answers take.
        for result in futures_util::future::join_all((0..40).map(|_| embed(&client, texts(1)))).await {
            if let Err(error) = result {
                assert_eq!((error.kind, error.attempts, error.retryable), (kind, 1, false));
                assert_eq!(
                    (error.reason.as_str(), error.endpoint.as_str()),
                    (reason, broken.uri().as_str())
                );
                assert_eq!(error.breaker_state, Some(BreakerState::Closed));
                failed += 1;
            }
        }
        assert!(
            (5..=35).contains(&failed),
            "about half of the calls go to each: {failed}"
        );
        assert_eq!((broken.calls().len(), well.calls().len()), (failed, 40 - failed));
    }
}

// requirement: isolation 5.4
#[tokio::test]
async fn an_open_breaker_refuses_at_once_and_says_how_long() {
    let address = unused_address();
    let settings = ClientOptions {
        breaker_failures: Some(3),
        breaker_cooldown: Some(3600.0),
        ..options(&[address])
    };
    let client = client(&settings);
    let error = embed(&client, texts(1)).await.unwrap_err();
    // The third failure opens it in the middle of the call, so the fourth attempt is not made.
    assert_eq!((error.kind, error.attempts), (ErrorKind::CircuitOpen, 3));
    let error = embed(&client, texts(1)).await.unwrap_err();
    assert_eq!(
        (error.kind, error.attempts, error.retryable),
        (ErrorKind::CircuitOpen, 0, true)
    );
    assert_eq!(error.breaker_state, Some(BreakerState::Open));
    assert!(error.retry_after.unwrap() > Duration::from_secs(3000));
    assert!(
        error.message.contains("Connection refused"),
        "says why: {}",
        error.message
    );
}

// requirement: isolation 5.4
#[tokio::test]
async fn answers_of_the_peer_never_open_a_breaker() {
    let server = ScriptedServer::start();
    let client = client(&ClientOptions {
        breaker_failures: Some(1),
        max_attempts: Some(1),
        ..options(&[server.uri()])
    });
    for code in [
        Code::InvalidArgument,
        Code::NotFound,
        Code::ResourceExhausted,
        Code::Internal,
        Code::Unauthenticated,
    ] {
        server.always(EMBED, Behaviour::fail(code, "", "no"));
        for _ in 0..5 {
            let error = embed(&client, texts(1)).await.unwrap_err();
            assert_eq!(error.breaker_state, Some(BreakerState::Closed), "{error}");
        }
    }
    assert_eq!(server.calls().len(), 25);
}

// requirement: isolation 5.4
#[tokio::test]
async fn a_role_that_still_loads_does_not_close_the_address_for_the_others() {
    let not_ready = || Behaviour::fail(Code::Unavailable, "MODEL_NOT_READY", "still loading");
    let told = || Behaviour::fail(Code::Unavailable, "", "come back").retry_after(Duration::from_millis(1));
    for loading in [not_ready(), told()] {
        let server = ScriptedServer::start();
        server.always(EMBED, loading);
        server.always(STATUS, Behaviour::reply(|()| v1::GetStatusResponse::default()));
        let settings = ClientOptions {
            breaker_failures: Some(1),
            ..options(&[server.uri()])
        };
        let client = client(&settings);
        let error = embed(&client, texts(1)).await.unwrap_err();
        assert_eq!((error.kind, error.attempts), (ErrorKind::Unavailable, 4), "{error}");
        assert_eq!(error.breaker_state, Some(BreakerState::Closed));
        client.gpu().status(&CallOptions::default()).await.unwrap();
    }
}

// requirement: isolation 5.4
#[tokio::test]
async fn one_probe_finds_out_that_the_endpoint_is_back() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let proxy = Toxic::start(server.address());
    proxy.set(Fault::Refuse);
    let cooldown = 0.2;
    let settings = ClientOptions {
        breaker_failures: Some(1),
        breaker_cooldown: Some(cooldown),
        max_attempts: Some(1),
        ..options(&[proxy.uri()])
    };
    let client = client(&settings);
    assert_eq!(embed(&client, texts(1)).await.unwrap_err().kind, ErrorKind::Unavailable);
    proxy.set(Fault::None);
    let back = async {
        loop {
            match embed(&client, texts(1)).await {
                Ok(_) => break,
                Err(error) if error.kind == ErrorKind::CircuitOpen => {
                    tokio::time::sleep(error.retry_after.unwrap()).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();
    assert_eq!(server.calls().len(), 1);
}

// requirement: isolation 5.4
#[tokio::test]
async fn a_split_call_gets_through_a_half_open_breaker() {
    let server = ScriptedServer::start();
    let settings = ClientOptions {
        breaker_failures: Some(1),
        breaker_cooldown: Some(0.05),
        max_attempts: Some(1),
        max_batch_texts: Some(7),
        ..options(&[server.uri()])
    };
    let client = client(&settings);
    server.next(EMBED, Behaviour::fail(Code::Unavailable, "", ""));
    embed(&client, texts(1)).await.unwrap_err();
    server.always(EMBED, answering().after(Duration::from_millis(20)));
    // Nothing but split calls is made: the first one after the cool-down has to close the breaker.
    let mut refusals = 0;
    let answer = loop {
        match embed(&client, texts(70)).await {
            Ok(answer) => break answer,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::CircuitOpen);
                refusals += 1;
                assert!(refusals < 20, "no split call gets through: {error}");
                tokio::time::sleep(error.retry_after.unwrap()).await;
            }
        }
    };
    assert_eq!(answer.usage.calls, 10);
}

#[tokio::test]
async fn a_probe_that_is_cancelled_does_not_block_the_endpoint_for_ever() {
    let server = ScriptedServer::start();
    let settings = ClientOptions {
        breaker_failures: Some(1),
        breaker_cooldown: Some(0.05),
        max_attempts: Some(1),
        ..options(&[server.uri()])
    };
    let client = client(&settings);
    server.next(EMBED, Behaviour::fail(Code::Unavailable, "", ""));
    embed(&client, texts(1)).await.unwrap_err();
    server.next(EMBED, Behaviour::hang());
    let probing = {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                let error = embed(&client, texts(1)).await.unwrap_err();
                assert_eq!(error.kind, ErrorKind::CircuitOpen);
                tokio::time::sleep(error.retry_after.unwrap()).await;
            }
        })
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        while server.calls().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let second = embed(&client, texts(1)).await.unwrap_err();
    assert_eq!(second.kind, ErrorKind::CircuitOpen, "one probe at a time");
    probing.abort();
    assert!(probing.await.unwrap_err().is_cancelled());
    server.always(EMBED, answering());
    embed(&client, texts(1)).await.unwrap();
}

// requirement: isolation 5.4
#[tokio::test]
async fn clients_of_a_process_know_of_each_others_failures() {
    let endpoints = Endpoints::default();
    let settings = ClientOptions {
        breaker_failures: Some(1),
        max_attempts: Some(1),
        ..options(&[unused_address()])
    };
    let make = || Client::new(ClientConfig::try_new(&settings).unwrap(), &endpoints).unwrap();
    let (first, second) = (make(), make());
    assert_eq!(embed(&first, texts(1)).await.unwrap_err().kind, ErrorKind::Unavailable);
    let error = second.gpu().status(&CallOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::CircuitOpen);
}
