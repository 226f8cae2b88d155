//! A group's state held still, for a Raft snapshot.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use curve_types::{BLOCK_SIZE, CHUNK_SIZE, ChunkKey};

use crate::chunk::{Chunk, Place, Written};
use crate::space::{ChunkMap, Pin, Space, place, places, read_places};
use crate::store::Owner;
use crate::{BlockSet, ChunkHead, CopyOf, Group, Keep, LogPosition, StoreError};

impl Group {
    /// The group's state now, held still for a Raft snapshot. Asks the state provider. `NoGroup`
    /// if the group was removed.
    pub fn view(&self) -> Result<ChunkView, StoreError> {
        self.core().device.check()?;
        let _whole_entries = self.inner.lock_apply();
        let (applied, state) = self.inner.state()?;
        let pin = self.inner.space.pin();
        let chunks = pin.space.snapshot();
        // A removed group's tables may have been empty already.
        self.check_exists()?;
        let shared = ViewInner { pin, chunks, applied, state, _owner: self.owner.clone() };
        Ok(ChunkView { shared: Arc::new(shared) })
    }
}

struct ViewInner {
    pin: Pin,
    chunks: ChunkMap,
    applied: Option<LogPosition>,
    state: Bytes,
    _owner: Arc<Owner>,
}

/// A pinned, immutable state of a group. Blocks it refers to are not reused while it lives.
#[derive(Clone)]
pub struct ChunkView {
    shared: Arc<ViewInner>,
}

/// What a replica that has applied the log up to some index lacks of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkDelta {
    pub head: ChunkHead,
    /// Runs of blocks that it lacks, in order.
    pub runs: Vec<Range<u32>>,
}

impl ChunkView {
    /// Applied position that belongs to the tables.
    pub fn applied(&self) -> Option<LogPosition> {
        self.shared.applied
    }

    /// State blob that belongs to the tables.
    pub fn state(&self) -> &Bytes {
        &self.shared.state
    }

    /// All chunks that hold at least one block, in order.
    pub fn chunks(&self) -> Vec<ChunkKey> {
        self.shared.chunks.keys().copied().collect()
    }

    fn chunk(&self, key: ChunkKey) -> Option<&Arc<Chunk>> {
        self.shared.chunks.get(&key)
    }

    /// Runs of blocks that hold data, in order. Everything else of the chunk is holes.
    pub fn block_ranges(&self, key: ChunkKey) -> Vec<Range<u32>> {
        self.chunk(key).map(|chunk| runs(chunk.occupied())).unwrap_or_default()
    }

    /// What must be sent of a chunk to a replica that has applied entries up to `since`, which is
    /// not after the view's own position; of a replica without any state it is None.
    pub fn delta(&self, key: ChunkKey, since: Option<u64>) -> ChunkDelta {
        let Some(chunk) = self.chunk(key) else {
            return ChunkDelta { head: ChunkHead::default(), runs: Vec::new() };
        };
        // What is based on what changes without a change of the chunk.
        let copy = chunk.base().map(|base| CopyOf { base, born: chunk.born() });
        let head = ChunkHead { changed: chunk.changed(), copy, ..ChunkHead::default() };
        if since.is_some_and(|since| head.changed <= since) {
            return ChunkDelta { head: ChunkHead { keep: Keep::All, ..head }, runs: Vec::new() };
        }
        let is_new = |block: &u16| {
            let since_of = |written: Written| since.is_none_or(|since| written.is_after(since));
            chunk.written(*block).is_none_or(since_of)
        };
        let (new, kept): (Vec<u16>, Vec<u16>) = chunk.occupied().into_iter().partition(is_new);
        let base = copy.and_then(|copy| self.chunk(ChunkKey { volume: copy.base, ..key }));
        let birth = Written::at(chunk.born());
        let is_shared = |block: &u16| {
            let of_base = base.is_some_and(|base| chunk.shares(base, *block));
            of_base && chunk.written(*block) == Some(birth)
        };
        let (shared, sent): (Vec<u16>, Vec<u16>) = new.into_iter().partition(is_shared);
        let shared: BlockSet = shared.into_iter().collect();
        let shared = (!shared.is_empty()).then(|| Box::new(shared));
        let head = ChunkHead { keep: Keep::of_blocks(kept), shared, ..head };
        ChunkDelta { head, runs: runs(sent) }
    }

    /// When each block of a run that `delta` gave was written.
    pub fn written(&self, key: ChunkKey, blocks: Range<u32>) -> Vec<Written> {
        let written = |block: u32| self.chunk(key)?.written(block as u16);
        blocks.map(|block| written(block).unwrap_or(Written::UNKNOWN)).collect()
    }

    pub(crate) fn place(&self, key: ChunkKey, index: u16) -> Place {
        place(&self.shared.chunks, key, index)
    }

    pub(crate) fn is_of(&self, space: &Arc<Space>) -> bool {
        Arc::ptr_eq(&self.shared.pin.space, space)
    }

    /// Bytes of a run of blocks.
    pub fn read(&self, key: ChunkKey, blocks: Range<u32>) -> Result<Bytes, StoreError> {
        let end = u64::from(blocks.end) * BLOCK_SIZE;
        if blocks.start > blocks.end || end > CHUNK_SIZE {
            return Err(StoreError::invalid(format!("blocks {blocks:?} of a chunk of 1024")));
        }
        let (offset, len) =
            (blocks.start * BLOCK_SIZE as u32, blocks.len() as u32 * BLOCK_SIZE as u32);
        let found = self.chunk(key).map(|chunk| places(chunk, offset, len));
        read_places(&self.shared.pin.space.data, found, key, offset, len)
    }
}

/// Runs of neighbours in a sorted list.
fn runs(blocks: Vec<u16>) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for index in blocks.into_iter().map(u32::from) {
        match ranges.last_mut() {
            Some(last) if last.end == index => last.end = index + 1,
            _ => ranges.push(index..index + 1),
        }
    }
    ranges
}
