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
/// [`Error::GpuUnavailable`] that says which part is missing: driver, `libtorch_cuda`, device, compute capability, memory, or a kernel
/// that runs.
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
    let id = format!("cuda:{index}");
    let told = told(index);
    let sum = compute(device).map_err(|error| missing(unable(&id, told.as_ref(), &error)))?;
    if (sum - 4096.0).abs() > f64::EPSILON {
        return Err(missing(format!(
            "cuda:{index} computes wrongly: 4096 ones add up to {sum}"
        )));
    }
    if told.is_none() {
        let why = driver::uuids().err().unwrap_or("NVML does not know it");
        tracing::warn!(device = %id, why, "NVML does not watch the GPU; the canary alone does");
    }
    let told = told.unwrap_or_default();
    Ok(ActiveDevice {
        device,
        detail: format!("computing on {id} ({})", told.name),
        fast_bf16: told.capability.0 >= AMPERE,
        memory: told.memory.map(|(_, total)| total),
        watched: told.uuid.map(|uuid| Watched {
            library: None,
            uuid,
            id: id.clone(),
        }),
        id,
    })
}

/// What NVML knows of a GPU.
#[derive(Debug)]
struct Told {
    name: String,
    uuid: Option<String>,
    /// Major and minor; 0 where it is not known.
    capability: (i32, i32),
    /// Bytes that are free, and all of them, where that is known.
    memory: Option<(u64, u64)>,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            name: "unknown".to_owned(),
            uuid: None,
            capability: (0, 0),
            memory: None,
        }
    }
}

fn told(index: usize) -> Option<Told> {
    let nvml = nvml::open(None).ok()?;
    let device = nvml::of_ordinal(&nvml, index)?;
    let usual = Told::default();
    Some(Told {
        name: device.name().unwrap_or(usual.name),
        uuid: device.uuid().ok(),
        capability: device
            .cuda_compute_capability()
            .map_or(usual.capability, |version| (version.major, version.minor)),
        memory: device.memory_info().ok().map(|memory| (memory.free, memory.total)),
    })
}

/// Why the first kernel did not run, for whoever has to mend it. libtorch's words are CUDA's (`cudaGetErrorString`).
fn unable(id: &str, told: Option<&Told>, error: &tch::TchError) -> String {
    let usual = Told::default();
    let Told {
        name,
        capability: (major, minor),
        memory,
        ..
    } = told.unwrap_or(&usual);
    let says = error.to_string();
    let says = says.lines().next().unwrap_or_default();
    if says.contains("no kernel image is available") {
        let capability = match major {
            0 => "a compute capability".to_owned(),
            _ => format!("compute capability {major}.{minor}"),
        };
        return format!(
            "{id} ({name}) has {capability} for which this libtorch has no kernels; use a GPU that it supports ({says})"
        );
    }
    if says.contains("out of memory") {
        let left = memory.map_or_else(String::new, |(free, total)| {
            format!(": {free} of {total} bytes are free")
        });
        return format!(
            "{id} ({name}) has too little free memory{left}; end what holds it, nvidia-smi lists it ({says})"
        );
    }
    format!("{id} ({name}) does not compute: {says}")
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
    fn what_keeps_the_first_kernel_from_running_is_named() {
        let p4 = Told {
            name: "Tesla P4".to_owned(),
            capability: (6, 1),
            memory: Some((1_024, 8_192)),
            ..Told::default()
        };
        let cases = [
            (
                "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be",
                ["cuda:1 (Tesla P4)", "compute capability 6.1", "no kernel image"],
            ),
            (
                "CUDA error: out of memory\nCompile with",
                ["cuda:1 (Tesla P4)", "too little free memory", "1024 of 8192 bytes"],
            ),
            (
                "CUDA error: unknown error\nCompile with",
                ["cuda:1 (Tesla P4)", "does not compute", "unknown error"],
            ),
        ];
        for (says, parts) in cases {
            let error = tch::TchError::Torch(says.to_owned());
            let why = unable("cuda:1", Some(&p4), &error);
            assert!(parts.iter().all(|part| why.contains(part)), "{why}");
            assert!(!why.contains('\n'), "{why}");
            assert!(unable("cuda:1", None, &error).starts_with("cuda:1 (unknown)"));
        }
    }

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
