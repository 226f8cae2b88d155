//! What the threads and handles of one open store share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use curve_types::CopysetId;

use crate::data::DataArea;
use crate::group::GroupInner;
use crate::health::Device;
use crate::install::Staged;
use crate::simulate::{Loops, Waker, is_simulated};
use crate::space::Space;
use crate::store::Done;
use crate::wal::queue::Queue;
use crate::wal::ring::Ring;
use crate::wal::space::{Purpose, WalSpace};
use crate::wal::writer::WriterStats;
use crate::{LogPosition, StoreError, StoreOptions, Superblock, Usage};

type Pressure = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Core {
    pub superblock: Superblock,
    pub options: StoreOptions,
    pub device: Arc<Device>,
    pub ring: Ring,
    pub wal: WalSpace,
    pub queue: Queue,
    pub data: Arc<DataArea>,
    pub groups: RwLock<BTreeMap<CopysetId, Arc<GroupInner>>>,
    /// Shadow spaces of installs under way: the flusher serves them too. Held while one of them
    /// takes blocks, so that they do not all take the same room.
    pub installing: Mutex<Vec<Weak<Space>>>,
    /// Spaces out of use that still wait for their blocks to be released.
    pub retired: Mutex<Vec<Arc<Space>>>,
    pub upkeep: Upkeep,
    /// Sequence of the newest durable root.
    pub root_seq: AtomicU64,
    /// Of the newest root.
    pub checkpoint_bytes: AtomicU64,
    pub pressure: RwLock<Option<Pressure>>,
    pub stats: WriterStats,
    /// In a simulation, until the store is closed.
    pub loops: Mutex<Option<Arc<Loops>>>,
}

impl Core {
    /// Takes room in the ring; waits for it as the options say.
    pub fn reserve(&self, cost: u64, purpose: Purpose) -> Result<(), StoreError> {
        self.device.check()?;
        let wait = if is_simulated() { Duration::ZERO } else { self.options.wal_full_wait };
        self.wal.reserve(cost, purpose, wait, &self.device, || {
            self.press();
            self.serve();
        })
    }

    /// Asks for all that makes logs shorter: a purge by the host, and a checkpoint by ourselves.
    pub fn press(&self) {
        self.upkeep.request_checkpoint();
        self.call_pressure();
    }

    pub fn call_pressure(&self) {
        if let Some(callback) = &*self.pressure.read().unwrap_or_else(PoisonError::into_inner) {
            callback();
        }
    }

    pub fn usage(&self) -> Usage {
        let data = &self.data;
        let (free, logged) = data.free_and_logged_blocks();
        Usage {
            data_blocks_total: data.blocks_total,
            // While the flusher gives several tables one place it counts too few for a moment.
            data_blocks_used: data
                .live
                .load(Ordering::Relaxed)
                .cast_signed()
                .max(0)
                .cast_unsigned(),
            data_blocks_free: free,
            data_blocks_pending_free: data.pending.load(Ordering::Relaxed),
            data_blocks_pinned: data.pinned.load(Ordering::Relaxed),
            data_blocks_reserve: data.flush_reserve() + data.logged_max(),
            data_blocks_logged: logged,
            data_blocks_logged_max: data.logged_max(),
            wal_bytes_total: self.wal.len,
            wal_bytes_used: self.wal.used(),
            overlay_bytes: data.overlay.bytes(),
            overlay_bytes_max: data.overlay.bytes_max,
            checkpoint_bytes: self.checkpoint_bytes.load(Ordering::Relaxed),
            checkpoint_bytes_max: self.superblock.layout.slot_len,
            wal_batches_written: self.stats.batches.load(Ordering::Relaxed),
            wal_records_written: self.stats.records.load(Ordering::Relaxed),
            wal_bytes_written: self.stats.bytes.load(Ordering::Relaxed),
            roots_written: self.root_seq(),
        }
    }

    pub fn groups(&self) -> Vec<Arc<GroupInner>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Takes a space out of use.
    pub fn retire(&self, space: Arc<Space>) {
        if space.retire() {
            self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(space);
        }
    }

    /// Wakes everyone who waits, for the end or after a failure.
    pub fn wake_all(&self) {
        self.queue.wake();
        self.wal.wake();
        self.data.overlay.wake();
        self.upkeep.wake();
    }

    pub fn is_failed(&self) -> bool {
        self.device.failure().is_some()
    }

    pub fn root_seq(&self) -> u64 {
        self.root_seq.load(Ordering::Acquire)
    }
}

/// A snapshot that arrived whole and is to replace a group's state.
pub(crate) struct Switch {
    pub group: Arc<GroupInner>,
    pub staged: Staged,
    pub applied: LogPosition,
    pub state: Bytes,
    pub done: Done,
}

/// What the upkeep thread is asked to do.
#[derive(Default)]
pub(crate) struct Requests {
    pub flush: bool,
    pub checkpoint: bool,
    /// Entries were purged: the WAL's tail may move without a checkpoint.
    pub advance: bool,
    pub checkpointed: Vec<Done>,
    /// Who waits for a root that says how far the log goes.
    pub rooted: Vec<Done>,
    pub switches: Vec<Switch>,
    pub stop: bool,
}

impl Requests {
    pub fn is_empty(&self) -> bool {
        let asked = self.flush || self.checkpoint || self.advance || self.stop;
        !asked && self.rooted.is_empty()
    }
}

#[derive(Default)]
pub(crate) struct Upkeep {
    requests: Mutex<Requests>,
    arrived: Condvar,
    waker: OnceLock<Waker>,
}

impl Upkeep {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Requests)) {
        change(&mut self.lock());
        self.arrived.notify_one();
        if let Some(wake) = self.waker.get() {
            wake();
        }
    }

    pub fn set_waker(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    pub fn request_flush(&self) {
        self.change(|r| r.flush = true);
    }

    pub fn request_checkpoint(&self) {
        self.change(|r| r.checkpoint = true);
    }

    pub fn request_advance(&self) {
        self.change(|r| r.advance = true);
    }

    pub fn checkpoint(&self, done: Done) {
        self.change(|r| {
            r.checkpoint = true;
            r.checkpointed.push(done);
        });
    }

    pub fn root(&self, done: Done) {
        self.change(|r| r.rooted.push(done));
    }

    pub fn switch(&self, switch: Switch) {
        self.change(|r| {
            r.checkpoint = true;
            r.switches.push(switch);
        });
    }

    pub fn stop(&self) {
        self.change(|r| r.stop = true);
    }

    pub fn wake(&self) {
        drop(self.lock());
        self.arrived.notify_all();
    }

    /// What there is to do now.
    pub fn take_now(&self) -> Requests {
        std::mem::take(&mut *self.lock())
    }

    /// Waits for something to do, at most for so long if that is given: then there may be nothing.
    pub fn take(&self, at_most: Option<Duration>) -> Requests {
        let waiting = |requests: &mut Requests| requests.is_empty();
        let requests = self.lock();
        let mut requests = match at_most {
            None => {
                let waited = self.arrived.wait_while(requests, waiting);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
            Some(time) => {
                let waited = self.arrived.wait_timeout_while(requests, time, waiting);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        std::mem::take(&mut requests)
    }
}
