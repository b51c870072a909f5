//! The words of the wire that are no protobuf: metadata keys and error reasons.
//!
//! Client and server read the same list, so a reason that one sends is a reason that the other knows.

use std::fmt;
use std::str::FromStr;

/// Metadata key of the tenant: 1–63 characters of `[A-Za-z0-9._-]`, the first a letter or a digit.
pub const TENANT_ID: &str = "x-tenant-id";
/// Metadata key of the W3C trace parent.
pub const TRACEPARENT: &str = "traceparent";
/// Metadata key of the W3C trace state.
pub const TRACESTATE: &str = "tracestate";
/// Metadata key of the request id: 1–128 printable ASCII characters without spaces.
pub const REQUEST_ID: &str = "x-request-id";
/// `domain` of every `google.rpc.ErrorInfo` that medkg sends.
pub const ERROR_DOMAIN: &str = "medkg";

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+) => {
        /// `reason` of a `google.rpc.ErrorInfo` in the domain [`ERROR_DOMAIN`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The text on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl FromStr for Reason {
            type Err = UnknownReason;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(UnknownReason(other.to_owned())),
                }
            }
        }
    };
}

reasons! {
    /// The call has no `x-tenant-id`.
    TenantMissing = "TENANT_MISSING",
    /// The call's `x-tenant-id` breaks the rule.
    TenantInvalid = "TENANT_INVALID",
    /// A field of the request breaks its rule; `google.rpc.BadRequest` names it.
    InvalidField = "INVALID_FIELD",
    /// No model of that name is loaded.
    ModelNotFound = "MODEL_NOT_FOUND",
    /// The model is still being loaded.
    ModelNotReady = "MODEL_NOT_READY",
    /// The model could not be loaded; waiting does not help.
    ModelLoadFailed = "MODEL_LOAD_FAILED",
    /// The models that stay in memory leave no room for this one.
    ModelMemoryFull = "MODEL_MEMORY_FULL",
    /// The queue of the engine is full.
    QueueFull = "QUEUE_FULL",
    /// The deadline passed before the work was done.
    DeadlineExpired = "DEADLINE_EXPIRED",
    /// There is no GPU that can be used.
    GpuUnavailable = "GPU_UNAVAILABLE",
    /// The GPU failed while the server ran.
    GpuLost = "GPU_LOST",
    /// The GPU has too little memory for this work.
    GpuOutOfMemory = "GPU_OUT_OF_MEMORY",
    /// No device has as much memory left as a lease, a model or a collection needs: it is promised to others.
    GpuMemoryExhausted = "GPU_MEMORY_EXHAUSTED",
    /// The processes of a host cannot tell each other of their leases; those that are there go on.
    LeaseStoreUnavailable = "LEASE_STORE_UNAVAILABLE",
    /// The lease is unknown, expired, released or another tenant's.
    LeaseNotFound = "LEASE_NOT_FOUND",
    /// The tenant has no collection of that name.
    CollectionNotFound = "COLLECTION_NOT_FOUND",
    /// The tenant has a collection of that name already.
    CollectionExists = "COLLECTION_EXISTS",
    /// The collection's file cannot be read.
    CollectionDamaged = "COLLECTION_DAMAGED",
    /// A restore replaced the collection while the call waited.
    CollectionReplaced = "COLLECTION_REPLACED",
    /// There is no backup of that name.
    BackupNotFound = "BACKUP_NOT_FOUND",
    /// There is a backup of that name already.
    BackupExists = "BACKUP_EXISTS",
    /// The backup is not what was written.
    BackupDamaged = "BACKUP_DAMAGED",
    /// The caller left before the work was done.
    CallerLeft = "CALLER_LEFT",
    /// The disk has no room; waiting alone does not help.
    StorageFull = "STORAGE_FULL",
    /// The data folder cannot be written.
    StorageReadOnly = "STORAGE_READ_ONLY",
    /// The caller's certificate does not allow the call.
    NotAuthorized = "NOT_AUTHORIZED",
    /// The server is going away; another one may answer.
    ShuttingDown = "SHUTTING_DOWN",
    /// A defect of the server.
    Internal = "INTERNAL",
}

impl Reason {
    /// True for the reasons that mean "the GPU cannot do this": never retried, and no network fault.
    pub const fn is_gpu_fault(self) -> bool {
        matches!(self, Self::GpuUnavailable | Self::GpuLost | Self::GpuOutOfMemory)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reason that this version does not know; a newer peer may send one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown error reason {0:?}: the peer may be newer than this medkg; treat it by its gRPC status")]
pub struct UnknownReason(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        assert_eq!(Reason::ALL.len(), 28);
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
            assert_eq!(reason.to_string(), reason.as_str());
        }
    }

    #[test]
    fn unknown_reasons_keep_their_text() {
        assert_eq!(
            "queue_full".parse::<Reason>(),
            Err(UnknownReason("queue_full".to_owned()))
        );
    }

    #[test]
    fn gpu_faults_are_the_three_of_the_error_table() {
        let faults: Vec<_> = Reason::ALL
            .iter()
            .filter(|r| r.is_gpu_fault())
            .map(|r| r.as_str())
            .collect();
        assert_eq!(faults, ["GPU_UNAVAILABLE", "GPU_LOST", "GPU_OUT_OF_MEMORY"]);
    }
}
