//! What libtorch's errors mean. It has no error codes: its messages are the interface (c10/cuda/CUDAException.h and
//! CUDACachingAllocator.cpp write them).

use crate::error::Error;

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // The first line says what; the rest is a stack of C++ frames.
        let detail = error.to_string().lines().next().unwrap_or_default().to_owned();
        if detail.contains("out of memory") || detail.contains("ALLOC_FAILED") {
            Self::GpuOutOfMemory { detail }
        } else if detail.contains("CUDA error") || detail.contains("CUDA driver") {
            Self::GpuLost { detail }
        } else {
            Self::Internal { detail }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_messages_are_told_apart() {
        let classify = |text: &str| Error::from(tch::TchError::Torch(text.to_owned()));
        assert!(matches!(
            classify("CUDA out of memory. Tried to allocate"),
            Error::GpuOutOfMemory { .. }
        ));
        assert!(matches!(
            classify("CUDA error: unspecified launch failure\nmore"),
            Error::GpuLost { .. }
        ));
        assert!(matches!(classify("shape '[2]' is invalid"), Error::Internal { .. }));
        assert!(classify("CUDA error: device-side assert").is_sticky());
        assert!(!classify("CUDA out of memory").is_sticky());
    }
}
