//! What can be wrong with a file or a connection, in words an operator can act on.

use std::io;
use std::path::PathBuf;

/// Why TLS could not be configured. `path` is the file as it was named.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}; check the path and that this user may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file has nothing in it.
    #[error("{}: the file is empty; put PEM text into it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is not PEM, or broken PEM.
    #[error("{}: is no proper PEM file: {reason}; export it as PEM again", path.display())]
    BadPem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no certificate in it.
    #[error("{}: has no certificate; expected a block that begins with -----BEGIN CERTIFICATE-----", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// There is no private key in it.
    #[error("{}: has no private key; expected a block that begins with -----BEGIN PRIVATE KEY-----", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The private key has a passphrase.
    #[error("{}: the private key is encrypted; decrypt it first (`openssl pkey -in ENCRYPTED -out PLAIN`)", path.display())]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// The key is of a kind that cannot be used.
    #[error("{}: the private key cannot be used: {reason}; use an ECDSA P-256/P-384, Ed25519 or RSA key", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate in the file cannot be used.
    #[error("{}: certificate {index} cannot be used: {reason}; issue it again", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// Which block of the file, from 0.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// A certificate in the file has expired.
    #[error("{}: certificate {index} ({subject}) expired at {at}; replace it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Which block of the file, from 0.
        index: usize,
        /// Whose it is.
        subject: String,
        /// Last moment of its validity, UTC.
        at: String,
    },
    /// A certificate in the file is not valid yet.
    #[error("{}: certificate {index} ({subject}) is valid only from {at}; check this machine's clock", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Which block of the file, from 0.
        index: usize,
        /// Whose it is.
        subject: String,
        /// First moment of its validity, UTC.
        at: String,
    },
    /// The key belongs to another certificate.
    #[error(
        "{}: the private key does not belong to the first certificate of {}; give the pair that was issued together \
         (the own certificate first, intermediates after it)",
        key.display(), cert.display()
    )]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The name to expect in the server's certificate is no host name or address.
    #[error("server name {name:?}: is no DNS name and no IP address; give the name in the server's certificate")]
    ServerName {
        /// The name.
        name: String,
    },
    /// rustls refuses the configuration for another reason.
    #[error("TLS cannot be configured: {reason}")]
    Configuration {
        /// What rustls says.
        reason: String,
    },
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address has no host.
    #[error("{uri}: has no host; write https://HOST:PORT")]
    NoHost {
        /// The address.
        uri: http::Uri,
    },
    /// No TCP connection.
    #[error("{address}: no TCP connection: {source}")]
    Tcp {
        /// HOST:PORT
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// No TLS session: the server does not speak TLS 1.3, or one side refuses the other's certificate.
    #[error("{address}: TLS handshake failed: {source}")]
    Handshake {
        /// HOST:PORT
        address: String,
        /// What rustls says.
        source: io::Error,
    },
    /// The server does not speak HTTP/2 here.
    #[error("{address}: the server did not agree to HTTP/2 (ALPN h2); is it a gRPC port?")]
    NotHttp2 {
        /// HOST:PORT
        address: String,
    },
    /// The name to expect in the certificate is no host name or address.
    #[error(transparent)]
    ServerName(TlsError),
}
