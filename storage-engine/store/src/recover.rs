//! Rebuilding a store's memory from its last checkpoint and its WAL.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use curve_types::{BLOCK_SIZE, CopysetId};

use crate::aligned::AlignedBuf;
use crate::alloc::{Allocator, Holder};
use crate::checkpoint::{self, ReadError};
use crate::codec::{Get, Malformed};
use crate::data::read_verified;
use crate::disk::Disk;
use crate::health::Device;
use crate::log::LogPosition;
use crate::log::index::{Loc, LogIndex};
use crate::root::Root;
use crate::space::ChunkMap;
use crate::wal::format::{Found, FoundEntry, RawRecord, Record};
use crate::wal::ring::Ring;
use crate::wal::scan::{End, scan};
use crate::wal::writer::{Capture, WalGroup};
use crate::{StoreError, Superblock};

/// One group as found.
pub(crate) struct FoundGroup {
    pub log: LogIndex,
    pub applied: Option<LogPosition>,
    pub state: Bytes,
    pub chunks: ChunkMap,
}

/// Everything found.
pub(crate) struct Recovery {
    pub groups: BTreeMap<CopysetId, FoundGroup>,
    /// Chunks of removed groups. The last checkpoint refers to them, so their blocks stay taken
    /// until the next one is durable.
    pub removed: Vec<ChunkMap>,
    pub alloc: Allocator,
    pub end: End,
    /// Where the writer goes on.
    pub next: Capture,
}

pub(crate) fn recover(
    device: &Device,
    superblock: &Superblock,
    root: &Root,
    ring: &Ring,
) -> Result<Recovery, StoreError> {
    let mut replay = Replay::from_checkpoint(device.disk(), superblock, root)?;
    let whole = |record: &RawRecord<'_>| payload_is_whole(device, superblock, record);
    let end = scan(ring, superblock.salt(), root, whole, |batch, at, len, record| {
        replay.on_record(Loc { batch, at, len }, record)
    })?;
    replay.finish(end)
}

/// Whether the payload that a record refers to, if it does, is what was to be written there.
fn payload_is_whole(
    device: &Device,
    superblock: &Superblock,
    record: &RawRecord<'_>,
) -> Result<bool, StoreError> {
    let Ok(Found::Entry(FoundEntry { blocks: Some(blocks), .. })) = record.decode() else {
        return Ok(true);
    };
    let layout = &superblock.layout;
    if blocks.iter().any(|addr| u64::from(addr.block) >= layout.data_blocks) {
        return Ok(false);
    }
    let mut buf = AlignedBuf::take(blocks.len() * BLOCK_SIZE as usize);
    Ok(read_verified(device, layout.data_offset, &blocks, &mut buf)?.is_none())
}

struct Replay {
    checkpoint_lsn: u64,
    groups: BTreeMap<CopysetId, FoundGroup>,
    removed: Vec<ChunkMap>,
    alloc: Allocator,
    wal: Capture,
}

impl Replay {
    fn from_checkpoint(
        disk: &dyn Disk,
        superblock: &Superblock,
        root: &Root,
    ) -> Result<Self, StoreError> {
        let blocks = superblock.layout.data_blocks as u32;
        let mut replay = Self {
            checkpoint_lsn: root.checkpoint_lsn,
            groups: BTreeMap::new(),
            removed: Vec::new(),
            alloc: Allocator::new(blocks),
            wal: Capture::default(),
        };
        replay.read_checkpoint(disk, superblock, root).map_err(|error| match error {
            ReadError::Store(error) => error,
            ReadError::Malformed(why) => {
                let seq = root.checkpoint_seq;
                StoreError::corrupt(format!("checkpoint {seq} is unreadable: {}", why.0))
            }
        })?;
        Ok(replay)
    }

    fn read_checkpoint(
        &mut self,
        disk: &dyn Disk,
        superblock: &Superblock,
        root: &Root,
    ) -> Result<(), ReadError> {
        let mut reader = checkpoint::Reader::new(disk, superblock, root)?;
        for _ in 0..reader.u32()? {
            let (id, meta) = reader.group()?;
            let alloc = &mut self.alloc;
            let chunks = reader.chunks(|block| match alloc.claim_for_table(block) {
                true => Ok(()),
                false => Err(Malformed("a device block is out of range")),
            })?;
            let wal = WalGroup {
                vote: meta.vote,
                last_purged: meta.last_purged,
                lost: meta.lost,
                first_lsn: meta.first_lsn,
            };
            let purged = purged_at_tail(root, meta.last_purged, meta.applied);
            let found = FoundGroup {
                log: LogIndex::recovered(meta.vote, meta.lost, purged, meta.applied),
                applied: meta.applied,
                state: meta.state,
                chunks: chunks.into_iter().map(|(key, chunk)| (key, Arc::new(chunk))).collect(),
            };
            if self.groups.insert(id, found).is_some() || self.wal.groups.insert(id, wal).is_some()
            {
                return Err(Malformed("a group appears twice").into());
            }
        }
        reader.finish()
    }

    fn on_record(&mut self, loc: Loc, record: &RawRecord<'_>) -> Result<(), StoreError> {
        let id = record.group;
        let found = record.decode().map_err(|why| {
            StoreError::corrupt(format!("log record at position {}: {}", loc.start(), why.0))
        })?;
        match found {
            Found::Entry(entry) => self.on_entry(id, entry, loc),
            Found::Record(record) => self.on_change(id, &record, loc.start()),
        }
        Ok(())
    }

    /// The group's log, if a record at `lsn` belongs to it.
    fn log_at(&mut self, id: CopysetId, lsn: u64) -> Option<&mut LogIndex> {
        let known = self.wal.groups.get(&id)?;
        let found = self.groups.get_mut(&id)?;
        (lsn >= known.first_lsn).then_some(&mut found.log)
    }

    fn on_entry(&mut self, id: CopysetId, entry: FoundEntry, loc: Loc) {
        let (position, len) = (entry.position, entry.len());
        let purged = self.wal.groups.get(&id).and_then(|known| known.last_purged);
        let Some(log) = self.log_at(id, loc.start()) else { return };
        let state = log.state();
        if state.last_purged.is_some_and(|purged| position.index <= purged.index) {
            return;
        }
        match log.next_index() {
            Some(next) if position.index < next => {
                log.truncate_after(position.index.checked_sub(1));
            }
            // Purged past its end, as after an install: the log began anew here.
            Some(next)
                if position.index > next
                    && purged.is_some_and(|purged| purged.index + 1 == position.index) =>
            {
                log.truncate_after(None);
            }
            _ => {}
        }
        log.push_recovered(position, len, loc, entry.blocks);
    }

    fn on_change(&mut self, id: CopysetId, record: &Record, lsn: u64) {
        if let Some(log) = self.log_at(id, lsn) {
            match record {
                Record::Truncate(kept) => log.truncate_after(*kept),
                Record::Purge(upto) => log.purge_recovered(*upto),
                _ => {}
            }
        }
        if lsn < self.checkpoint_lsn {
            return;
        }
        self.wal.remember(id, record, lsn);
        match record {
            Record::Vote(vote) => {
                if let Some(found) = self.groups.get_mut(&id) {
                    found.log.vote = Some(*vote);
                }
            }
            Record::Lost { upto, .. } => {
                if let Some(found) = self.groups.get_mut(&id) {
                    found.log.lose(*upto);
                }
            }
            Record::RemoveGroup => self.remove(id),
            Record::CreateGroup => {
                self.remove(id);
                let fresh = FoundGroup {
                    log: LogIndex::default(),
                    applied: None,
                    state: Bytes::new(),
                    chunks: ChunkMap::new(),
                };
                self.groups.insert(id, fresh);
            }
            _ => {}
        }
    }

    fn remove(&mut self, id: CopysetId) {
        if let Some(found) = self.groups.remove(&id) {
            self.removed.push(found.chunks);
        }
    }

    fn finish(mut self, end: End) -> Result<Recovery, StoreError> {
        for (id, found) in &mut self.groups {
            let purged = self.wal.groups.get(id).and_then(|known| known.last_purged);
            found.log.finish_recovery(purged).map_err(|why| {
                StoreError::corrupt(format!("the log of copyset {id} has a hole: {why}"))
            })?;
            // Whoever dropped them while they were written has let them go.
            drop(found.log.take_freed());
            let alloc = &mut self.alloc;
            let mut addrs = found.log.payloads().flat_map(|blocks| blocks.iter());
            if let Some(addr) = addrs.find(|addr| !alloc.claim(addr.block, Holder::Log)) {
                let block = addr.block;
                return Err(StoreError::corrupt(format!(
                    "the log of copyset {id} refers to block {block}, which is out of range or \
                     another entry's"
                )));
            }
        }
        let next = Capture {
            lsn: end.lsn,
            seq: end.seq,
            generation: end.generation + 1,
            groups: self.wal.groups,
        };
        Ok(Recovery { groups: self.groups, removed: self.removed, alloc: self.alloc, end, next })
    }
}

/// Up to where the log was purged when its part from the root's tail on begins. What the
/// checkpoint calls purged may still be needed for the replay, if the tail is before it.
fn purged_at_tail(
    root: &Root,
    purged: Option<LogPosition>,
    applied: Option<LogPosition>,
) -> Option<LogPosition> {
    let purged = purged?;
    let contained = applied.is_some_and(|applied| purged.index <= applied.index);
    match contained || root.tail_lsn == root.checkpoint_lsn {
        true => Some(purged),
        false => applied,
    }
}

#[cfg(test)]
mod tests;
