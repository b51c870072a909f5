//! Who calls, for whom, as part of which trace: the identity that every medkg call carries, and the logs that show it.
//!
//! - [`names`]: metadata keys and error reasons. They are written down once, here, for client and server alike.
//! - [`trace_context`]: W3C Trace Context, parsed, made and carried in gRPC metadata or HTTP headers.
//! - [`tenant`]: the tenant and the request id, checked.
//! - `logging` (feature `logging`): structured logs on stderr, and spans sent to an OTLP collector where one is named.
//!
//! The first three know no runtime and no subscriber, so that the client library can carry a trace without deciding
//! how its host process logs. This crate never reads the environment and never decides what a call may do.

#![forbid(unsafe_code)]

#[cfg(feature = "logging")]
pub mod logging;
pub mod names;
pub mod tenant;
pub mod trace_context;

mod carrier;
mod random;

pub use carrier::{Carrier, CarrierMut};
