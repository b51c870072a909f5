//! CUDA: is the driver there, is libtorch's CUDA half loaded, does a kernel run.
//!
//! The linker leaves `libtorch_cuda` out of this binary (`--as-needed`: no symbol of it is used by name), so that CUDA would
//! read as absent on a machine that has it. It is loaded here on purpose, and only when the operator wants a GPU: on a
//! CPU-only server it would cost a second and gigabytes of mappings.

use tch::{Cuda, Device, Kind, Tensor};

use super::driver::{DRIVER, load};
use super::watch::Watched;
use super::{ActiveDevice, driver, nvml};
use crate::error::Error;

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
    let id = format!("cuda:{index}");
    let told = nvml::open(None).ok().and_then(|nvml| {
        let device = nvml::of_ordinal(&nvml, index)?;
        let name = device.name().unwrap_or_else(|_| "unknown".to_owned());
        let major = device.cuda_compute_capability().map_or(0, |version| version.major);
        Some((name, major, device.uuid().ok()))
    });
    if told.is_none() {
        let why = driver::uuids().err().unwrap_or("NVML does not know it");
        tracing::warn!(device = %id, why, "NVML does not watch the GPU; the canary alone does");
    }
    let (name, major, uuid) = told.unwrap_or_else(|| ("unknown".to_owned(), 0, None));
    Ok(ActiveDevice {
        device,
        detail: format!("computing on {id} ({name})"),
        fast_bf16: major >= AMPERE,
        watched: uuid.map(|uuid| Watched {
            library: None,
            uuid,
            id: id.clone(),
        }),
        id,
    })
}

/// A kernel and a copy back.
fn compute(device: Device) -> Result<f64, tch::TchError> {
    Tensor::f_ones(&[64_i64, 64][..], (Kind::Float, device))?
        .f_sum(Kind::Double)?
        .f_double_value(&[])
}

/// Bytes of GPU `index` that nobody has taken; none where NVML does not know it.
pub fn free_memory(index: usize) -> Option<u64> {
    let nvml = nvml::open(None).ok()?;
    Some(nvml::of_ordinal(&nvml, index)?.memory_info().ok()?.free)
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
