//! Devices in memory, with the time that they take and the faults that they have.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use curve_store::simulate::{Machine, Steps, Waker};
use curve_store::{Disk, SimDisk, Usage};
use tokio::sync::Notify;

/// How long a write with its sync takes on a sound disk.
const LATENCY: Duration = Duration::from_millis(1);

/// All devices of the simulation, by path.
#[derive(Clone, Default)]
pub struct Devices {
    by_path: Arc<Mutex<BTreeMap<PathBuf, Device>>>,
    settling: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Device {
    disk: Arc<SimDisk>,
    latency_ms: Arc<AtomicU64>,
    /// As it was last settled.
    usage: Arc<Mutex<Option<Usage>>>,
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Devices {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Device>> {
        unpoisoned(&self.by_path)
    }

    pub fn disk(&self, path: &Path) -> Option<Arc<SimDisk>> {
        self.lock().get(path).map(|device| device.disk.clone())
    }

    /// The power goes, now: of what was not synced any part may survive.
    pub fn lose_power(&self, path: &Path, survives: impl FnMut() -> bool) {
        if let Some(device) = self.lock().get_mut(path) {
            device.disk = Arc::new(device.disk.after_crash(survives));
        }
    }

    /// The process dies, now: what it had written is there when it comes back, synced or not. What
    /// it still does on the way out is not, and neither are the faults that it met.
    pub fn lose_process(&self, path: &Path) {
        if let Some(device) = self.lock().get_mut(path) {
            device.disk = Arc::new(device.disk.after_kill());
        }
    }

    pub fn set_latency(&self, path: &Path, latency: Duration) {
        if let Some(device) = self.lock().get(path) {
            device.latency_ms.store(latency.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// From now on stores that are idle write checkpoints.
    pub fn settle(&self) {
        self.settling.store(true, Ordering::Relaxed);
    }

    /// What the device's blocks were used for after its last checkpoint since `settle`.
    pub fn usage(&self, path: &Path) -> Option<Usage> {
        *unpoisoned(&self.lock().get(path)?.usage)
    }

    pub fn restore_latency(&self, path: &Path) {
        self.set_latency(path, LATENCY);
    }
}

impl Machine for Devices {
    fn open_or_create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn Disk>> {
        let mut devices = self.lock();
        let device = devices.entry(path.to_owned()).or_insert_with(|| Device {
            disk: Arc::new(SimDisk::new(len)),
            latency_ms: Arc::new(AtomicU64::new(LATENCY.as_millis() as u64)),
            usage: Arc::default(),
        });
        Ok(device.disk.clone())
    }

    fn opened(&self, disk: &dyn Disk, steps: Steps) -> Waker {
        let same = |device: &&Device| std::ptr::addr_eq(disk, Arc::as_ptr(&device.disk));
        let state = |device: &Device| (device.latency_ms.clone(), device.usage.clone());
        let (latency_ms, usage) = self.lock().values().find(same).map(state).unwrap_or_default();
        let settling = self.settling.clone();
        let arrived = Arc::new(Notify::new());
        let waker = arrived.clone();
        tokio::spawn(async move {
            let mut idle = Duration::ZERO;
            loop {
                let is_idle = tokio::time::timeout(idle, arrived.notified()).await.is_err();
                tokio::time::sleep(Duration::from_millis(latency_ms.load(Ordering::Relaxed))).await;
                if is_idle && settling.load(Ordering::Relaxed) {
                    *unpoisoned(&usage) = steps.settle();
                }
                match steps.step(is_idle) {
                    Some(next) => idle = next,
                    None => return,
                }
            }
        });
        Arc::new(move || waker.notify_one())
    }
}
