//! The digest of a replica at the log index of the last `Digest` command: the state machine holds
//! the tables still there, and the scrub makes the digest of them without holding up the log.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use curve_store::HeldTables;
use curve_wire::proto::TableDigest;
use tokio::time::Instant;

/// What the state machine left at a `Digest` command.
pub(crate) struct Taken {
    pub scrub: u64,
    pub index: u64,
    pub tables: HeldTables,
    /// The copyset's state besides its chunks, encoded.
    pub state: Bytes,
}

/// Of one replica, shared by its state machine and the scrub.
#[derive(Clone, Default)]
pub(crate) struct DigestSlot(Arc<Mutex<Slot>>);

#[derive(Default)]
struct Slot {
    /// Of which no digest is made yet.
    taken: Option<Taken>,
    /// The last one, with the number of its scrub.
    made: Option<(u64, TableDigest)>,
    /// Of the last command that this process has applied: its scrub, and when.
    last: Option<(u64, Instant)>,
}

impl DigestSlot {
    fn with<T>(&self, work: impl FnOnce(&mut Slot) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn put(&self, taken: Taken) {
        let last = Some((taken.scrub, Instant::now()));
        // The older tables, if any, end outside of the lock: they may be large.
        let _older = self.with(|slot| {
            slot.last = last;
            slot.taken.replace(taken)
        });
    }

    /// Makes the digest that is due. May take as long as reading all tables from memory.
    pub fn make(&self) {
        let Some(taken) = self.with(|slot| slot.taken.take()) else { return };
        let value = taken.tables.digest(&taken.state);
        let made = TableDigest { index: taken.index, value };
        self.with(|slot| slot.made = Some((taken.scrub, made)));
    }

    pub fn is_due(&self) -> bool {
        self.with(|slot| slot.taken.is_some())
    }

    /// The last digest for this scrub.
    pub fn of(&self, scrub: u64) -> Option<TableDigest> {
        self.with(|slot| slot.made.filter(|(of, _)| *of == scrub).map(|(_, made)| made))
    }

    /// How long ago the last command for this scrub was applied.
    pub fn age(&self, scrub: u64) -> Option<Duration> {
        self.with(|slot| slot.last.filter(|(of, _)| *of == scrub).map(|(_, at)| at.elapsed()))
    }
}
