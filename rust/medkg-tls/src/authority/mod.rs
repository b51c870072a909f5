//! A small certificate authority in a folder: what `medkg certs` does.
//!
//! | File | Holds |
//! |---|---|
//! | `ca.pem` | the roots that servers and clients trust; while the authority is exchanged, the old one and the new one |
//! | `ca.key` | the key that signs |
//! | `ca-next.key` | the key of the authority that comes next |
//! | `server-NAME.pem`, `client-NAME.pem`, `.key` | a certificate and its key |
//!
//! There is no list of what was issued: a certificate is renewed out of what stands in it. Every file is written beside its
//! place and renamed over it, keys with mode 0600 in a folder with mode 0700; one command at a time works in a folder.
//!
//! What it refuses: to overwrite without being told to, to work with a key that others can read, to sign for longer than a
//! bounded time, and to sign with an authority that it did not make (use that one's own tools; medkg takes any certificate
//! with the right names). It revokes nothing: certificates live for weeks, and an authority can be exchanged in minutes.

mod error;
mod facts;
mod folder;
mod inspection;
mod issuing;
mod rotation;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use error::AuthorityError;
pub use inspection::{Inspected, Inspection, inspect};
pub use rotation::{Rolled, Rotation, Step, roll, rotate};

use folder::Folder;
use issuing::{Request, Signer};

/// Days of an authority, unless others are asked for.
pub const CA_DAYS: u32 = 3650;
/// Days of a certificate, unless others are asked for.
pub const LEAF_DAYS: u32 = 90;
/// Days before its end from which on a certificate is renewed, and warned of, unless others are asked for.
pub const WITHIN_DAYS: u32 = 30;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Most days of an authority.
const MOST_CA_DAYS: u32 = 20 * 365;
/// Most days of a certificate: what browsers accept, and a year between two looks is long enough.
const MOST_LEAF_DAYS: u32 = 398;
/// Most characters of an authority's name, which a date follows in its subject; X.520 bounds the two by 64.
const MOST_CA_NAME: usize = 50;
/// Most characters of a name: one label of the DNS, and a tenant id.
const MOST_NAME: usize = 63;

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const NEXT_KEY: &str = "ca-next.key";

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A server, reached under these names and addresses; at least one.
    Server {
        /// DNS names; `*.` may stand for one label.
        dns: Vec<String>,
        /// IP addresses.
        addresses: Vec<IpAddr>,
    },
    /// A client: of tenants, for whom alone it may call, or a service, which calls for any. One of the two.
    Client {
        /// Ids of tenants.
        tenants: Vec<String>,
        /// Name of the service.
        service: Option<String>,
    },
}

impl Holder {
    const fn prefix(&self) -> &'static str {
        match self {
            Self::Server { .. } => "server",
            Self::Client { .. } => "client",
        }
    }
}

/// Files that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Its last moment.
    pub not_after: SystemTime,
}

/// Makes an authority: `ca.pem` and `ca.key` in `folder`, which is made if it is not there.
///
/// # Errors
/// There is one already and `force` is not given; or [`AuthorityError`].
pub fn init(folder: &Path, name: &str, days: u32, force: bool, now: SystemTime) -> Result<Written, AuthorityError> {
    check_name("--name", name, MOST_CA_NAME)?;
    check_days(days, MOST_CA_DAYS)?;
    let folder = Folder::create(folder)?;
    for file in [CA, CA_KEY] {
        if !force && folder.path(file).exists() {
            return Err(AuthorityError::Exists {
                path: folder.path(file),
                instead: "to exchange it step by step, use `medkg certs rotate --ca add`; --force replaces it at once, and no \
                          certificate of the old one is trusted then",
            });
        }
    }
    folder.remove(NEXT_KEY)?;
    let made = issuing::authority(name, DAY * days, now)?;
    Ok(Written {
        key: folder.write_key(CA_KEY, &made.key)?,
        certificate: folder.write(CA, &made.certificate)?,
        not_after: made.not_after,
    })
}

/// Issues a certificate with a new key: `server-NAME.pem` or `client-NAME.pem`, and the key beside it.
///
/// # Errors
/// There is one already and `force` is not given; or [`AuthorityError`].
pub fn issue(
    folder: &Path,
    name: &str,
    holder: &Holder,
    days: u32,
    force: bool,
    now: SystemTime,
) -> Result<Written, AuthorityError> {
    check_name("NAME", name, MOST_NAME)?;
    check_days(days, MOST_LEAF_DAYS)?;
    let request = Request::new(name, holder)?;
    let folder = Folder::open(folder)?;
    let stem = format!("{}-{name}", holder.prefix());
    let path = folder.path(&format!("{stem}.pem"));
    if !force && path.exists() {
        return Err(AuthorityError::Exists {
            path,
            instead: "`medkg certs rotate` renews it; --force issues it anew, with the names that you give now",
        });
    }
    let made = Signer::current(&folder)?.sign(&request, DAY * days, now)?;
    write_pair(&folder, &stem, &made)
}

/// The key first: whoever reads in between has a key that is not the certificate's, and goes on with what it had before.
fn write_pair(folder: &Folder, stem: &str, made: &issuing::Made) -> Result<Written, AuthorityError> {
    Ok(Written {
        key: folder.write_key(&format!("{stem}.key"), &made.key)?,
        certificate: folder.write(&format!("{stem}.pem"), &made.certificate)?,
        not_after: made.not_after,
    })
}

/// Names become file names and stand where tenant ids stand, so the rule is that of tenant ids.
fn check_name(field: &'static str, name: &str, most: usize) -> Result<(), AuthorityError> {
    let starts = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if starts && name.chars().all(allowed) && name.len() <= most {
        return Ok(());
    }
    Err(AuthorityError::Name {
        field,
        value: name.to_owned(),
        most,
    })
}

const fn check_days(days: u32, most: u32) -> Result<(), AuthorityError> {
    if days == 0 || days > most {
        return Err(AuthorityError::Days { days, most });
    }
    Ok(())
}
