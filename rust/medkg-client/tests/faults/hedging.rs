//! A call that is late and is made elsewhere too.

use std::time::{Duration, Instant};

use medkg_client::{ClientOptions, ErrorKind};
use medkg_testkit::{Behaviour, ScriptedServer};
use tonic::Code;

use crate::{EMBED, answering, client, embed, options, texts};

const LONG: Duration = Duration::from_secs(30);

fn hedging(servers: &[&ScriptedServer]) -> ClientOptions {
    let addresses: Vec<String> = servers.iter().map(|server| server.uri()).collect();
    ClientOptions {
        hedge_after: Some(0.05),
        timeout: Some(2.0 * LONG.as_secs_f64()),
        ..options(&addresses)
    }
}

#[tokio::test]
async fn the_answer_of_the_other_server_counts() {
    let (late, quick) = (ScriptedServer::start(), ScriptedServer::start());
    late.always(EMBED, answering().after(LONG));
    quick.always(EMBED, answering());
    let client = client(&hedging(&[&late, &quick]));
    let begun = Instant::now();
    let mut hedged = 0;
    for _ in 0..12 {
        hedged += embed(&client, texts(1)).await.unwrap().usage.retries;
    }
    assert!(begun.elapsed() < LONG, "nobody waited for the server that is late");
    assert!(hedged > 0, "some calls were drawn there");
    assert_eq!(quick.calls().len(), 12, "each call is answered by the other one");
    assert_eq!(late.calls().len() as u64, hedged);
}

#[tokio::test]
async fn large_calls_and_calls_that_are_in_time_are_made_once() {
    let (one, other) = (ScriptedServer::start(), ScriptedServer::start());
    for server in [&one, &other] {
        server.always(EMBED, answering().after(Duration::from_millis(200)));
    }
    let client = client(&hedging(&[&one, &other]));
    let large = vec!["x".repeat(100_000)];
    assert_eq!(embed(&client, large).await.unwrap().usage.retries, 0);
    for server in [&one, &other] {
        server.always(EMBED, answering());
    }
    for _ in 0..10 {
        assert_eq!(embed(&client, texts(1)).await.unwrap().usage.retries, 0);
    }
    assert_eq!(one.calls().len() + other.calls().len(), 11);
}

// requirement: isolation 5.4
#[tokio::test]
async fn a_gpu_fault_is_not_hidden_by_the_other_request() {
    let (late, broken) = (ScriptedServer::start(), ScriptedServer::start());
    late.always(EMBED, answering().after(LONG));
    broken.always(
        EMBED,
        Behaviour::fail(Code::FailedPrecondition, "GPU_LOST", "no CUDA device"),
    );
    let client = client(&hedging(&[&late, &broken]));
    for _ in 0..6 {
        let error = embed(&client, texts(1)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::GpuLost);
    }
}

#[tokio::test]
async fn the_budget_pays_for_it() {
    let (one, other) = (ScriptedServer::start(), ScriptedServer::start());
    for server in [&one, &other] {
        server.always(EMBED, answering().after(Duration::from_millis(150)));
    }
    let settings = ClientOptions {
        retry_budget: Some(0.0),
        ..hedging(&[&one, &other])
    };
    let client = client(&settings);
    for _ in 0..4 {
        embed(&client, texts(1)).await.unwrap();
    }
    assert_eq!(one.calls().len() + other.calls().len(), 4);
}
