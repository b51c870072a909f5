//! The wire of medkg: message types, tonic clients and servers generated from `proto/medkg/v1`.
//!
//! The stubs are checked in, so that a build needs no code generation; `tests/generated.rs` regenerates them with protox
//! and compares. Generated types stay here and in the `service/` folders of the client and of gpu-server: nothing else
//! in medkg should depend on the shape of the wire.

#![forbid(unsafe_code)]

pub mod codec;

/// Version 1 of the wire, package `medkg.v1`.
#[allow(missing_docs, clippy::pedantic, clippy::all, unused_qualifications)]
pub mod v1 {
    include!("gen/medkg.v1.rs");
}

/// The `google.protobuf.FileDescriptorSet` of `proto/medkg/v1`, encoded, without comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/medkg.v1.descriptor.bin");

/// Largest message in either direction, in bytes, as `types.proto` promises.
pub const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;
