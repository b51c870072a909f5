//! Large inputs: split, put together in order, and errors that count as the caller does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use medkg_client::service::embedding::{EmbedRequest, Vectors};
use medkg_client::service::reranking::{Query, RerankOptions};
use medkg_client::service::vector::{Matrix, Points, SearchRequest, SparseMatrix};
use medkg_client::{CallOptions, ClientOptions, ErrorKind};
use medkg_proto::v1;
use medkg_testkit::{Behaviour, ScriptedServer};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{DIMENSION, EMBED, answering, client, embed, embeddings, options, texts, vector};

const RERANK: &str = "/medkg.v1.RerankingService/RerankBatch";
const UPSERT: &str = "/medkg.v1.VectorService/UpsertVectors";
const SEARCH: &str = "/medkg.v1.VectorService/SearchVectors";

fn small_batches(server: &ScriptedServer) -> ClientOptions {
    ClientOptions {
        max_batch_texts: Some(7),
        ..options(&[server.uri()])
    }
}

// requirement: isolation 13.1
#[tokio::test]
async fn chunks_that_are_answered_out_of_order_are_put_together_in_order() {
    let server = ScriptedServer::start();
    // The first chunk is the slowest.
    server.next(EMBED, answering().after(Duration::from_millis(200)));
    server.always(EMBED, answering());
    let total = 100;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress = {
        let seen = Arc::clone(&seen);
        Arc::new(move |done, all| seen.lock().unwrap().push((done, all)))
    };
    let mut texts = texts(total);
    texts[93] = "long 93".to_owned();
    texts[8] = "long 8".to_owned();
    let request = EmbedRequest {
        texts: texts.clone(),
        progress: Some(progress),
        ..EmbedRequest::default()
    };
    let answer = client(&small_batches(&server))
        .embedding()
        .embed(request, &CallOptions::default())
        .await
        .unwrap();
    let expected: Vec<f32> = texts.iter().flat_map(|text| vector(text)).collect();
    assert_eq!(answer.vectors, Vectors::Float32(expected));
    assert_eq!((answer.rows, answer.dimension), (total, DIMENSION));
    assert_eq!(answer.truncated, [8, 93]);
    let lengths: Vec<_> = texts.iter().map(|text| u32::try_from(text.len()).unwrap()).collect();
    assert_eq!(answer.token_counts, lengths);
    assert_eq!(
        (answer.usage.calls, answer.usage.tokens, answer.usage.device.as_str()),
        (15, 100, "cpu")
    );
    let seen = seen.lock().unwrap();
    assert_eq!((seen.len(), seen.last()), (15, Some(&(total, total))));
    assert!(
        seen.windows(2).all(|pair| pair[0].0 < pair[1].0),
        "progress only grows: {seen:?}"
    );
}

#[tokio::test]
async fn a_chunk_that_fails_once_is_retried_alone() {
    let server = ScriptedServer::start();
    server.next(EMBED, answering());
    server.next(EMBED, Behaviour::fail(Code::Unavailable, "", ""));
    server.always(EMBED, answering());
    let answer = embed(&client(&small_batches(&server)), texts(70)).await.unwrap();
    assert_eq!((answer.usage.calls, answer.usage.retries), (10, 1));
    assert_eq!(server.calls().len(), 11);
}

#[tokio::test]
async fn a_bad_text_is_named_by_the_callers_index_and_ends_the_call() {
    let server = ScriptedServer::start();
    server.always(
        EMBED,
        Behaviour::reply_many(|request: v1::GenerateEmbeddingsRequest| {
            match request.texts.iter().position(|text| text == "text 99") {
                None => Ok(vec![embeddings(&request)]),
                Some(index) => {
                    let mut details = ErrorDetails::new();
                    details.set_error_info("INVALID_FIELD", "medkg", []);
                    details.add_bad_request_violation(format!("texts[{index}]"), "is bad");
                    let message = format!("texts[{index}] is bad; leave it out");
                    Err(Status::with_error_details(Code::InvalidArgument, message, details))
                }
            }
        }),
    );
    let error = embed(&client(&small_batches(&server)), texts(7_000)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert_eq!(error.field_violations[0].field, "texts[99]");
    assert_eq!(error.message, "texts[99] is bad; leave it out");
    assert!(
        server.calls().len() < 50,
        "{} requests were made after the failure",
        server.calls().len()
    );
}

#[tokio::test]
async fn chunks_are_limited_in_bytes_and_in_number_and_so_is_what_is_out_at_once() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering().after(Duration::from_millis(30)));
    let settings = ClientOptions {
        max_batch_texts: Some(5),
        max_batch_bytes: Some(100),
        max_concurrent_batches: Some(3),
        ..options(&[server.uri()])
    };
    let mut texts = texts(40);
    texts[20] = format!("long 20 {}", "x".repeat(500));
    embed(&client(&settings), texts).await.unwrap();
    let calls = server.calls();
    for call in &calls {
        let request: v1::GenerateEmbeddingsRequest = call.message();
        let bytes: usize = request.texts.iter().map(String::len).sum();
        assert!(request.texts.len() <= 5);
        assert!(
            bytes <= 100 || request.texts.len() == 1,
            "{bytes} bytes in {} texts",
            request.texts.len()
        );
    }
    // With at most three out at once, the fourth request cannot come before one delay has passed, and so on.
    for (later, earlier) in calls.iter().skip(3).zip(&calls) {
        assert!(
            later.at > earlier.at + Duration::from_millis(29),
            "more than three requests were out at once"
        );
    }
}

#[tokio::test]
async fn parts_from_different_models_are_not_mixed() {
    let server = ScriptedServer::start();
    server.next(EMBED, answering());
    server.always(
        EMBED,
        Behaviour::reply(
            |request: v1::GenerateEmbeddingsRequest| v1::GenerateEmbeddingsResponse {
                model_digest: "other".to_owned(),
                ..embeddings(&request)
            },
        ),
    );
    let error = embed(&client(&small_batches(&server)), texts(14)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.message.contains("different models"), "{error}");
}

#[tokio::test]
async fn an_answer_that_breaks_its_promise_is_the_servers_error() {
    let breaks: [fn(&mut v1::GenerateEmbeddingsResponse); 6] = [
        |answer| answer.embeddings = None,
        |answer| answer.embeddings.as_mut().unwrap().shape = vec![2],
        |answer| answer.embeddings.as_mut().unwrap().shape = vec![3, 3],
        |answer| answer.embeddings.as_mut().unwrap().data = vec![0; 5].into(),
        |answer| answer.embeddings.as_mut().unwrap().dtype = v1::DataType::Bf16.into(),
        |answer| answer.truncated = vec![2],
    ];
    for (index, break_it) in breaks.into_iter().enumerate() {
        let server = ScriptedServer::start();
        server.always(
            EMBED,
            Behaviour::reply(move |request: v1::GenerateEmbeddingsRequest| {
                let mut answer = embeddings(&request);
                break_it(&mut answer);
                answer
            }),
        );
        let error = embed(&client(&options(&[server.uri()])), texts(2)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal, "{index}: {error}");
        assert!(!error.request_id.is_empty());
    }
}

#[tokio::test]
async fn queries_are_split_and_their_rankings_put_together_in_order() {
    let server = ScriptedServer::start();
    server.always(
        RERANK,
        Behaviour::reply(|request: v1::RerankBatchRequest| v1::RerankBatchResponse {
            rankings: request
                .queries
                .iter()
                .map(|query| v1::RankedDocuments {
                    documents: vec![v1::RankedDocument {
                        index: 0,
                        score: vector(&query.query)[0],
                        relevance: 0.0,
                    }],
                })
                .collect(),
            truncated_pairs: 1,
            ..v1::RerankBatchResponse::default()
        }),
    );
    let queries = texts(200).into_iter();
    let queries = queries
        .map(|text| Query {
            text,
            documents: vec!["d".into()],
            first_stage_scores: None,
        })
        .collect();
    let client = client(&options(&[server.uri()]));
    let how = RerankOptions::default();
    let answer = client
        .reranking()
        .rerank_batch(queries, how, &CallOptions::default())
        .await
        .unwrap();
    let scores: Vec<_> = answer.rankings.iter().map(|ranking| ranking[0].score).collect();
    assert_eq!(scores, (0..200_u16).map(f32::from).collect::<Vec<_>>());
    assert_eq!((answer.usage.calls, answer.truncated_pairs), (4, 4));
}

#[tokio::test]
async fn a_rerank_request_holds_no_more_pairs_than_texts() {
    let server = ScriptedServer::start();
    let answer = |request: v1::RerankBatchRequest| v1::RerankBatchResponse {
        rankings: vec![v1::RankedDocuments::default(); request.queries.len()],
        ..v1::RerankBatchResponse::default()
    };
    server.always(RERANK, Behaviour::reply(answer));
    let query = |documents| Query {
        text: "q".into(),
        documents: texts(documents),
        first_stage_scores: None,
    };
    let queries = [3, 4, 3, 20, 3].map(query).into();
    let (how, call) = (RerankOptions::default(), CallOptions::default());
    let client = client(&small_batches(&server));
    let answer = client.reranking().rerank_batch(queries, how, &call);
    assert_eq!(answer.await.unwrap().rankings.len(), 5);
    let pairs = |call: &medkg_testkit::Call| -> usize {
        let request: v1::RerankBatchRequest = call.message();
        request.queries.iter().map(|query| query.documents.len()).sum()
    };
    let mut pairs: Vec<_> = server.calls().iter().map(pairs).collect();
    pairs.sort_unstable();
    assert_eq!(pairs, [3, 3, 7, 20], "seven at most, but a query stays whole");
}

#[tokio::test]
async fn writes_are_split_in_order_and_a_failure_says_how_far_they_got() {
    let server = ScriptedServer::start();
    server.next(
        UPSERT,
        Behaviour::reply(|r: v1::UpsertVectorsRequest| v1::UpsertVectorsResponse {
            inserted: r.ids.len() as u64,
            replaced: 0,
        }),
    );
    let refused = Behaviour::fail(Code::InvalidArgument, "INVALID_FIELD", "vectors[1] holds NaN");
    server.always(UPSERT, refused.field("vectors[1]", "holds NaN"));
    // Two floats and an id of 6 bytes: 14 bytes a point, so seven points in 100 bytes.
    let client = client(&ClientOptions {
        max_batch_bytes: Some(100),
        ..options(&[server.uri()])
    });
    let ids: Vec<_> = (10..40).map(|i| format!("idid{i}")).collect();
    let vectors = Matrix::try_new(vec![0; 30 * 8].into(), 30, 2).unwrap();
    let points = Points {
        ids: ids.clone(),
        vectors,
        payloads: None,
        sparse: None,
    };
    let error = client
        .vector()
        .upsert("c".into(), points, &CallOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.field_violations[0].field, "vectors[8]");
    assert_eq!(error.message, "vectors[8] holds NaN; the first 7 points are written");
    let sent: v1::UpsertVectorsRequest = server.calls()[0].message();
    assert_eq!(sent.ids, ids[..7]);
    assert_eq!(server.calls().len(), 2);
}

#[tokio::test]
async fn a_point_and_its_sparse_vector_are_in_one_request() {
    let server = ScriptedServer::start();
    let answer = |request: v1::UpsertVectorsRequest| v1::UpsertVectorsResponse {
        inserted: request.ids.len() as u64,
        replaced: 0,
    };
    server.next(UPSERT, Behaviour::reply(answer));
    server.next(UPSERT, Behaviour::reply(answer));
    let refused = Behaviour::fail(Code::InvalidArgument, "INVALID_FIELD", "sparse.indices[2] is 9");
    server.always(UPSERT, refused.field("sparse.indices[2]", "is 9"));
    // A float, an id of 2 bytes and up to 9 bytes for each of two terms: 29 bytes a point, so three points in 100 bytes.
    let client = client(&ClientOptions {
        max_batch_bytes: Some(100),
        ..options(&[server.uri()])
    });
    let count = 8_u32;
    let weights: Vec<u8> = (0..2 * count)
        .flat_map(|at| f32::from(u16::try_from(at).unwrap()).to_le_bytes())
        .collect();
    let offsets = (0..=count as usize).map(|row| 2 * row).collect();
    let points = Points {
        ids: (10..10 + count).map(|id| id.to_string()).collect(),
        vectors: Matrix::try_new(vec![0; 8 * 4].into(), 8, 1).unwrap(),
        payloads: None,
        sparse: Some(SparseMatrix::try_new(offsets, (0..2 * count).collect(), weights.into()).unwrap()),
    };
    let error = client
        .vector()
        .upsert("c".into(), points, &CallOptions::default())
        .await
        .unwrap_err();
    let calls: Vec<v1::UpsertVectorsRequest> = server.calls().iter().map(medkg_testkit::Call::message).collect();
    assert_eq!(calls.iter().map(|call| call.ids.len()).collect::<Vec<_>>(), [3, 3, 2]);
    for call in &calls {
        let sparse = call.sparse.as_ref().unwrap();
        assert_eq!(
            sparse.offsets,
            (0..=u32::try_from(call.ids.len()).unwrap())
                .map(|row| 2 * row)
                .collect::<Vec<_>>()
        );
        // The id of a point says which terms are its own.
        let first = 2 * (call.ids[0].parse::<u32>().unwrap() - 10);
        assert_eq!(sparse.indices[0], first);
        assert_eq!(
            sparse.weights[..4],
            f32::from(u16::try_from(first).unwrap()).to_le_bytes()
        );
        assert_eq!(sparse.weights.len(), 4 * sparse.indices.len());
    }
    assert_eq!(error.field_violations[0].field, "sparse.indices[14]");
    assert_eq!(error.message, "sparse.indices[14] is 9; the first 6 points are written");
}

#[tokio::test]
async fn search_queries_are_split_and_put_together_in_order() {
    let server = ScriptedServer::start();
    server.always(
        SEARCH,
        Behaviour::reply(|request: v1::SearchVectorsRequest| {
            let data = request.queries.unwrap().data;
            let hit = |bytes: &[u8]| v1::ScoredPoint {
                id: "a".into(),
                score: f32::from_le_bytes(bytes.try_into().unwrap()),
                ..v1::ScoredPoint::default()
            };
            let hits = data
                .chunks(4)
                .map(|bytes| v1::SearchHits {
                    points: vec![hit(bytes)],
                })
                .collect();
            v1::SearchVectorsResponse { hits, usage: None }
        }),
    );
    let rows = 3_000_u16;
    let data: Vec<u8> = (0..rows).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let queries = Matrix::try_new(data.into(), usize::from(rows), 1).unwrap();
    let request = SearchRequest {
        collection: "c".into(),
        queries: Some(queries),
        sparse: None,
        fusion: None,
        k: 1,
        with_payload: true,
        filter: None,
        score_threshold: None,
    };
    let client = client(&options(&[server.uri()]));
    let answer = client.vector().search(request, &CallOptions::default()).await.unwrap();
    let scores: Vec<_> = answer.hits.iter().map(|hits| hits[0].score).collect();
    assert_eq!(scores, (0..rows).map(f32::from).collect::<Vec<_>>());
    assert_eq!(answer.hits[0][0].payload, None);
    assert_eq!(server.calls().len(), 3);
}
