//! Counts the calls in work, so that a drain knows when it is done. Health checks do not count: a Watch is open for as
//! long as its client likes.

use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body as HttpBody;
use tokio::sync::watch;
use tonic::body::Body;
use tower::Service;

/// The calls in work.
#[derive(Debug, Clone)]
pub struct Calls(watch::Sender<usize>);

impl Default for Calls {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Calls {
    /// How many.
    pub fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until there is none.
    pub async fn none_left(&self) {
        // The sender lives in self, so this cannot fail.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    /// One more, until what comes back is dropped.
    pub fn enter(&self) -> Entered {
        self.0.send_modify(|count| *count += 1);
        Entered(self.clone())
    }
}

/// Counts as one while it lives.
#[derive(Debug)]
pub struct Entered(Calls);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Counts what goes through.
#[derive(Debug, Clone)]
pub struct InFlight<S> {
    inner: S,
    calls: Calls,
}

impl<S> InFlight<S> {
    /// Around `inner`.
    pub const fn new(inner: S, calls: Calls) -> Self {
        Self { inner, calls }
    }
}

impl<S, B> Service<Request<B>> for InFlight<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let counted = !request.uri().path().starts_with("/grpc.health.");
        let entered = counted.then(|| self.calls.enter());
        let answer = self.inner.call(request);
        Box::pin(async move {
            // The call is over when its body is sent, not when its headers are.
            answer.await.map(|response| {
                response.map(|body| {
                    Body::new(Counted {
                        body,
                        _entered: entered,
                    })
                })
            })
        })
    }
}

struct Counted {
    body: Body,
    _entered: Option<Entered>,
}

impl HttpBody for Counted {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
