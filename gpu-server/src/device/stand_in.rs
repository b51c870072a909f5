//! For tests: NVML as a C library that plays what a file says (tests/server/nvml/nvml.c), reached as the real one is.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::watch::Watched;

/// The UUID of its one GPU.
pub const UUID: &str = "GPU-00000000-0000-0000-0000-000000000001";

/// Waits until it is so.
pub fn eventually(so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < deadline, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The file that is there once events are waited for; not any more, if it was.
pub fn forget_watch(watched: &Watched) -> PathBuf {
    let begun = watched.library.clone().unwrap().with_extension("1.watched");
    let _ = std::fs::remove_file(&begun);
    begun
}

/// The library; it goes when this is dropped.
pub struct StandIn {
    folder: TempDir,
    events: u64,
    /// °C.
    pub temperature: u32,
    /// Bytes in use, of 1000.
    pub used: u64,
    /// Uncorrectable ECC errors so far.
    pub uncorrected: u64,
    /// Fallen off the bus.
    pub lost: bool,
    xid: u64,
}

impl StandIn {
    /// Compiled, with a GPU that is well.
    pub fn new() -> Self {
        let stand_in = Self {
            folder: tempfile::tempdir().unwrap(),
            events: 0,
            temperature: 40,
            used: 100,
            uncorrected: 2,
            lost: false,
            xid: 0,
        };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/server/nvml/nvml.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(stand_in.library())
            .arg(source)
            .status()
            .unwrap();
        assert!(compiled.success());
        stand_in.play();
        stand_in
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    /// How its GPU is watched.
    pub fn watched(&self) -> Watched {
        Watched {
            library: Some(self.library()),
            uuid: UUID.to_owned(),
            id: "cuda:0".to_owned(),
        }
    }

    /// From now on it is as the fields say.
    pub fn play(&self) {
        let Self {
            events,
            temperature,
            used,
            uncorrected,
            xid,
            ..
        } = self;
        let lost = u8::from(self.lost);
        let state = format!(
            "device {UUID} bus=00000000:01:00.0 total=1000 used={used} temp={temperature} cc=9.0 mig=0 parent=- lost={lost} \
             ecc={uncorrected} util=7 power=70000 name=NVIDIA H100\nxid {events} {xid}\n"
        );
        // Renamed over: it is read at any moment.
        let new = self.folder.path().join("new");
        std::fs::write(&new, state).unwrap();
        std::fs::rename(new, self.folder.path().join("libnvidia-ml.so.1.state")).unwrap();
    }

    /// An event.
    pub fn xid(&mut self, xid: u64) {
        self.xid = xid;
        self.events += 1;
        self.play();
    }
}
