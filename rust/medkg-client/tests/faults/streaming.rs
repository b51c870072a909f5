//! A stream of texts: order, how far ahead it pulls, and what it does when the call breaks in the middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use medkg_client::service::embedding::{Dtype, Embeddings, How, Vectors};
use medkg_client::{CallOptions, Client, ClientError, ClientOptions, ErrorKind};
use medkg_proto::v1;
use medkg_testkit::{Behaviour, ScriptedServer};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::attempts::until;
use crate::{client, client_of, embeddings, options, texts, vector};

const STREAM: &str = "/medkg.v1.EmbeddingService/StreamEmbeddings";
const BATCH: usize = 10;

fn answer(request: v1::StreamEmbeddingsRequest) -> v1::StreamEmbeddingsResponse {
    let batch = request.batch.map(|batch| embeddings(&batch));
    v1::StreamEmbeddingsResponse { batch }
}

fn answering() -> Behaviour {
    Behaviour::reply(answer)
}

/// Answers so many batches, then ends the call with `status`.
fn failing_after(answers: usize, status: Status) -> Behaviour {
    let seen = AtomicUsize::new(0);
    Behaviour::reply_many(move |request| {
        if seen.fetch_add(1, Ordering::SeqCst) < answers {
            Ok(vec![answer(request)])
        } else {
            Err(status.clone())
        }
    })
}

fn with_reason(code: Code, reason: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "medkg", []);
    Status::with_error_details(code, "it is broken", details)
}

fn answers<S>(client: &Client, texts: S) -> impl Stream<Item = Result<Embeddings, ClientError>> + use<S>
where
    S: Stream<Item = String> + Unpin,
{
    let stream = client
        .embedding()
        .stream(How::default(), Some(BATCH), &CallOptions::default());
    stream.unwrap().answers(texts)
}

async fn all(client: &Client, texts: Vec<String>) -> Result<Vec<Embeddings>, ClientError> {
    answers(client, stream::iter(texts)).try_collect().await
}

fn floats(answers: &[Embeddings]) -> Vec<f32> {
    let of_one = |answer: &Embeddings| match &answer.vectors {
        Vectors::Float32(values) => values.clone(),
        other => panic!("{other:?}"),
    };
    answers.iter().flat_map(of_one).collect()
}

fn expected(texts: &[String]) -> Vec<f32> {
    texts.iter().flat_map(|text| vector(text)).collect()
}

#[tokio::test]
async fn answers_come_in_order_batch_by_batch_over_one_call() {
    let server = ScriptedServer::start();
    server.always(STREAM, answering());
    let mut texts = texts(95);
    texts[42] = "long 42".to_owned();
    let answers = all(&client_of(&server), texts.clone()).await.unwrap();
    assert_eq!(floats(&answers), expected(&texts));
    let rows: Vec<_> = answers.iter().map(|answer| answer.rows).collect();
    assert_eq!(rows, [10, 10, 10, 10, 10, 10, 10, 10, 10, 5]);
    assert_eq!(answers[4].truncated, [2], "rows of the batch");
    assert!(
        answers
            .iter()
            .all(|answer| answer.usage.calls == 1 && answer.usage.retries == 0)
    );
    let [call] = server.calls().try_into().unwrap();
    assert_eq!(call.messages.len(), 10);
    assert_eq!((call.tenant.as_deref(), call.timeout), (Some("demo"), None));
    assert_eq!(call.request_id.as_ref(), Some(&answers[0].request_id));
    assert!(call.traceparent.unwrap().contains(&answers[9].trace_id));
}

#[tokio::test]
async fn options_go_with_every_batch_and_large_texts_make_small_batches() {
    let server = ScriptedServer::start();
    server.always(STREAM, Behaviour::hang());
    let client = client(&ClientOptions {
        max_batch_bytes: Some(20),
        ..options(&[server.uri()])
    });
    let how = How {
        dtype: Some(Dtype::Int8),
        instruction: Some("query: ".into()),
        ..How::default()
    };
    let stream = client.embedding().stream(how, None, &CallOptions::default());
    let mut stream = stream.unwrap();
    // 8 + 8 bytes fit, 24 do not fit even alone, 8 are left.
    for text in ["aaaaaaaa", "bbbbbbbb", "cccccccccccccccccccccccc", "dddddddd"] {
        assert!(!stream.push(text.to_owned()));
    }
    assert_eq!(stream.pushed(), 4);
    stream.finish();
    let waiting = tokio::spawn(async move { stream.next().await });
    until(|| server.calls().first().is_some_and(|call| call.messages.len() == 1)).await;
    let request: v1::StreamEmbeddingsRequest = server.calls()[0].message();
    let batch = request.batch.unwrap();
    let asked = batch.options.unwrap();
    assert_eq!(batch.texts, ["aaaaaaaa", "bbbbbbbb"]);
    assert_eq!(
        (asked.dtype(), asked.instruction.as_deref()),
        (v1::DataType::Int8, Some("query: "))
    );
    waiting.abort();
}

#[tokio::test]
async fn texts_are_pulled_no_further_ahead_than_the_window() {
    let server = ScriptedServer::start();
    server.always(STREAM, answering());
    let pulled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&pulled);
    let texts = stream::iter(0..).map(move |index| {
        counted.fetch_add(1, Ordering::SeqCst);
        format!("text {index}")
    });
    let client = client(&ClientOptions {
        max_concurrent_batches: Some(3),
        ..options(&[server.uri()])
    });
    let mut answers = Box::pin(answers(&client, texts));
    assert_eq!(pulled.load(Ordering::SeqCst), 0);
    for taken in 1..=50 {
        answers.next().await.unwrap().unwrap();
        let ahead = pulled.load(Ordering::SeqCst) - taken * BATCH;
        assert!(ahead <= 2 * BATCH, "{ahead} texts ahead after {taken} batches");
    }
    let over = || server.calls()[0].over;
    assert!(!over());
    drop(answers);
    until(over).await;
}

#[tokio::test]
async fn a_call_that_breaks_goes_on_with_the_first_batch_without_an_answer() {
    let server = ScriptedServer::start();
    server.next(STREAM, failing_after(3, Status::unavailable("restarting")));
    server.next(STREAM, failing_after(0, Status::unavailable("restarting")));
    server.next(
        STREAM,
        failing_after(1, with_reason(Code::Unavailable, "SHUTTING_DOWN")),
    );
    server.always(STREAM, answering());
    let texts = texts(100);
    let answers = all(&client_of(&server), texts.clone()).await.unwrap();
    assert_eq!(floats(&answers), expected(&texts));
    let retries: Vec<_> = answers.iter().map(|answer| answer.usage.retries).collect();
    assert_eq!(retries, [0, 0, 0, 2, 1, 0, 0, 0, 0, 0]);
    let first = |call: &medkg_testkit::Call| -> String {
        let request: v1::StreamEmbeddingsRequest = call.message();
        request.batch.unwrap().texts.remove(0)
    };
    let first: Vec<_> = server.calls().iter().map(first).collect();
    assert_eq!(first, ["text 0", "text 30", "text 30", "text 40"]);
}

#[tokio::test]
async fn a_server_that_goes_on_breaking_ends_the_stream_with_a_network_error() {
    let server = ScriptedServer::start();
    server.next(STREAM, failing_after(1, Status::unavailable("gone")));
    server.always(STREAM, Behaviour::reset());
    let mut stream = Box::pin(answers(&client_of(&server), stream::iter(texts(50))));
    stream.next().await.unwrap().unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind, error.attempts, error.retryable),
        (ErrorKind::Unavailable, 4, false)
    );
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_gpu_fault_is_handed_over_at_once() {
    for answered in [0, 2] {
        let server = ScriptedServer::start();
        server.always(
            STREAM,
            failing_after(answered, with_reason(Code::FailedPrecondition, "GPU_LOST")),
        );
        let mut stream = Box::pin(answers(&client_of(&server), stream::iter(texts(50))));
        for _ in 0..answered {
            stream.next().await.unwrap().unwrap();
        }
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!((error.kind, error.attempts), (ErrorKind::GpuLost, 1));
        assert!(!error.request_id.is_empty());
        assert!(stream.next().await.is_none());
        assert_eq!(server.calls().len(), 1);
    }
}

#[tokio::test]
async fn a_bad_text_is_named_by_its_place_in_the_stream() {
    for bad in [3, 77] {
        let server = ScriptedServer::start();
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation(format!("texts[{}]", bad % BATCH), "is bad");
        let message = format!("texts[{}] is bad", bad % BATCH);
        let status = Status::with_error_details(Code::InvalidArgument, message, details);
        server.always(STREAM, failing_after(bad / BATCH, status));
        let error = all(&client_of(&server), texts(100)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert_eq!(error.field_violations[0].field, format!("texts[{bad}]"));
        assert_eq!(error.message, format!("texts[{bad}] is bad"));
    }
}

#[tokio::test]
async fn the_deadline_is_that_of_an_answer_and_not_of_the_stream() {
    let server = ScriptedServer::start();
    server.always(STREAM, answering());
    let silent = ScriptedServer::start();
    silent.always(STREAM, Behaviour::hang());
    let options = CallOptions {
        timeout: Some(Duration::from_secs(2)),
        ..CallOptions::default()
    };
    let begin = |client: &Client| {
        client
            .embedding()
            .stream(How::default(), Some(BATCH), &options)
            .unwrap()
    };
    // The source takes longer than the timeout, the answers do not.
    let slow = stream::iter(texts(4 * BATCH)).then(async |text| {
        tokio::time::sleep(Duration::from_millis(60)).await;
        text
    });
    let answers: Result<Vec<_>, _> = begin(&client_of(&server)).answers(Box::pin(slow)).try_collect().await;
    assert_eq!(answers.unwrap().len(), 4);
    let mut stream = Box::pin(begin(&client_of(&silent)).answers(stream::iter(texts(50))));
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Timeout, Code::DeadlineExceeded));
    until(|| silent.calls()[0].over).await;
}

#[tokio::test]
async fn batches_of_different_models_are_not_mixed() {
    let server = ScriptedServer::start();
    server.next(STREAM, failing_after(2, Status::unavailable("restarting")));
    server.always(
        STREAM,
        Behaviour::reply(|request| {
            let mut answer = answer(request);
            answer.batch.as_mut().unwrap().model_digest = "other".to_owned();
            answer
        }),
    );
    let error = all(&client_of(&server), texts(50)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.message.contains("different models"), "{error}");
}

#[tokio::test]
async fn a_server_that_ends_the_stream_early_has_failed() {
    let server = ScriptedServer::start();
    let seen = AtomicUsize::new(0);
    server.always(
        STREAM,
        Behaviour::reply_many(move |request| {
            let answered = seen.fetch_add(1, Ordering::SeqCst) < 2;
            Ok(if answered { vec![answer(request)] } else { Vec::new() })
        }),
    );
    let error = all(&client_of(&server), texts(30)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.message.contains("ended the stream"), "{error}");
}

#[tokio::test]
async fn no_texts_make_no_call() {
    let server = ScriptedServer::start();
    assert!(all(&client_of(&server), Vec::new()).await.unwrap().is_empty());
    assert!(server.calls().is_empty());
}
