//! The whole server on a GPU that is lost while it works: NVML through its library's interface, as in production; what
//! computes is the processor.

use clap::Parser as _;
use medkg_proto::v1;
use medkg_proto::v1::gpu_service_client::GpuServiceClient;
use medkg_proto::v1::reranking_service_client::RerankingServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use super::*;
use crate::config::Arguments;
use crate::device::stand_in::{StandIn, forget_watch};
use crate::device::watch::Watched;

fn of_tenant<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-tenant-id", "a".parse().unwrap());
    request
}

fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map_or_else(String::new, |info| info.reason)
}

/// What Prometheus reads there.
async fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// Serves as if the processor were the GPU that `watched` plays.
async fn serve_watched(config: ServerConfig, watched: Watched) -> Result<(), ServeError> {
    let listed = device::list(config.device, watched.library.as_deref());
    let own = listed.iter().find(|device| device.uuid == watched.uuid);
    let device = ActiveDevice {
        memory: own.map(|device| device.total_memory),
        ..played(watched)
    };
    Box::pin(bound(&config).await.serve(config, Ok(device))).await
}

async fn bound(config: &ServerConfig) -> Bound {
    let signals = shutdown::Signals::install().unwrap();
    Bound::new(signals, identity(config).unwrap(), config).await.unwrap()
}

fn played(watched: Watched) -> ActiveDevice {
    ActiveDevice {
        id: "cuda:0".to_owned(),
        watched: Some(watched),
        ..device::probe(DeviceChoice::Cpu).unwrap()
    }
}

/// No test: what tests in Python start (tests/server/played.py). It takes the server's arguments, one a line, and NVML's
/// library from the environment, and ends as gpu-server does. No other binary can be told that the processor is a GPU.
#[test]
#[ignore = "serves for other tests"]
fn serves_on_a_gpu_that_is_played() {
    let arguments = std::env::var("MEDKG_TEST_ARGUMENTS").unwrap();
    let arguments = Arguments::try_parse_from(std::iter::once("gpu-server").chain(arguments.lines()));
    let config = ServerConfig::try_new(arguments.unwrap()).unwrap();
    let watched = Watched {
        library: Some(std::env::var_os("MEDKG_TEST_NVML").unwrap().into()),
        uuid: std::env::var("MEDKG_TEST_GPU").unwrap(),
        id: "cuda:0".to_owned(),
    };
    let code = crate::run(&config, serve_watched(config.clone(), watched));
    unreachable!("it exits: {code:?}");
}

/// A server whose GPU NVML plays.
struct Started {
    address: String,
    metrics: SocketAddr,
    server: tokio::task::JoinHandle<Result<(), ServeError>>,
}

async fn start(nvml: &StandIn) -> Started {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/medkg-reranker-minilm");
    let line = format!(
        "gpu-server --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --services gpu,reranking --reranking-model m={model} \
         --batch-tokens 512 --threads 1 --dtype f32 --gpu-lost-grace 1"
    );
    let config = ServerConfig::try_new(Arguments::try_parse_from(line.split_whitespace()).unwrap()).unwrap();
    let bound = bound(&config).await;
    let address = format!("http://{}", bound.everyone.1);
    let metrics = bound.scrapers.as_ref().unwrap().1;
    let begun = forget_watch(&nvml.watched());
    let server = tokio::spawn(bound.serve(config, Ok(played(nvml.watched()))));
    while !begun.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Started {
        address,
        metrics,
        server,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_is_lost_is_told_everywhere_and_ends_the_process() {
    let mut nvml = StandIn::new();
    let Started {
        address,
        metrics,
        server,
    } = start(&nvml).await;
    assert!(scrape(metrics).await.contains("\nmedkg_device_ready 1\n"));
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    while watch.next().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    let mut gpu = GpuServiceClient::new(channel.clone());
    let request = of_tenant(v1::WatchStatusRequest {});
    let mut status = gpu.watch_status(request).await.unwrap().into_inner();
    let first = status.next().await.unwrap().unwrap().status.unwrap();
    assert_eq!(
        (first.state(), first.active_device.as_str()),
        (v1::DeviceState::Ready, "cuda:0")
    );
    // One that is computed for minutes, and one that waits behind it.
    let long = |channel: Channel| async move {
        let document = v1::RerankDocument {
            text: "word ".repeat(200),
            ..v1::RerankDocument::default()
        };
        let query = v1::RerankQuery {
            query: "what".to_owned(),
            documents: vec![document; 1_000],
        };
        let request = v1::RerankBatchRequest {
            queries: vec![query],
            ..v1::RerankBatchRequest::default()
        };
        RerankingServiceClient::new(channel)
            .rerank_batch(of_tenant(request))
            .await
    };
    let calls = [tokio::spawn(long(channel.clone())), tokio::spawn(long(channel.clone()))];
    // They are in work by then; were they not, they would be refused in the same way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    nvml.xid(79);
    for call in calls {
        let refused = call.await.unwrap().unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (tonic::Code::FailedPrecondition, "GPU_LOST")
        );
        assert!(refused.message().contains("Xid 79"), "{refused}");
    }
    let told = watch.next().await.unwrap().unwrap();
    assert_eq!(told.status(), ServingStatus::NotServing);
    let mut told = status.next().await.unwrap().unwrap().status.unwrap();
    if told.state() == v1::DeviceState::Ready {
        // That its memory became known is a change too, where the first answer came before NVML's.
        told = status.next().await.unwrap().unwrap().status.unwrap();
    }
    assert_eq!(
        (told.state(), told.active_device.as_str()),
        (v1::DeviceState::Unavailable, "")
    );
    assert!(told.detail.contains("Xid 79"), "{}", told.detail);
    let ended = server.await.unwrap();
    assert!(
        matches!(ended, Err(ServeError::Lost(Error::GpuLost { .. }))),
        "{ended:?}"
    );
    assert!(status.next().await.is_none(), "the watch ends with the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_runs_short_is_told_to_whoever_watches_and_whoever_asks() {
    let mut nvml = StandIn::new();
    let Started {
        address,
        metrics,
        server,
    } = start(&nvml).await;
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let mut gpu = GpuServiceClient::new(channel.clone());
    let request = of_tenant(v1::WatchStatusRequest {});
    let mut watch = gpu.watch_status(request).await.unwrap().into_inner();
    // One that reads nothing meanwhile holds nobody up.
    let request = of_tenant(v1::WatchStatusRequest {});
    let mut slow = gpu.watch_status(request).await.unwrap().into_inner();
    let pressures = [
        (100, v1::MemoryPressure::Normal, "normal"),
        (900, v1::MemoryPressure::Warn, "warn"),
        (960, v1::MemoryPressure::Critical, "critical"),
        (100, v1::MemoryPressure::Normal, "normal"),
    ];
    for (used, pressure, level) in pressures {
        nvml.used = used;
        nvml.play();
        let mut told = watch.next().await.unwrap().unwrap().status.unwrap();
        if told.memory_pressure() == v1::MemoryPressure::Unspecified {
            // It was asked before NVML was.
            told = watch.next().await.unwrap().unwrap().status.unwrap();
        }
        assert_eq!((told.memory_pressure(), told.total_memory_bytes), (pressure, 1000));
        assert_eq!(
            (told.state(), told.used_memory_bytes),
            (v1::DeviceState::Ready, Some(used))
        );
        let asked = gpu
            .get_status(of_tenant(v1::GetStatusRequest {}))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (asked.memory_pressure(), asked.used_memory_bytes),
            (pressure, Some(used))
        );
        let scraped = scrape(metrics).await;
        for level_told in ["normal", "warn", "critical"] {
            let value = u8::from(level == level_told);
            let line = format!("medkg_device_memory_pressure{{device=\"cuda:0\",level=\"{level_told}\"}} {value}\n");
            assert!(scraped.contains(&line), "{line} is not in {scraped}");
        }
        for line in [
            format!("used_bytes{{device=\"cuda:0\"}} {used}\n"),
            "total_bytes{device=\"cuda:0\"} 1000\n".to_owned(),
        ] {
            assert!(
                scraped.contains(&format!("medkg_device_memory_{line}")),
                "{line} is not in {scraped}"
            );
        }
    }
    nvml.xid(79);
    let told = watch.next().await.unwrap().unwrap().status.unwrap();
    assert_eq!(told.state(), v1::DeviceState::Unavailable);
    assert_eq!(
        (told.memory_pressure(), told.used_memory_bytes, told.total_memory_bytes),
        (v1::MemoryPressure::Unspecified, None, 0)
    );
    let mut last = None;
    while let Some(status) = slow.next().await {
        last = status.unwrap().status;
    }
    assert_eq!(
        last.unwrap().state(),
        v1::DeviceState::Unavailable,
        "the newest is never left out"
    );
    assert!(matches!(server.await.unwrap(), Err(ServeError::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn a_gpu_that_was_never_there_does_not_end_the_process() {
    let fault = Error::GpuUnavailable {
        detail: "no driver".to_owned(),
    };
    let latch = FaultLatch::new(Some(fault));
    let day = Duration::from_secs(24 * 3600);
    assert!(tokio::time::timeout(day, lost(&latch, Duration::ZERO)).await.is_err());
    let latch = FaultLatch::new(None);
    latch.observe(&Error::GpuLost {
        detail: "Xid 79".to_owned(),
    });
    let started = tokio::time::Instant::now();
    lost(&latch, Duration::from_secs(10)).await;
    assert_eq!(started.elapsed(), Duration::from_secs(10));
}
