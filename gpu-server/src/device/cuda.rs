//! CUDA: is the driver there, is libtorch's CUDA half loaded, does a kernel run.
//!
//! The linker leaves `libtorch_cuda` out of this binary (`--as-needed`: no symbol of it is used by name), so that CUDA would
//! read as absent on a machine that has it. It is loaded here on purpose, and only when the operator wants a GPU: on a
//! CPU-only server it would cost a second and gigabytes of mappings. Loading a library runs its initialisers, which the
//! language calls unsafe; besides model/kernels.rs this is the only module of gpu-server that may.

#![allow(unsafe_code)]

use nvml_wrapper::Nvml;
use tch::{Cuda, Device, Kind, Tensor};

use super::{ActiveDevice, DeviceInfo};
use crate::error::Error;

const DRIVER: &str = "libcuda.so.1";
/// Tensor cores take bf16 from compute capability 8.0 on.
const AMPERE: i32 = 8;
const TORCH_CUDA: &str = "libtorch_cuda.so";

/// Finds out whether GPU `index` computes.
///
/// # Errors
/// [`Error::GpuUnavailable`] that says which part is missing: driver, `libtorch_cuda`, device, or a kernel that runs.
pub fn probe(index: usize) -> Result<ActiveDevice, Error> {
    let missing = |detail: String| Error::GpuUnavailable { detail };
    load(DRIVER).map_err(|error| missing(format!("the NVIDIA driver's {DRIVER} cannot be loaded ({error})")))?;
    load(TORCH_CUDA).map_err(|error| missing(format!("{TORCH_CUDA} cannot be loaded ({error})")))?;
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if !Cuda::is_available() || count == 0 {
        return Err(missing(
            "the NVIDIA driver is loaded, but it shows no device to CUDA".to_owned(),
        ));
    }
    if index >= count {
        return Err(missing(format!(
            "there is no cuda:{index}; this process sees {count} device(s)"
        )));
    }
    let device = Device::Cuda(index);
    let sum = compute(device).map_err(|error| missing(format!("cuda:{index} does not compute: {error}")))?;
    if (sum - 4096.0).abs() > f64::EPSILON {
        return Err(missing(format!(
            "cuda:{index} computes wrongly: 4096 ones add up to {sum}"
        )));
    }
    let name = list()
        .into_iter()
        .find(|info| info.id == format!("cuda:{index}"))
        .map_or_else(String::new, |info| info.name);
    Ok(ActiveDevice {
        device,
        id: format!("cuda:{index}"),
        detail: format!("computing on cuda:{index} ({name})"),
        fast_bf16: capability(index).is_some_and(|major| major >= AMPERE),
    })
}

/// A kernel and a copy back.
fn compute(device: Device) -> Result<f64, tch::TchError> {
    Tensor::f_ones(&[64_i64, 64][..], (Kind::Float, device))?
        .f_sum(Kind::Double)?
        .f_double_value(&[])
}

fn load(library: &str) -> Result<(), libloading::Error> {
    // SAFETY: both libraries are meant to be loaded this way (libtorch does so itself in Python); their initialisers
    // touch no state of ours. The handle is leaked on purpose: neither may be unloaded while the process lives.
    let handle = unsafe {
        libloading::os::unix::Library::open(
            Some(library),
            libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL,
        )
    }?;
    std::mem::forget(handle);
    Ok(())
}

/// The GPUs that NVML knows; none where there is no driver.
pub fn list() -> Vec<DeviceInfo> {
    let Ok(nvml) = Nvml::init() else { return Vec::new() };
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| {
            let device = nvml.device_by_index(index).ok()?;
            Some(DeviceInfo {
                id: format!("cuda:{index}"),
                is_gpu: true,
                name: device.name().unwrap_or_else(|_| "unknown".to_owned()),
                total_memory: device.memory_info().map_or(0, |memory| memory.total),
            })
        })
        .collect()
}

/// The major number of GPU `index`'s compute capability; none where NVML does not know it.
fn capability(index: usize) -> Option<i32> {
    let nvml = Nvml::init().ok()?;
    let device = nvml.device_by_index(u32::try_from(index).ok()?).ok()?;
    Some(device.cuda_compute_capability().ok()?.major)
}

/// Bytes of GPU `index` that nobody has taken; none where NVML does not know it.
pub fn free_memory(index: usize) -> Option<u64> {
    let nvml = Nvml::init().ok()?;
    let device = nvml.device_by_index(u32::try_from(index).ok()?).ok()?;
    Some(device.memory_info().ok()?.free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_says_what_is_missing() {
        match probe(0) {
            Ok(device) => assert_eq!(device.id, "cuda:0"),
            Err(Error::GpuUnavailable { detail }) => assert!(
                [DRIVER, TORCH_CUDA, "no device", "does not compute"]
                    .iter()
                    .any(|part| detail.contains(part)),
                "{detail}"
            ),
            Err(other) => panic!("{other}"),
        }
    }
}
