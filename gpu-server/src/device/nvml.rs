//! NVML: which GPUs the machine has, whoever may use them, and how they are.

use std::ffi::OsStr;
use std::path::Path;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

use super::{DeviceDetails, DeviceInfo, driver};

/// NVML from its usual library, or from another file.
///
/// # Errors
/// Why it cannot be used.
pub fn open(library: Option<&Path>) -> Result<Nvml, NvmlError> {
    match library {
        None => Nvml::init(),
        Some(path) => Nvml::builder().lib_path(OsStr::new(path)).init(),
    }
}

/// The GPUs of the machine: first those that CUDA shows to this process, by ordinal, then the others. None where there is no
/// driver. The driver's library lies beside NVML's, if that is not the usual one.
pub fn list(library: Option<&Path>) -> Vec<DeviceInfo> {
    let Ok(nvml) = open(library) else { return Vec::new() };
    // Where CUDA does not say which GPUs it shows, none is said to be usable.
    let ordinals = match library {
        None => driver::uuids().unwrap_or_default(),
        Some(path) => &driver::uuids_of(&path.with_file_name(driver::DRIVER)).unwrap_or_default(),
    };
    let mut devices: Vec<(Option<usize>, DeviceInfo)> = gpus(&nvml)
        .into_iter()
        .map(|mut device| {
            let shown = ordinals.iter().position(|uuid| device.uuid.ends_with(uuid.as_str()));
            if let Some(ordinal) = shown {
                device.id = format!("cuda:{ordinal}");
            }
            (shown, device)
        })
        .collect();
    // Stable: what CUDA does not show stays in NVML's order.
    devices.sort_by_key(|(ordinal, _)| ordinal.unwrap_or(usize::MAX));
    devices.into_iter().map(|(_, device)| device).collect()
}

/// What NVML tells of a GPU besides.
pub fn details(info: DeviceInfo, library: Option<&Path>) -> DeviceDetails {
    let bare = DeviceDetails {
        info,
        ..DeviceDetails::default()
    };
    let Ok(nvml) = open(library) else { return bare };
    let driver_version = nvml.sys_driver_version().unwrap_or_default();
    let Ok(device) = nvml.device_by_uuid(bare.info.uuid.as_str()) else {
        return DeviceDetails { driver_version, ..bare };
    };
    DeviceDetails {
        driver_version,
        utilization: device.utilization_rates().ok().map(|rates| rates.gpu),
        power: device.power_usage().ok().map(u64::from),
        uncorrected: uncorrected(&device).ok(),
        ..bare
    }
}

/// ECC errors that could not be corrected, since the driver was loaded.
///
/// # Errors
/// [`NvmlError::NotSupported`] where the device does not count them.
pub fn uncorrected(device: &nvml_wrapper::Device<'_>) -> Result<u64, NvmlError> {
    device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
}

/// What CUDA calls `ordinal`.
pub fn of_ordinal(nvml: &Nvml, ordinal: usize) -> Option<nvml_wrapper::Device<'_>> {
    let uuid = driver::uuids().ok()?.get(ordinal)?;
    ["GPU", "MIG"]
        .into_iter()
        .find_map(|kind| nvml.device_by_uuid(format!("{kind}-{uuid}")).ok())
}

/// Every GPU in NVML's order, a MIG device after the GPU that it is a part of; `id` is the UUID.
fn gpus(nvml: &Nvml) -> Vec<DeviceInfo> {
    let count = nvml.device_count().unwrap_or(0);
    let mut devices = Vec::new();
    for device in (0..count).filter_map(|index| nvml.device_by_index(index).ok()) {
        let mut gpu = describe(&device);
        gpu.mig_enabled = device.mig_mode().is_ok_and(|mode| mode.current == 1);
        let (enabled, parent) = (gpu.mig_enabled, gpu.clone());
        devices.push(gpu);
        let parts = if enabled {
            device.mig_device_count().unwrap_or(0)
        } else {
            0
        };
        for part in (0..parts).filter_map(|index| device.mig_device_by_index(index).ok()) {
            // NVML tells only of the whole what all parts share.
            devices.push(DeviceInfo {
                parent_uuid: parent.uuid.clone(),
                pci_bus_id: parent.pci_bus_id.clone(),
                temperature: parent.temperature,
                capability: parent.capability.clone(),
                ..describe(&part)
            });
        }
    }
    devices
}

fn describe(device: &nvml_wrapper::Device<'_>) -> DeviceInfo {
    let uuid = device.uuid().unwrap_or_default();
    let memory = device.memory_info();
    DeviceInfo {
        id: uuid.clone(),
        is_gpu: true,
        name: device.name().unwrap_or_else(|_| "unknown".to_owned()),
        total_memory: memory.as_ref().map_or(0, |memory| memory.total),
        used_memory: memory.ok().map(|memory| memory.used),
        uuid,
        pci_bus_id: device.pci_info().map_or_else(|_| String::new(), |pci| pci.bus_id),
        temperature: device.temperature(TemperatureSensor::Gpu).ok(),
        capability: device.cuda_compute_capability().map_or_else(
            |_| String::new(),
            |version| format!("{}.{}", version.major, version.minor),
        ),
        ..DeviceInfo::default()
    }
}
