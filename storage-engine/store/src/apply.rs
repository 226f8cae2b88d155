//! Changing the chunk space of a group, one whole entry at a time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use curve_types::{BLOCK_SIZE, ChunkKey, VolumeId};

use crate::log::index::Placed;
use crate::space::{CopyKind, Space, check_range};
use crate::{Group, LogPosition, StoreError};

/// Permission to change the chunk space. Changes are in memory until the next checkpoint; after
/// a crash the host replays the log.
pub struct Apply<'a> {
    group: &'a Group,
    space: Arc<Space>,
    /// Index of the entry.
    entry: u64,
    _excluded: MutexGuard<'a, ()>,
}

impl<'a> Apply<'a> {
    /// `excluded` is the group's apply lock.
    pub(crate) fn new(
        group: &'a Group,
        space: Arc<Space>,
        entry: u64,
        excluded: MutexGuard<'a, ()>,
    ) -> Self {
        Self { group, space, entry, _excluded: excluded }
    }

    pub(crate) fn group(&self) -> &Group {
        self.group
    }

    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Writes at any byte alignment; partial blocks are read, changed and written.
    pub fn write(&self, key: ChunkKey, offset: u32, data: Bytes) -> Result<(), StoreError> {
        self.space.write(self.entry, key, offset, data)
    }

    /// As `write`, of the payload with which the entry at `position` was appended. If that went to
    /// blocks of its own, the chunk takes them over and nothing is written a second time.
    pub fn write_payload(
        &self,
        position: LogPosition,
        key: ChunkKey,
        offset: u32,
        payload: Bytes,
    ) -> Result<(), StoreError> {
        let placed = self.group.inner.log().placed(position);
        if let Some(Placed { blocks, durable }) = placed
            && u64::from(offset).is_multiple_of(BLOCK_SIZE)
            && payload.len() as u64 == blocks.len() as u64 * BLOCK_SIZE
        {
            check_range(offset, payload.len() as u64)?;
            let first = (u64::from(offset) / BLOCK_SIZE) as u16;
            let landing = (!durable).then_some(&payload);
            if self.space.adopt(position.index, key, first, &blocks, landing) {
                return Ok(());
            }
        }
        self.write(key, offset, payload)
    }

    /// Makes the range read as zeroes; whole blocks become holes.
    pub fn write_zeroes(&self, key: ChunkKey, offset: u32, len: u32) -> Result<(), StoreError> {
        self.space.write_zeroes(self.entry, key, offset, len)
    }

    /// Frees the whole blocks of the range (they read as zeroes); partial blocks are untouched.
    pub fn discard(&self, key: ChunkKey, offset: u32, len: u32) -> Result<(), StoreError> {
        self.space.discard(self.entry, key, offset, len)
    }

    /// Forgets all chunks of a volume.
    pub fn delete_volume(&self, volume: VolumeId) -> Result<(), StoreError> {
        self.space.delete_volume(volume);
        // Room for tables is free when a checkpoint does without them, and while there is little
        // no writes may come that would bring one.
        let core = self.group.core();
        if core.checkpoint_bytes.load(Ordering::Relaxed) > core.superblock.layout.slot_len / 2 {
            core.upkeep.request_checkpoint();
        }
        Ok(())
    }

    /// Gives `to` copies of all chunks of `from`, in place of those that it has. They share the
    /// blocks until one of them changes.
    pub fn copy_volume(&self, from: VolumeId, to: VolumeId, kind: CopyKind) {
        self.space.copy_volume(self.entry, from, to, kind);
    }

    /// As `Group::read`.
    pub fn read(&self, key: ChunkKey, offset: u32, len: u32) -> Result<Bytes, StoreError> {
        let found = self.space.read(key, offset, len)?;
        // Installs are excluded, so that only a removal can have retired the space.
        found.ok_or(StoreError::NoGroup(self.group.id()))
    }
}

impl Drop for Apply<'_> {
    fn drop(&mut self) {
        let core = self.group.core();
        if core.data.overlay.wants_flush() || core.data.wants_checkpoint() {
            core.upkeep.request_flush();
        }
    }
}
