//! Settings made of files, made anew when the files have changed.
//!
//! Nothing runs in the background: whoever makes a connection asks for the newest settings, and the files are looked at then,
//! once a second at most. Connections that are open keep what they were made with. Files that cannot be used (half written, a key
//! that is not the certificate's yet) change nothing: they are told once, and tried again when one of them changes.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::TlsError;

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// Device, inode, length and time of change of each file; none for one that is not there. Enough to see a file that was written
/// again, renamed over, or reached through a link that now leads elsewhere (as Kubernetes changes a mounted secret).
type Seen = Vec<Option<(u64, u64, u64, i64, i64)>>;

/// The newest settings that could be made.
pub(crate) struct Followed<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    newest: Arc<T>,
    seen: Seen,
    looked: Instant,
}

impl<T> Followed<T> {
    /// What `make` makes of the files now.
    pub(crate) fn new(
        files: &[&Path],
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let files: Vec<PathBuf> = files.iter().map(|file| file.to_path_buf()).collect();
        // Before they are read: a change in between is seen at the next look.
        let seen = look(&files);
        let newest = Arc::new(make()?);
        Ok(Self {
            files,
            make: Box::new(make),
            state: Mutex::new(State {
                newest,
                seen,
                looked: Instant::now(),
            }),
        })
    }

    /// The newest.
    pub(crate) fn newest(&self) -> Arc<T> {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.looked) < LOOK {
            return Arc::clone(&state.newest);
        }
        state.looked = now;
        let seen = look(&self.files);
        if seen != state.seen {
            state.seen = seen;
            let first = self.files.first().map(|file| file.display());
            match (self.make)() {
                Ok(made) => {
                    state.newest = Arc::new(made);
                    tracing::info!(
                        file = first.map(tracing::field::display),
                        "TLS files have changed: new connections use them"
                    );
                }
                Err(error) => {
                    tracing::error!(%error, "TLS files have changed and cannot be used; the ones before stay in use");
                }
            }
        }
        Arc::clone(&state.newest)
    }
}

fn look(files: &[PathBuf]) -> Seen {
    let stamp = |file: &PathBuf| {
        let found = std::fs::metadata(file).ok()?;
        Some((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_again_only_when_one_has_changed_and_bad_ones_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.pem");
        let put = |text: &str| {
            let new = folder.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, &file).unwrap();
        };
        put("one");
        let read = Arc::new(Mutex::new(0));
        let (counted, source) = (Arc::clone(&read), file.clone());
        let make = move || {
            *counted.lock().unwrap() += 1;
            let text = std::fs::read_to_string(&source).unwrap_or_default();
            if text.is_empty() {
                return Err(TlsError::Empty { path: source.clone() });
            }
            Ok(text)
        };
        let followed = Followed::new(&[&file], make).unwrap();
        let start = Instant::now();
        let after = |seconds| followed.at(start + Duration::from_secs(seconds));
        assert_eq!((after(2).as_str(), *read.lock().unwrap()), ("one", 1));
        put("two");
        assert_eq!(after(2).as_str(), "one", "looked at a moment ago");
        assert_eq!((after(4).as_str(), *read.lock().unwrap()), ("two", 2));
        put("");
        assert_eq!((after(6).as_str(), *read.lock().unwrap()), ("two", 3));
        assert_eq!((after(8).as_str(), *read.lock().unwrap()), ("two", 3), "told once");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(after(10).as_str(), "two");
        put("three");
        assert_eq!(after(12).as_str(), "three");
    }
}
