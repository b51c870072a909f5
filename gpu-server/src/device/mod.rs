//! The device: whether there is one, what it is called, and who has set memory aside on it.
//!
//! `probe` decides once, at start, and never falls back: a server told to use CUDA either computes on CUDA or refuses
//! every call with the reason. `fault` is the latch that a lost GPU closes while the server runs.

pub mod cuda;
pub mod fault;
pub mod host;
pub mod leases;
mod message;

use crate::config::DeviceChoice;
use crate::error::Error;
use crate::model::kernels;

/// A device of this machine.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// "cpu" or "cuda:N".
    pub id: String,
    /// True for a GPU.
    pub is_gpu: bool,
    /// The maker's name.
    pub name: String,
    /// Bytes of memory.
    pub total_memory: u64,
}

/// The device that this process computes on.
#[derive(Debug, Clone)]
pub struct ActiveDevice {
    /// For libtorch.
    pub device: tch::Device,
    /// "cpu" or "cuda:N".
    pub id: String,
    /// In words, for status and logs.
    pub detail: String,
    /// Whether it multiplies bf16 faster than f32.
    pub fast_bf16: bool,
}

/// Finds out whether the chosen device computes.
///
/// # Errors
/// [`Error::GpuUnavailable`] that says what is missing.
pub fn probe(choice: DeviceChoice) -> Result<ActiveDevice, Error> {
    match choice {
        DeviceChoice::Cpu => Ok(ActiveDevice {
            device: tch::Device::Cpu,
            id: "cpu".to_owned(),
            detail: format!("computing on the CPU ({}), as --device cpu asks", host::cpu_name()),
            fast_bf16: kernels::cpu_has_fast_bf16(),
        }),
        DeviceChoice::Cuda(index) => cuda::probe(index),
    }
}

/// The devices that the server can compute on under `choice`: GPUs, or the CPU where the operator named it.
pub fn list(choice: DeviceChoice) -> Vec<DeviceInfo> {
    match choice {
        DeviceChoice::Cpu => vec![DeviceInfo {
            id: "cpu".to_owned(),
            is_gpu: false,
            name: host::cpu_name(),
            total_memory: host::total_memory(),
        }],
        DeviceChoice::Cuda(_) => cuda::list(),
    }
}
