//! Embeddings in each element type, split and put together in order; options reach every request; an answer that breaks
//! a promise of its type is the server's error.

use half::{bf16, f16};
use medkg_client::service::embedding::{Dtype, EmbedRequest, Embeddings, How, Vectors};
use medkg_client::service::{ModelKind, ModelState, Truncation};
use medkg_client::{CallOptions, ClientError, ClientOptions, ErrorKind};
use medkg_proto::v1;
use medkg_testkit::{Behaviour, ScriptedServer};

use crate::{EMBED, client, embeddings, options, texts};

const MODELS: &str = "/medkg.v1.EmbeddingService/ListModels";
/// Ten elements, so that a row of bits needs padding.
const WIDTH: usize = 10;

/// The number of a text, in each element type: what a server sends for it, and what the client should make of it.
fn number(text: &str) -> u8 {
    text.trim_start_matches("text ").parse().unwrap()
}

fn bits(text: &str) -> [u8; 2] {
    [number(text), 0b0100_0000]
}

fn tensor(request: &v1::GenerateEmbeddingsRequest) -> v1::Tensor {
    let dtype = request.options.as_ref().unwrap().dtype();
    let mut scales = Vec::new();
    let mut data = Vec::new();
    for text in &request.texts {
        let value = f32::from(number(text));
        match dtype {
            v1::DataType::Unspecified | v1::DataType::F32 => data.extend([value; WIDTH].map(f32::to_le_bytes).concat()),
            v1::DataType::F16 => data.extend([f16::from_f32(value); WIDTH].map(f16::to_le_bytes).concat()),
            v1::DataType::Bf16 => data.extend([bf16::from_f32(value); WIDTH].map(bf16::to_le_bytes).concat()),
            v1::DataType::Int8 => {
                scales.push(value + 0.5);
                data.extend([number(text).wrapping_neg(); WIDTH]);
            }
            v1::DataType::Binary => data.extend(bits(text)),
        }
    }
    v1::Tensor {
        data: data.into(),
        dtype: if dtype == v1::DataType::Unspecified {
            v1::DataType::F32
        } else {
            dtype
        }
        .into(),
        shape: vec![
            u32::try_from(request.texts.len()).unwrap(),
            u32::try_from(WIDTH).unwrap(),
        ],
        scales,
    }
}

fn answer(request: &v1::GenerateEmbeddingsRequest) -> v1::GenerateEmbeddingsResponse {
    v1::GenerateEmbeddingsResponse {
        embeddings: Some(tensor(request)),
        ..embeddings(request)
    }
}

async fn embed(server: &ScriptedServer, request: EmbedRequest) -> Result<Embeddings, ClientError> {
    let settings = ClientOptions {
        max_batch_texts: Some(7),
        ..options(&[server.uri()])
    };
    client(&settings)
        .embedding()
        .embed(request, &CallOptions::default())
        .await
}

#[tokio::test]
async fn every_type_is_put_together_in_order() {
    let server = ScriptedServer::start();
    // The first chunk is the slowest.
    let answering = || Behaviour::reply(|request: v1::GenerateEmbeddingsRequest| answer(&request));
    let asked = texts(100);
    let values = || asked.iter().map(|text| f32::from(number(text)));
    let elements = || values().flat_map(|value| [value; WIDTH]);
    for dtype in Dtype::ALL {
        server.next(EMBED, answering().after(std::time::Duration::from_millis(100)));
        server.always(EMBED, answering());
        let request = EmbedRequest {
            texts: asked.clone(),
            how: How {
                dtype: Some(dtype),
                ..How::default()
            },
            ..EmbedRequest::default()
        };
        let answer = embed(&server, request).await.unwrap();
        let expected = match dtype {
            Dtype::Float32 => Vectors::Float32(elements().collect()),
            Dtype::Float16 => Vectors::Float16(elements().map(f16::from_f32).collect()),
            Dtype::Bfloat16 => Vectors::Bfloat16(elements().map(bf16::from_f32).collect()),
            Dtype::Int8 => Vectors::Int8 {
                elements: asked
                    .iter()
                    .flat_map(|text| [-number(text).cast_signed(); WIDTH])
                    .collect(),
                scales: values().map(|value| value + 0.5).collect(),
            },
            Dtype::Binary => Vectors::Binary(asked.iter().flat_map(|text| bits(text)).collect()),
        };
        assert_eq!(answer.vectors, expected);
        assert_eq!(
            (answer.rows, answer.dimension, answer.vectors.dtype()),
            (100, WIDTH, dtype)
        );
    }
}

#[tokio::test]
async fn options_reach_every_request() {
    let server = ScriptedServer::start();
    server.always(
        EMBED,
        Behaviour::reply(|request: v1::GenerateEmbeddingsRequest| answer(&request)),
    );
    let request = EmbedRequest {
        texts: texts(20),
        how: How {
            model: None,
            dtype: Some(Dtype::Bfloat16),
            truncation: Some(Truncation::Left),
            prompt_name: Some("query".into()),
            instruction: Some(String::new()),
            dimensions: Some(10),
        },
        ..EmbedRequest::default()
    };
    embed(&server, request).await.unwrap();
    let nothing = EmbedRequest {
        texts: texts(1),
        ..EmbedRequest::default()
    };
    embed(&server, nothing).await.unwrap();
    let mut sent: Vec<v1::EmbeddingOptions> = server
        .calls()
        .iter()
        .map(|call| call.message::<v1::GenerateEmbeddingsRequest>().options.unwrap())
        .collect();
    assert_eq!(
        sent.pop(),
        Some(v1::EmbeddingOptions::default()),
        "defaults are the server's"
    );
    let expected = v1::EmbeddingOptions {
        dtype: v1::DataType::Bf16.into(),
        truncation: v1::Truncation::Left.into(),
        prompt_name: "query".into(),
        instruction: Some(String::new()),
        dimensions: 10,
    };
    assert_eq!(sent, vec![expected; 3]);
}

#[tokio::test]
async fn an_answer_of_another_form_than_was_asked_for_is_the_servers_error() {
    type Break = fn(&mut v1::Tensor);
    let other_type: Break = |tensor| tensor.dtype = 77;
    let one_short: Break = |tensor| tensor.data = tensor.data.slice(1..);
    let cases: [(Dtype, Option<u32>, Break); 13] = [
        (Dtype::Float32, None, |tensor| tensor.dtype = v1::DataType::F16.into()),
        (Dtype::Float32, None, |tensor| tensor.scales = vec![1.0, 1.0]),
        (Dtype::Float32, Some(9), |_| {}),
        (Dtype::Float16, None, other_type),
        (Dtype::Bfloat16, None, one_short),
        (Dtype::Int8, None, one_short),
        (Dtype::Int8, None, |tensor| tensor.scales.truncate(1)),
        (Dtype::Int8, None, |tensor| tensor.scales[1] = f32::NAN),
        (Dtype::Int8, None, |tensor| tensor.scales[1] = 0.0),
        (Dtype::Int8, None, |tensor| tensor.data = vec![128; 2 * WIDTH].into()),
        (Dtype::Binary, None, one_short),
        (Dtype::Binary, None, |tensor| {
            tensor.data = vec![0, 0, 0, 0b0010_0000].into();
        }),
        (Dtype::Binary, None, |tensor| tensor.shape = vec![2, u32::MAX]),
    ];
    for (index, (dtype, dimensions, break_it)) in cases.into_iter().enumerate() {
        let server = ScriptedServer::start();
        server.always(
            EMBED,
            Behaviour::reply(move |request: v1::GenerateEmbeddingsRequest| {
                let mut answer = answer(&request);
                break_it(answer.embeddings.as_mut().unwrap());
                answer
            }),
        );
        let request = EmbedRequest {
            texts: texts(2),
            how: How {
                dtype: Some(dtype),
                dimensions,
                ..How::default()
            },
            ..EmbedRequest::default()
        };
        let error = embed(&server, request).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal, "{index}: {error}");
    }
}

#[tokio::test]
async fn models_tell_their_state() {
    let server = ScriptedServer::start();
    let prompt = v1::Prompt {
        name: "query".into(),
        text: "query: ".into(),
    };
    let sparse = v1::Model {
        name: "a".into(),
        kind: v1::ModelKind::Sparse.into(),
        state: v1::ModelState::Ready.into(),
        pooling: v1::Pooling::Splade.into(),
        memory_bytes: 5,
        revision: "abc".into(),
        prompts: vec![prompt],
        default_prompt: "query".into(),
        ..v1::Model::default()
    };
    let failed = v1::Model {
        name: "b".into(),
        state: v1::ModelState::Failed.into(),
        detail: "no file".into(),
        ..v1::Model::default()
    };
    let all = v1::EmbeddingServiceListModelsResponse {
        models: vec![sparse, failed],
    };
    server.always(
        MODELS,
        Behaviour::reply(move |_: v1::EmbeddingServiceListModelsRequest| all.clone()),
    );
    let client = client(&options(&[server.uri()]));
    let models = client.embedding().models(&CallOptions::default()).await.unwrap();
    let [ready, failed] = &models[..] else {
        panic!("{models:?}")
    };
    assert_eq!((ready.kind, ready.state), (Some(ModelKind::Sparse), ModelState::Ready));
    assert_eq!((ready.memory_bytes, ready.revision.as_str()), (5, "abc"));
    assert_eq!(
        (ready.prompts[0].text.as_str(), ready.default_prompt.as_deref()),
        ("query: ", Some("query"))
    );
    assert_eq!(
        (failed.kind, failed.state, failed.detail.as_str()),
        (None, ModelState::Failed, "no file")
    );
    assert_eq!((failed.prompts.len(), failed.default_prompt.as_deref()), (0, None));
}
