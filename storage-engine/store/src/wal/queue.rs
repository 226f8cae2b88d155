//! What waits for the IO thread, in the one order in which it will be on disk.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use curve_types::CopysetId;

use crate::StoreError;
use crate::group::GroupInner;
use crate::health::Device;
use crate::log::LogEntry;
use crate::payload::Blocks;
use crate::simulate::Waker;
use crate::store::Done;
use crate::wal::format::Record;
use crate::wal::writer::{Capture, WalGroup};

/// Bytes of entries that may wait before `append` makes its caller wait: about 50 ms of a fast
/// disk, so that a stalled one does not fill the memory.
const QUEUE_BYTES_MAX: usize = 64 << 20;

pub(crate) enum Job {
    Record {
        group: CopysetId,
        record: Record,
    },
    /// Only a callback that keeps its place in the order.
    Nothing,
    /// The first record of a group.
    Create {
        group: Arc<GroupInner>,
    },
    /// A group that a checkpoint has, and no record.
    Adopt {
        group: CopysetId,
        known: WalGroup,
    },
    Entry {
        group: Arc<GroupInner>,
        id: u64,
        entry: LogEntry,
        /// Where the payload goes, unless it goes into the record.
        blocks: Option<Blocks>,
    },
    /// Answers what is durable and what the WAL says of each group, once everything queued before
    /// is durable.
    Capture(Sender<Capture>),
}

pub(crate) struct Queued {
    pub job: Job,
    /// Room taken in the ring.
    pub reserved: u64,
    /// Payloads of entries that this drops.
    pub freed: Vec<Blocks>,
    pub done: Option<Done>,
}

impl Queued {
    pub fn new(job: Job, reserved: u64) -> Self {
        Self { job, reserved, freed: Vec::new(), done: None }
    }

    fn bytes(&self) -> usize {
        match &self.job {
            Job::Entry { entry, .. } => entry.len(),
            _ => 0,
        }
    }
}

/// What the IO thread is to do next.
pub(crate) enum Next {
    Jobs(VecDeque<Queued>),
    /// Nothing came within the idle time.
    Idle,
    Closed,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Queued>,
    bytes: usize,
    closed: bool,
}

#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    drained: Condvar,
    waker: OnceLock<Waker>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until less than the limit is queued.
    pub fn wait_for_room(&self, device: &Device) -> Result<(), StoreError> {
        let mut state = self.lock();
        while state.bytes >= QUEUE_BYTES_MAX {
            device.check()?;
            state = self.drained.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// `order` is what the caller locked to decide the order, if anything: let go before the IO
    /// thread wakes, which would only run into it.
    pub fn push<Lock>(&self, queued: impl IntoIterator<Item = Queued>, order: Lock) {
        let mut state = self.lock();
        let was_empty = state.jobs.is_empty();
        for item in queued {
            state.bytes += item.bytes();
            state.jobs.push_back(item);
        }
        drop(state);
        drop(order);
        if was_empty {
            self.filled.notify_one();
            if let Some(wake) = self.waker.get() {
                wake();
            }
        }
    }

    pub fn set_waker(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    /// Takes everything that waits now.
    pub fn take_now(&self) -> VecDeque<Queued> {
        let mut state = self.lock();
        state.bytes = 0;
        std::mem::take(&mut state.jobs)
    }

    /// Takes everything that waits; `idle` bounds the waiting if given.
    pub fn take(&self, idle: Option<Duration>) -> Next {
        let mut state = self.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return Next::Closed;
            }
            match idle {
                None => state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(idle) => {
                    let waited = self.filled.wait_timeout(state, idle);
                    let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    state = guard;
                    if timeout.timed_out() && state.jobs.is_empty() && !state.closed {
                        return Next::Idle;
                    }
                }
            }
        }
        let jobs = std::mem::take(&mut state.jobs);
        let was_full = std::mem::take(&mut state.bytes) >= QUEUE_BYTES_MAX;
        drop(state);
        if was_full {
            self.drained.notify_all();
        }
        Next::Jobs(jobs)
    }

    /// No more jobs will come: the IO thread ends when it has written what waits.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    pub fn wake(&self) {
        drop(self.lock());
        self.filled.notify_all();
        self.drained.notify_all();
    }
}
