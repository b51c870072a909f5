//! Any number of texts over one call, in memory that does not grow with them.
//!
//! Texts go in one by one ([`EmbeddingStream::push`]) and become batches; answers come out batch by batch, in order. At
//! most `max_concurrent_batches` batches are under way, answers that nobody has taken included, so whoever feeds the
//! stream is told when to take an answer first. A task of the runtime keeps the call going meanwhile; dropping the stream
//! ends the task and cancels the call.
//!
//! Opening the call and waiting for its first answer is one request of the attempt loop, with all its policies. Where the
//! call breaks later, the batches without an answer are kept and sent again over a new call: embedding a text twice is the
//! same as once. The deadline is that of each answer, from when it is the next one; the stream itself has none.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use medkg_proto::v1;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::{Request, Response, Status, Streaming};

use super::assembly::Dense;
use super::{EmbeddingClient, Embeddings, How, Stub, broken};
use crate::batching;
use crate::call::{Answer, Call, CallOptions, Caller, Method};
use crate::config::BatchConfig;
use crate::connection::AttemptError;
use crate::endpoint::Place;
use crate::error::ClientError;

const STREAM: Method = Method {
    name: "StreamEmbeddings",
    idempotent: true,
};

impl EmbeddingClient {
    /// Begins a stream; nothing is sent before its first batch is there. `batch_size` is the most texts of one batch, by
    /// default as many as of one request. `options.timeout` is for each answer. Must run inside the runtime.
    pub fn stream(
        &self,
        how: How,
        batch_size: Option<usize>,
        options: &CallOptions,
    ) -> Result<EmbeddingStream, ClientError> {
        let call = self.caller.begin(STREAM, options)?.without_end();
        let mut limits = self.caller.config.batch;
        if let Some(size) = batch_size {
            // Whoever says how many texts make a batch means that many, however long they are.
            (limits.max_items, limits.max_tokens) = (size.max(1), usize::MAX);
        }
        let (batches, to_send) = unbounded_channel();
        let (to_take, answers) = unbounded_channel();
        let driver = Driver {
            caller: Arc::clone(&self.caller),
            call,
            how,
            batches: to_send,
            finished: false,
            unanswered: VecDeque::new(),
            open: None,
            model: None,
        };
        Ok(EmbeddingStream {
            limits,
            batch: Batch::default(),
            bytes: 0,
            out: 0,
            batches: Some(batches),
            answers,
            driver: tokio::spawn(driver.run(to_take)),
        })
    }
}

/// Texts of one request.
#[derive(Debug, Default)]
struct Batch {
    /// Index of the first one in the stream.
    start: usize,
    texts: Vec<String>,
}

/// Texts in, batches of embeddings out. Dropping it cancels the call.
#[derive(Debug)]
pub struct EmbeddingStream {
    limits: BatchConfig,
    /// Texts that do not fill a batch yet, and how large they are.
    batch: Batch,
    bytes: usize,
    /// Batches whose answer has not been taken.
    out: usize,
    /// None once no more texts come.
    batches: Option<UnboundedSender<Batch>>,
    answers: UnboundedReceiver<Result<Embeddings, ClientError>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for EmbeddingStream {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl EmbeddingStream {
    /// Adds the next text. True if an answer is to be taken before the next one: because the window is full, or because an
    /// answer is there already and a batch has just been sent.
    pub fn push(&mut self, text: String) -> bool {
        let full = self.bytes.saturating_add(text.len()) > self.limits.max_text_bytes() && !self.batch.texts.is_empty();
        if full {
            self.send();
        }
        self.bytes += text.len();
        self.batch.texts.push(text);
        let complete = self.batch.texts.len() >= self.limits.max_items;
        if complete {
            self.send();
        }
        self.out >= self.limits.max_concurrent || ((full || complete) && !self.answers.is_empty())
    }

    /// Texts pushed so far.
    pub fn pushed(&self) -> usize {
        self.batch.start + self.batch.texts.len()
    }

    /// Says that no more texts come.
    pub fn finish(&mut self) {
        if !self.batch.texts.is_empty() {
            self.send();
        }
        self.batches = None;
    }

    fn send(&mut self) {
        let start = self.pushed();
        let next = Batch {
            start,
            texts: Vec::new(),
        };
        let batch = std::mem::replace(&mut self.batch, next);
        self.bytes = 0;
        self.out += 1;
        if let Some(batches) = &self.batches {
            // The task ends early only with an error, which is the next answer.
            let _ = batches.send(batch);
        }
    }

    /// The answer to the next batch, as [`EmbeddingClient::embed`] gives it: `truncated` are rows of this batch. An error
    /// names a text by its index in the stream, and ends it. None when every batch was answered.
    pub async fn next(&mut self) -> Option<Result<Embeddings, ClientError>> {
        if self.out == 0 && self.batches.is_some() {
            return None;
        }
        let answer = self.answers.recv().await?;
        self.out -= 1;
        if answer.is_err() {
            self.batches = None;
        }
        Some(answer)
    }

    /// The answers about all of `texts`, which are pulled only as fast as answers are taken.
    pub fn answers<S>(self, texts: S) -> impl Stream<Item = Result<Embeddings, ClientError>> + use<S>
    where
        S: Stream<Item = String> + Unpin,
    {
        stream::unfold((self, texts), async |(mut embeddings, mut texts)| {
            while embeddings.batches.is_some() {
                let Some(text) = texts.next().await else {
                    embeddings.finish();
                    break;
                };
                if embeddings.push(text) {
                    break;
                }
            }
            let answer = embeddings.next().await?;
            Some((answer, (embeddings, texts)))
        })
    }
}

/// A call that is under way.
#[derive(Debug)]
struct Open {
    place: Place,
    /// None once the server knows that no more comes.
    requests: Option<UnboundedSender<v1::StreamEmbeddingsRequest>>,
    answers: Streaming<v1::StreamEmbeddingsResponse>,
}

/// Keeps the call going.
struct Driver {
    caller: Arc<Caller>,
    call: Call,
    how: How,
    batches: UnboundedReceiver<Batch>,
    /// No more batches come.
    finished: bool,
    /// Batches without an answer, in order; all of them have been sent over the open call.
    unanswered: VecDeque<Batch>,
    open: Option<Open>,
    /// Name, digest and dimension of the first answer.
    model: Option<(String, String, usize)>,
}

impl Driver {
    async fn run(mut self, answers: UnboundedSender<Result<Embeddings, ClientError>>) {
        loop {
            if self.unanswered.is_empty() {
                match self.batches.recv().await {
                    Some(batch) => self.take(batch),
                    None => return self.end().await,
                }
            }
            let answer = self.answer().await;
            let failed = answer.is_err();
            if answers.send(answer).is_err() || failed {
                return;
            }
        }
    }

    fn request(&self, batch: &Batch) -> v1::StreamEmbeddingsRequest {
        v1::StreamEmbeddingsRequest {
            batch: Some(self.how.request(batch.texts.clone())),
        }
    }

    fn take(&mut self, batch: Batch) {
        if let Some(requests) = self.open.as_ref().and_then(|open| open.requests.as_ref()) {
            // A call that is gone says so where its answer is waited for.
            let _ = requests.send(self.request(&batch));
        }
        self.unanswered.push_back(batch);
    }

    /// The answer to the first batch without one.
    async fn answer(&mut self) -> Result<Embeddings, ClientError> {
        let start = self.unanswered.front().map_or(0, |batch| batch.start);
        let answer = self.received().await;
        let answer = answer.map_err(|error| batching::shift(error, "texts", start))?;
        let rows = self.unanswered.pop_front().map_or(0, |batch| batch.texts.len());
        let checked = self.checked(rows, answer);
        checked.map_err(|message| self.call.sign(broken(STREAM, message)))
    }

    /// The next message, over a new call where there is none or the one there was broke.
    async fn received(&mut self) -> Result<Answer<v1::GenerateEmbeddingsResponse>, ClientError> {
        let mut progress = self.caller.progress(&self.call);
        if let (Some(remaining), true) = (progress.remaining(), self.open.is_some()) {
            let error = match tokio::time::timeout(remaining, self.message()).await {
                Ok(Ok(message)) => {
                    return Ok(Answer {
                        message,
                        retries: 0,
                        degraded: None,
                    });
                }
                Ok(Err(status)) => AttemptError::Status(status),
                Err(_) => AttemptError::Elapsed,
            };
            if let Some(Open { place, .. }) = self.open.take() {
                let interrupted = self.caller.interrupted(&self.call, &mut progress, place, error);
                interrupted.await?;
            }
        }
        let make = || {
            let (requests, to_send) = unbounded_channel();
            for batch in &self.unanswered {
                // Its receiver is right here.
                let _ = requests.send(self.request(batch));
            }
            (requests, to_send)
        };
        let attempts = self.caller.attempts(&self.call, progress, make, open);
        let (answer, place) = attempts.await?;
        let (message, requests, answers) = answer.message;
        self.open = Some(Open {
            place,
            requests: (!self.finished).then_some(requests),
            answers,
        });
        Ok(Answer {
            message,
            retries: answer.retries,
            degraded: answer.degraded,
        })
    }

    /// The open call's next message. Batches that come meanwhile are sent.
    async fn message(&mut self) -> Result<v1::GenerateEmbeddingsResponse, Status> {
        loop {
            let Some(open) = &mut self.open else {
                return Err(ended());
            };
            tokio::select! {
                biased;
                batch = self.batches.recv(), if !self.finished => if let Some(batch) = batch {
                    self.take(batch);
                } else {
                    self.finished = true;
                    open.requests = None;
                },
                message = open.answers.message() => return unpacked(message?),
            }
        }
    }

    fn checked(&mut self, rows: usize, answer: Answer<v1::GenerateEmbeddingsResponse>) -> Result<Embeddings, String> {
        let mut parts = Dense::new(rows, &self.how);
        parts.add(&(0..rows), answer)?;
        let answer = parts.finish(&self.call).ok_or("an answer is missing")?;
        let (model, digest, dimension) = self
            .model
            .get_or_insert_with(|| (answer.model.clone(), answer.model_digest.clone(), answer.dimension));
        if *digest != answer.model_digest || *dimension != answer.dimension {
            return Err(format!(
                "batches of one stream were answered by different models ({model} {digest} of {dimension} elements and {} {} \
                 of {}); give every server the same model and do not exchange it meanwhile",
                answer.model, answer.model_digest, answer.dimension
            ));
        }
        Ok(answer)
    }

    /// Waits for the end of the call, so that it counts as one that ended and not as one that was given up.
    async fn end(&mut self) {
        let remaining = self.caller.progress(&self.call).remaining().unwrap_or_default();
        if let Some(open) = &mut self.open {
            open.requests = None;
            // Every answer has come; what the call ends with changes nothing.
            let _ = tokio::time::timeout(remaining, open.answers.message()).await;
        }
    }
}

type Requests = UnboundedSender<v1::StreamEmbeddingsRequest>;
type Opened = (
    v1::GenerateEmbeddingsResponse,
    Requests,
    Streaming<v1::StreamEmbeddingsResponse>,
);

/// Opens a call and waits for its first answer.
async fn open(
    channel: crate::channel::Channel,
    request: Request<(Requests, UnboundedReceiver<v1::StreamEmbeddingsRequest>)>,
) -> Result<Opened, Status> {
    let (mut metadata, extensions, (requests, mut to_send)) = request.into_parts();
    // The time is that of the first answer, and the call goes on after it.
    metadata.remove("grpc-timeout");
    let outbound = stream::poll_fn(move |context| to_send.poll_recv(context));
    let request = Request::from_parts(metadata, extensions, outbound);
    let mut stub = Stub::new(channel).max_decoding_message_size(medkg_proto::MAX_MESSAGE_BYTES);
    let mut answers = stub.stream_embeddings(request).await.map(Response::into_inner)?;
    let first = unpacked(answers.message().await?)?;
    Ok((first, requests, answers))
}

fn unpacked(message: Option<v1::StreamEmbeddingsResponse>) -> Result<v1::GenerateEmbeddingsResponse, Status> {
    Ok(message.ok_or_else(ended)?.batch.unwrap_or_default())
}

fn ended() -> Status {
    Status::internal("the server ended the stream before every batch was answered")
}
