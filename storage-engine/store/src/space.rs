//! The chunk space of one group: its tables, the blocks it displaced, and who still needs them.

mod copies;
mod divide;
mod read;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard, Weak};

use bytes::{Bytes, BytesMut};
use curve_types::planted::{self, Bug};
use curve_types::{BLOCK_SIZE, CHUNK_SIZE, ChunkKey};

use crate::StoreError;
use crate::alloc::Holder;
use crate::chunk::{BlockAddr, Chunk, Displaced, InMemory, Place, TableBlock, Written};
use crate::data::DataArea;
use crate::install::{Keep, Staged};

pub use copies::CopyKind;
pub(crate) use copies::own_bases;
pub use read::{BegunRead, Fetched};
pub(crate) use read::{place, places, read_places};

const BLOCK: u32 = BLOCK_SIZE as u32;

pub(crate) type ChunkMap = BTreeMap<ChunkKey, Arc<Chunk>>;

#[derive(Default)]
struct Tables {
    chunks: ChunkMap,
    /// Chunks that may have blocks in memory.
    dirty: BTreeSet<ChunkKey>,
    /// A retired space takes no more changes: its blocks are already given back.
    retired: bool,
}

#[derive(Default)]
struct Reclaim {
    /// Ticks of the readers and views at work, with their number.
    pins: BTreeMap<u64, usize>,
    /// Superseded device blocks with the tick of their supersession, in order.
    pending: VecDeque<(u64, u32)>,
}

/// A block in memory that the flusher is to bring to the device.
pub(crate) struct DirtyBlock {
    pub key: ChunkKey,
    pub index: u16,
    pub block: InMemory,
}

impl DirtyBlock {
    /// Whether the log's own write brings it there.
    pub fn has_home(&self) -> bool {
        self.block.home.is_some()
    }
}

/// What changed blocks displaced, counted.
#[derive(Default)]
struct Tally {
    /// Blocks that were no holes before.
    occupied: u64,
    /// Blocks that have left memory.
    in_memory: u64,
    superseded: Vec<u32>,
}

impl Tally {
    fn note(&mut self, displaced: Displaced) {
        self.occupied += u64::from(displaced != Displaced::Nothing);
        self.in_memory += u64::from(matches!(displaced, Displaced::Memory | Displaced::Both(_)));
        match displaced {
            Displaced::Device(block) | Displaced::Both(block) => self.superseded.push(block),
            Displaced::Nothing | Displaced::Memory | Displaced::Lost => {}
        }
    }
}

pub(crate) struct Space {
    pub data: Arc<DataArea>,
    tables: RwLock<Tables>,
    reclaim: Mutex<Reclaim>,
    /// The spaces that its chunks were in before, and until when: readers that were at work there by
    /// then may still read its blocks.
    origins: Vec<(Weak<Space>, u64)>,
    /// Partial writes of damaged blocks since the checkpoint was read, which is itself number 0.
    losses: AtomicU32,
}

/// Keeps superseded blocks of a space from being reused while it lives.
pub(crate) struct Pin {
    pub space: Arc<Space>,
    tick: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut reclaim = self.space.reclaim();
        if let Some(count) = reclaim.pins.get_mut(&self.tick) {
            *count -= 1;
            if *count == 0 {
                reclaim.pins.remove(&self.tick);
            }
        }
    }
}

impl Space {
    pub fn new(data: Arc<DataArea>, chunks: ChunkMap) -> Arc<Self> {
        let live: usize = chunks.values().map(|c| c.len()).sum();
        data.live.fetch_add(live as u64, Ordering::Relaxed);
        let tables = Tables { chunks, ..Tables::default() };
        Arc::new(Self {
            data,
            tables: RwLock::new(tables),
            reclaim: Mutex::default(),
            origins: Vec::new(),
            losses: AtomicU32::default(),
        })
    }

    fn reclaim(&self) -> std::sync::MutexGuard<'_, Reclaim> {
        self.reclaim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables(&self) -> std::sync::RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pin(self: &Arc<Self>) -> Pin {
        let mut reclaim = self.reclaim();
        let tick = self.data.pin_tick();
        *reclaim.pins.entry(tick).or_default() += 1;
        Pin { space: self.clone(), tick }
    }

    /// The tables now. Take a pin (or the checkpoint's tick) first.
    pub fn snapshot(&self) -> ChunkMap {
        self.tables().chunks.clone()
    }

    pub fn place(&self, key: ChunkKey, index: u16) -> Place {
        place(&self.tables().chunks, key, index)
    }

    /// All chunks, in order. None once the space is retired.
    pub fn chunk_keys(&self) -> Option<Vec<ChunkKey>> {
        let tables = self.tables();
        (!tables.retired).then(|| tables.chunks.keys().copied().collect())
    }

    /// Indices of the chunk's blocks that are not in memory and no block of its base, in order: so
    /// that a walk over all chunks meets what copies share once.
    pub fn table_blocks(&self, key: ChunkKey) -> Vec<u16> {
        let tables = self.tables();
        let Some(chunk) = tables.chunks.get(&key) else { return Vec::new() };
        let base = chunk.base().and_then(|volume| tables.chunks.get(&ChunkKey { volume, ..key }));
        let own = |index: &u16| base.is_none_or(|base| !chunk.shares(base, *index));
        chunk.table_blocks().map(|(index, _)| index).filter(own).collect()
    }

    /// Blocks in memory now, in table order.
    pub fn dirty_blocks(&self) -> Vec<DirtyBlock> {
        let mut tables = self.tables_mut();
        let Tables { chunks, dirty, .. } = &mut *tables;
        let mut blocks = Vec::new();
        dirty.retain(|key| {
            let Some(chunk) = chunks.get(key) else { return false };
            blocks.extend(chunk.overlay().map(|(index, block)| DirtyBlock {
                key: *key,
                index,
                block: block.clone(),
            }));
            chunk.has_overlay()
        });
        blocks
    }

    /// Tells the tables where blocks are now. One that changed meanwhile keeps its newer bytes, and
    /// the block that the flusher wrote is superseded at once (one with a home was, by the change).
    pub fn flushed(&self, placed: &[(DirtyBlock, BlockAddr)]) {
        let mut tables = self.tables_mut();
        let mut left_memory = 0;
        let mut superseded = Vec::new();
        for (block, addr) in placed {
            let chunk = tables.chunks.get_mut(&block.key);
            match chunk.filter(|c| c.holds(block.index, &block.block)) {
                Some(chunk) => {
                    Arc::make_mut(chunk).flushed(block.index, *addr);
                    left_memory += 1;
                }
                None if block.has_home() => {}
                None => superseded.push(addr.block),
            }
        }
        // No table got them, which `share_flushed` may have counted on.
        let still_shared = self.supersede(superseded);
        self.data.live.fetch_add(still_shared, Ordering::Relaxed);
        drop(tables);
        self.data.overlay.remove_blocks(left_memory);
    }

    /// Blocks to which one table less refers: those of no other table are free some time. How many
    /// are another's. Called while the tables are locked for writing, so that the tick orders
    /// against pins.
    fn supersede(&self, mut blocks: Vec<u32>) -> u64 {
        let dropped = blocks.len();
        self.data.unshare(&mut blocks);
        let shared = dropped - blocks.len();
        self.queue(blocks);
        shared as u64
    }

    /// Notes when the blocks became unused.
    fn queue(&self, blocks: Vec<u32>) {
        if blocks.is_empty() || planted::has(Bug::LeakBlocks) {
            return;
        }
        if planted::has(Bug::ReuseBlockBeforeCheckpoint) {
            let mut alloc = self.data.alloc.lock().unwrap_or_else(PoisonError::into_inner);
            return blocks.into_iter().for_each(|block| alloc.release(block, Holder::Table));
        }
        self.data.pending.fetch_add(blocks.len() as u64, Ordering::Relaxed);
        let mut reclaim = self.reclaim();
        let now = self.data.now();
        reclaim.pending.extend(blocks.into_iter().map(|block| (now, block)));
    }

    /// Releases superseded blocks that no pin of this space and no checkpoint from `checkpoint`
    /// (a tick) on refers to. Returns how many only pins hold back.
    pub fn release(&self, checkpoint: u64) -> u64 {
        let inherited = self.inherited_pin();
        let mut reclaim = self.reclaim();
        let pins = reclaim.pins.keys().next().copied().into_iter().chain(inherited);
        let oldest = pins.min().unwrap_or(u64::MAX).min(checkpoint);
        let count = reclaim.pending.partition_point(|(tick, _)| *tick < oldest);
        {
            let mut alloc = self.data.alloc.lock().unwrap_or_else(PoisonError::into_inner);
            let released = reclaim.pending.drain(..count);
            released.for_each(|(_, block)| alloc.release(block, Holder::Table));
        }
        self.data.pending.fetch_sub(count as u64, Ordering::Relaxed);
        reclaim.pending.partition_point(|(tick, _)| *tick < checkpoint) as u64
    }

    /// Nothing left to release.
    pub fn is_drained(&self) -> bool {
        self.reclaim().pending.is_empty()
    }

    /// Gives back everything; what pins and the last checkpoint refer to stays until released.
    /// False, without effect, if that was done before.
    pub fn retire(&self) -> bool {
        let mut tables = self.tables_mut();
        if std::mem::replace(&mut tables.retired, true) {
            return false;
        }
        let chunks = std::mem::take(&mut tables.chunks);
        tables.dirty.clear();
        self.forget(chunks.into_values());
        true
    }

    fn forget(&self, chunks: impl Iterator<Item = Arc<Chunk>>) {
        let (mut in_memory, mut all, mut on_device) = (0, 0, Vec::new());
        for chunk in chunks {
            all += chunk.len() as u64;
            in_memory += chunk.overlay().count() as u64;
            on_device.extend(chunk.device_blocks());
        }
        let still_shared = self.supersede(on_device);
        self.data.overlay.remove_blocks(in_memory);
        self.data.live.fetch_sub(all - still_shared, Ordering::Relaxed);
    }

    /// Replaces whole and partial blocks, as the entry at `entry` says. One caller at a time; reads
    /// may go on beside it. A damaged block of which a part is replaced is lost: the log goes on,
    /// and the peers have its bytes.
    pub fn write(
        self: &Arc<Self>,
        entry: u64,
        key: ChunkKey,
        offset: u32,
        data: Bytes,
    ) -> Result<(), StoreError> {
        let end = check_range(offset, data.len() as u64)?;
        let written = Written::at(entry);
        let mut blocks = Vec::with_capacity(data.len() / BLOCK as usize + 2);
        let mut lost = Vec::new();
        let mut at = offset;
        while at < end {
            let index = at / BLOCK;
            let stop = (index + 1).saturating_mul(BLOCK).min(end);
            let piece = data.slice((at - offset) as usize..(stop - offset) as usize);
            let within = (at % BLOCK) as usize;
            at = stop;
            let whole = if piece.len() as u32 == BLOCK {
                piece
            } else {
                match self.read(key, index * BLOCK, BLOCK) {
                    Ok(Some(old)) => {
                        let mut merged = BytesMut::from(&old[..]);
                        merged[within..within + piece.len()].copy_from_slice(&piece);
                        merged.freeze()
                    }
                    // What is retired takes no change.
                    Ok(None) => return Ok(()),
                    Err(error) if error.unreadable_block().is_some() => {
                        tracing::error!(%error, "part of a damaged block is written");
                        lost.push(index as u16);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            };
            blocks.push((index as u16, InMemory { bytes: whole, written, home: None }));
        }
        if let Some(mut tables) = self.changeable() {
            self.put_blocks(&mut tables, entry, key, blocks);
            self.lose_blocks(&mut tables, entry, key, &lost);
        }
        Ok(())
    }

    fn lose_blocks(&self, tables: &mut Tables, entry: u64, key: ChunkKey, lost: &[u16]) {
        let Some(chunk) = tables.chunks.get_mut(&key).filter(|_| !lost.is_empty()) else { return };
        let chunk = Arc::make_mut(chunk);
        chunk.change_at(entry);
        let mut tally = Tally::default();
        for index in lost {
            let loss = self.losses.fetch_add(1, Ordering::Relaxed) + 1;
            let block = TableBlock { addr: BlockAddr::lost(loss), written: Written::at(entry) };
            tally.note(chunk.adopt(*index, block));
        }
        self.settle(lost.len() as u64, tally);
    }

    /// Gives a block other bytes for those that it should have had all along: a repair, or what a
    /// peer sends of a snapshot. When it was written stays `written`.
    pub fn put(&self, key: ChunkKey, first: u16, data: &Bytes, written: &[Written]) {
        let in_memory = |(i, written): (usize, &Written)| {
            let bytes = nth_block(data, i);
            (first + i as u16, InMemory { bytes, written: *written, home: None })
        };
        if let Some(mut tables) = self.changeable() {
            let blocks = written.iter().enumerate().map(in_memory).collect();
            self.put_blocks(&mut tables, 0, key, blocks);
        }
    }

    /// When a block was written last; None if it is a hole.
    pub fn written(&self, key: ChunkKey, index: u16) -> Option<Written> {
        self.tables().chunks.get(&key)?.written(index)
    }

    /// Whether the chunk is here, with what a peer wants to be kept of it.
    pub fn can_keep(&self, key: ChunkKey, changed: u64, keep: &Keep) -> bool {
        let tables = self.tables();
        let chunk = tables.chunks.get(&key);
        match keep {
            Keep::Nothing => true,
            Keep::All => chunk.is_some_and(|chunk| chunk.changed() == changed),
            Keep::Blocks(kept) => chunk.is_some_and(|chunk| kept.iter().all(|i| chunk.has(i))),
        }
    }

    /// Puts an installed snapshot in place. False, without effect, if the space is retired.
    pub fn install(&self, staged: &Staged, applied: u64) -> bool {
        let Some(mut tables) = self.changeable() else { return false };
        let old = std::mem::take(&mut tables.chunks);
        let arrived = std::mem::take(&mut staged.space.tables_mut().chunks);
        let mut tally = Tally::default();
        let merged = staged.merge(old, arrived, applied, |displaced| tally.note(displaced));
        tables.chunks = merged.chunks;
        for (key, taken) in merged.taken {
            self.note_shared(&mut tables, key, &taken);
        }
        self.settle(0, tally);
        true
    }

    /// The tables, unless the space is retired.
    fn changeable(&self) -> Option<RwLockWriteGuard<'_, Tables>> {
        Some(self.tables_mut()).filter(|tables| !tables.retired)
    }

    fn put_blocks(
        &self,
        tables: &mut Tables,
        entry: u64,
        key: ChunkKey,
        blocks: Vec<(u16, InMemory)>,
    ) {
        if blocks.is_empty() {
            return;
        }
        tables.dirty.insert(key);
        let chunk = Arc::make_mut(tables.chunks.entry(key).or_default());
        chunk.change_at(entry);
        let count = blocks.len() as u64;
        let mut tally = Tally::default();
        blocks.into_iter().for_each(|(index, block)| tally.note(chunk.write(index, block)));
        self.data.overlay.add_blocks(count);
        self.settle(count, tally);
    }

    /// Accounts for `count` blocks that hold data now.
    fn settle(&self, count: u64, tally: Tally) {
        let still_shared = self.supersede(tally.superseded);
        self.data.live.fetch_add(count, Ordering::Relaxed);
        self.data.live.fetch_sub(tally.occupied - still_shared, Ordering::Relaxed);
        self.data.overlay.remove_blocks(tally.in_memory);
    }

    /// Makes the chunk's blocks from `first` on those that the log wrote; `payload` has their
    /// bytes if that write may not have reached the device yet. False, without effect, if a table
    /// has had one of the blocks since the last checkpoint: the entry is applied a second time.
    pub fn adopt(
        &self,
        entry: u64,
        key: ChunkKey,
        first: u16,
        blocks: &[BlockAddr],
        payload: Option<&Bytes>,
    ) -> bool {
        let Some(mut tables) = self.changeable() else { return true };
        if !self.claim(blocks) {
            return false;
        }
        let written = Written::at(entry);
        if let Some(payload) = payload {
            let landing = blocks.iter().enumerate().map(|(i, addr)| {
                let bytes = nth_block(payload, i);
                (first + i as u16, InMemory { bytes, written, home: Some(*addr) })
            });
            self.put_blocks(&mut tables, entry, key, landing.collect());
            return true;
        }
        let chunk = Arc::make_mut(tables.chunks.entry(key).or_default());
        chunk.change_at(entry);
        let mut tally = Tally::default();
        for (index, addr) in (first..).zip(blocks) {
            tally.note(chunk.adopt(index, TableBlock { addr: *addr, written }));
        }
        self.settle(blocks.len() as u64, tally);
        true
    }

    /// Takes all of the blocks for the tables, or none.
    fn claim(&self, blocks: &[BlockAddr]) -> bool {
        let mut alloc = self.data.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = blocks.iter().take_while(|addr| alloc.claim(addr.block, Holder::Table)).count();
        let whole = taken == blocks.len();
        if !whole {
            blocks[..taken].iter().for_each(|addr| alloc.release(addr.block, Holder::Table));
        }
        whole
    }

    /// Makes the range read as zeroes: whole blocks become holes, partial ones are rewritten.
    pub fn write_zeroes(
        self: &Arc<Self>,
        entry: u64,
        key: ChunkKey,
        offset: u32,
        len: u32,
    ) -> Result<(), StoreError> {
        let end = check_range(offset, u64::from(len))?;
        let (first, last) = whole_blocks(offset, end);
        if first >= last {
            return self.zero_bytes(entry, key, offset..end);
        }
        self.zero_bytes(entry, key, offset..first * BLOCK)?;
        self.punch(entry, key, first..last);
        self.zero_bytes(entry, key, last * BLOCK..end)
    }

    /// Writes zeroes into blocks that are not holes already.
    fn zero_bytes(
        self: &Arc<Self>,
        entry: u64,
        key: ChunkKey,
        Range { start: from, end: to }: Range<u32>,
    ) -> Result<(), StoreError> {
        let mut at = from;
        while at < to {
            let stop = ((at / BLOCK + 1) * BLOCK).min(to);
            let occupied = {
                let tables = self.tables();
                tables.chunks.get(&key).is_some_and(|c| c.has((at / BLOCK) as u16))
            };
            if occupied {
                self.write(entry, key, at, Bytes::from(vec![0; (stop - at) as usize]))?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Frees the whole blocks of the range.
    pub fn discard(
        &self,
        entry: u64,
        key: ChunkKey,
        offset: u32,
        len: u32,
    ) -> Result<(), StoreError> {
        let end = check_range(offset, u64::from(len))?;
        let (first, last) = whole_blocks(offset, end);
        if first < last {
            self.punch(entry, key, first..last);
        }
        Ok(())
    }

    fn punch(&self, entry: u64, key: ChunkKey, blocks: Range<u32>) {
        let mut tables = self.tables_mut();
        let Some(shared) = tables.chunks.get_mut(&key) else { return };
        let chunk = Arc::make_mut(shared);
        chunk.change_at(entry);
        let mut tally = Tally::default();
        blocks.for_each(|index| tally.note(chunk.clear(index as u16)));
        let (is_empty, base) = (chunk.is_empty(), chunk.base());
        if is_empty {
            tables.chunks.remove(&key);
            self.orphan(&mut tables, key, base);
        }
        self.settle(0, tally);
    }
}

fn nth_block(data: &Bytes, n: usize) -> Bytes {
    data.slice(n * BLOCK as usize..(n + 1) * BLOCK as usize)
}

/// The end of a range that lies within a chunk.
pub(crate) fn check_range(offset: u32, len: u64) -> Result<u32, StoreError> {
    let end = u64::from(offset) + len;
    match end <= CHUNK_SIZE {
        true => Ok(end as u32),
        false => {
            Err(StoreError::invalid(format!("bytes {offset}..{end} reach past a chunk's end")))
        }
    }
}

/// First and one past the last block that lie wholly in the range.
fn whole_blocks(offset: u32, end: u32) -> (u32, u32) {
    (offset.div_ceil(BLOCK), end / BLOCK)
}

#[cfg(test)]
mod tests {
    use curve_types::{ChunkIndex, VolumeId};

    use super::*;
    use crate::SimDisk;
    use crate::alloc::Allocator;
    use crate::data::Overlay;
    use crate::health::Device;

    const BLOCKS: u32 = 8;

    fn space() -> Arc<Space> {
        let device = Arc::new(Device::new(Arc::new(SimDisk::new(1 << 20))));
        let overlay = Overlay::new(1 << 20);
        let data = DataArea::new(device, 0, Allocator::new(BLOCKS), overlay, u64::from(BLOCKS));
        Space::new(Arc::new(data), ChunkMap::new())
    }

    /// One block written and put on the device, as the flusher does it.
    fn write_flushed(space: &Arc<Space>, key: ChunkKey, byte: u8) {
        space.write(1, key, 0, Bytes::from(vec![byte; BLOCK as usize])).expect("write");
        let dirty = space.dirty_blocks();
        let bytes: Vec<Bytes> = dirty.iter().map(|dirty| dirty.block.bytes.clone()).collect();
        let mut places = Vec::new();
        space.data.write(&bytes, |_, addr| places.push(addr)).expect("room");
        let placed: Vec<_> = dirty.into_iter().zip(places).collect();
        space.flushed(&placed);
    }

    /// A block superseded while a checkpoint is being written is in that checkpoint's tables: were
    /// it reused before the next one holds, a recovery would read another block's bytes.
    #[test]
    fn a_block_is_reused_only_after_no_checkpoint_and_no_pin_refers_to_it() {
        let space = space();
        let key = ChunkKey { volume: VolumeId::from_bytes([1; 16]), index: ChunkIndex(0) };
        let free = || space.data.free_blocks();
        write_flushed(&space, key, 1);
        let first = space.data.pin_tick();
        write_flushed(&space, key, 2);
        assert_eq!(space.release(first), 0);
        assert_eq!(free(), u64::from(BLOCKS) - 2, "the first checkpoint shows the old block");

        let reader = space.pin();
        write_flushed(&space, key, 3);
        let second = space.data.pin_tick();
        assert_eq!(space.release(second), 1, "the reader alone holds one back");
        assert_eq!(free(), u64::from(BLOCKS) - 2, "one is released, one is the reader's");
        drop(reader);
        assert_eq!(space.release(second), 0);
        assert_eq!(free(), u64::from(BLOCKS) - 1);
        assert!(space.is_drained());
    }

    #[test]
    fn a_retired_space_answers_no_read_and_what_was_pinned_before_still_does() {
        let space = space();
        let key = ChunkKey { volume: VolumeId::from_bytes([1; 16]), index: ChunkIndex(0) };
        write_flushed(&space, key, 7);
        let (pin, chunks) = (space.pin(), space.snapshot());
        space.retire();
        assert_eq!(space.read(key, 0, BLOCK).expect("no disk error"), None);
        space.write(1, key, 10, Bytes::from_static(b"part of a block")).expect("ignored");
        space.release(space.data.pin_tick());
        let found = chunks.get(&key).map(|chunk| places(chunk, 0, BLOCK));
        let bytes = read_places(&pin.space.data, found, key, 0, BLOCK).expect("read");
        assert!(bytes.iter().all(|byte| *byte == 7));
        assert!(!space.is_drained(), "the pin holds the block back");
    }
}
