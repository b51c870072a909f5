//! The client against a peer that misbehaves on demand: what is retried, where, how often, and what the caller hears.

#![allow(clippy::unwrap_used, clippy::panic)] // test code: it fails by panicking

mod attempts;
mod coalescing;
mod connections;
mod element_types;
mod endpoints;
mod fallbacks;
mod hedging;
mod sparse;
mod splitting;
mod streaming;
mod tls;

use medkg_client::service::embedding::{EmbedRequest, Embeddings};
use medkg_client::{CallOptions, Client, ClientConfig, ClientError, ClientOptions, Endpoints};
use medkg_proto::v1;
use medkg_testkit::{Behaviour, ScriptedServer};

const EMBED: &str = "/medkg.v1.EmbeddingService/GenerateEmbeddings";
const STATUS: &str = "/medkg.v1.GpuService/GetStatus";
const ALLOCATE: &str = "/medkg.v1.GpuService/AllocateGPU";
const DIMENSION: usize = 3;

/// Options with short waits; a test waits for conditions, not for back-offs.
fn options(addresses: &[String]) -> ClientOptions {
    ClientOptions {
        addresses: Some(addresses.to_vec()),
        tenant: Some("demo".to_owned()),
        timeout: Some(20.0),
        backoff_initial: Some(0.001),
        backoff_max: Some(0.01),
        ..ClientOptions::default()
    }
}

fn client(options: &ClientOptions) -> Client {
    Client::new(ClientConfig::try_new(options).unwrap(), &Endpoints::default()).unwrap()
}

fn client_of(server: &ScriptedServer) -> Client {
    client(&options(&[server.uri()]))
}

/// A vector that tells which text it belongs to: its number, three times.
fn vector(text: &str) -> [f32; DIMENSION] {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    [digits.parse().unwrap_or(-1.0); DIMENSION]
}

fn embeddings(request: &v1::GenerateEmbeddingsRequest) -> v1::GenerateEmbeddingsResponse {
    let rows = u32::try_from(request.texts.len()).unwrap();
    let data = request
        .texts
        .iter()
        .flat_map(|text| vector(text))
        .flat_map(f32::to_le_bytes)
        .collect::<Vec<_>>();
    v1::GenerateEmbeddingsResponse {
        embeddings: Some(v1::Tensor {
            data: data.into(),
            dtype: v1::DataType::F32.into(),
            shape: vec![rows, u32::try_from(DIMENSION).unwrap()],
            scales: Vec::new(),
        }),
        token_counts: request
            .texts
            .iter()
            .map(|text| u32::try_from(text.len()).unwrap())
            .collect(),
        truncated: (0..rows)
            .filter(|i| request.texts[*i as usize].contains("long"))
            .collect(),
        model: "m".to_owned(),
        model_digest: "d".to_owned(),
        usage: Some(v1::Usage {
            tokens: u64::from(rows),
            batches: 1,
            device: "cpu".to_owned(),
            ..v1::Usage::default()
        }),
    }
}

fn answering() -> Behaviour {
    Behaviour::reply(|request: v1::GenerateEmbeddingsRequest| embeddings(&request))
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("text {i}")).collect()
}

async fn embed(client: &Client, texts: Vec<String>) -> Result<Embeddings, ClientError> {
    embed_with(client, texts, &CallOptions::default()).await
}

async fn embed_with(client: &Client, texts: Vec<String>, call: &CallOptions) -> Result<Embeddings, ClientError> {
    client
        .embedding()
        .embed(
            EmbedRequest {
                texts,
                ..EmbedRequest::default()
            },
            call,
        )
        .await
}
