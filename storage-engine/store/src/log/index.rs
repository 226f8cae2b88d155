//! Where each entry of one group's log is: in memory, in the WAL, or both. Pure memory.

use std::collections::VecDeque;
use std::ops::Range;

use crate::StoreError;
use crate::log::{LogEntry, LogPosition, LogState, Vote};
use crate::payload::Blocks;

/// Place of an entry's record in the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Loc {
    /// Position of the batch.
    pub batch: u64,
    /// Bytes from there to the record.
    pub at: u32,
    pub len: u32,
}

impl Loc {
    pub fn start(&self) -> u64 {
        self.batch + u64::from(self.at)
    }

    pub fn end(&self) -> u64 {
        self.start() + u64::from(self.len)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub position: LogPosition,
    /// Tells this entry from another that had the same index before a truncation.
    pub id: u64,
    /// Set when the IO thread has given it a place.
    pub loc: Option<Loc>,
    /// Bytes of header and payload.
    pub len: usize,
    /// None once evicted from the tail cache.
    pub cached: Option<LogEntry>,
    /// Where the payload is, unless it is in the record.
    pub blocks: Option<Blocks>,
}

/// What applying an entry needs to know of its payload.
pub(crate) struct Placed {
    pub blocks: Blocks,
    /// Whether they are on the device.
    pub durable: bool,
}

/// The log of one group. Physically it may reach further back than `last_purged`: what no durable
/// checkpoint contains yet is kept for the replay after a crash.
#[derive(Debug, Default)]
pub(crate) struct LogIndex {
    pub vote: Option<Vote>,
    /// The furthest that the log went when damage was cut off it.
    lost: Option<LogPosition>,
    last_purged: Option<LogPosition>,
    slots: VecDeque<Slot>,
    /// Applied position of the last durable checkpoint.
    durable_applied: Option<LogPosition>,
    next_id: u64,
    /// Entries with a lower id are on the device.
    durable_below: u64,
    /// Payloads of entries that were dropped. Whoever drops them takes these, and lets them go once
    /// a crash cannot bring the entries back.
    freed: Vec<Blocks>,
    /// The group is gone: nothing is appended any more.
    pub removed: bool,
}

impl LogIndex {
    pub fn recovered(
        vote: Option<Vote>,
        lost: Option<LogPosition>,
        last_purged: Option<LogPosition>,
        applied: Option<LogPosition>,
    ) -> Self {
        Self { vote, lost, last_purged, durable_applied: applied, ..Self::default() }
    }

    pub fn vote_and_state(&self) -> (Option<Vote>, LogState) {
        (self.vote, self.state())
    }

    pub fn state(&self) -> LogState {
        let last = self.slots.back().map(|s| s.position).or(self.last_purged);
        LogState { last_purged: self.last_purged, last }
    }

    /// Entries in memory, those included that only a checkpoint still needs.
    pub fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    fn first_index(&self) -> Option<u64> {
        self.slots.front().map(|s| s.position.index)
    }

    /// Index that the next entry must have; None if any will do.
    pub fn next_index(&self) -> Option<u64> {
        self.state().last.map(|last| last.index + 1)
    }

    /// Adds an entry after the last and returns its id.
    pub fn push(
        &mut self,
        position: LogPosition,
        len: usize,
        cached: Option<LogEntry>,
        blocks: Option<Blocks>,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.slots.push_back(Slot { position, id, loc: None, len, cached, blocks });
        id
    }

    /// Adds an entry that was read back from the WAL.
    pub fn push_recovered(
        &mut self,
        position: LogPosition,
        len: usize,
        loc: Loc,
        blocks: Option<Blocks>,
    ) {
        let id = self.push(position, len, None, blocks);
        self.place(position.index, id, loc);
        self.durable(id);
    }

    /// The entry, and every one before it, is on the device.
    pub fn durable(&mut self, id: u64) {
        self.durable_below = id + 1;
    }

    /// Where the payload of exactly this entry is; None if it is in the record.
    pub fn placed(&self, position: LogPosition) -> Option<Placed> {
        let slot = self.slot(position)?;
        let durable = slot.id < self.durable_below;
        slot.blocks.clone().map(|blocks| Placed { blocks, durable })
    }

    /// Blocks of all entries that are held.
    pub fn payloads(&self) -> impl Iterator<Item = &Blocks> {
        self.slots.iter().filter_map(|slot| slot.blocks.as_ref())
    }

    /// Payloads of what was dropped since the last call.
    pub fn take_freed(&mut self) -> Vec<Blocks> {
        std::mem::take(&mut self.freed)
    }

    fn drop_all(&mut self) {
        self.freed.extend(self.slots.drain(..).filter_map(|slot| slot.blocks));
    }

    fn slot_mut(&mut self, index: u64, id: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.first_index()?)?;
        self.slots.get_mut(usize::try_from(at).ok()?).filter(|slot| slot.id == id)
    }

    /// The entry got its place, unless it was dropped meanwhile.
    pub fn place(&mut self, index: u64, id: u64, loc: Loc) {
        if let Some(slot) = self.slot_mut(index, id) {
            slot.loc = Some(loc);
        }
    }

    /// Forgets the entry's bytes; they can be read back from the WAL.
    pub fn evict(&mut self, index: u64, id: u64) {
        if let Some(slot) = self.slot_mut(index, id) {
            debug_assert!(slot.loc.is_some());
            slot.cached = None;
        }
    }

    /// Drops every entry after `kept`.
    pub fn truncate_after(&mut self, kept: Option<u64>) {
        let dropped = |s: &mut Slot| kept.is_none_or(|kept| s.position.index > kept);
        while let Some(slot) = self.slots.pop_back_if(dropped) {
            self.freed.extend(slot.blocks);
        }
    }

    /// Damage takes entries up to this one.
    pub fn lose(&mut self, upto: LogPosition) {
        self.lost = self.lost.max(Some(upto));
    }

    /// How far the log went before, while it is shorter.
    pub fn owes(&self) -> Option<LogPosition> {
        self.lost.filter(|lost| self.state().last.is_none_or(|last| last < *lost))
    }

    /// Drops the entry and all that follow it, up to the one returned; None if it is not there.
    pub fn cut_damage(&mut self, damaged: LogPosition) -> Option<LogPosition> {
        let last = self.state().last.filter(|_| self.holds(damaged) && !self.removed)?;
        self.lose(last);
        self.truncate_after(damaged.index.checked_sub(1));
        Some(last)
    }

    /// Whether truncating there would cut into what was purged.
    pub fn can_truncate_after(&self, kept: Option<u64>) -> bool {
        match (kept, self.last_purged) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(kept), Some(purged)) => kept >= purged.index,
        }
    }

    pub fn purge(&mut self, upto: LogPosition) {
        if self.last_purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        if self.slots.back().is_none_or(|last| last.position.index < upto.index) {
            self.drop_all();
        }
        self.last_purged = Some(upto);
        self.drop_unneeded();
    }

    /// A purge read back from the WAL takes effect only as far as the checkpoint reaches; what
    /// lies after that is needed for the replay.
    pub fn purge_recovered(&mut self, upto: LogPosition) {
        let past_end = self.slots.back().is_none_or(|last| last.position.index < upto.index);
        let applied = self.durable_applied;
        let effective = match past_end {
            true => Some(upto),
            false => applied.map(|applied| if applied.index < upto.index { applied } else { upto }),
        };
        if let Some(effective) = effective {
            self.purge(effective);
        }
    }

    /// A checkpoint that contains `applied` is durable.
    pub fn checkpointed(&mut self, applied: Option<LogPosition>) {
        self.durable_applied = applied;
        self.drop_unneeded();
    }

    fn unneeded_upto(&self, applied: Option<LogPosition>) -> Option<u64> {
        Some(self.last_purged?.index.min(applied?.index))
    }

    fn drop_unneeded(&mut self) {
        let Some(upto) = self.unneeded_upto(self.durable_applied) else { return };
        while let Some(slot) = self.slots.pop_front_if(|s| s.position.index <= upto) {
            self.freed.extend(slot.blocks);
        }
    }

    /// First WAL position that is needed once a checkpoint contains `applied` (or the last durable
    /// one, if None is given): None if no placed entry is.
    pub fn tail(&self, applied: Option<Option<LogPosition>>) -> Option<u64> {
        let applied = applied.unwrap_or(self.durable_applied);
        let upto = self.unneeded_upto(applied);
        let first = self.slots.iter().find(|s| upto.is_none_or(|upto| s.position.index > upto))?;
        first.loc.map(|loc| loc.batch)
    }

    /// A snapshot at `applied` replaced everything: keeps what follows it, if it is the same log.
    pub fn installed(&mut self, applied: LogPosition) {
        if !self.holds(applied) {
            self.drop_all();
        }
        self.purge(applied);
        self.checkpointed(Some(applied));
    }

    /// Whether the log holds exactly this entry.
    pub fn holds(&self, position: LogPosition) -> bool {
        self.slot(position).is_some()
    }

    fn slot(&self, position: LogPosition) -> Option<&Slot> {
        let at = position.index.checked_sub(self.first_index()?)?;
        self.slots.get(usize::try_from(at).ok()?).filter(|slot| slot.position == position)
    }

    /// Ends the recovery of a log that was purged up to `purged` at some time.
    pub fn finish_recovery(&mut self, purged: Option<LogPosition>) -> Result<(), String> {
        let first = self.first_index();
        if let Some(purged) = purged
            && first.is_none_or(|first| first == purged.index + 1)
        {
            self.purge(purged);
        }
        self.validate()
    }

    /// Checks a recovered log: no gaps, and it begins where it was purged.
    fn validate(&self) -> Result<(), String> {
        let pairs = self.slots.iter().zip(self.slots.iter().skip(1));
        for (a, b) in pairs {
            if a.position.index + 1 != b.position.index {
                return Err(format!(
                    "entry {} is followed by {}",
                    a.position.index, b.position.index
                ));
            }
        }
        match (self.first_index(), self.last_purged) {
            (Some(first), Some(purged)) if first > purged.index + 1 => {
                Err(format!("it was purged up to {} but begins at {first}", purged.index))
            }
            _ => Ok(()),
        }
    }

    /// Entries of the range that exist, until `bytes_max` is reached.
    pub fn select(&self, range: Range<u64>, bytes_max: usize) -> Vec<Slot> {
        let Some(first) = self.first_index() else { return Vec::new() };
        let visible = self.last_purged.map_or(0, |purged| purged.index + 1).max(first);
        let start = range.start.max(visible);
        let mut bytes = 0;
        let wanted = self.slots.iter().skip(start.saturating_sub(first) as usize);
        wanted
            .take_while(|slot| {
                let fits = bytes == 0 || bytes + slot.len <= bytes_max;
                bytes += slot.len.max(1);
                slot.position.index < range.end && fits
            })
            .cloned()
            .collect()
    }

    /// Forgets everything, for a removed group.
    pub fn clear(&mut self) {
        self.drop_all();
        self.removed = true;
    }
}

/// Refuses entries that do not follow each other or are too long.
pub(crate) fn check_entries(next: Option<u64>, entries: &[LogEntry]) -> Result<(), StoreError> {
    let mut next = next.or_else(|| entries.first().map(|e| e.position.index));
    for entry in entries {
        if next != Some(entry.position.index) {
            let (want, got) = (next.unwrap_or_default(), entry.position.index);
            return Err(StoreError::invalid(format!(
                "entry {got} does not follow: expected {want}"
            )));
        }
        if entry.len() > LogEntry::BYTES_MAX {
            let (len, max) = (entry.len(), LogEntry::BYTES_MAX);
            return Err(StoreError::invalid(format!("entry of {len} bytes, at most {max} fit")));
        }
        next = next.map(|n| n + 1);
    }
    Ok(())
}
