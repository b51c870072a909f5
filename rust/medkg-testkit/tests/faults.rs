//! The faults are what they say, seen from a real tonic client.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use medkg_proto::v1::embedding_service_client::EmbeddingServiceClient;
use medkg_proto::v1::{
    GenerateEmbeddingsRequest, GenerateEmbeddingsResponse, StreamEmbeddingsRequest, StreamEmbeddingsResponse,
};
use medkg_testkit::{Behaviour, Fault, ScriptedServer, Toxic};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

const EMBED: &str = "/medkg.v1.EmbeddingService/GenerateEmbeddings";
const STREAM: &str = "/medkg.v1.EmbeddingService/StreamEmbeddings";

fn client(address: SocketAddr) -> EmbeddingServiceClient<Channel> {
    EmbeddingServiceClient::new(
        Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_lazy(),
    )
}

fn count() -> Behaviour {
    Behaviour::reply(|request: GenerateEmbeddingsRequest| GenerateEmbeddingsResponse {
        model: format!("{} texts", request.texts.len()),
        ..Default::default()
    })
}

fn request(texts: usize) -> GenerateEmbeddingsRequest {
    GenerateEmbeddingsRequest {
        texts: vec!["text".to_owned(); texts],
        ..Default::default()
    }
}

async fn embed(client: &mut EmbeddingServiceClient<Channel>) -> Result<String, Status> {
    client
        .generate_embeddings(request(3))
        .await
        .map(|response| response.into_inner().model)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn scripts_run_in_order_and_then_stay() {
    let server = ScriptedServer::start();
    let mut client = client(server.address());
    assert_eq!(embed(&mut client).await.unwrap_err().code(), Code::Unimplemented);

    let full = Behaviour::fail(Code::ResourceExhausted, "QUEUE_FULL", "full").retry_after(Duration::from_secs(7));
    server.next(EMBED, full);
    server.next(
        EMBED,
        Behaviour::fail(Code::InvalidArgument, "INVALID_FIELD", "bad").field("texts[1]", "empty"),
    );
    server.always(EMBED, count());
    let status = embed(&mut client).await.unwrap_err();
    let details = status.get_error_details();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "full"));
    assert_eq!(details.error_info().unwrap().reason, "QUEUE_FULL");
    assert_eq!(details.error_info().unwrap().domain, "medkg");
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(7)));
    let details = embed(&mut client).await.unwrap_err().get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "texts[1]");
    assert_eq!(embed(&mut client).await.unwrap(), "3 texts");
    assert_eq!(embed(&mut client).await.unwrap(), "3 texts");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn it_remembers_who_called() {
    let server = ScriptedServer::start();
    server.always(EMBED, count());
    let mut request = Request::new(request(2));
    request.metadata_mut().insert("x-tenant-id", "demo".parse().unwrap());
    request.metadata_mut().insert("x-request-id", "r-1".parse().unwrap());
    request.set_timeout(Duration::from_secs(9));
    client(server.address()).generate_embeddings(request).await.unwrap();
    let call = &server.calls()[0];
    assert_eq!((call.method.as_str(), call.tenant.as_deref()), (EMBED, Some("demo")));
    assert_eq!(
        (call.request_id.as_deref(), call.traceparent.as_deref()),
        (Some("r-1"), None)
    );
    assert_eq!((call.timeout, call.connection), (Some(Duration::from_secs(9)), 0));
    assert_eq!(call.message::<GenerateEmbeddingsRequest>().texts.len(), 2);
    until("the call is over", || server.calls()[0].over).await;
}

#[tokio::test]
async fn streams_are_answered_message_by_message() {
    let server = ScriptedServer::start();
    let answer = |request: StreamEmbeddingsRequest| match request.batch.unwrap_or_default().texts.len() {
        0 => Err(Status::invalid_argument("empty")),
        many => Ok((0..many).map(|_| StreamEmbeddingsResponse::default()).collect()),
    };
    server.always(STREAM, Behaviour::reply_many(answer));
    let batches = [2, 1, 0].map(|texts| StreamEmbeddingsRequest {
        batch: Some(request(texts)),
    });
    let mut answers = client(server.address())
        .stream_embeddings(futures_util::stream::iter(batches))
        .await
        .unwrap()
        .into_inner();
    for _ in 0..3 {
        assert!(answers.message().await.unwrap().is_some());
    }
    assert_eq!(answers.message().await.unwrap_err().message(), "empty");
    assert_eq!(server.calls()[0].messages.len(), 3);
}

#[tokio::test]
async fn a_reset_takes_the_connection_and_a_retry_opens_another() {
    let server = ScriptedServer::start();
    server.next(EMBED, Behaviour::reset());
    server.always(EMBED, count());
    let mut client = client(server.address());
    let status = embed(&mut client).await.unwrap_err();
    assert!(matches!(status.code(), Code::Unknown | Code::Unavailable), "{status:?}");
    until("a retry gets through", || server.connections() == 1).await;
    assert_eq!(embed(&mut client).await.unwrap(), "3 texts");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn silence_lasts_past_the_deadline_and_a_client_that_leaves_is_seen() {
    let server = ScriptedServer::start();
    server.always(EMBED, Behaviour::hang());
    let mut client = client(server.address());
    let waiting = tokio::spawn(async move { embed(&mut client).await });
    until("the call has come", || server.calls().len() == 1).await;
    assert!(!server.calls()[0].over);
    waiting.abort();
    until("the client's leaving is seen", || server.calls()[0].over).await;
}

#[tokio::test]
async fn a_server_that_is_dropped_is_gone_and_another_can_take_its_place() {
    let server = ScriptedServer::start();
    server.always(EMBED, count());
    let address = server.address();
    let mut client = client(address);
    embed(&mut client).await.unwrap();
    drop(server);
    assert!(std::net::TcpStream::connect(address).is_err());
    assert!(embed(&mut client).await.is_err());
    let server = ScriptedServer::start_at(address);
    server.always(EMBED, count());
    embed(&mut client).await.unwrap();
}

#[tokio::test]
async fn a_toxic_proxy_passes_delays_swallows_and_refuses() {
    let server = ScriptedServer::start();
    server.always(EMBED, count());
    let proxy = Toxic::start(server.address());
    let mut client = client(proxy.address());
    assert_eq!(embed(&mut client).await.unwrap(), "3 texts");

    let delay = Duration::from_millis(100);
    proxy.set(Fault::Delay(delay));
    let started = Instant::now();
    embed(&mut client).await.unwrap();
    assert!(started.elapsed() >= delay * 2, "there and back");

    proxy.set(Fault::Blackhole);
    let mut held = client.clone();
    let mut held = tokio::spawn(async move { embed(&mut held).await });
    let calls = server.calls().len();
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut held)
            .await
            .is_err(),
        "nothing comes back"
    );
    assert_eq!(server.calls().len(), calls, "nothing arrives");
    proxy.set(Fault::None);
    assert_eq!(
        held.await.unwrap().unwrap(),
        "3 texts",
        "what was held back flows again"
    );

    proxy.set(Fault::Refuse);
    let address = proxy.address();
    until("connections are refused", || {
        std::net::TcpStream::connect(address).is_err()
    })
    .await;
    assert!(embed(&mut client).await.is_err());
    proxy.set(Fault::None);
    until("connections are accepted", || {
        std::net::TcpStream::connect(address).is_ok()
    })
    .await;
    assert_eq!(embed(&mut client).await.unwrap(), "3 texts");
}

#[tokio::test]
async fn a_toxic_proxy_cuts_a_response_in_the_middle() {
    let server = ScriptedServer::start();
    let long = "x".repeat(100_000);
    let answer = move |_: GenerateEmbeddingsRequest| GenerateEmbeddingsResponse {
        model: long.clone(),
        ..Default::default()
    };
    server.always(EMBED, Behaviour::reply(answer));
    let proxy = Toxic::start(server.address());
    proxy.set(Fault::ResetAfter(20_000));
    let status = embed(&mut client(proxy.address())).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    assert_eq!(server.calls().len(), 1, "the server did answer");
    proxy.set(Fault::None);
    assert_eq!(embed(&mut client(proxy.address())).await.unwrap().len(), 100_000);
}
