//! The folder: who may read it, one command at a time, files that appear whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::{AuthorityError, CA, CA_KEY};

pub(super) const FOLDER_MODE: u32 = 0o700;
pub(super) const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

/// A folder that this process alone works in while it lives.
pub(super) struct Folder {
    path: PathBuf,
    /// Locked.
    handle: File,
}

impl Folder {
    /// The folder, made if it is not there; one that is empty is closed to others.
    pub(super) fn create(path: &Path) -> Result<Self, AuthorityError> {
        let make = || {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)?;
            if fs::read_dir(path)?.next().is_none() {
                fs::set_permissions(path, fs::Permissions::from_mode(FOLDER_MODE))?;
            }
            Ok(())
        };
        make().map_err(failed(path, "made"))?;
        Self::lock(path)
    }

    /// The folder of an authority.
    pub(super) fn open(path: &Path) -> Result<Self, AuthorityError> {
        if [CA, CA_KEY].iter().any(|file| !path.join(file).is_file()) {
            return Err(AuthorityError::NoAuthority {
                folder: path.to_owned(),
            });
        }
        let folder = Self::lock(path)?;
        check_closed(&folder.path(CA_KEY), KEY_MODE)?;
        Ok(folder)
    }

    fn lock(path: &Path) -> Result<Self, AuthorityError> {
        check_closed(path, FOLDER_MODE)?;
        let lock = || {
            let handle = File::open(path)?;
            handle.lock()?;
            Ok(handle)
        };
        Ok(Self {
            path: path.to_owned(),
            handle: lock().map_err(failed(path, "locked"))?,
        })
    }

    /// The folder itself.
    pub(super) fn root(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a certificate, or several.
    pub(super) fn write(&self, name: &str, pem: &str) -> Result<PathBuf, AuthorityError> {
        self.replace(name, pem, CERTIFICATE_MODE)
    }

    /// Writes a key.
    pub(super) fn write_key(&self, name: &str, pem: &str) -> Result<PathBuf, AuthorityError> {
        self.replace(name, pem, KEY_MODE)
    }

    /// Puts a file in the place of another one.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), AuthorityError> {
        let rename = || {
            fs::rename(self.path(from), self.path(to))?;
            self.handle.sync_all()
        };
        rename().map_err(failed(&self.path(from), "renamed"))
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), AuthorityError> {
        let path = self.path(name);
        remove(&path).map_err(failed(&path, "removed"))
    }

    /// The names of the certificates' files without `.pem`, but for the authority's, in order.
    pub(super) fn leaves(&self) -> Result<Vec<String>, AuthorityError> {
        let list = || {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.path)? {
                let name = entry?.file_name().into_string().unwrap_or_default();
                if let Some(stem) = name.strip_suffix(".pem").filter(|_| name != CA) {
                    names.push(stem.to_owned());
                }
            }
            names.sort();
            Ok(names)
        };
        list().map_err(failed(&self.path, "listed"))
    }

    /// Whoever reads the file gets the old text or the new one, and after a crash one of the two is there.
    fn replace(&self, name: &str, text: &str, mode: u32) -> Result<PathBuf, AuthorityError> {
        let (path, new) = (self.path(name), self.path(&format!(".{name}.new")));
        let write = || {
            // Left behind by a command that was killed; nobody else works here.
            remove(&new)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
            // The umask may have taken some of it away.
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            self.handle.sync_all()
        };
        write().map_err(failed(&path, "written"))?;
        Ok(path)
    }
}

/// Refuses a file or folder that others can get at.
pub(super) fn check_closed(path: &Path, wanted: u32) -> Result<(), AuthorityError> {
    let found = fs::metadata(path).map_err(failed(path, "looked at"))?;
    let mode = found.permissions().mode() & 0o7777;
    let others = mode & 0o077;
    if others == 0 {
        return Ok(());
    }
    Err(AuthorityError::Open {
        path: path.to_owned(),
        mode,
        wanted,
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Says what was tried on which file.
pub(super) fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |source| AuthorityError::Io { path, what, source }
}
