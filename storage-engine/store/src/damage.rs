//! Damaged entries of a log: found, and cut off.
//!
//! A replica acknowledged what it loses then: until its log is as long again it must not lead, and
//! vote only for who has all of it, as it would have with its whole log.

use crate::group::uncached_span;
use crate::log::index::Slot;
use crate::wal::format::Record;
use crate::wal::queue::{Job, Queued};
use crate::wal::space::{Purpose, WalSpace};
use crate::{Done, Group, LogPosition, StoreError};

/// Bytes of entries looked at together.
const READ_BYTES_MAX: usize = 4 << 20;

impl Group {
    /// The first entry that cannot be read back because of damage, if there is one.
    pub fn find_damage(&self) -> Result<Option<LogPosition>, StoreError> {
        let mut from = 0;
        loop {
            let slots = self.inner.log().select(from..u64::MAX, READ_BYTES_MAX);
            let Some(last) = slots.last() else { return Ok(None) };
            from = last.position.index + 1;
            let on_device: Vec<Slot> =
                slots.into_iter().filter(|slot| slot.cached.is_none()).collect();
            let mut rest = &on_device[..];
            while !rest.is_empty() {
                let (span, after) = rest.split_at(uncached_span(rest));
                if self.is_damaged(span)? {
                    for slot in span {
                        if self.is_damaged(std::slice::from_ref(slot))? {
                            return Ok(Some(slot.position));
                        }
                    }
                }
                rest = after;
            }
        }
    }

    fn is_damaged(&self, slots: &[Slot]) -> Result<bool, StoreError> {
        match self.read_span(slots) {
            Ok(_) => Ok(false),
            // What was dropped while it was read is no damage.
            Err(StoreError::Corrupt { .. }) => {
                let log = self.inner.log();
                Ok(slots.iter().all(|slot| log.holds(slot.position)))
            }
            Err(error) => Err(error),
        }
    }

    /// Drops the entry at `damaged` and all that follow it, durable at `done`. How far the log went
    /// is remembered for good, see `owes`.
    pub fn cut_damage(&self, damaged: LogPosition, done: Done) -> Result<(), StoreError> {
        let core = self.core();
        let cost = WalSpace::cost(Record::LEN_MAX);
        core.reserve(2 * cost, Purpose::Open)?;
        let mut log = self.inner.log();
        let purged = log.state().last_purged;
        let Some(upto) = log.cut_damage(damaged) else {
            core.wal.written(0, 2 * cost);
            return Err(StoreError::invalid(format!("the log does not hold entry {damaged}")));
        };
        let job = |record| Job::Record { group: self.id(), record };
        // In this order: a crash in between finds the damage once more.
        let lost = Queued::new(job(Record::Lost { upto, purged }), cost);
        let kept = damaged.index.checked_sub(1);
        let truncate = Queued {
            freed: log.take_freed(),
            done: Some(done),
            ..Queued::new(job(Record::Truncate(kept)), cost)
        };
        core.queue.push([lost, truncate], log);
        Ok(())
    }

    /// How far the log went before damage was cut off, for as long as it is shorter.
    pub fn owes(&self) -> Option<LogPosition> {
        self.inner.log().owes()
    }
}
