//! Small calls that share a request.

use std::time::Duration;

use futures_util::future::join_all;
use medkg_client::config::CoalesceOptions;
use medkg_client::service::embedding::{EmbedRequest, How, Vectors};
use medkg_client::{CallOptions, Client, ClientOptions, ErrorKind};
use medkg_proto::v1;
use medkg_testkit::{Behaviour, ScriptedServer};
use tonic::Code;

use crate::{EMBED, answering, client, embed, embed_with, embeddings, options, vector};

fn gathering(server: &ScriptedServer, max_wait: f64, max_texts: u64) -> Client {
    client(&ClientOptions {
        coalesce: Some(CoalesceOptions {
            max_wait: Some(max_wait),
            max_texts: Some(max_texts),
        }),
        ..options(&[server.uri()])
    })
}

fn numbered(number: usize) -> Vec<String> {
    vec![format!("a{number}"), format!("long b{number}")]
}

// requirement: isolation 13.1
#[tokio::test]
async fn calls_that_are_made_together_travel_in_one_request() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let client = gathering(&server, 60.0, 20);
    let calls = (0..10).map(|number| embed(&client, numbered(number)));
    let answers = join_all(calls).await;
    assert_eq!(
        server.calls().len(),
        1,
        "20 texts are a full request: nobody waits for the minute to pass"
    );
    let mut ids = Vec::new();
    for (number, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap();
        let expected: Vec<f32> = numbered(number).iter().flat_map(|text| vector(text)).collect();
        assert_eq!(answer.vectors, Vectors::Float32(expected));
        assert_eq!((answer.rows, &answer.truncated[..]), (2, &[1][..]));
        assert_eq!(answer.token_counts.len(), 2);
        assert_eq!(answer.usage.tokens, u64::from(answer.token_counts.iter().sum::<u32>()));
        ids.push(answer.request_id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 10, "each call has its own name");
}

#[tokio::test]
async fn calls_of_other_kinds_and_large_ones_do_not_share() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering());
    let client = gathering(&server, 0.2, 20);
    let other = CallOptions {
        tenant: Some("other".to_owned()),
        ..CallOptions::default()
    };
    let left = EmbedRequest {
        texts: numbered(3),
        how: How {
            instruction: Some("query: ".to_owned()),
            ..How::default()
        },
        progress: None,
    };
    let (call, large) = (CallOptions::default(), crate::texts(20));
    let ended = tokio::join!(
        embed(&client, numbered(1)),
        embed_with(&client, numbered(2), &other),
        client.embedding().embed(left, &call),
        embed(&client, large),
        embed(&client, numbered(4)),
    );
    assert!(ended.0.is_ok() && ended.1.is_ok() && ended.2.is_ok() && ended.3.is_ok() && ended.4.is_ok());
    let mut sizes: Vec<usize> = server
        .calls()
        .iter()
        .map(|call| call.message::<v1::GenerateEmbeddingsRequest>().texts.len())
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 2, 4, 20]);
}

#[tokio::test]
async fn a_wrong_text_fails_its_own_call_only() {
    let server = ScriptedServer::start();
    let refuse = |request: v1::GenerateEmbeddingsRequest| request.texts.iter().position(String::is_empty);
    server.next(
        EMBED,
        Behaviour::fail(Code::InvalidArgument, "INVALID_FIELD", "texts[3]: is empty").field("texts[3]", "is empty"),
    );
    server.always(
        EMBED,
        Behaviour::reply_many(
            move |request: v1::GenerateEmbeddingsRequest| match refuse(request.clone()) {
                Some(at) => Err(tonic::Status::invalid_argument(format!("texts[{at}]: is empty"))),
                None => Ok(vec![embeddings(&request)]),
            },
        ),
    );
    let client = gathering(&server, 60.0, 6);
    let wrong = vec!["a1".to_owned(), String::new()];
    let ended = tokio::join!(
        embed(&client, numbered(0)),
        embed(&client, wrong),
        embed(&client, numbered(2))
    );
    assert!(ended.0.is_ok() && ended.2.is_ok());
    let error = ended.1.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.message.contains("texts[1]"), "{error}");
    assert_eq!(server.calls().len(), 4);
}

#[tokio::test]
async fn a_fault_of_the_gpu_is_that_of_all_and_is_not_asked_again() {
    let server = ScriptedServer::start();
    server.always(EMBED, Behaviour::fail(Code::FailedPrecondition, "GPU_LOST", "gone"));
    let client = gathering(&server, 60.0, 4);
    let ended = join_all((0..2).map(|number| embed(&client, numbered(number)))).await;
    let errors: Vec<_> = ended.into_iter().map(Result::unwrap_err).collect();
    assert!(errors.iter().all(|error| error.kind == ErrorKind::GpuLost));
    assert_ne!(errors[0].request_id, errors[1].request_id);
    assert_eq!(server.calls().len(), 1);
}

#[tokio::test]
async fn a_caller_that_leaves_takes_nobody_along() {
    let server = ScriptedServer::start();
    server.always(EMBED, answering().after(Duration::from_millis(300)));
    let client = gathering(&server, 60.0, 6);
    let first = tokio::spawn({
        let client = client.clone();
        async move { embed(&client, numbered(0)).await }
    });
    let rest = async {
        // The first one opens the group.
        tokio::task::yield_now().await;
        tokio::join!(embed(&client, numbered(1)), embed(&client, numbered(2)))
    };
    let leave = async {
        while server.calls().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        first.abort();
    };
    let ((one, two), ()) = tokio::join!(rest, leave);
    assert_eq!((one.unwrap().rows, two.unwrap().rows), (2, 2));
    assert_eq!(server.calls().len(), 1);
    let late = CallOptions {
        timeout: Some(Duration::from_millis(50)),
        ..CallOptions::default()
    };
    let error = embed_with(&client, numbered(0), &late).await.unwrap_err();
    assert_eq!(
        error.kind,
        ErrorKind::Timeout,
        "it waits for others no longer than it has time"
    );
}
