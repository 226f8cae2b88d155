//! Whether the devices of a copyset have room for a write that is about to be proposed.
//!
//! A replica that cannot store a committed write fails for good, so room is promised before the
//! proposal: on this device exactly, on those of the other voters as the MDS last said. Only writes
//! ask: what frees space is always let through.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use curve_store::{Store, Usage};
use curve_types::{BLOCK_SIZE, CopysetId};
use curve_wire::chunk::ChunkRange;

#[derive(Clone)]
pub(crate) struct Admission {
    store: Store,
    /// Blocks of writes that were admitted and are not yet settled.
    promised: Arc<AtomicU64>,
    /// Copysets with a voter whose device is full. Kept while the MDS is silent.
    full: Arc<RwLock<BTreeSet<CopysetId>>>,
}

/// Room for one write, until its outcome is known. A write that takes effect after its outcome was
/// given up is covered by the store's reserve.
pub(crate) struct Promise {
    promised: Arc<AtomicU64>,
    blocks: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.promised.fetch_sub(self.blocks, Ordering::Relaxed);
    }
}

/// Of 16 parts of the room for tables, those that may be full when a snapshot is taken. What is
/// written afterwards makes the tables of copies differ, which takes room as well: up to the next.
const SNAPSHOT_SIXTEENTHS: u64 = 10;
/// The same for writes. Without copies tables never get so full.
const WRITE_SIXTEENTHS: u64 = 14;

impl Admission {
    pub fn new(store: Store) -> Self {
        Self { store, promised: Arc::default(), full: Arc::default() }
    }

    /// Takes over which copysets have a voter whose device is full.
    pub fn set_full(&self, copysets: BTreeSet<CopysetId>) {
        *self.full.write().unwrap_or_else(PoisonError::into_inner) = copysets;
    }

    /// Whether there is room for the tables of a snapshot. Its blocks are there already.
    pub fn admit_snapshot(&self) -> bool {
        has_tables(&self.store.usage(), SNAPSHOT_SIXTEENTHS)
    }

    /// None if this device or that of another voter is full. Every block counts as new: a write over
    /// existing data needs a fresh block too, until the old one is released.
    pub fn admit(&self, copyset: CopysetId, range: &ChunkRange) -> Option<Promise> {
        if self.full.read().unwrap_or_else(PoisonError::into_inner).contains(&copyset) {
            return None;
        }
        let first = u64::from(range.offset) / BLOCK_SIZE;
        let end = (u64::from(range.offset) + u64::from(range.len)).div_ceil(BLOCK_SIZE);
        let blocks = end - first;
        let before = self.promised.fetch_add(blocks, Ordering::Relaxed);
        let promise = Promise { promised: self.promised.clone(), blocks };
        let usage = self.store.usage();
        let admitted =
            before + blocks <= usage.admissible_blocks() && has_tables(&usage, WRITE_SIXTEENTHS);
        admitted.then_some(promise)
    }
}

fn has_tables(usage: &Usage, sixteenths: u64) -> bool {
    usage.checkpoint_bytes * 16 <= usage.checkpoint_bytes_max * sixteenths
}
