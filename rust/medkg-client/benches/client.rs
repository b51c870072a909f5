//! What the client adds to a bare tonic client, and the server that `bench/client.py` compares clients in Python with.
//!
//! `compare ROUNDS` prints one JSON object: calls per second with 64 in flight and the 95th percentile of a single caller's
//! latencies, for both clients, round by round. `serve` prints an address and serves until its input ends: embeddings of 1,024
//! f32 as medkg's wire has them, and the same numbers as `repeated float` and as `bytes` at `/bench.Vectors/*`.

#![expect(clippy::print_stdout, reason = "what it measured is its output")]

use std::error::Error;
use std::io::Read as _;
use std::time::{Duration, Instant};

use medkg_client::{CallOptions, Client, ClientConfig, ClientOptions, Endpoints};
use medkg_proto::v1;
use medkg_proto::v1::gpu_service_client::GpuServiceClient;
use medkg_testkit::{Behaviour, ScriptedServer};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// Without it the server spends most of its time on pages of large messages that glibc gives back and takes again.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const STATUS: &str = "/medkg.v1.GpuService/GetStatus";
const IN_FLIGHT: usize = 64;
const CALLS: usize = 20_000;
const LATENCIES: usize = 4_000;
const DIMENSION: u32 = 1024;
const ROW_BYTES: usize = DIMENSION as usize * size_of::<f32>();

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match arguments.next().as_deref() {
        Some("serve") => serve(),
        Some("compare") => return compare(arguments.next().map_or(Ok(5), |rounds| rounds.parse())?),
        _ => println!("give `serve` or `compare ROUNDS`"),
    }
    Ok(())
}

/// Numbers of a message that holds nothing else, as a user would define it.
#[derive(Clone, PartialEq, prost::Message)]
struct Floats {
    #[prost(float, repeated, tag = "1")]
    values: Vec<f32>,
}

/// The same as bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct Octets {
    #[prost(bytes = "bytes", tag = "1")]
    values: bytes::Bytes,
}

/// How many rows are wanted.
#[derive(Clone, PartialEq, prost::Message)]
struct Wanted {
    #[prost(uint32, tag = "1")]
    rows: u32,
}

fn numbers(rows: usize) -> Vec<f32> {
    #[expect(clippy::cast_precision_loss, reason = "the values do not matter")]
    let numbers = (0..rows * DIMENSION as usize).map(|at| (at % 1000) as f32 / 1000.0);
    numbers.collect()
}

fn octets(rows: usize) -> bytes::Bytes {
    numbers(rows)
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect::<Vec<u8>>()
        .into()
}

fn serve() {
    let server = ScriptedServer::start();
    // Made once: what is measured is the wire and the client.
    let (whole, floats) = (octets(1000), numbers(1000));
    let data = whole.clone();
    let embed = move |request: v1::GenerateEmbeddingsRequest| {
        let rows = request.texts.len();
        v1::GenerateEmbeddingsResponse {
            embeddings: Some(v1::Tensor {
                data: data.slice(..rows * ROW_BYTES),
                dtype: v1::DataType::F32.into(),
                shape: vec![u32::try_from(rows).unwrap_or(u32::MAX), DIMENSION],
                scales: Vec::new(),
            }),
            token_counts: vec![1; rows],
            truncated: Vec::new(),
            model: "bench".to_owned(),
            model_digest: "bench".to_owned(),
            usage: None,
        }
    };
    server.always("/medkg.v1.EmbeddingService/GenerateEmbeddings", Behaviour::reply(embed));
    let floats = move |wanted: Wanted| Floats {
        values: floats[..wanted.rows as usize * DIMENSION as usize].to_vec(),
    };
    server.always("/bench.Vectors/Floats", Behaviour::reply(floats));
    let bytes = move |wanted: Wanted| Octets {
        values: whole.slice(..wanted.rows as usize * ROW_BYTES),
    };
    server.always("/bench.Vectors/Bytes", Behaviour::reply(bytes));
    println!("{}", server.uri());
    let _ = std::io::stdin().read(&mut [0]);
}

fn compare(rounds: usize) -> Result<(), Failure> {
    let server = ScriptedServer::start();
    server.always(STATUS, Behaviour::reply(|(): ()| v1::GetStatusResponse::default()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let options = ClientOptions {
            address: Some(server.uri()),
            tenant: Some("bench".to_owned()),
            ..ClientOptions::default()
        };
        let client = Client::new(ClientConfig::try_new(&options)?, &Endpoints::default())?;
        let bare = Endpoint::from_shared(server.uri())?.connect().await?;
        let ours = || {
            let client = client.clone();
            async move {
                client.gpu().status(&CallOptions::default()).await?;
                Ok(())
            }
        };
        let theirs = || bare_call(bare.clone());
        let (mut calls, mut latencies) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for round in 0..=rounds {
            let (medkg, tonic) = (per_second(ours).await?, per_second(theirs).await?);
            let (medkg_p95, tonic_p95) = (p95(ours).await?, p95(theirs).await?);
            // The first round warms up.
            if round > 0 {
                calls[0].push(medkg);
                calls[1].push(tonic);
                latencies[0].push(medkg_p95);
                latencies[1].push(tonic_p95);
            }
        }
        println!(
            "{{\"calls\": {{\"medkg\": {:?}, \"tonic\": {:?}}}, \"p95\": {{\"medkg\": {:?}, \"tonic\": {:?}}}}}",
            calls[0], calls[1], latencies[0], latencies[1]
        );
        Ok(())
    })
}

/// What a user of tonic writes: tenant and deadline, nothing else.
async fn bare_call(channel: Channel) -> Result<(), Failure> {
    let mut request = Request::new(v1::GetStatusRequest {});
    request.metadata_mut().insert("x-tenant-id", "bench".parse()?);
    request.set_timeout(Duration::from_secs(30));
    GpuServiceClient::new(channel).get_status(request).await?;
    Ok(())
}

async fn per_second<F>(call: impl Fn() -> F) -> Result<f64, Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let begun = Instant::now();
    let callers = (0..IN_FLIGHT).map(|_| async {
        for _ in 0..CALLS / IN_FLIGHT {
            call().await?;
        }
        Ok::<(), Failure>(())
    });
    futures_util::future::try_join_all(callers).await?;
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let calls = (CALLS / IN_FLIGHT * IN_FLIGHT) as f64;
    Ok(calls / begun.elapsed().as_secs_f64())
}

/// Microseconds that 95 of 100 calls of a single caller stay below.
async fn p95<F: Future<Output = Result<(), Failure>>>(call: impl Fn() -> F) -> Result<f64, Failure> {
    let mut latencies = Vec::with_capacity(LATENCIES);
    for _ in 0..LATENCIES {
        let begun = Instant::now();
        call().await?;
        latencies.push(begun.elapsed());
    }
    latencies.sort_unstable();
    Ok(latencies[LATENCIES * 95 / 100].as_secs_f64() * 1e6)
}
