//! Keeps the log from running full. An append that waits for room blocks its Raft core, which then
//! cannot purge; so what would not fit is refused before Raft sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use curve_store::Store;

/// Of the log's length, in sixteenths: proposals stop here.
const PROPOSE_LIMIT: u64 = 12;
/// Appends of leaders stop here: later, since other members have already accepted them, but before
/// the last sixteenth, which the store keeps for votes and purges.
const APPEND_LIMIT: u64 = 14;
/// From here on logs are purged of everything that is applied. Below `PROPOSE_LIMIT`, or it would
/// never be reached.
const URGENT: u64 = 10;

pub(crate) struct LogRoom {
    store: Store,
    /// Bytes that were admitted and are not yet answered. Part of them is counted by the store
    /// too, which errs on the safe side.
    under_way: Arc<AtomicU64>,
}

/// Bytes under way, until dropped.
pub(crate) struct Admitted {
    under_way: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.under_way.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl LogRoom {
    pub fn new(store: Store) -> Arc<Self> {
        Arc::new(Self { store, under_way: Arc::default() })
    }

    pub fn admit_proposal(&self, bytes: usize) -> Option<Admitted> {
        self.admit(bytes, PROPOSE_LIMIT)
    }

    pub fn admit_append(&self, bytes: usize) -> Option<Admitted> {
        self.admit(bytes, APPEND_LIMIT)
    }

    pub fn is_urgent(&self) -> bool {
        self.store.usage().log_sixteenths() >= URGENT
    }

    fn admit(&self, bytes: usize, sixteenths: u64) -> Option<Admitted> {
        let bytes = bytes as u64;
        let usage = self.store.usage();
        let before = self.under_way.fetch_add(bytes, Ordering::AcqRel);
        let admitted = Admitted { under_way: self.under_way.clone(), bytes };
        let limit = usage.wal_bytes_total / 16 * sixteenths;
        (usage.wal_bytes_used + before + bytes <= limit).then_some(admitted)
    }
}
