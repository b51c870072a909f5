//! The CUDA driver's own interface, for what libtorch does not tell: which GPU each of CUDA's ordinals is.
//!
//! NVML counts all GPUs of the machine in the order of their PCI addresses. CUDA counts those that this process may see, the
//! fastest first unless it is told otherwise. Only UUIDs connect the two. Calling the driver needs unsafe code.

#![allow(unsafe_code)]

use std::ffi::{OsStr, c_int};
use std::path::Path;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW, Symbol};

/// The driver's library.
pub const DRIVER: &str = "libcuda.so.1";
/// `CUDA_SUCCESS`.
const SUCCESS: c_int = 0;

type Init = unsafe extern "C" fn(u32) -> c_int;
type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
type Uuid = unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int;

/// Loads a library for the rest of the process's life, its symbols for all.
///
/// # Errors
/// What the dynamic linker says.
pub fn load(library: &str) -> Result<(), libloading::Error> {
    // SAFETY: the libraries that are loaded here are meant to be loaded this way (libtorch does so itself in Python); their
    // initialisers touch no state of ours. The handle is leaked on purpose: none may be unloaded while the process lives.
    let handle = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) }?;
    std::mem::forget(handle);
    Ok(())
}

/// The UUIDs of the devices that CUDA shows to this process, by ordinal; as NVML writes them, without "GPU-" or "MIG-". They
/// stay the same while the process lives.
///
/// # Errors
/// Why they are not known, in words.
pub fn uuids() -> Result<&'static [String], &'static str> {
    static UUIDS: OnceLock<Result<Vec<String>, String>> = OnceLock::new();
    match UUIDS.get_or_init(|| {
        load(DRIVER)
            .map_err(|e| e.to_string())
            .and_then(|()| ask(DRIVER.as_ref()))
    }) {
        Ok(uuids) => Ok(uuids),
        Err(problem) => Err(problem),
    }
}

/// The same, of another library with the driver's interface.
///
/// # Errors
/// Why they are not known, in words.
pub fn uuids_of(library: &Path) -> Result<Vec<String>, String> {
    ask(library.as_os_str())
}

fn ask(library: &OsStr) -> Result<Vec<String>, String> {
    // SAFETY: the library is meant to be loaded this way and is never unloaded. The signatures are those of cuda.h, for
    // versions that the driver keeps for ever.
    unsafe {
        let driver = Library::open(Some(library), RTLD_NOW | RTLD_LOCAL).map_err(|error| error.to_string())?;
        let init: Symbol<Init> = driver.get(b"cuInit\0").map_err(|error| error.to_string())?;
        let count: Symbol<Count> = driver.get(b"cuDeviceGetCount\0").map_err(|error| error.to_string())?;
        // The first one knows MIG devices.
        let uuid: Symbol<Uuid> = driver
            .get(b"cuDeviceGetUuid_v2\0")
            .or_else(|_| driver.get(b"cuDeviceGetUuid\0"))
            .map_err(|error| error.to_string())?;
        let told = |call, code| match code {
            SUCCESS => Ok(()),
            other => Err(format!("{call} answers with CUDA error {other}")),
        };
        told("cuInit", init(0))?;
        let mut devices = 0;
        told("cuDeviceGetCount", count(&raw mut devices))?;
        let of = |ordinal| {
            let mut bytes = [0; 16];
            told("cuDeviceGetUuid", uuid(&raw mut bytes, ordinal)).map(|()| text(bytes))
        };
        let found = (0..devices).map(of).collect();
        std::mem::forget(driver);
        found
    }
}

/// As NVML writes a UUID.
fn text(bytes: [u8; 16]) -> String {
    let number = u128::from_be_bytes(bytes);
    let hex = format!("{number:032x}");
    let (parts, _) = [8, 4, 4, 4, 12]
        .into_iter()
        .fold((Vec::new(), hex.as_str()), |(mut parts, rest), length| {
            let (part, rest) = rest.split_at(length);
            parts.push(part);
            (parts, rest)
        });
    parts.join("-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_uuid_is_written_as_nvml_writes_it() {
        let bytes = [
            0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 1, 2, 3, 4, 5, 6, 0xff,
        ];
        assert_eq!(super::text(bytes), "01234567-89ab-cdef-0001-0203040506ff");
    }
}
