//! What libtorch's errors mean. It has no error codes: its messages are the interface (c10/cuda/CUDAException.h,
//! CUDACachingAllocator.cpp and `c10/core/impl/alloc_cpu.cpp` write them).

use crate::error::Error;

/// CUDA's allocator, cuBLAS and cuDNN, the CPU's allocator, and C++ itself.
const OUT_OF_MEMORY: [&str; 4] = ["out of memory", "ALLOC_FAILED", "can't allocate memory", "bad_alloc"];

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // The first line says what; the rest is a stack of C++ frames.
        let detail = error.to_string().lines().next().unwrap_or_default().to_owned();
        let is_full = |text| detail.contains(text);
        if OUT_OF_MEMORY.into_iter().any(is_full) {
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
        for full in [
            "CUDA out of memory. Tried to allocate",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
            "std::bad_alloc",
        ] {
            assert!(matches!(classify(full), Error::GpuOutOfMemory { .. }), "{full}");
        }
        assert!(matches!(
            classify("CUDA error: unspecified launch failure\nmore"),
            Error::GpuLost { .. }
        ));
        assert!(matches!(classify("shape '[2]' is invalid"), Error::Internal { .. }));
        assert!(classify("CUDA error: device-side assert").is_sticky());
        assert!(!classify("CUDA out of memory").is_sticky());
    }
}
