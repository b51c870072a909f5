//! The one table of errors: what a failure is, and everything that follows from it.
//!
//! [`classify`] turns a gRPC status into an [`ErrorKind`]; [`ErrorKind::row`] says what that kind means for the breaker,
//! for the retry loop, for HTTP, for metrics and for Python. Nobody else may decide any of these. The match over
//! [`tonic::Code`] names every code, so that a new one does not compile until somebody has thought about it.
//!
//! GPU faults are looked for first, whatever code they came with: they are never retried, never rerouted and never
//! counted as a fault of the network, because hiding them would let a run go on without its GPU.

use std::time::Duration;

use medkg_telemetry::names::Reason;
use tonic::Code;

/// Where a failed attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The connection could not be made: the peer has certainly not seen the request.
    NeverSent,
    /// The connection broke after the request was on its way: the peer may have acted on it.
    Broken,
    /// The time for the attempt ran out, here or at the peer.
    Timeout,
    /// The peer answered with this status.
    Peer,
}

/// What a failure is. One kind is one row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The client's configuration cannot be used.
    Config,
    /// No connection, a broken one, or a peer that says it cannot serve now.
    Unavailable,
    /// Every endpoint's breaker is open; nothing was sent.
    CircuitOpen,
    /// The deadline passed.
    Timeout,
    /// A queue is full or a rate is exceeded.
    RateLimited,
    /// The peer's disk is full.
    StorageFull,
    /// The peer has no usable GPU.
    GpuUnavailable,
    /// The peer's GPU stopped working.
    GpuLost,
    /// The peer's GPU has too little memory for this request.
    GpuOutOfMemory,
    /// The request is wrong and stays wrong.
    InvalidArgument,
    /// No model of that name.
    ModelNotFound,
    /// No collection of that name.
    CollectionNotFound,
    /// Something else that was named is not there.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// The peer is in a state in which it refuses this request; not a GPU fault.
    FailedPrecondition,
    /// The peer does not know who asks.
    Unauthenticated,
    /// The peer knows who asks and refuses.
    PermissionDenied,
    /// The peer gave the call up.
    Cancelled,
    /// The peer does not have this method.
    Unimplemented,
    /// The peer failed in a way it did not foresee.
    Internal,
}

/// What the attempt loop does after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Try the next endpoint, or the same one after a back-off.
    Elsewhere,
    /// Try again after a back-off, if there is time.
    Again,
    /// Wait as the peer says, then try again.
    AsTold,
    /// Hand the error to the caller.
    Fail,
}

/// Everything that follows from an [`ErrorKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// True if the failure counts against the endpoint in its breaker, unless [`Failed::counts`] knows better.
    pub counts: bool,
    /// What the attempt loop does.
    pub action: Action,
    /// The HTTP status a gateway answers with.
    pub http_status: u16,
    /// The value of a metric's `error` label.
    pub metric_label: &'static str,
    /// The class in `medkg.errors`.
    pub python_class: &'static str,
}

/// A service of `proto/medkg/v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// `EmbeddingService`.
    Embedding,
    /// `RerankingService`.
    Reranking,
    /// `VectorService`.
    Vector,
    /// `GpuService`.
    Gpu,
}

impl Service {
    /// Every service.
    pub const ALL: [Self; 4] = [Self::Embedding, Self::Reranking, Self::Vector, Self::Gpu];

    /// The name in the proto package.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "EmbeddingService",
            Self::Reranking => "RerankingService",
            Self::Vector => "VectorService",
            Self::Gpu => "GpuService",
        }
    }

    /// The noun that it has in configurations and in registries.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Reranking => "reranking",
            Self::Vector => "vector",
            Self::Gpu => "gpu",
        }
    }

    /// True if each server holds something of its own, so that there must be one.
    pub const fn has_state(self) -> bool {
        matches!(self, Self::Vector | Self::Gpu)
    }
}

impl ErrorKind {
    /// Every kind, in the order of the table.
    pub const ALL: [Self; 20] = [
        Self::Config,
        Self::Unavailable,
        Self::CircuitOpen,
        Self::Timeout,
        Self::RateLimited,
        Self::StorageFull,
        Self::GpuUnavailable,
        Self::GpuLost,
        Self::GpuOutOfMemory,
        Self::InvalidArgument,
        Self::ModelNotFound,
        Self::CollectionNotFound,
        Self::NotFound,
        Self::AlreadyExists,
        Self::FailedPrecondition,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::Cancelled,
        Self::Unimplemented,
        Self::Internal,
    ];

    /// This kind's row of the table.
    pub const fn row(self) -> Row {
        const fn row(
            counts: bool,
            action: Action,
            http_status: u16,
            metric_label: &'static str,
            python_class: &'static str,
        ) -> Row {
            Row {
                counts,
                action,
                http_status,
                metric_label,
                python_class,
            }
        }
        use Action::{Again, AsTold, Elsewhere, Fail};
        match self {
            Self::Config => row(false, Fail, 500, "config", "ConfigError"),
            Self::Unavailable => row(true, Elsewhere, 503, "unavailable", "ServiceUnavailableError"),
            Self::CircuitOpen => row(false, Fail, 503, "circuit_open", "CircuitOpenError"),
            Self::Timeout => row(true, Again, 504, "timeout", "ServiceTimeoutError"),
            Self::RateLimited => row(false, AsTold, 429, "rate_limited", "RateLimitedError"),
            // Waiting alone makes no room.
            Self::StorageFull => row(false, Fail, 507, "storage_full", "StorageFullError"),
            // 500, not 503: proxies and callers repeat a 503, and a GPU fault must never be repeated.
            Self::GpuUnavailable => row(false, Fail, 500, "gpu_unavailable", "GpuNotAvailableError"),
            Self::GpuLost => row(false, Fail, 500, "gpu_lost", "GpuLostError"),
            Self::GpuOutOfMemory => row(false, Fail, 500, "gpu_out_of_memory", "GpuOutOfMemoryError"),
            Self::InvalidArgument => row(false, Fail, 400, "invalid_argument", "ValidationError"),
            Self::ModelNotFound => row(false, Fail, 404, "model_not_found", "ModelNotFoundError"),
            Self::CollectionNotFound => row(false, Fail, 404, "collection_not_found", "CollectionNotFoundError"),
            Self::NotFound => row(false, Fail, 404, "not_found", "NotFoundError"),
            Self::AlreadyExists => row(false, Fail, 409, "already_exists", "AlreadyExistsError"),
            Self::FailedPrecondition => row(false, Fail, 500, "failed_precondition", "FailedPreconditionError"),
            Self::Unauthenticated => row(false, Fail, 401, "unauthenticated", "AuthenticationError"),
            Self::PermissionDenied => row(false, Fail, 403, "permission_denied", "PermissionDeniedError"),
            Self::Cancelled => row(false, Fail, 499, "cancelled", "ServiceError"),
            Self::Unimplemented => row(false, Fail, 501, "unimplemented", "ServiceError"),
            Self::Internal => row(false, Fail, 500, "internal", "ServiceError"),
        }
    }

    /// The class in `medkg.errors`; a wrong argument has a class of its own for each service that has its own input.
    pub const fn python_class(self, service: Service) -> &'static str {
        match (self, service) {
            (Self::InvalidArgument, Service::Embedding) => "EmbeddingValidationError",
            (Self::InvalidArgument, Service::Reranking) => "RerankingValidationError",
            (Self::InvalidArgument, Service::Vector) => "VectorValidationError",
            (kind, _) => kind.row().python_class,
        }
    }

    /// True for the faults of a GPU, which end a run at once.
    pub const fn is_gpu(self) -> bool {
        matches!(self, Self::GpuUnavailable | Self::GpuLost | Self::GpuOutOfMemory)
    }

    /// True if the same call may succeed later without anybody changing anything.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::CircuitOpen) || !matches!(self.row().action, Action::Fail)
    }
}

/// The kind of a failed attempt.
pub fn classify(code: Code, reason: Option<Reason>, origin: Origin) -> ErrorKind {
    if let Some(gpu) = reason.and_then(gpu_fault) {
        return gpu;
    }
    match origin {
        // What the transport reports says how the connection ended, not what the peer thinks of the request.
        Origin::NeverSent | Origin::Broken => return ErrorKind::Unavailable,
        Origin::Timeout => return ErrorKind::Timeout,
        Origin::Peer => {}
    }
    match code {
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DeadlineExceeded => ErrorKind::Timeout,
        Code::ResourceExhausted if reason == Some(Reason::StorageFull) => ErrorKind::StorageFull,
        Code::ResourceExhausted => ErrorKind::RateLimited,
        Code::FailedPrecondition => ErrorKind::FailedPrecondition,
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidArgument,
        Code::NotFound => match reason {
            Some(Reason::ModelNotFound) => ErrorKind::ModelNotFound,
            Some(Reason::CollectionNotFound) => ErrorKind::CollectionNotFound,
            _ => ErrorKind::NotFound,
        },
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::PermissionDenied => ErrorKind::PermissionDenied,
        Code::Cancelled => ErrorKind::Cancelled,
        Code::Unimplemented => ErrorKind::Unimplemented,
        // An error whose code says OK contradicts itself, which is the peer's fault.
        Code::Ok | Code::Internal | Code::Unknown | Code::DataLoss | Code::Aborted => ErrorKind::Internal,
    }
}

/// The kind of a reason that is a GPU fault. Leases that do not fit (`GPU_MEMORY_EXHAUSTED`) are none: the GPU is well.
fn gpu_fault(reason: Reason) -> Option<ErrorKind> {
    match reason {
        Reason::GpuUnavailable => Some(ErrorKind::GpuUnavailable),
        Reason::GpuLost => Some(ErrorKind::GpuLost),
        Reason::GpuOutOfMemory => Some(ErrorKind::GpuOutOfMemory),
        _ => None,
    }
}

/// A failed attempt, as far as the retry policy needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// What it is.
    pub kind: ErrorKind,
    /// Where it failed.
    pub origin: Origin,
    /// How long the peer asks to wait, from `google.rpc.RetryInfo`.
    pub pushback: Option<Duration>,
    /// True if the peer says that one of its roles still loads (`MODEL_NOT_READY`); its other roles may be ready.
    pub loading: bool,
}

impl Failed {
    /// True if the failure counts against the endpoint in its breaker. A peer that says when to come back, or that a
    /// role still loads, has answered: closing its address would take the roles away that are ready.
    pub fn counts(self) -> bool {
        let answered = self.origin == Origin::Peer && (self.pushback.is_some() || self.loading);
        self.kind.row().counts && !answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: [Code; 17] = [
        Code::Ok,
        Code::Cancelled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];
    const ORIGINS: [Origin; 4] = [Origin::NeverSent, Origin::Broken, Origin::Timeout, Origin::Peer];

    fn reasons() -> impl Iterator<Item = Option<Reason>> {
        std::iter::once(None).chain(Reason::ALL.iter().copied().map(Some))
    }

    /// The design's table, written down a second time: code → kind, for an answer of the peer without a GPU reason.
    fn expected(code: Code) -> &'static [ErrorKind] {
        match code {
            Code::Unavailable => &[ErrorKind::Unavailable],
            Code::DeadlineExceeded => &[ErrorKind::Timeout],
            Code::ResourceExhausted => &[ErrorKind::RateLimited, ErrorKind::StorageFull],
            Code::FailedPrecondition => &[ErrorKind::FailedPrecondition],
            Code::InvalidArgument | Code::OutOfRange => &[ErrorKind::InvalidArgument],
            Code::NotFound => &[
                ErrorKind::NotFound,
                ErrorKind::ModelNotFound,
                ErrorKind::CollectionNotFound,
            ],
            Code::AlreadyExists => &[ErrorKind::AlreadyExists],
            Code::Unauthenticated => &[ErrorKind::Unauthenticated],
            Code::PermissionDenied => &[ErrorKind::PermissionDenied],
            Code::Cancelled => &[ErrorKind::Cancelled],
            Code::Unimplemented => &[ErrorKind::Unimplemented],
            Code::Ok | Code::Internal | Code::Unknown | Code::DataLoss | Code::Aborted => &[ErrorKind::Internal],
        }
    }

    // requirement: isolation 5.4
    // requirement: isolation 6.3
    #[test]
    fn every_code_with_every_reason_from_everywhere() {
        for code in CODES {
            for reason in reasons() {
                for origin in ORIGINS {
                    let kind = classify(code, reason, origin);
                    let what = format!("{code:?} {reason:?} {origin:?} gave {kind:?}");
                    if reason.is_some_and(Reason::is_gpu_fault) {
                        assert!(kind.is_gpu(), "{what}");
                        assert!(!kind.row().counts && kind.row().action == Action::Fail, "{what}");
                        continue;
                    }
                    assert!(!kind.is_gpu(), "{what}");
                    match origin {
                        Origin::NeverSent | Origin::Broken => assert_eq!(kind, ErrorKind::Unavailable, "{what}"),
                        Origin::Timeout => assert_eq!(kind, ErrorKind::Timeout, "{what}"),
                        Origin::Peer => assert!(expected(code).contains(&kind), "{what}"),
                    }
                }
            }
        }
    }

    #[test]
    fn only_the_network_counts_for_the_breaker() {
        for kind in ErrorKind::ALL {
            let counts = matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout);
            assert_eq!(kind.row().counts, counts, "{kind:?}");
        }
    }

    #[test]
    fn what_was_not_found_has_its_own_kind() {
        let kind = |reason| classify(Code::NotFound, Some(reason), Origin::Peer);
        assert_eq!(kind(Reason::ModelNotFound), ErrorKind::ModelNotFound);
        assert_eq!(kind(Reason::CollectionNotFound), ErrorKind::CollectionNotFound);
        assert_eq!(kind(Reason::LeaseNotFound), ErrorKind::NotFound);
    }

    #[test]
    fn a_full_disk_is_not_waited_for_and_a_full_queue_is() {
        let kind = |reason| classify(Code::ResourceExhausted, reason, Origin::Peer);
        assert_eq!(kind(Some(Reason::StorageFull)).row().action, Action::Fail);
        assert_eq!(kind(Some(Reason::QueueFull)).row().action, Action::AsTold);
        assert_eq!(kind(None).row().action, Action::AsTold);
    }

    #[test]
    fn metric_labels_are_unique_and_http_statuses_are_errors() {
        let mut labels: Vec<_> = ErrorKind::ALL.iter().map(|kind| kind.row().metric_label).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), ErrorKind::ALL.len());
        assert!(
            ErrorKind::ALL
                .iter()
                .all(|kind| (400..600).contains(&kind.row().http_status))
        );
    }

    #[test]
    fn gpu_faults_are_no_http_status_that_proxies_repeat() {
        for kind in ErrorKind::ALL.into_iter().filter(|kind| kind.is_gpu()) {
            assert!(![429, 502, 503, 504].contains(&kind.row().http_status), "{kind:?}");
        }
    }

    #[test]
    fn wrong_arguments_are_told_apart_by_service() {
        let class = |service| ErrorKind::InvalidArgument.python_class(service);
        assert_eq!(class(Service::Embedding), "EmbeddingValidationError");
        assert_eq!(class(Service::Reranking), "RerankingValidationError");
        assert_eq!(class(Service::Vector), "VectorValidationError");
        assert_eq!(class(Service::Gpu), "ValidationError");
        assert_eq!(ErrorKind::Timeout.python_class(Service::Gpu), "ServiceTimeoutError");
    }
}
