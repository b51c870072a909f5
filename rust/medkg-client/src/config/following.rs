//! A configuration file that is read again when it has changed.
//!
//! Nothing runs in the background: whoever is about to make a call asks, and the file is looked at then, once a second at
//! most. So there is no thread that a forked child would miss, and no lock that it could inherit. The content decides, not
//! the time of change: a file that is written over, renamed over, or reached through a link that leads elsewhere now
//! (as Kubernetes changes a mounted `ConfigMap`) is the same case.
//!
//! A file that was changed a moment ago may be half written, and the first half of a configuration is often one itself.
//! It counts when it has lain still for a while.

use std::hash::{DefaultHasher, Hasher as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::loading::read;
use super::{ConfigError, Loaded, Problem, Sources};

/// How often the file is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// How long it must have lain still.
const STILL: Duration = Duration::from_millis(100);

/// Sources of which one is a file that may change. Arguments and environment are kept as they were.
#[derive(Debug)]
pub struct Followed {
    sources: Sources,
    since: Instant,
    /// When to look next, in milliseconds after `since`. Who moves it on is the one who looks.
    due: AtomicU64,
    /// Digest of the content that is in use.
    used: AtomicU64,
    /// Digest of the last content that was not the one in use.
    newer: AtomicU64,
    /// Digest of the last refusal.
    refused: AtomicU64,
}

/// What a file that has changed says.
#[derive(Debug)]
pub struct Candidate {
    /// The configuration; the error lists every problem.
    pub loaded: Result<Loaded, ConfigError>,
    digest: u64,
}

impl Followed {
    /// Reads the file now; the error lists every problem, and one is that no file is named.
    pub fn new(sources: Sources) -> Result<(Self, Loaded), ConfigError> {
        let Some(path) = sources.file() else {
            return Err(ConfigError::new(vec![Problem {
                field: "path".to_owned(),
                description: "no file to follow is named; give its path, or set MEDKG_CONFIG".to_owned(),
            }]));
        };
        let text = read(path);
        let used = digest(&text.as_ref().map_err(std::io::Error::kind));
        let loaded = sources.load_text(Some(text))?;
        let followed = Self {
            sources,
            since: Instant::now(),
            due: AtomicU64::new(millis(LOOK)),
            used: AtomicU64::new(used),
            newer: AtomicU64::new(used),
            refused: AtomicU64::new(0),
        };
        Ok((followed, loaded))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.sources.file().unwrap_or(Path::new(""))
    }

    /// True if [`Self::look`] would look at the file; costs nothing.
    pub fn is_due(&self, now: Instant) -> bool {
        millis(now.saturating_duration_since(self.since)) >= self.due.load(Ordering::Relaxed)
    }

    /// Looks at the file if it is time to. What it gives is to be tried, and then told to [`Self::settle`].
    pub fn look(&self, now: Instant) -> Option<Candidate> {
        let at = millis(now.saturating_duration_since(self.since));
        let due = self.due.load(Ordering::Relaxed);
        let next = at.saturating_add(millis(LOOK));
        if at < due
            || self
                .due
                .compare_exchange(due, next, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
        {
            return None;
        }
        let text = read(self.path());
        let digest = digest(&text.as_ref().map_err(std::io::Error::kind));
        if digest == self.used.load(Ordering::Acquire) {
            self.newer.store(digest, Ordering::Release);
            return None;
        }
        if self.newer.swap(digest, Ordering::AcqRel) != digest && !lies_still(self.path()) {
            self.due.store(at.saturating_add(millis(STILL)), Ordering::Release);
            return None;
        }
        Some(Candidate {
            loaded: self.sources.load_text(Some(text)),
            digest,
        })
    }

    /// Takes in what came of a candidate. True if that is news: a refusal is told once, and tried again at each look,
    /// because what it misses (a certificate that is not there yet) may come without a change of the file.
    pub fn settle(&self, candidate: &Candidate, outcome: Result<(), &ConfigError>) -> bool {
        match outcome {
            Ok(()) => {
                self.refused.store(0, Ordering::Release);
                self.used.swap(candidate.digest, Ordering::AcqRel) != candidate.digest
            }
            Err(error) => {
                let told = digest(&(candidate.digest, error.to_string()));
                self.refused.swap(told, Ordering::AcqRel) != told
            }
        }
    }
}

fn lies_still(path: &Path) -> bool {
    let changed = std::fs::metadata(path).and_then(|found| found.modified()).ok();
    changed.and_then(|at| at.elapsed().ok()).is_some_and(|age| age >= STILL)
}

fn digest(what: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use super::*;

    struct Site {
        folder: tempfile::TempDir,
        start: Instant,
    }

    impl Site {
        fn new(text: &str) -> (Self, Followed) {
            let site = Self {
                folder: tempfile::tempdir().unwrap(),
                start: Instant::now(),
            };
            site.put(text, Duration::from_secs(60));
            let sources = Sources {
                file: Some(site.file()),
                ..Sources::default()
            };
            let (followed, loaded) = Followed::new(sources).unwrap();
            assert!(loaded.options.timeout.is_some());
            (site, followed)
        }

        fn file(&self) -> std::path::PathBuf {
            self.folder.path().join("medkg.toml")
        }

        /// Writes the file as if that had happened some time ago.
        fn put(&self, text: &str, ago: Duration) {
            fs::write(self.file(), text).unwrap();
            let file = fs::File::options().write(true).open(self.file()).unwrap();
            file.set_modified(SystemTime::now() - ago).unwrap();
        }

        fn after(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }
    }

    fn timeout(candidate: Option<&Candidate>) -> Option<f64> {
        candidate?.loaded.as_ref().unwrap().options.timeout
    }

    #[test]
    fn a_file_is_looked_at_once_a_second_and_read_again_only_when_its_content_has_changed() {
        let (site, followed) = Site::new("timeout = 1.0");
        let old = Duration::from_secs(60);
        site.put("timeout = 2.0", old);
        assert!(!followed.is_due(site.after(0.5)));
        assert!(followed.look(site.after(0.5)).is_none(), "looked at a moment ago");
        assert!(followed.is_due(site.after(2.0)));
        let found = followed.look(site.after(2.0)).unwrap();
        assert_eq!(timeout(Some(&found)), Some(2.0));
        assert!(followed.settle(&found, Ok(())), "a change is news");
        site.put("timeout = 2.0", Duration::from_secs(5));
        assert!(
            followed.look(site.after(4.0)).is_none(),
            "written again, with the same content"
        );
    }

    #[test]
    fn what_is_being_written_is_waited_for() {
        let (site, followed) = Site::new("timeout = 1.0");
        let now = Duration::ZERO;
        site.put("", now);
        assert!(followed.look(site.after(2.0)).is_none(), "half written");
        site.put("timeout = 3.0", now);
        assert!(
            followed.look(site.after(2.01)).is_none(),
            "it was looked at a moment ago"
        );
        assert!(followed.look(site.after(2.2)).is_none(), "it changed again");
        let found = followed.look(site.after(2.4));
        assert_eq!(timeout(found.as_ref()), Some(3.0));
    }

    #[test]
    fn a_refusal_is_told_once_and_tried_again() {
        let (site, followed) = Site::new("timeout = 1.0");
        let old = Duration::from_secs(60);
        site.put("timeout = 'soon'", old);
        for (seconds, news) in [(2.0, true), (4.0, false), (6.0, false)] {
            let found = followed.look(site.after(seconds)).unwrap();
            let error = found.loaded.as_ref().map(|_| ()).unwrap_err().clone();
            assert_eq!(followed.settle(&found, Err(&error)), news, "after {seconds} s");
        }
        fs::remove_file(site.file()).unwrap();
        assert!(followed.look(site.after(8.0)).is_none(), "it may be on its way");
        let found = followed.look(site.after(8.2)).unwrap();
        let error = found.loaded.as_ref().map(|_| ()).unwrap_err().clone();
        assert!(error.to_string().contains("cannot be read"), "{error}");
        assert!(followed.settle(&found, Err(&error)));
        site.put("timeout = 1.0", old);
        assert!(followed.look(site.after(10.0)).is_none(), "what is in use is back");
    }

    #[test]
    fn links_that_are_exchanged_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        for (name, text) in [("one", "timeout: 1.0"), ("two", "timeout: 2.0")] {
            fs::create_dir(inside(name)).unwrap();
            fs::write(inside(name).join("medkg.yaml"), text).unwrap();
        }
        std::os::unix::fs::symlink("one", inside("..data")).unwrap();
        std::os::unix::fs::symlink("..data/medkg.yaml", inside("medkg.yaml")).unwrap();
        let sources = Sources {
            file: Some(inside("medkg.yaml")),
            ..Sources::default()
        };
        let (followed, loaded) = Followed::new(sources).unwrap();
        assert_eq!(loaded.options.timeout, Some(1.0));
        std::os::unix::fs::symlink("two", inside("new")).unwrap();
        fs::rename(inside("new"), inside("..data")).unwrap();
        let start = Instant::now();
        let mut found = followed.look(start + Duration::from_secs(2));
        if found.is_none() {
            found = followed.look(start + Duration::from_secs(3));
        }
        assert_eq!(timeout(found.as_ref()), Some(2.0));
    }

    #[test]
    fn without_a_file_there_is_nothing_to_follow() {
        let error = Followed::new(Sources::default()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("MEDKG_CONFIG"));
    }
}
