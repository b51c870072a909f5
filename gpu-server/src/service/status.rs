//! One table: which gRPC status, reason and detail each domain error becomes. The match has no wildcard, so a new error
//! must be given its row.

use std::time::Duration;

use medkg_telemetry::names::{ERROR_DOMAIN, Reason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::error::Error;

/// The status a caller gets.
pub fn from_error(error: &Error) -> Status {
    let (code, reason, retry_after) = row(error);
    let mut details = ErrorDetails::new();
    details.set_error_info(
        reason.as_str(),
        ERROR_DOMAIN,
        std::collections::HashMap::<String, String>::new(),
    );
    if let Some(wait) = retry_after {
        details.set_retry_info(Some(wait));
    }
    if let Error::InvalidField { field, problem } = error {
        details.add_bad_request_violation(field, short(problem));
    }
    Status::with_error_details(code, short(&told(error)), details)
}

/// What a caller reads.
fn told(error: &Error) -> String {
    match error {
        // The cause is in the server's log under the request id; a caller needs no paths of this machine.
        Error::Internal { .. } => "the server failed; its log has the cause under this request's id".to_owned(),
        Error::OfInput { field, cause, .. } => format!("{field}: {}", told(cause)),
        other => other.to_string(),
    }
}

/// Messages travel in HTTP/2 headers, which peers bound at 8 to 16 KiB: a longer one would replace the error it tells.
pub(super) fn short(message: &str) -> String {
    const MOST: usize = 1_000;
    match message.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} …", &message[..end]),
        None => message.to_owned(),
    }
}

fn row(error: &Error) -> (Code, Reason, Option<Duration>) {
    match error {
        Error::InvalidField { .. } => (Code::InvalidArgument, Reason::InvalidField, None),
        Error::ModelNotFound { .. } => (Code::NotFound, Reason::ModelNotFound, None),
        Error::ModelNotReady { retry_after, .. } => (Code::Unavailable, Reason::ModelNotReady, Some(*retry_after)),
        Error::ModelMemoryFull { retry_after, .. } => (Code::ResourceExhausted, Reason::ModelMemoryFull, *retry_after),
        Error::ModelLoadFailed { .. } => (Code::FailedPrecondition, Reason::ModelLoadFailed, None),
        Error::QueueFull { retry_after, .. } => (Code::ResourceExhausted, Reason::QueueFull, Some(*retry_after)),
        Error::DeadlineExpired => (Code::DeadlineExceeded, Reason::DeadlineExpired, None),
        Error::GpuUnavailable { .. } => (Code::FailedPrecondition, Reason::GpuUnavailable, None),
        Error::GpuLost { .. } => (Code::FailedPrecondition, Reason::GpuLost, None),
        Error::GpuOutOfMemory { .. } => (Code::FailedPrecondition, Reason::GpuOutOfMemory, None),
        Error::GpuMemoryExhausted { .. } | Error::GpuMemoryHeld { .. } => {
            (Code::ResourceExhausted, Reason::GpuMemoryExhausted, None)
        }
        Error::LeaseStoreUnavailable { retry_after, .. } => {
            (Code::Unavailable, Reason::LeaseStoreUnavailable, Some(*retry_after))
        }
        Error::LeaseNotFound { .. } => (Code::NotFound, Reason::LeaseNotFound, None),
        Error::CollectionNotFound { .. } | Error::BackupLacks { .. } => {
            (Code::NotFound, Reason::CollectionNotFound, None)
        }
        Error::CollectionExists { .. } | Error::RestoreExists { .. } => {
            (Code::AlreadyExists, Reason::CollectionExists, None)
        }
        Error::CollectionDamaged { .. } => (Code::DataLoss, Reason::CollectionDamaged, None),
        Error::CollectionReplaced { .. } => (Code::Unavailable, Reason::CollectionReplaced, Some(Duration::ZERO)),
        Error::BackupNotFound { .. } => (Code::NotFound, Reason::BackupNotFound, None),
        Error::BackupExists { .. } => (Code::AlreadyExists, Reason::BackupExists, None),
        Error::BackupDamaged { .. } => (Code::DataLoss, Reason::BackupDamaged, None),
        Error::CallerLeft => (Code::Cancelled, Reason::CallerLeft, None),
        Error::StorageFull { .. } => (Code::ResourceExhausted, Reason::StorageFull, None),
        Error::StorageReadOnly { .. } => (Code::FailedPrecondition, Reason::StorageReadOnly, None),
        Error::NotAuthorized { .. } => (Code::PermissionDenied, Reason::NotAuthorized, None),
        Error::ShuttingDown => (Code::Unavailable, Reason::ShuttingDown, None),
        Error::NonFinite | Error::Internal { .. } => (Code::Internal, Reason::Internal, None),
        Error::OfInput { cause, .. } => row(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_fault_is_a_failed_precondition_with_its_reason() {
        let cases = [
            (
                Error::GpuUnavailable {
                    detail: "no driver".into(),
                },
                "GPU_UNAVAILABLE",
            ),
            (
                Error::GpuLost {
                    detail: "Xid 79".into(),
                },
                "GPU_LOST",
            ),
            (Error::GpuOutOfMemory { detail: "full".into() }, "GPU_OUT_OF_MEMORY"),
        ];
        for (error, reason) in cases {
            let status = from_error(&error);
            assert_eq!(status.code(), Code::FailedPrecondition);
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "medkg"));
            assert!(status.get_details_retry_info().is_none(), "waiting does not help");
        }
    }

    #[test]
    fn an_invalid_argument_names_the_field() {
        let status = from_error(&Error::invalid("texts[3]", "is empty"));
        assert_eq!(
            status.get_details_bad_request().unwrap().field_violations[0].field,
            "texts[3]"
        );
        assert!(status.message().contains("texts[3] is empty"));
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let wait = Duration::from_millis(700);
        let status = from_error(&Error::QueueFull {
            waiting: "1 tokens".to_owned(),
            retry_after: wait,
        });
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(wait));
    }

    #[test]
    fn a_long_message_still_fits_into_a_header() {
        let status = from_error(&Error::invalid("payloads[0]", "é".repeat(60_000)));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().len() < 4_000);
    }

    #[test]
    fn an_internal_error_tells_the_caller_no_path() {
        let error = Error::internal("/data/a.redb: denied");
        for error in [error.clone(), error.of_input(0)] {
            assert!(!from_error(&error).message().contains("/data"));
        }
    }

    #[test]
    fn an_input_that_failed_is_named_and_keeps_its_code() {
        let full = Error::GpuOutOfMemory { detail: "full".into() };
        let status = from_error(&full.of_input(3).named(|index| format!("texts[{index}]")));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.get_details_error_info().unwrap().reason, "GPU_OUT_OF_MEMORY");
        assert!(status.message().starts_with("texts[3]: "), "{}", status.message());
        let lost = Error::GpuLost {
            detail: "Xid 79".into(),
        };
        assert!(
            matches!(lost.of_input(3), Error::GpuLost { .. }),
            "that is no input's fault"
        );
    }
}
