//! What can go wrong, said without gRPC. `service::status` turns it into the wire's table of errors.

use std::time::Duration;

use crate::device::leases::Ended;

/// A request that could not be served. Each variant says what, where and what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller sent something that cannot be accepted.
    #[error("{field} {problem}")]
    InvalidField {
        /// Path in the request, e.g. `texts[3]`.
        field: String,
        /// What is wrong with it and what is accepted.
        problem: String,
    },
    /// No model has this name.
    #[error("model {name:?} is not known here; known: {known}")]
    ModelNotFound {
        /// The name that was asked for.
        name: String,
        /// The names that exist, comma separated.
        known: String,
    },
    /// The model does not answer now, but may soon.
    #[error("model {name:?} {problem}; try again in {retry_after:.1?}")]
    ModelNotReady {
        /// Its name.
        name: String,
        /// What it waits for.
        problem: String,
        /// After this it should answer, or nobody knows.
        retry_after: Duration,
    },
    /// The weights of all models together may not hold that much.
    #[error(
        "model {name:?} needs {wanted_bytes} bytes for its weights; --model-memory is {limit_bytes}, and {held_bytes} are \
         held by others{}",
        advice(.retry_after.is_some())
    )]
    ModelMemoryFull {
        /// Its name.
        name: String,
        /// What it needs.
        wanted_bytes: u64,
        /// What others hold.
        held_bytes: u64,
        /// What all may hold.
        limit_bytes: u64,
        /// None if it fits only after an operator acts.
        retry_after: Option<Duration>,
    },
    /// The model could not be loaded, and will not be until an operator acts.
    #[error("model {name:?} could not be loaded: {problem}")]
    ModelLoadFailed {
        /// Its name.
        name: String,
        /// File and reason.
        problem: String,
    },
    /// More is waiting than the queue takes.
    #[error("the queue is full: {waiting} are waiting; try again in {retry_after:?}")]
    QueueFull {
        /// What is in the queue, e.g. "4000 tokens".
        waiting: String,
        /// Estimated from the backlog and the measured rate.
        retry_after: Duration,
    },
    /// The caller's deadline passed before the work was done; it was not computed.
    #[error("the deadline passed while the request was waiting; allow more time or send less at once")]
    DeadlineExpired,
    /// There is no GPU to compute on.
    #[error("no GPU: {detail}")]
    GpuUnavailable {
        /// What is missing.
        detail: String,
    },
    /// The GPU was there and is gone; the process must be restarted.
    #[error("the GPU is lost: {detail}; the server must be restarted")]
    GpuLost {
        /// What the device said.
        detail: String,
    },
    /// The device has too little memory for this request; the CPU, too, if that is the device.
    #[error("the device is out of memory: {detail}; send a smaller batch or shorter texts")]
    GpuOutOfMemory {
        /// What the device said.
        detail: String,
    },
    /// Leases, models and collections hold too much for another lease.
    #[error(
        "no device has {wanted_bytes} bytes left to lease: most left is {free_bytes}, and {waiting} wait before this request; \
         ask for less, or let it wait (`wait`)"
    )]
    GpuMemoryExhausted {
        /// Bytes asked for.
        wanted_bytes: u64,
        /// Bytes left on the best device.
        free_bytes: u64,
        /// Requests that come first.
        waiting: usize,
    },
    /// The device has the memory, but it is promised to others.
    #[error(
        "{what} needs {wanted_bytes} bytes of the GPU's {total_bytes}: leases hold {leased_bytes}, models {model_bytes}, \
         collections {collection_bytes}, other servers of this host {neighbour_bytes}; release a lease or unload a model"
    )]
    GpuMemoryHeld {
        /// A model or a collection, by name.
        what: String,
        /// Bytes that it lacks.
        wanted_bytes: u64,
        /// Bytes of the device.
        total_bytes: u64,
        /// Bytes that leases hold.
        leased_bytes: u64,
        /// Bytes of models' weights.
        model_bytes: u64,
        /// Bytes of collections.
        collection_bytes: u64,
        /// Bytes that other processes hold, as far as a lease store tells.
        neighbour_bytes: u64,
    },
    /// Redis, where the processes of the host tell each other of their leases, does not answer.
    #[error(
        "no memory can be leased now: the lease store does not answer ({detail}); leases that are there go on; try again in \
         {retry_after:?}, and if it lasts, see to the Redis of --lease-store"
    )]
    LeaseStoreUnavailable {
        /// What came of the last attempt.
        detail: String,
        /// When it is tried again.
        retry_after: Duration,
    },
    /// The tenant has no such lease.
    #[error("lease {lease_id:?} {}", ended(*.how))]
    LeaseNotFound {
        /// As asked for.
        lease_id: String,
        /// How it ended, if that is remembered.
        how: Option<Ended>,
    },
    /// The tenant has no such collection.
    #[error("collection {name:?} does not exist; create it first")]
    CollectionNotFound {
        /// As asked for.
        name: String,
    },
    /// The name is taken.
    #[error("collection {name:?} exists already ({existing}); drop it, choose another name, or set exist_ok")]
    CollectionExists {
        /// As asked for.
        name: String,
        /// Its dimension and metric.
        existing: String,
    },
    /// The file behind the collection cannot be read.
    #[error("collection {name:?} is damaged and is not served: {problem}; restore its file or drop it")]
    CollectionDamaged {
        /// As asked for.
        name: String,
        /// File and reason.
        problem: String,
    },
    /// A restore put another collection in the place of the one that was called.
    #[error("collection {name:?} was replaced by a restore while the call waited; send it again")]
    CollectionReplaced {
        /// As asked for.
        name: String,
    },
    /// There is no such backup.
    #[error("backup {name:?} does not exist, or was never finished")]
    BackupNotFound {
        /// As asked for.
        name: String,
    },
    /// The backup has no such collection.
    #[error("the backup has no collection of {wanted:?}; its manifest.json lists what it has")]
    BackupLacks {
        /// Tenant and collection, as asked for.
        wanted: String,
    },
    /// The backup's name is taken.
    #[error("backup {name:?} exists already, or is being made; choose another name")]
    BackupExists {
        /// As asked for.
        name: String,
    },
    /// The backup is not what was written.
    #[error("backup {name:?} is damaged, and nothing of it was restored: {problem}")]
    BackupDamaged {
        /// As asked for.
        name: String,
        /// Which part, and what is wrong with it.
        problem: String,
    },
    /// A restore would replace a collection.
    #[error(
        "collection {collection:?} exists already ({existing}), and nothing was restored; replace it, drop it, or leave it out"
    )]
    RestoreExists {
        /// Tenant and name.
        collection: String,
        /// Its properties.
        existing: String,
    },
    /// Whoever called is gone, so that the work was ended.
    #[error("the caller left before the work was done")]
    CallerLeft,
    /// The disk has no room for the write, or a limit keeps the file from growing.
    #[error(
        "{what} cannot be written: its disk is full, or at its quota; nothing was changed; make room, then send it again"
    )]
    StorageFull {
        /// The collection or the backup, by name.
        what: String,
    },
    /// The data folder, or the file in it, cannot be written.
    #[error("collection {name:?} cannot be written: its file or the data folder is read-only; nothing was changed")]
    StorageReadOnly {
        /// The collection.
        name: String,
    },
    /// The model gave a NaN or an infinity, in fp32 too.
    #[error("the model's output is not finite")]
    NonFinite,
    /// One input could not be computed; those of other calls are not its fault.
    #[error("{field}: {cause}")]
    OfInput {
        /// Index of the input in its job.
        index: usize,
        /// Path in the request, e.g. `texts[3]`.
        field: String,
        /// Why.
        cause: Box<Self>,
    },
    /// The caller's certificate does not allow the call.
    #[error("{detail}")]
    NotAuthorized {
        /// What it names, and what to do.
        detail: String,
    },
    /// The server ends before it could answer.
    #[error("the server is shutting down; ask another one, or again in a moment")]
    ShuttingDown,
    /// A fault of the server.
    #[error("internal error: {detail}")]
    Internal {
        /// For the operator; holds no input text.
        detail: String,
    },
}

/// What a caller of a model that does not fit can do.
const fn advice(later: bool) -> &'static str {
    if later {
        ", some of which compute right now; try again"
    } else {
        " that stay; unload one, or allow more"
    }
}

/// Why there is no such lease, and what to do.
const fn ended(how: Option<Ended>) -> &'static str {
    match how {
        None => "is unknown, expired or released",
        Some(Ended::Released) => "was released already",
        Some(Ended::Expired) => "has expired, and its memory may be another's; allocate anew, and renew in time",
        Some(Ended::Orphaned) => {
            "was released because the connection of its owner died; allocate anew, and renew over a new connection within \
             --lease-grace, or let it outlive its connection"
        }
    }
}

impl Error {
    /// An `INVALID_ARGUMENT` on `field`.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::InvalidField {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// This happened to the job's input `index`; unless it is the device's end, which is nobody's.
    pub fn of_input(self, index: usize) -> Self {
        if self.is_sticky() {
            return self;
        }
        Self::OfInput {
            index,
            field: format!("[{index}]"),
            cause: Box::new(self),
        }
    }

    /// With what the request calls the input; only the service knows.
    pub fn named(self, name: impl FnOnce(usize) -> String) -> Self {
        match self {
            Self::OfInput { index, cause, .. } => Self::OfInput {
                index,
                field: name(index),
                cause,
            },
            other => other,
        }
    }

    /// A fault of the server.
    pub fn internal(detail: impl std::fmt::Display) -> Self {
        Self::Internal {
            detail: detail.to_string(),
        }
    }

    /// True if the device can compute nothing more in this process.
    pub const fn is_sticky(&self) -> bool {
        matches!(self, Self::GpuLost { .. } | Self::GpuUnavailable { .. })
    }
}
