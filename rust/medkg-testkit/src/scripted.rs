//! The scripted gRPC server.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::{Stream, StreamExt as _, stream};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use medkg_telemetry::names::{REQUEST_ID, TENANT_ID, TRACEPARENT, TRACESTATE};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use crate::behaviour::{Act, Behaviour};
use crate::thread::RuntimeThread;

/// A call that the server got.
#[derive(Debug, Clone)]
pub struct Call {
    /// Path of the method, e.g. `/medkg.v1.EmbeddingService/GenerateEmbeddings`.
    pub method: String,
    /// `x-tenant-id`.
    pub tenant: Option<String>,
    /// `traceparent`.
    pub traceparent: Option<String>,
    /// `tracestate`.
    pub tracestate: Option<String>,
    /// `x-request-id`.
    pub request_id: Option<String>,
    /// `grpc-timeout`.
    pub timeout: Option<Duration>,
    /// All metadata.
    pub metadata: MetadataMap,
    /// Messages that have arrived, encoded.
    pub messages: Vec<Bytes>,
    /// Which TCP connection it came over, counted from 0.
    pub connection: usize,
    /// When it came.
    pub at: Instant,
    /// True once it is over, answered or not: also when the client gave up.
    pub over: bool,
}

impl Call {
    /// The first message.
    pub fn message<M: Message + Default>(&self) -> M {
        M::decode(self.messages.first().cloned().unwrap_or_default()).unwrap()
    }
}

#[derive(Default)]
struct State {
    next: HashMap<String, VecDeque<Behaviour>>,
    always: HashMap<String, Behaviour>,
    calls: Vec<Call>,
    connections: usize,
}

type Shared = Arc<Mutex<State>>;

fn locked(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

/// A gRPC server on 127.0.0.1 that does with each call what its script says. A method without a script is answered with
/// `UNIMPLEMENTED`, and `grpc.health.v1.Health/Check` with `SERVING`.
pub struct ScriptedServer {
    address: SocketAddr,
    state: Shared,
    _thread: RuntimeThread,
}

impl ScriptedServer {
    /// Starts on a free port.
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts at an address, for instance that of a server that has gone away.
    pub fn start_at(address: SocketAddr) -> Self {
        let state = Shared::default();
        let shared = Arc::clone(&state);
        let (thread, address) = RuntimeThread::start(address, move |listener| serve(listener, shared));
        Self {
            address,
            state,
            _thread: thread,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as `http://127.0.0.1:PORT`.
    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What to do with the next call of `method` that has no script yet; each is used once, in order.
    pub fn next(&self, method: &str, behaviour: Behaviour) {
        locked(&self.state)
            .next
            .entry(method.to_owned())
            .or_default()
            .push_back(behaviour);
    }

    /// What to do with calls of `method` when nothing is left of [`Self::next`].
    pub fn always(&self, method: &str, behaviour: Behaviour) {
        locked(&self.state).always.insert(method.to_owned(), behaviour);
    }

    /// Every call so far, in order of arrival; without health checks, which clients make when they like.
    pub fn calls(&self) -> Vec<Call> {
        let state = locked(&self.state);
        let calls = state
            .calls
            .iter()
            .filter(|call| !call.method.starts_with("/grpc.health."));
        calls.cloned().collect()
    }

    /// TCP connections accepted so far.
    pub fn connections(&self) -> usize {
        locked(&self.state).connections
    }
}

async fn serve(listener: TcpListener, state: Shared) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let connection = {
            let mut state = locked(&state);
            state.connections += 1;
            state.connections - 1
        };
        tokio::spawn(serve_connection(socket, connection, Arc::clone(&state)));
    }
}

async fn serve_connection(socket: TcpStream, connection: usize, state: Shared) {
    socket.set_nodelay(true).unwrap();
    // A second handle, to reset the connection that hyper owns.
    let socket = socket.into_std().unwrap();
    let twin = TcpStream::from_std(socket.try_clone().unwrap()).unwrap();
    let io = TokioIo::new(TcpStream::from_std(socket).unwrap());
    let reset = Arc::new(Notify::new());
    let for_calls = Arc::clone(&reset);
    let service = tower::service_fn(move |request: http::Request<Incoming>| {
        let method = request.uri().path().to_owned();
        let handler = Handler {
            method,
            connection,
            state: Arc::clone(&state),
            reset: Arc::clone(&for_calls),
        };
        async move {
            let mut grpc = Grpc::new(RawCodec).max_decoding_message_size(usize::MAX);
            Ok::<_, Infallible>(grpc.streaming(handler, request).await)
        }
    });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .serve_connection(io, TowerToHyperService::new(service));
    tokio::select! {
        _ = serving => {}
        () = reset.notified() => twin.set_zero_linger().unwrap(),
    }
}

struct Handler {
    method: String,
    connection: usize,
    state: Shared,
    reset: Arc<Notify>,
}

/// Marks its call as over when dropped.
struct Open {
    index: usize,
    state: Shared,
}

impl Drop for Open {
    fn drop(&mut self) {
        locked(&self.state).calls[self.index].over = true;
    }
}

impl Handler {
    fn record(&self, metadata: &MetadataMap) -> (Open, Behaviour) {
        let text = |key: &str| {
            metadata
                .get(key)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let mut state = locked(&self.state);
        let index = state.calls.len();
        state.calls.push(Call {
            method: self.method.clone(),
            tenant: text(TENANT_ID),
            traceparent: text(TRACEPARENT),
            tracestate: text(TRACESTATE),
            request_id: text(REQUEST_ID),
            timeout: text("grpc-timeout").as_deref().and_then(parse_timeout),
            metadata: metadata.clone(),
            messages: Vec::new(),
            connection: self.connection,
            at: Instant::now(),
            over: false,
        });
        let scripted = state.next.get_mut(&self.method).and_then(VecDeque::pop_front);
        let behaviour = scripted
            .or_else(|| state.always.get(&self.method).cloned())
            .unwrap_or_else(|| {
                if self.method == "/grpc.health.v1.Health/Check" {
                    // HealthCheckResponse {status: SERVING}: field 1 is the number 1, which reads like a `uint32`.
                    Behaviour::reply(|(): ()| 1_u32)
                } else {
                    Behaviour::fail(
                        tonic::Code::Unimplemented,
                        "",
                        &format!("testkit: {} has no script", self.method),
                    )
                }
            });
        (
            Open {
                index,
                state: Arc::clone(&self.state),
            },
            behaviour,
        )
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl StreamingService<Bytes> for Handler {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (open, behaviour) = self.record(request.metadata());
        let reset = Arc::clone(&self.reset);
        let read = move |message: Result<Bytes, Status>| {
            if let Ok(message) = &message {
                locked(&open.state).calls[open.index].messages.push(message.clone());
            }
            message
        };
        let mut messages: Answers = Box::pin(request.into_inner().map(read));
        Box::pin(async move {
            let first = messages.next().await;
            tokio::time::sleep(behaviour.delay).await;
            match behaviour.act {
                Act::Reply(answer) => {
                    let answers = stream::iter(first).chain(messages).flat_map(move |message| {
                        let answers = match message.and_then(|message| answer(&message)) {
                            Ok(messages) => messages.into_iter().map(Ok).collect(),
                            Err(status) => vec![Err(status)],
                        };
                        stream::iter(answers)
                    });
                    Ok(Response::new(Box::pin(answers) as Answers))
                }
                Act::Fail { code, message, details } => Err(Act::status(code, &message, &details)),
                Act::Reset => {
                    reset.notify_one();
                    std::future::pending().await
                }
                Act::Hang => std::future::pending().await,
            }
        })
    }
}

/// `grpc-timeout`: a number and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Messages as they are on the wire.
#[derive(Debug, Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}
