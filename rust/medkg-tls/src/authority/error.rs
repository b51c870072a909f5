//! What can go wrong with a folder of certificates, in words an operator can act on.

use std::io;
use std::path::PathBuf;

use crate::error::TlsError;

/// Why the authority did not do what it was asked to. Nothing that was there is lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A file or folder cannot be used.
    #[error("{}: cannot be {what}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// It would be overwritten.
    #[error("{}: is there already; {instead}", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
        /// What to do.
        instead: &'static str,
    },
    /// There is no authority in the folder.
    #[error("{}: has no authority (ca.pem and ca.key); make one with `medkg certs init`, or name its folder with --dir", folder.display())]
    NoAuthority {
        /// The folder.
        folder: PathBuf,
    },
    /// Others can read it.
    #[error("{}: its mode is {mode:04o}, so others can get at keys; run `chmod {wanted:o} {}`", path.display(), path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// An argument cannot be used.
    #[error("{field} {value:?}: expected {expected}")]
    Invalid {
        /// Which argument.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A name that cannot be used.
    #[error("{field} {value:?}: expected 1 to {most} characters of [A-Za-z0-9._-], the first a letter or a digit")]
    Name {
        /// Which argument.
        field: &'static str,
        /// What it is.
        value: String,
        /// Most characters.
        most: usize,
    },
    /// Too long, or not at all.
    #[error("--days {days}: expected 1 to {most}; what lives longer is renewed by nobody who remembers how")]
    Days {
        /// What was asked for.
        days: u32,
        /// The bound.
        most: u32,
    },
    /// The authority signs nothing any more.
    #[error("{}: the authority expired at {at}; exchange it with `medkg certs rotate --ca add`, then `--ca use`", path.display())]
    ExpiredAuthority {
        /// Its file.
        path: PathBuf,
        /// Its last moment.
        at: String,
    },
    /// The key in the folder belongs to no certificate in it.
    #[error("{}: is the key of no certificate in {}; put back the pair that belongs together", key.display(), bundle.display())]
    NoMatch {
        /// The key.
        key: PathBuf,
        /// The roots.
        bundle: PathBuf,
    },
    /// The authority was made by something else.
    #[error(
        "{}: this authority was not made by `medkg certs init`; issue with the tools it was made with, and give certificates \
         the names that docs/guides/tls.md lists",
        path.display()
    )]
    Foreign {
        /// Its file.
        path: PathBuf,
    },
    /// A step of the exchange of authorities does not follow the one before.
    #[error("{}: {problem}", folder.display())]
    Step {
        /// The folder.
        folder: PathBuf,
        /// What is wrong, and which step comes first.
        problem: String,
    },
    /// A file is not what it should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate could not be made.
    #[error("the certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
}
