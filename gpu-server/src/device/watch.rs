//! Watches one GPU through NVML: critical Xid errors, a lost device, uncorrectable ECC errors, heat, memory in use.
//!
//! Which Xid means that a GPU can compute no more? NVIDIA's own Kubernetes plugin takes every critical one for that, but for
//! six that an application causes (`internal/rm/health.go` in NVIDIA/k8s-device-plugin, after
//! <https://docs.nvidia.com/deploy/xid-errors>). So does this: an Xid that nobody has written down yet must not be
//! overlooked, and at worst it costs a restart. What an application caused is told in the log: if it was this process, its
//! own calls and the canary meet the CUDA error.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::struct_wrappers::event::EventData;
use nvml_wrapper::{Device, Nvml};

use super::fault::FaultLatch;
use super::nvml;
use super::pressure::Gauge;
use crate::error::Error;

/// How often the device is asked how it is, and how long an event is waited for.
const PERIOD: Duration = Duration::from_millis(200);
/// Xids that an application causes; the GPU is well.
const OF_APPLICATIONS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// Which GPU is watched.
#[derive(Debug, Clone)]
pub struct Watched {
    /// NVML's library, where it is not the usual one.
    pub library: Option<PathBuf>,
    /// As NVML writes it.
    pub uuid: String,
    /// "cuda:N".
    pub id: String,
}

/// Why a GPU is not watched any more.
enum End {
    /// It computes no more.
    Lost(String),
    /// NVML does not tell how it is.
    Blind(NvmlError),
}

impl From<NvmlError> for End {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::DriverNotLoaded => Self::Lost(error.to_string()),
            other => Self::Blind(other),
        }
    }
}

impl Watched {
    /// Watches until the process stops or the latch is closed.
    pub fn run(&self, latch: &FaultLatch, gauge: &Gauge, stopping: &Arc<AtomicBool>) {
        match self.follow(latch, gauge, stopping) {
            Ok(()) => {}
            Err(End::Lost(what)) => {
                let detail = format!("{}: {what}", self.id);
                latch.observe(&Error::GpuLost { detail });
            }
            Err(End::Blind(error)) => {
                tracing::warn!(device = %self.id, %error, "NVML does not watch the GPU; the canary alone does");
            }
        }
        // What was read is not the truth any more. After the latch, so that a loss is told as one change.
        gauge.forget();
    }

    fn follow(&self, latch: &FaultLatch, gauge: &Gauge, stopping: &Arc<AtomicBool>) -> Result<(), End> {
        let nvml = nvml::open(self.library.as_deref())?;
        let device = nvml.device_by_uuid(self.uuid.as_str())?;
        // First: what happens from here on is either counted or told.
        let mut health = Health::of(&device)?;
        let events = register(&nvml, &device)?;
        tracing::info!(device = %self.id, uuid = %self.uuid, events = events.is_some(), "NVML watches the GPU");
        while !stopping.load(Ordering::Acquire) && latch.fault().is_none() {
            match &events {
                None => std::thread::park_timeout(PERIOD),
                Some(set) => match set.wait(u32::try_from(PERIOD.as_millis()).unwrap_or(u32::MAX)) {
                    Ok(event) => judge(&event)?,
                    Err(NvmlError::Timeout) => {}
                    Err(error) => return Err(error.into()),
                },
            }
            health.look(&device, &self.id)?;
            match known(device.memory_info())? {
                Some(memory) => gauge.read(&self.id, memory.used, memory.total),
                None => gauge.forget(),
            }
        }
        Ok(())
    }
}

/// The events that the device can tell; none where it tells none (MIG, some vGPUs): then it is only asked.
fn register<'a>(nvml: &'a Nvml, device: &Device<'a>) -> Result<Option<EventSet<'a>>, End> {
    let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    let told = match device.supported_event_types() {
        Ok(supported) => wanted & supported,
        Err(NvmlError::NotSupported) => EventTypes::empty(),
        Err(error) => return Err(error.into()),
    };
    if told.is_empty() {
        return Ok(None);
    }
    match device.register_events(told, nvml.create_event_set()?) {
        Ok(set) => Ok(Some(set)),
        Err(failed) if matches!(failed.error, NvmlError::NotSupported) => Ok(None),
        Err(failed) => Err(failed.error.into()),
    }
}

fn judge(event: &EventData<'_>) -> Result<(), End> {
    if event.event_type.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) {
        return Err(End::Lost("an uncorrectable ECC error".to_owned()));
    }
    match event.event_data {
        Some(XidError::Value(xid)) if OF_APPLICATIONS.contains(&xid) => {
            tracing::warn!(xid, "an application made the GPU report an Xid error");
            Ok(())
        }
        Some(XidError::Value(xid)) => Err(End::Lost(format!("Xid {xid}{}", meaning(xid)))),
        Some(XidError::Unknown) => Err(End::Lost("a critical Xid error without a number".to_owned())),
        None => Ok(()),
    }
}

/// In NVIDIA's words, for those that are met most.
const fn meaning(xid: u64) -> &'static str {
    match xid {
        48 => " (double-bit ECC error)",
        62 => " (internal micro-controller halt)",
        63 => " (ECC page retirement or row remapping)",
        64 => " (ECC page retirement or row remapping failed)",
        74 => " (NVLink error)",
        79 => " (GPU has fallen off the bus)",
        92 => " (high single-bit ECC error rate)",
        94 => " (contained ECC error)",
        95 => " (uncontained ECC error)",
        119 => " (GSP RPC timeout)",
        120 => " (GSP error)",
        140 => " (unrecovered ECC error)",
        _ => "",
    }
}

/// What changes for the worse without an event.
struct Health {
    /// Uncorrectable ECC errors since the driver was loaded; none where the device does not count them.
    uncorrected: Option<u64>,
    /// °C at which the hardware slows down.
    slowdown: Option<u32>,
    hot: bool,
}

impl Health {
    fn of(device: &Device<'_>) -> Result<Self, End> {
        Ok(Self {
            uncorrected: known(nvml::uncorrected(device))?,
            slowdown: known(device.temperature_threshold(TemperatureThreshold::Slowdown))?,
            hot: false,
        })
    }

    fn look(&mut self, device: &Device<'_>, id: &str) -> Result<(), End> {
        // A device that fell off the bus answers no question.
        let temperature = known(device.temperature(TemperatureSensor::Gpu))?;
        let uncorrected = known(nvml::uncorrected(device))?;
        if let (Some(before), Some(now)) = (self.uncorrected, uncorrected)
            && now > before
        {
            return Err(End::Lost(format!("{} uncorrectable ECC errors", now - before)));
        }
        let hot = matches!((temperature, self.slowdown), (Some(now), Some(most)) if now >= most);
        if hot && !self.hot {
            tracing::warn!(device = %id, celsius = temperature, "the GPU is so hot that it slows down");
        }
        self.hot = hot;
        Ok(())
    }
}

/// What the device does not tell is no fault; that it is lost is one.
fn known<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, End> {
    match answer.map_err(End::from) {
        Ok(value) => Ok(Some(value)),
        Err(End::Blind(_)) => Ok(None),
        Err(lost @ End::Lost(_)) => Err(lost),
    }
}

#[cfg(test)]
mod tests {
    use std::thread::JoinHandle;

    use super::*;
    use crate::config::MemoryThresholds;
    use crate::device::pressure::Pressure;
    use crate::device::stand_in::{self, StandIn};

    /// A watch that has begun.
    struct Watch {
        latch: FaultLatch,
        gauge: Gauge,
        stopping: Arc<AtomicBool>,
        thread: JoinHandle<()>,
    }

    impl Watch {
        fn of(watched: Watched) -> Self {
            let (latch, stopping) = (FaultLatch::new(None), Arc::new(AtomicBool::new(false)));
            let gauge = Gauge::new(MemoryThresholds::try_new(0.85, 0.95).unwrap());
            let (latch_of_thread, gauge_of_thread, stop) = (latch.clone(), gauge.clone(), Arc::clone(&stopping));
            let begun = stand_in::forget_watch(&watched);
            let thread = std::thread::spawn(move || watched.run(&latch_of_thread, &gauge_of_thread, &stop));
            // What was there before does not count.
            stand_in::eventually(|| begun.exists());
            Self {
                latch,
                gauge,
                stopping,
                thread,
            }
        }

        /// What closes the latch; the watch ends by itself then.
        fn fault(self) -> String {
            stand_in::eventually(|| self.latch.fault().is_some());
            self.thread.join().unwrap();
            self.latch.fault().unwrap().to_string()
        }
    }

    #[test]
    fn a_critical_xid_closes_the_latch_whether_it_is_known_or_not() {
        for (xid, words) in [
            (79, "Xid 79 (GPU has fallen off the bus)"),
            (48, "ECC"),
            (12_345, "Xid 12345"),
        ] {
            let mut nvml = StandIn::new();
            let watch = Watch::of(nvml.watched());
            nvml.xid(xid);
            let told = watch.fault();
            assert!(told.contains("cuda:0: ") && told.contains(words), "{told}");
        }
    }

    #[test]
    fn what_an_application_did_and_heat_are_only_told() {
        let mut nvml = StandIn::new();
        let watch = Watch::of(nvml.watched());
        nvml.temperature = 93;
        for xid in OF_APPLICATIONS {
            nvml.xid(xid);
            // It looks every PERIOD.
            std::thread::sleep(2 * PERIOD);
        }
        assert!(watch.latch.fault().is_none());
        nvml.xid(95);
        assert!(watch.fault().contains("Xid 95"));
    }

    #[test]
    fn a_gpu_that_is_gone_or_miscounts_closes_the_latch_without_an_event() {
        let mut nvml = StandIn::new();
        let watch = Watch::of(nvml.watched());
        nvml.uncorrected += 3;
        nvml.play();
        assert!(watch.fault().contains("3 uncorrectable ECC errors"));
        let watch = Watch::of(nvml.watched());
        nvml.lost = true;
        nvml.play();
        let told = watch.fault();
        assert!(told.contains("fell off the bus"), "{told}");
    }

    #[test]
    fn memory_in_use_is_read_as_it_changes_and_forgotten_at_the_end() {
        let mut nvml = StandIn::new();
        let watch = Watch::of(nvml.watched());
        for (used, pressure) in [
            (100, Pressure::Normal),
            (900, Pressure::Warn),
            (960, Pressure::Critical),
            (940, Pressure::Critical),
            (840, Pressure::Warn),
            (200, Pressure::Normal),
        ] {
            nvml.used = used;
            nvml.play();
            stand_in::eventually(|| watch.gauge.now().is_some_and(|memory| memory.used == used));
            let memory = watch.gauge.now().unwrap();
            assert_eq!((memory.total, memory.pressure), (1000, pressure), "{used} bytes in use");
        }
        watch.stopping.store(true, Ordering::Release);
        watch.thread.join().unwrap();
        assert!(watch.gauge.now().is_none());
    }

    #[test]
    fn a_machine_without_nvml_is_not_a_lost_gpu() {
        let watched = Watched {
            library: Some(PathBuf::from("/nowhere/libnvidia-ml.so.1")),
            uuid: "GPU-1".to_owned(),
            id: "cuda:0".to_owned(),
        };
        let latch = FaultLatch::new(None);
        let gauge = Gauge::new(MemoryThresholds::try_new(0.85, 0.95).unwrap());
        watched.run(&latch, &gauge, &Arc::default());
        assert!(gauge.now().is_none());
        assert!(latch.fault().is_none());
    }

    #[test]
    fn the_watch_ends_with_the_process() {
        let nvml = StandIn::new();
        let watch = Watch::of(nvml.watched());
        watch.stopping.store(true, Ordering::Release);
        watch.thread.join().unwrap();
        assert!(watch.latch.fault().is_none());
    }
}
