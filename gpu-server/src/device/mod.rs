//! The device: whether there is one, what it is called, and who has set memory aside on it.
//!
//! `probe` decides once, at start, and never falls back: a server told to use CUDA either computes on CUDA or refuses
//! every call with the reason. `fault` is the latch that a lost GPU closes while the server runs; `watch` and `canary` see
//! that it is lost when no call does. `pressure` is how full its memory is.

pub mod canary;
pub mod cuda;
mod driver;
pub mod exit;
pub mod fault;
pub mod host;
pub mod leases;
pub mod ledger;
mod message;
pub mod neighbours;
pub mod nvml;
pub mod pressure;
#[cfg(test)]
pub mod stand_in;
pub mod watch;

use std::path::Path;

use crate::config::DeviceChoice;
use crate::error::Error;
use crate::model::kernels;
use watch::Watched;

/// A device of this machine.
#[derive(Debug, Clone, Default)]
pub struct DeviceInfo {
    /// "cpu", "cuda:N", or the UUID of a GPU that CUDA does not show to this process.
    pub id: String,
    /// True for a GPU.
    pub is_gpu: bool,
    /// The maker's name.
    pub name: String,
    /// Bytes of memory.
    pub total_memory: u64,
    /// Bytes that all processes use, where it is known.
    pub used_memory: Option<u64>,
    /// A GPU's, as NVML writes it.
    pub uuid: String,
    /// A GPU's place on the bus.
    pub pci_bus_id: String,
    /// °C of the chip, where it is known.
    pub temperature: Option<u32>,
    /// Such as "9.0"; empty where it is not known.
    pub capability: String,
    /// True for a GPU that is cut into MIG devices.
    pub mig_enabled: bool,
    /// For a MIG device, its GPU.
    pub parent_uuid: String,
}

/// A device and what else NVML tells of it; what it does not tell is none.
#[derive(Debug, Clone, Default)]
pub struct DeviceDetails {
    /// As [`list`] tells it.
    pub info: DeviceInfo,
    /// Of the NVIDIA driver; empty where there is none.
    pub driver_version: String,
    /// Part of the last moments in which it computed, 0 to 100.
    pub utilization: Option<u32>,
    /// Milliwatts.
    pub power: Option<u64>,
    /// ECC errors that could not be corrected, since the driver was loaded.
    pub uncorrected: Option<u64>,
}

impl DeviceInfo {
    /// True for a GPU on which this process can take memory.
    pub fn is_usable_gpu(&self) -> bool {
        self.is_gpu && self.id.starts_with("cuda:")
    }
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
    /// Bytes that it has; none for a CPU, and where NVML does not tell.
    pub memory: Option<u64>,
    /// How NVML knows it; none for a CPU, and for a GPU that NVML does not know.
    pub watched: Option<Watched>,
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
            memory: None,
            watched: None,
        }),
        DeviceChoice::Cuda(index) => cuda::probe(index),
    }
}

/// The devices of the machine under `choice`: GPUs, or the CPU where the operator named it. `library` is NVML's, where it is not
/// the usual one. It may take long: ask beside the async threads.
pub fn list(choice: DeviceChoice, library: Option<&Path>) -> Vec<DeviceInfo> {
    match choice {
        DeviceChoice::Cpu => vec![DeviceInfo {
            id: "cpu".to_owned(),
            is_gpu: false,
            name: host::cpu_name(),
            total_memory: host::total_memory(),
            ..DeviceInfo::default()
        }],
        DeviceChoice::Cuda(_) => nvml::list(library),
    }
}

/// The device of [`list`] that has this id or UUID, in detail; none if there is no such device.
pub fn describe(choice: DeviceChoice, library: Option<&Path>, device: &str) -> Option<DeviceDetails> {
    let named = |info: &DeviceInfo| info.id == device || (!info.uuid.is_empty() && info.uuid == device);
    let info = list(choice, library).into_iter().find(named)?;
    Some(if info.is_gpu {
        nvml::details(info, library)
    } else {
        DeviceDetails {
            info,
            ..DeviceDetails::default()
        }
    })
}
