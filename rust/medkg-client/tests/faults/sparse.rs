//! Sparse embeddings: rows of several requests become rows of one answer.

use medkg_client::service::Truncation;
use medkg_client::service::embedding::{SparseEmbeddings, SparseRequest};
use medkg_client::{CallOptions, ClientError, ClientOptions, ErrorKind};
use medkg_proto::v1;
use medkg_testkit::{Behaviour, ScriptedServer};

use crate::{client, options, texts};

const SPARSE: &str = "/medkg.v1.EmbeddingService/GenerateSparseEmbeddings";

/// A text's number n becomes n % 4 terms: the ids n, n + 1, … with the weights n + 0.5, n + 1.5, …
fn terms(text: &str) -> Vec<(u32, f32)> {
    let number: u16 = text.trim_start_matches("text ").parse().unwrap();
    let ids = number..number + number % 4;
    ids.map(|id| (u32::from(id), f32::from(id) + 0.5)).collect()
}

fn answer(request: &v1::GenerateSparseEmbeddingsRequest) -> v1::GenerateSparseEmbeddingsResponse {
    let rows: Vec<_> = request.texts.iter().map(|text| terms(text)).collect();
    let mut offsets = vec![0];
    for row in &rows {
        offsets.push(offsets.last().unwrap() + u32::try_from(row.len()).unwrap());
    }
    let weights = rows.iter().flatten().flat_map(|term| term.1.to_le_bytes());
    v1::GenerateSparseEmbeddingsResponse {
        offsets,
        token_ids: rows.iter().flatten().map(|term| term.0).collect(),
        weights: weights.collect::<Vec<u8>>().into(),
        token_counts: vec![3; rows.len()],
        truncated: vec![0],
        model: "m".into(),
        model_digest: "d".into(),
        dimension: 1_000,
        usage: Some(v1::Usage {
            tokens: 3 * rows.len() as u64,
            batches: 1,
            ..v1::Usage::default()
        }),
    }
}

async fn embed(server: &ScriptedServer, request: SparseRequest) -> Result<SparseEmbeddings, ClientError> {
    let settings = ClientOptions {
        max_batch_texts: Some(7),
        ..options(&[server.uri()])
    };
    let client = client(&settings);
    client.embedding().embed_sparse(request, &CallOptions::default()).await
}

#[tokio::test]
async fn rows_are_put_together_in_order() {
    let server = ScriptedServer::start();
    let answering = || Behaviour::reply(|request: v1::GenerateSparseEmbeddingsRequest| answer(&request));
    server.next(SPARSE, answering().after(std::time::Duration::from_millis(100)));
    server.always(SPARSE, answering());
    let request = SparseRequest {
        texts: texts(50),
        model: Some("splade".into()),
        truncation: Some(Truncation::Left),
        max_terms: Some(9),
        ..SparseRequest::default()
    };
    let found = embed(&server, request).await.unwrap();
    assert_eq!((found.offsets.len(), found.dimension), (51, 1_000));
    for (ends, text) in found.offsets.windows(2).zip(texts(50)) {
        let range = usize::try_from(ends[0]).unwrap()..usize::try_from(ends[1]).unwrap();
        let ids = found.token_ids[range.clone()]
            .iter()
            .map(|id| u32::try_from(*id).unwrap());
        let row: Vec<_> = ids.zip(found.weights[range].iter().copied()).collect();
        assert_eq!(row, terms(&text));
    }
    assert_eq!(found.truncated, [0, 7, 14, 21, 28, 35, 42, 49]);
    assert_eq!(
        (found.token_counts.len(), found.usage.tokens, found.usage.calls),
        (50, 150, 8)
    );
    for call in server.calls() {
        let sent: v1::GenerateSparseEmbeddingsRequest = call.message();
        assert_eq!((sent.model.as_str(), sent.max_terms), ("splade", 9));
        assert_eq!(sent.truncation(), v1::Truncation::Left);
    }
}

#[tokio::test]
async fn no_text_is_refused_before_anything_is_sent() {
    let server = ScriptedServer::start();
    let error = embed(&server, SparseRequest::default()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.method),
        (ErrorKind::InvalidArgument, "GenerateSparseEmbeddings")
    );
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn an_answer_that_breaks_its_promise_is_the_servers_error() {
    // Texts 2 and 3: two terms and three terms.
    let breaks: [fn(&mut v1::GenerateSparseEmbeddingsResponse); 12] = [
        |answer| answer.offsets = vec![],
        |answer| answer.offsets = vec![0, 5],
        |answer| answer.offsets = vec![1, 2, 5],
        |answer| answer.offsets = vec![0, 6, 5],
        |answer| answer.offsets = vec![0, 2, 6],
        |answer| answer.token_ids[1] = 2,
        |answer| answer.token_ids[4] = 1_000,
        |answer| answer.weights = vec![0; 5].into(),
        |answer| answer.weights = f32::NAN.to_le_bytes().repeat(5).into(),
        |answer| answer.weights = 0_f32.to_le_bytes().repeat(5).into(),
        |answer| answer.token_counts = vec![1],
        |answer| answer.truncated = vec![2],
    ];
    for (index, break_it) in breaks.into_iter().enumerate() {
        let server = ScriptedServer::start();
        server.always(
            SPARSE,
            Behaviour::reply(move |request: v1::GenerateSparseEmbeddingsRequest| {
                let mut answer = answer(&request);
                break_it(&mut answer);
                answer
            }),
        );
        let request = SparseRequest {
            texts: texts(4)[2..].to_vec(),
            ..SparseRequest::default()
        };
        let error = embed(&server, request).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal, "{index}: {error}");
    }
}

#[tokio::test]
async fn parts_over_different_vocabularies_are_not_mixed() {
    let server = ScriptedServer::start();
    server.next(
        SPARSE,
        Behaviour::reply(|r: v1::GenerateSparseEmbeddingsRequest| answer(&r)),
    );
    server.always(
        SPARSE,
        Behaviour::reply(
            |request: v1::GenerateSparseEmbeddingsRequest| v1::GenerateSparseEmbeddingsResponse {
                dimension: 2_000,
                ..answer(&request)
            },
        ),
    );
    let request = SparseRequest {
        texts: texts(14),
        ..SparseRequest::default()
    };
    let error = embed(&server, request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(
        error.message.contains("1000 and of 2000") || error.message.contains("2000 and of 1000"),
        "{error}"
    );
}
