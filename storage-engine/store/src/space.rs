//! The chunk space of one group: its tables, the blocks it displaced, and who still needs them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use curve_types::{BLOCK_SIZE, CHUNK_SIZE, ChunkIndex, ChunkKey, VolumeId};

use crate::StoreError;
use crate::aligned::AlignedBuf;
use crate::chunk::{Chunk, Displaced, Place};
use crate::codec::crc32c;
use crate::data::DataArea;

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

/// A block in memory that the flusher is to write.
pub(crate) struct DirtyBlock {
    pub key: ChunkKey,
    pub index: u16,
    pub bytes: Bytes,
}

pub(crate) struct Space {
    pub data: Arc<DataArea>,
    tables: RwLock<Tables>,
    reclaim: Mutex<Reclaim>,
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
        Arc::new(Self { data, tables: RwLock::new(tables), reclaim: Mutex::default() })
    }

    fn reclaim(&self) -> std::sync::MutexGuard<'_, Reclaim> {
        self.reclaim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables(&self) -> std::sync::RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables_mut(&self) -> std::sync::RwLockWriteGuard<'_, Tables> {
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

    /// Blocks in memory now, in table order.
    pub fn dirty_blocks(&self) -> Vec<DirtyBlock> {
        let mut tables = self.tables_mut();
        let Tables { chunks, dirty, .. } = &mut *tables;
        let mut blocks = Vec::new();
        dirty.retain(|key| {
            let Some(chunk) = chunks.get(key) else { return false };
            blocks.extend(chunk.overlay().map(|(index, bytes)| DirtyBlock {
                key: *key,
                index,
                bytes: bytes.clone(),
            }));
            chunk.has_overlay()
        });
        blocks
    }

    /// Tells the tables where the flusher put blocks. One that changed meanwhile keeps its newer
    /// bytes, and the written block is superseded at once.
    pub fn flushed(&self, placed: &[(DirtyBlock, crate::chunk::BlockAddr)]) {
        let mut tables = self.tables_mut();
        let mut left_memory = 0;
        let mut superseded = Vec::new();
        for (block, addr) in placed {
            let chunk = tables.chunks.get_mut(&block.key);
            match chunk.filter(|c| c.holds(block.index, &block.bytes)) {
                Some(chunk) => {
                    Arc::make_mut(chunk).flushed(block.index, *addr);
                    left_memory += 1;
                }
                None => superseded.push(addr.block),
            }
        }
        self.supersede(superseded);
        drop(tables);
        self.data.overlay.remove_blocks(left_memory);
    }

    /// Called while the tables are locked for writing, so that the tick orders against pins.
    fn supersede(&self, blocks: Vec<u32>) {
        if blocks.is_empty() {
            return;
        }
        self.data.pending.fetch_add(blocks.len() as u64, Ordering::Relaxed);
        let mut reclaim = self.reclaim();
        let now = self.data.now();
        reclaim.pending.extend(blocks.into_iter().map(|block| (now, block)));
    }

    /// Releases superseded blocks that no pin of this space and no checkpoint from `checkpoint`
    /// (a tick) on refers to. Returns how many only pins hold back.
    pub fn release(&self, checkpoint: u64) -> u64 {
        let mut reclaim = self.reclaim();
        let oldest = reclaim.pins.keys().next().copied().unwrap_or(u64::MAX).min(checkpoint);
        let count = reclaim.pending.partition_point(|(tick, _)| *tick < oldest);
        {
            let mut alloc = self.data.alloc.lock().unwrap_or_else(PoisonError::into_inner);
            reclaim.pending.drain(..count).for_each(|(_, block)| alloc.release(block));
        }
        self.data.pending.fetch_sub(count as u64, Ordering::Relaxed);
        reclaim.pending.partition_point(|(tick, _)| *tick < checkpoint) as u64
    }

    /// Nothing left to release.
    pub fn is_drained(&self) -> bool {
        self.reclaim().pending.is_empty()
    }

    /// Gives back everything; what pins and the last checkpoint refer to stays until released.
    pub fn retire(&self) {
        let mut tables = self.tables_mut();
        let chunks = std::mem::take(&mut tables.chunks);
        tables.dirty.clear();
        tables.retired = true;
        self.forget(chunks.into_values());
    }

    fn forget(&self, chunks: impl Iterator<Item = Arc<Chunk>>) {
        let (mut in_memory, mut all, mut on_device) = (0, 0, Vec::new());
        for chunk in chunks {
            all += chunk.len() as u64;
            in_memory += chunk.overlay().count() as u64;
            on_device.extend(chunk.device_blocks().map(|(_, addr)| addr.block));
        }
        self.supersede(on_device);
        self.data.overlay.remove_blocks(in_memory);
        self.data.live.fetch_sub(all, Ordering::Relaxed);
    }

    /// Replaces whole and partial blocks. One caller at a time; reads may go on beside it.
    pub fn write(
        self: &Arc<Self>,
        key: ChunkKey,
        offset: u32,
        data: Bytes,
    ) -> Result<(), StoreError> {
        let end = check_range(offset, data.len() as u64)?;
        let mut blocks = Vec::with_capacity(data.len() / BLOCK as usize + 2);
        let mut at = offset;
        while at < end {
            let index = at / BLOCK;
            let stop = (index + 1).saturating_mul(BLOCK).min(end);
            let piece = data.slice((at - offset) as usize..(stop - offset) as usize);
            let whole = match stop - at == BLOCK {
                true => piece,
                false => {
                    // What is retired takes no change.
                    let Some(old) = self.read(key, index * BLOCK, BLOCK)? else { return Ok(()) };
                    let mut merged = BytesMut::from(&old[..]);
                    let within = (at % BLOCK) as usize;
                    merged[within..within + piece.len()].copy_from_slice(&piece);
                    merged.freeze()
                }
            };
            blocks.push((index as u16, whole));
            at = stop;
        }
        self.put_blocks(key, blocks);
        Ok(())
    }

    fn put_blocks(&self, key: ChunkKey, blocks: Vec<(u16, Bytes)>) {
        if blocks.is_empty() {
            return;
        }
        let mut tables = self.tables_mut();
        if tables.retired {
            return;
        }
        tables.dirty.insert(key);
        let chunk = Arc::make_mut(tables.chunks.entry(key).or_default());
        let mut superseded = Vec::new();
        for (index, bytes) in blocks {
            match chunk.write(index, bytes) {
                Displaced::Memory => {}
                Displaced::Nothing => {
                    self.data.live.fetch_add(1, Ordering::Relaxed);
                    self.data.overlay.add_block();
                }
                Displaced::Device(block) => {
                    superseded.push(block);
                    self.data.overlay.add_block();
                }
            }
        }
        self.supersede(superseded);
    }

    /// Makes the range read as zeroes: whole blocks become holes, partial ones are rewritten.
    pub fn write_zeroes(
        self: &Arc<Self>,
        key: ChunkKey,
        offset: u32,
        len: u32,
    ) -> Result<(), StoreError> {
        let end = check_range(offset, u64::from(len))?;
        let (first, last) = whole_blocks(offset, end);
        if first >= last {
            return self.zero_bytes(key, offset, end);
        }
        self.zero_bytes(key, offset, first * BLOCK)?;
        self.punch(key, first..last);
        self.zero_bytes(key, last * BLOCK, end)
    }

    /// Writes zeroes into blocks that are not holes already.
    fn zero_bytes(self: &Arc<Self>, key: ChunkKey, from: u32, to: u32) -> Result<(), StoreError> {
        let mut at = from;
        while at < to {
            let stop = ((at / BLOCK + 1) * BLOCK).min(to);
            let occupied = {
                let tables = self.tables();
                tables.chunks.get(&key).is_some_and(|c| c.has((at / BLOCK) as u16))
            };
            if occupied {
                self.write(key, at, Bytes::from(vec![0; (stop - at) as usize]))?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Frees the whole blocks of the range.
    pub fn discard(&self, key: ChunkKey, offset: u32, len: u32) -> Result<(), StoreError> {
        let end = check_range(offset, u64::from(len))?;
        let (first, last) = whole_blocks(offset, end);
        if first < last {
            self.punch(key, first..last);
        }
        Ok(())
    }

    fn punch(&self, key: ChunkKey, blocks: Range<u32>) {
        let mut tables = self.tables_mut();
        let Some(shared) = tables.chunks.get_mut(&key) else { return };
        let chunk = Arc::make_mut(shared);
        let (mut superseded, mut in_memory) = (Vec::new(), 0);
        for index in blocks {
            match chunk.clear(index as u16) {
                Displaced::Nothing => {}
                Displaced::Memory => in_memory += 1,
                Displaced::Device(block) => superseded.push(block),
            }
        }
        let cleared = in_memory + superseded.len() as u64;
        if chunk.is_empty() {
            tables.chunks.remove(&key);
        }
        self.supersede(superseded);
        drop(tables);
        self.data.live.fetch_sub(cleared, Ordering::Relaxed);
        self.data.overlay.remove_blocks(in_memory);
    }

    pub fn delete_volume(&self, volume: VolumeId) {
        let first = ChunkKey { volume, index: ChunkIndex(0) };
        let last = ChunkKey { volume, index: ChunkIndex(u32::MAX) };
        let mut tables = self.tables_mut();
        let keys: Vec<ChunkKey> = tables.chunks.range(first..=last).map(|(key, _)| *key).collect();
        let chunks: Vec<Arc<Chunk>> =
            keys.iter().filter_map(|key| tables.chunks.remove(key)).collect();
        self.forget(chunks.into_iter());
    }

    /// None once the space is retired: its tables are empty, which does not mean zeroes.
    pub fn read(
        self: &Arc<Self>,
        key: ChunkKey,
        offset: u32,
        len: u32,
    ) -> Result<Option<Bytes>, StoreError> {
        check_range(offset, u64::from(len))?;
        let pin = self.pin();
        let places = {
            let tables = self.tables();
            if tables.retired {
                return Ok(None);
            }
            // Places, not the chunk: holding the chunk would make a writer beside us copy it.
            tables.chunks.get(&key).map(|chunk| places(chunk, offset, len))
        };
        let result = read_places(&self.data, places, key, offset, len);
        drop(pin);
        result.map(Some)
    }
}

/// Where the blocks that `offset..offset + len` touches are.
pub(crate) fn places(chunk: &Chunk, offset: u32, len: u32) -> Vec<Place> {
    (offset / BLOCK..(offset + len).div_ceil(BLOCK)).map(|i| chunk.place(i as u16)).collect()
}

/// Reads bytes of one chunk (None: all holes). Whoever looked up the places still holds the pin.
pub(crate) fn read_places(
    data: &DataArea,
    places: Option<Vec<Place>>,
    key: ChunkKey,
    offset: u32,
    len: u32,
) -> Result<Bytes, StoreError> {
    let Some(places) = places.filter(|_| len > 0) else {
        return Ok(Bytes::from(vec![0; len as usize]));
    };
    let within = (offset % BLOCK) as usize..(offset % BLOCK + len) as usize;
    if let [Place::Memory(bytes)] = &places[..] {
        return Ok(bytes.slice(within));
    }
    let mut buf = AlignedBuf::take(places.len() * BLOCK as usize);
    let mut at = 0;
    while at < places.len() {
        let target = &mut buf[at * BLOCK as usize..];
        let run = match &places[at] {
            Place::Hole => {
                target[..BLOCK as usize].fill(0);
                1
            }
            Place::Memory(bytes) => {
                target[..BLOCK as usize].copy_from_slice(bytes);
                1
            }
            Place::Device(addr) => {
                let run = run_len(&places[at..], addr.block);
                data.read(addr.block, &mut target[..run * BLOCK as usize])?;
                verify(&places[at..at + run], target, key, offset / BLOCK + at as u32)?;
                run
            }
        };
        at += run;
    }
    Ok(Bytes::from_owner(buf).slice(within))
}

/// Blocks at the front of `places` that lie one after another on the device.
fn run_len(places: &[Place], start: u32) -> usize {
    let next = |(i, place): &(usize, &Place)| matches!(place, Place::Device(a) if a.block as usize == start as usize + i);
    places.iter().enumerate().take_while(next).count()
}

fn verify(places: &[Place], bytes: &[u8], key: ChunkKey, first: u32) -> Result<(), StoreError> {
    for (i, (place, block)) in places.iter().zip(bytes.chunks_exact(BLOCK as usize)).enumerate() {
        if let Place::Device(addr) = place
            && crc32c(block) != addr.crc
        {
            let block = first + i as u32;
            return Err(StoreError::BadBlock { key, block, device_block: addr.block });
        }
    }
    Ok(())
}

/// The end of a range that lies within a chunk.
fn check_range(offset: u32, len: u64) -> Result<u32, StoreError> {
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
        space.write(key, 0, Bytes::from(vec![byte; BLOCK as usize])).expect("write");
        let dirty = space.dirty_blocks();
        let bytes: Vec<Bytes> = dirty.iter().map(|block| block.bytes.clone()).collect();
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
        space.write(key, 10, Bytes::from_static(b"part of a block")).expect("ignored");
        space.release(space.data.pin_tick());
        let found = chunks.get(&key).map(|chunk| places(chunk, 0, BLOCK));
        let bytes = read_places(&pin.space.data, found, key, 0, BLOCK).expect("read");
        assert!(bytes.iter().all(|byte| *byte == 7));
        assert!(!space.is_drained(), "the pin holds the block back");
    }
}
