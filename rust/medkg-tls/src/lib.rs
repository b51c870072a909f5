//! TLS 1.3 for both sides of a medkg connection, with certificates for clients too.
//!
//! tonic's own TLS settings can choose neither the protocol version nor what happens to session tickets, and a session
//! ticket lets a client come back after its certificate has expired. So medkg brings its own acceptor and connector:
//!
//! - TLS 1.3 only, the *ring* provider, ALPN `h2`;
//! - no session tickets, no session store, no early data: every connection shows its certificate anew;
//! - with a client CA, a client without a certificate of that CA does not get past the handshake;
//! - handshakes run beside each other and are bounded in time, and a failed one ends nothing but itself;
//! - files are checked when they are loaded: whatever is missing, empty, expired or does not fit is an error that names
//!   the file and what to do. Keys never appear in `Debug` output or errors;
//! - files that change are loaded again, for the connections that are made from then on.
//!
//! It refuses to trust the machine's own roots: the CA is named, or there is no connection.

#![forbid(unsafe_code)]

#[cfg(feature = "authority")]
pub mod authority;
mod client;
mod error;
mod files;
mod followed;
mod incoming;
mod names;
mod peer;
mod server;

pub use client::{ClientTlsConfig, TlsConnection, TlsConnector};
pub use error::{ConnectError, TlsError};
pub use incoming::{TlsIncoming, TlsStream};
pub use peer::{PeerIdentity, PeerInfo};
pub use server::ServerTlsConfig;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The one protocol that gRPC speaks.
const ALPN_H2: &[u8] = b"h2";

/// The process-wide default of rustls is left alone: another library may own it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
