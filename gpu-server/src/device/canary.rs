//! The canary: a small computation at intervals, and a watchdog that takes its silence for the device's end.
//!
//! A driver that hangs gives no error and no event. Whoever waits for it waits for ever; so one thread computes and may
//! hang, and another one counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::ActiveDevice;
use super::fault::FaultLatch;
use crate::error::Error;
use crate::model::kernels;

/// When the canary sings, and how long its silence is borne.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two computations.
    pub period: Duration,
    /// The watchdog counts in these: a process that was stopped for a minute has missed one, not a minute's.
    pub tick: Duration,
    /// Ticks that the first one may take: kernels are loaded.
    pub first: u32,
    /// Ticks that all others may take. A forward pass that runs delays one by milliseconds, since it has a stream of its
    /// own that goes first.
    pub others: u32,
}

impl Pace {
    /// For a GPU: within ten seconds, the first one within two minutes.
    pub const GPU: Self = Self {
        period: Duration::from_secs(1),
        tick: Duration::from_millis(500),
        first: 240,
        others: 20,
    };
}

/// What the two threads run.
pub struct Canary<W> {
    /// "cuda:N".
    pub id: String,
    /// When.
    pub pace: Pace,
    /// What is computed.
    pub work: W,
}

/// The end of the canary's thread that sings.
type Song = SyncSender<Result<(), Error>>;

impl<W: FnMut() -> Result<(), Error> + Send + 'static> Canary<W> {
    /// What the thread that computes runs, and what the thread that counts runs.
    pub fn halves(self, latch: FaultLatch) -> (impl FnOnce(&AtomicBool) + Send, impl FnOnce(&AtomicBool) + Send) {
        let Self { id, pace, work } = self;
        let (beats, heard) = sync_channel(1);
        let computes = move |stopping: &AtomicBool| sing(work, pace, &beats, stopping);
        let counts = move |stopping: &AtomicBool| listen(&heard, pace, &id, &latch, stopping);
        (computes, counts)
    }
}

fn sing(mut work: impl FnMut() -> Result<(), Error>, pace: Pace, song: &Song, stopping: &AtomicBool) {
    while !stopping.load(Ordering::Acquire) {
        if song.send(work()).is_err() {
            return;
        }
        // Who stops the server unparks this thread.
        std::thread::park_timeout(pace.period);
    }
}

fn listen(heard: &Receiver<Result<(), Error>>, pace: Pace, id: &str, latch: &FaultLatch, stopping: &AtomicBool) {
    let (mut silent, mut borne) = (0, pace.first);
    while !stopping.load(Ordering::Acquire) && latch.fault().is_none() {
        let problem = match heard.recv_timeout(pace.tick) {
            Ok(Ok(())) => {
                (silent, borne) = (0, pace.others);
                continue;
            }
            // A device that is full, say: it answers.
            Ok(Err(error)) if !error.is_sticky() => {
                tracing::debug!(device = %id, %error, "the canary could not compute");
                (silent, borne) = (0, pace.others);
                continue;
            }
            Ok(Err(error)) => error,
            Err(RecvTimeoutError::Timeout) => {
                silent += 1;
                if silent < borne {
                    continue;
                }
                let waited = pace.tick * silent;
                Error::GpuLost {
                    detail: format!("{id}: a small computation has not come back for {waited:?}"),
                }
            }
            Err(RecvTimeoutError::Disconnected) if stopping.load(Ordering::Acquire) => return,
            Err(RecvTimeoutError::Disconnected) => Error::GpuLost {
                detail: format!("{id}: the thread that checks it died"),
            },
        };
        latch.observe(&problem);
    }
}

/// For the device, if it is a GPU.
pub fn of(active: &ActiveDevice) -> Option<Canary<impl FnMut() -> Result<(), Error> + Send + use<>>> {
    let Device::Cuda(index) = active.device else {
        return None;
    };
    Some(Canary {
        id: active.id.clone(),
        pace: Pace::GPU,
        work: product(index),
    })
}

/// A product of matrices of ones on GPU `index`, checked.
fn product(index: usize) -> impl FnMut() -> Result<(), Error> + Send {
    let mut streamed = false;
    move || {
        if !streamed {
            kernels::take_stream(index)?;
            streamed = true;
        }
        let _no_gradients = tch::no_grad_guard();
        let ones = Tensor::f_ones(&[64_i64, 64][..], (Kind::Float, Device::Cuda(index)))?;
        let sum = ones.f_matmul(&ones)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        if (sum - f64::from(64 * 64 * 64)).abs() > f64::EPSILON {
            let detail = format!("cuda:{index} computes wrongly: a sum of ones is {sum}");
            return Err(Error::GpuLost { detail });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    const QUICK: Pace = Pace {
        period: Duration::from_millis(1),
        tick: Duration::from_millis(50),
        first: 10,
        others: 3,
    };

    /// No silence is noticed.
    const PATIENT: Pace = Pace {
        first: 10_000,
        others: 10_000,
        ..QUICK
    };

    /// Runs a canary until the latch closes; the fault.
    fn fault(pace: Pace, work: impl FnMut() -> Result<(), Error> + Send + 'static) -> String {
        let (latch, stopping) = (FaultLatch::new(None), Arc::new(AtomicBool::new(false)));
        let canary = Canary {
            id: "cuda:3".to_owned(),
            pace,
            work,
        };
        let (sing, listen) = canary.halves(latch.clone());
        let stop = Arc::clone(&stopping);
        // It may hang: nobody joins it.
        std::thread::spawn(move || sing(&stop));
        listen(&stopping);
        stopping.store(true, Ordering::Release);
        latch.fault().unwrap().to_string()
    }

    #[test]
    fn a_computation_that_hangs_closes_the_latch() {
        let (release, hang) = channel::<()>();
        let mut beats = 0;
        let work = move || {
            beats += 1;
            if beats == 5 {
                // Until the test ends.
                let _ = hang.recv();
            }
            Ok(())
        };
        let told = fault(QUICK, work);
        assert!(
            told.contains("cuda:3: a small computation has not come back for 150ms"),
            "{told}"
        );
        drop(release);
    }

    #[test]
    fn the_first_one_may_take_longer() {
        let (release, hang) = channel::<()>();
        let work = move || {
            let _ = hang.recv();
            Ok(())
        };
        let told = fault(QUICK, work);
        assert!(told.contains("500ms"), "{told}");
        drop(release);
    }

    #[test]
    fn a_cuda_error_closes_the_latch_and_a_full_device_does_not() {
        let mut beats = 0;
        let work = move || {
            beats += 1;
            match beats {
                1..=20 => Err(Error::GpuOutOfMemory { detail: "full".into() }),
                _ => Err(Error::GpuLost {
                    detail: format!("beat {beats}"),
                }),
            }
        };
        let told = fault(PATIENT, work);
        assert!(told.contains("beat 21"), "{told}");
    }

    #[test]
    fn a_canary_that_dies_closes_the_latch() {
        let told = fault(PATIENT, || panic!("a bug in a kernel"));
        assert!(told.contains("died"), "{told}");
    }
}
