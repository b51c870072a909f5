//! What calls make do with where the network fails, if they may, and what an answer then says.

use std::time::Duration;

use medkg_client::config::{CacheOptions, FallbackOptions};
use medkg_client::service::reranking::{Query, RerankOptions};
use medkg_client::{CallOptions, Client, ClientOptions, ErrorKind};
use medkg_proto::v1;
use medkg_testkit::{Behaviour, ScriptedServer};
use tonic::Code;

use crate::{EMBED, answering, client, embed, options, texts};

const MODELS: &str = "/medkg.v1.EmbeddingService/ListModels";
const RERANK: &str = "/medkg.v1.RerankingService/RerankBatch";

fn going_away() -> Behaviour {
    Behaviour::fail(Code::Unavailable, "SHUTTING_DOWN", "going away")
}

fn with_second(first: &ScriptedServer, second: &ScriptedServer) -> ClientOptions {
    ClientOptions {
        max_attempts: Some(2),
        fallback: Some(FallbackOptions {
            addresses: Some(vec![second.uri()]),
            ..FallbackOptions::default()
        }),
        ..options(&[first.uri()])
    }
}

// requirement: isolation 5.4
#[tokio::test]
async fn a_second_cluster_answers_what_the_first_does_not_take_and_the_answer_says_so() {
    let (first, second) = (ScriptedServer::start(), ScriptedServer::start());
    second.always(EMBED, answering());
    first.always(EMBED, answering());
    let client = client(&with_second(&first, &second));
    let answer = embed(&client, texts(1)).await.unwrap();
    assert_eq!((answer.degraded, second.calls().len()), (None, 0));
    first.always(EMBED, going_away());
    let answer = embed(&client, texts(1)).await.unwrap();
    assert_eq!(answer.rows, 1);
    let degraded = answer.degraded.unwrap();
    assert!(
        degraded.contains("fallback") && degraded.contains("going away"),
        "{degraded}"
    );
    assert_eq!((first.calls().len(), answer.usage.retries), (3, 2));
    for _ in 0..10 {
        assert!(embed(&client, texts(1)).await.unwrap().degraded.is_some());
    }
    assert_eq!(second.calls().len(), 11);
    assert_eq!(first.calls().len(), 6, "nothing is sent while its breaker is open");
    let known: Vec<_> = client.endpoints(medkg_client::Service::Embedding);
    assert_eq!(known.len(), 2);
    assert_eq!(
        client
            .reset_breakers(medkg_client::Service::Embedding, Some(&first.uri()))
            .unwrap(),
        1
    );
    first.always(EMBED, answering());
    assert_eq!(
        embed(&client, texts(1)).await.unwrap().degraded,
        None,
        "it is asked first again"
    );
}

// requirement: isolation 5.4
// requirement: observability 3.1
#[tokio::test]
async fn what_a_server_answered_is_never_asked_of_the_second_cluster() {
    for (code, reason, kind) in [
        (Code::FailedPrecondition, "GPU_LOST", ErrorKind::GpuLost),
        (Code::FailedPrecondition, "GPU_UNAVAILABLE", ErrorKind::GpuUnavailable),
        (Code::FailedPrecondition, "GPU_OUT_OF_MEMORY", ErrorKind::GpuOutOfMemory),
        (Code::Unavailable, "GPU_LOST", ErrorKind::GpuLost),
        (Code::InvalidArgument, "INVALID_FIELD", ErrorKind::InvalidArgument),
        (Code::Unauthenticated, "", ErrorKind::Unauthenticated),
    ] {
        let (first, second) = (ScriptedServer::start(), ScriptedServer::start());
        first.always(EMBED, Behaviour::fail(code, reason, "no"));
        second.always(EMBED, answering());
        let error = embed(&client(&with_second(&first, &second)), texts(1))
            .await
            .unwrap_err();
        assert_eq!((error.kind, error.attempts), (kind, 1));
        assert_eq!((first.calls().len(), second.calls().len()), (1, 0), "{reason}");
    }
}

#[tokio::test]
async fn where_both_clusters_fail_the_error_tells_of_both() {
    let (first, second) = (ScriptedServer::start(), ScriptedServer::start());
    first.always(EMBED, going_away());
    second.always(EMBED, Behaviour::fail(Code::Unavailable, "", "broken too"));
    let client = client(&with_second(&first, &second));
    let error = embed(&client, texts(1)).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (ErrorKind::Unavailable, 4));
    assert_eq!(error.endpoint, first.uri());
    assert!(
        error.message.contains("going away") && error.message.contains("broken too"),
        "{error}"
    );
    // A fault that a server of the second one tells is the answer.
    second.always(EMBED, Behaviour::fail(Code::FailedPrecondition, "GPU_LOST", "gone"));
    let error = embed(&client, texts(1)).await.unwrap_err();
    assert_eq!(
        (error.kind, error.endpoint.as_str()),
        (ErrorKind::GpuLost, second.uri().as_str())
    );
}

#[tokio::test]
async fn the_second_cluster_gets_the_time_that_is_left() {
    let (first, second) = (ScriptedServer::start(), ScriptedServer::start());
    first.always(EMBED, Behaviour::hang());
    second.always(EMBED, answering());
    let client = client(&ClientOptions {
        timeout: Some(0.2),
        ..with_second(&first, &second)
    });
    let error = embed(&client, texts(1)).await.unwrap_err();
    assert_eq!((error.kind, second.calls().len()), (ErrorKind::Timeout, 0));
}

fn model_list() -> Behaviour {
    let model = v1::Model {
        name: "m".to_owned(),
        digest: "d".to_owned(),
        is_default: true,
        ..v1::Model::default()
    };
    Behaviour::reply(move |()| v1::EmbeddingServiceListModelsResponse {
        models: vec![model.clone()],
    })
}

fn caching(server: &ScriptedServer, stale_cache: bool) -> Client {
    client(&ClientOptions {
        cache: Some(CacheOptions::default()),
        max_attempts: Some(1),
        fallback: Some(FallbackOptions {
            stale_cache: Some(stale_cache),
            ..FallbackOptions::default()
        }),
        ..options(&[server.uri()])
    })
}

// requirement: isolation 13.4
#[tokio::test]
async fn what_is_cached_is_answered_by_an_old_belief_if_that_is_allowed() {
    for allowed in [true, false] {
        let server = ScriptedServer::start();
        server.always(MODELS, model_list());
        server.always(EMBED, answering());
        let client = caching(&server, allowed);
        let fresh = embed(&client, texts(3)).await.unwrap();
        server.always(MODELS, going_away());
        server.always(EMBED, going_away());
        assert_eq!(
            embed(&client, texts(3)).await.unwrap().degraded,
            None,
            "believed without being asked"
        );
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(45)).await;
        tokio::time::resume();
        let late = embed(&client, texts(3)).await;
        if !allowed {
            assert_eq!(late.unwrap_err().kind, ErrorKind::Unavailable);
            continue;
        }
        let late = late.unwrap();
        assert_eq!(
            (&late.vectors, &late.model_digest),
            (&fresh.vectors, &fresh.model_digest)
        );
        let degraded = late.degraded.unwrap();
        assert!(
            degraded.contains("from the cache alone") && degraded.contains("going away"),
            "{degraded}"
        );
        let error = embed(&client, texts(4)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "one text is missing");
        server.always(MODELS, Behaviour::fail(Code::FailedPrecondition, "GPU_LOST", "gone"));
        assert_eq!(embed(&client, texts(3)).await.unwrap_err().kind, ErrorKind::GpuLost);
        server.always(MODELS, model_list());
        assert_eq!(
            embed(&client, texts(3)).await.unwrap().degraded,
            None,
            "it is there again"
        );
    }
}

fn query(scores: Option<Vec<f32>>) -> Query {
    Query {
        text: "q".to_owned(),
        documents: texts(3),
        first_stage_scores: scores,
    }
}

#[tokio::test]
async fn documents_that_cannot_be_reranked_come_in_the_order_of_the_first_stage_if_that_is_allowed() {
    let server = ScriptedServer::start();
    server.always(RERANK, going_away());
    let allowing = |dense_order| {
        client(&ClientOptions {
            max_attempts: Some(1),
            breaker_failures: Some(100),
            fallback: Some(FallbackOptions {
                dense_order: Some(dense_order),
                ..FallbackOptions::default()
            }),
            ..options(&[server.uri()])
        })
    };
    let how = RerankOptions {
        top_n: Some(2),
        ..RerankOptions::default()
    };
    let call = CallOptions::default();
    let scored = vec![query(Some(vec![0.1, 0.9, 0.5])), query(Some(vec![2.0, 1.0, 3.0]))];
    let answer = allowing(true)
        .reranking()
        .rerank_batch(scored.clone(), how.clone(), &call)
        .await
        .unwrap();
    let order: Vec<Vec<(u32, f32)>> = answer
        .rankings
        .iter()
        .map(|r| r.iter().map(|d| (d.index, d.score)).collect())
        .collect();
    assert_eq!(order, [[(1, 0.9), (2, 0.5)], [(2, 3.0), (0, 2.0)]]);
    assert!(
        answer
            .rankings
            .iter()
            .flatten()
            .all(|document| document.relevance.is_nan())
    );
    assert!(answer.degraded.unwrap().contains("going away"));
    assert!(answer.model.is_empty());
    let error = allowing(false)
        .reranking()
        .rerank_batch(scored.clone(), how.clone(), &call)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let without = vec![scored[0].clone(), query(None)];
    let error = allowing(true)
        .reranking()
        .rerank_batch(without, how.clone(), &call)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "there is no order without scores");
    server.always(RERANK, Behaviour::fail(Code::FailedPrecondition, "GPU_LOST", "gone"));
    let error = allowing(true)
        .reranking()
        .rerank_batch(scored, how, &call)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::GpuLost);
}

// requirement: isolation 13.1
#[tokio::test]
async fn large_inputs_are_split_by_tokens_too() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let client = client(&ClientOptions {
        max_batch_tokens: Some(100),
        ..options(&[server.uri()])
    });
    let long: Vec<String> = (0..10).map(|number| format!("{number} {}", "x".repeat(198))).collect();
    let answer = embed(&client, long).await.unwrap();
    assert_eq!(
        (answer.rows, answer.usage.calls),
        (10, 5),
        "two texts of 200 bytes make 100 tokens"
    );
}
