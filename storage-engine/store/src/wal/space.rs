//! How full the ring is. Room is reserved before a record is queued, so that the IO thread never
//! finds the ring full.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use curve_types::{BLOCK_SIZE, ByteSize};

use crate::StoreError;
use crate::health::Device;
use crate::wal::format::BATCH_HEADER_LEN;

/// Part of the ring kept for votes, truncations, purges and marks, so that a log full of entries
/// can still be purged.
const CONTROL_PART: u64 = 16;
/// As much of it as large rings need: a thousand batches of one such record each.
const CONTROL_MAX: u64 = 4 << 20;
/// Blocks that not even those take, kept for what opens the store and for what gives room back.
const OPEN_RESERVE: u64 = 8 * BLOCK_SIZE;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Entries,
    Control,
    /// Opening, removing a group, ending an install.
    Open,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    head: u64,
    tail: u64,
    reserved: u64,
    /// WAL position of the last durable checkpoint.
    checkpoint: u64,
}

pub(crate) struct WalSpace {
    pub len: u64,
    state: Mutex<State>,
    room: Condvar,
}

impl WalSpace {
    pub fn new(len: u64, tail: u64, head: u64, checkpoint: u64) -> Self {
        let state = State { head, tail, reserved: 0, checkpoint };
        Self { len, state: Mutex::new(state), room: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most that a record of this length can take: it might begin a batch of its own.
    pub fn cost(record_len: usize) -> u64 {
        (BATCH_HEADER_LEN + record_len) as u64 / BLOCK_SIZE * BLOCK_SIZE + BLOCK_SIZE
    }

    fn limit(&self, purpose: Purpose) -> u64 {
        match purpose {
            Purpose::Entries => {
                self.len - (self.len / CONTROL_PART).min(CONTROL_MAX) - OPEN_RESERVE
            }
            Purpose::Control => self.len - OPEN_RESERVE,
            Purpose::Open => self.len,
        }
    }

    /// Takes room, or calls `press` once and waits for the tail to move.
    pub fn reserve(
        &self,
        bytes: u64,
        purpose: Purpose,
        wait: Duration,
        device: &Device,
        press: impl Fn(),
    ) -> Result<(), StoreError> {
        let limit = self.limit(purpose);
        let fits = |s: &State| s.head - s.tail + s.reserved + bytes <= limit;
        let mut state = self.lock();
        let mut deadline = None;
        while !fits(&state) {
            device.check()?;
            let now = Instant::now();
            if deadline.is_none() && bytes <= limit {
                deadline = Some(now + wait);
                drop(state);
                press();
                state = self.lock();
                continue;
            }
            let left = deadline.map_or(Duration::ZERO, |d| d.saturating_duration_since(now));
            if left.is_zero() {
                let used = ByteSize(state.head - state.tail + state.reserved);
                return Err(StoreError::WalFull { used, total: ByteSize(self.len) });
            }
            state = self.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.reserved += bytes;
        Ok(())
    }

    /// A batch of `bytes` was written for which `reserved` had been taken.
    pub fn written(&self, bytes: u64, reserved: u64) {
        let mut state = self.lock();
        state.head += bytes;
        state.reserved -= reserved;
        let gained = reserved > bytes;
        drop(state);
        if gained {
            self.room.notify_all();
        }
    }

    /// A root is durable: what lies before `tail` may be overwritten.
    pub fn root_written(&self, tail: u64, checkpoint: u64) {
        let mut state = self.lock();
        state.tail = tail;
        state.checkpoint = checkpoint;
        drop(state);
        self.room.notify_all();
    }

    pub fn wake(&self) {
        drop(self.lock());
        self.room.notify_all();
    }

    pub fn used(&self) -> u64 {
        let state = self.lock();
        state.head - state.tail + state.reserved
    }

    /// Bytes written since the last checkpoint.
    pub fn since_checkpoint(&self) -> u64 {
        let state = self.lock();
        state.head - state.checkpoint
    }
}
