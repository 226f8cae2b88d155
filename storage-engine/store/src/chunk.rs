//! The table of one chunk: for each 4 KiB block where it is, on the device or still in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use curve_types::{BLOCKS_PER_CHUNK, VolumeId};

use crate::BlockSet;

const BLOCKS: usize = BLOCKS_PER_CHUNK as usize;
/// Blocks from which a full array is shorter than a sorted list.
const DENSE_FROM: usize = 512;

/// A block on the device with the checksum of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockAddr {
    /// Number within the data area.
    pub block: u32,
    pub crc: u32,
}

/// Never block numbers: the data area is smaller.
const NO_BLOCK: u32 = u32::MAX;
const LOST: u32 = u32::MAX - 1;
const VACANT: TableBlock =
    TableBlock { addr: BlockAddr { block: NO_BLOCK, crc: 0 }, written: Written(0) };

impl BlockAddr {
    /// Of a block that was damaged when part of it was written: this replica does not know its
    /// bytes any more. `loss` tells one such write from the next; 0 is any before the checkpoint.
    pub fn lost(loss: u32) -> Self {
        Self { block: LOST, crc: loss }
    }

    /// As a checkpoint has it.
    pub fn stored(self) -> Self {
        if self.is_lost() { Self::lost(0) } else { self }
    }

    /// Whether no block of the device belongs to it.
    pub fn is_lost(self) -> bool {
        self.block == LOST
    }
}

/// When a block was written last: the log index in units of 64, rounded down, so that four bytes
/// last for 2^38 entries. From there on it says nothing any more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Written(pub u32);

impl Written {
    /// Of a block of which that is not known.
    pub const UNKNOWN: Self = Self(u32::MAX);

    pub fn at(index: u64) -> Self {
        Self(u32::try_from(index / 64).unwrap_or(u32::MAX))
    }

    /// Whether it may have been by an entry after `index`.
    pub fn is_after(self, index: u64) -> bool {
        self == Self::UNKNOWN || u64::from(self.0) >= index / 64
    }
}

/// A block that is not in memory, as a table has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TableBlock {
    pub addr: BlockAddr,
    pub written: Written,
}

impl TableBlock {
    /// In a checkpoint's list of changes.
    pub const HOLE: Self = VACANT;

    /// As a checkpoint has it.
    pub fn stored(self) -> Self {
        Self { addr: self.addr.stored(), ..self }
    }
}

/// A block that is applied and must still be read from memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InMemory {
    /// Always 4096.
    pub bytes: Bytes,
    pub written: Written,
    /// Where the log's write of these bytes puts them. None if the flusher is to find a place.
    pub home: Option<BlockAddr>,
}

impl InMemory {
    fn displaced(self) -> Displaced {
        match self.home {
            None => Displaced::Memory,
            Some(home) => Displaced::Both(home.block),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Table {
    Sparse(Vec<(u16, TableBlock)>),
    Dense { slots: Box<[TableBlock; BLOCKS]>, count: usize },
}

/// Where one block of a chunk is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Hole,
    /// Applied, and not known to be on the device; always 4096 bytes.
    Memory(Bytes),
    Device(BlockAddr),
    /// Its peers know it; see `BlockAddr::lost`.
    Lost(BlockAddr),
}

/// A block is in at most one of the two maps. Cloned on write while a view or a checkpoint holds
/// the same chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chunk {
    overlay: BTreeMap<u16, InMemory>,
    /// One table for a chunk and its copies, as long as they are the same.
    table: Arc<Table>,
    /// Index of the last entry that changed any of it, holes made included.
    changed: u64,
    /// Index of the entry that made it as a copy of another; 0 if none did. What it got with that
    /// counts as written by that entry.
    born: u64,
    /// The volume whose chunk of the same index it is probably most alike: it was copied from that,
    /// or that was copied from what it was. Never itself or one that leads back to it.
    base: Option<VolumeId>,
}

/// What a chunk took over from its base, counted.
#[derive(Default)]
pub(crate) struct Taken {
    pub blocks: u64,
    /// Blocks of the device that it refers to now.
    pub device: Vec<u32>,
    /// Indices of those that are in memory.
    pub in_memory: Vec<u16>,
}

/// What a change displaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Displaced {
    Nothing,
    Memory,
    Device(u32),
    /// In memory, with a place on the device that was its own.
    Both(u32),
    Lost,
}

impl Default for Chunk {
    fn default() -> Self {
        let table = Arc::new(Table::Sparse(Vec::new()));
        Self { overlay: BTreeMap::new(), table, changed: 0, born: 0, base: None }
    }
}

impl Chunk {
    /// What the entry at `index` makes of it under the name of another volume; this is the one of
    /// `own`.
    pub fn copied(&self, index: u64, own: VolumeId) -> Self {
        Self { changed: index, born: index, base: Some(own), ..self.clone() }
    }

    /// A copy as a checkpoint has it: the table of `other`, if it is given.
    pub fn restored(other: Option<&Self>, born: u64, base: Option<VolumeId>) -> Self {
        let blank = Self::default();
        let table = other.map_or(blank.table, |other| other.table.clone());
        Self { table, born, base, ..Self::default() }
    }

    pub fn born(&self) -> u64 {
        self.born
    }

    pub fn base(&self) -> Option<VolumeId> {
        self.base
    }

    /// Makes it the copy that it is on the replica that it came from.
    pub fn become_copy(&mut self, born: u64, base: Option<VolumeId>) {
        (self.born, self.base) = (born, base);
        if born == 0 {
            return;
        }
        // As on the other replica it need not be known what is written by the copying: so the tables
        // of copies are alike again.
        let birth = Written::at(born);
        let inherited =
            |(index, block): (u16, TableBlock)| (block.written <= birth).then_some(index);
        let indices: Vec<u16> = self.table_blocks().filter_map(inherited).collect();
        for index in indices {
            if let Some(block) = self.device(index) {
                self.set_device(index, TableBlock { written: Written(0), ..block });
            }
        }
    }

    /// Whether a block that `other` has is this one's too, in the same place.
    pub fn shares(&self, other: &Self, index: u16) -> bool {
        match (self.overlay.get(&index), self.device(index)) {
            (Some(block), _) => other.holds(index, block),
            (None, Some(block)) => {
                !block.addr.is_lost()
                    && !other.overlay.contains_key(&index)
                    && other.device(index).is_some_and(|there| there.addr == block.addr)
            }
            (None, None) => false,
        }
    }

    /// Takes the blocks that it does not have from `base`. What that does not have is lost: whoever
    /// said that it is there was wrong, and the peers know better.
    pub fn take_shared(&mut self, base: Option<&Self>, blocks: &BlockSet) -> Taken {
        if let Some(base) = base.filter(|base| self.is_like(base, blocks)) {
            // One table for all, as on the replica that it came from.
            self.table = base.table.clone();
            return self.taken();
        }
        let mut taken = Taken::default();
        for index in blocks.iter() {
            if self.has(index) {
                continue;
            }
            taken.blocks += 1;
            let in_memory = base.and_then(|base| base.overlay.get(&index));
            if let Some(block) = in_memory {
                taken.in_memory.push(index);
                taken.device.extend(block.home.map(|home| home.block));
                self.overlay.insert(index, InMemory { written: Written(0), ..block.clone() });
                continue;
            }
            let there = base.and_then(|base| base.device(index)).map(|block| block.addr);
            let addr = there.unwrap_or(BlockAddr::lost(0));
            if !addr.is_lost() {
                taken.device.push(addr.block);
            }
            self.set_device(index, TableBlock { addr, written: Written(0) });
        }
        taken
    }

    /// All that it refers to, for one that has taken all over.
    pub fn taken(&self) -> Taken {
        Taken {
            blocks: self.len() as u64,
            device: self.device_blocks().collect(),
            in_memory: self.overlay.keys().copied().collect(),
        }
    }

    /// Whether with these blocks of `base`, which it lacks, it is what a copy of `base` would be.
    fn is_like(&self, base: &Self, blocks: &BlockSet) -> bool {
        let birth = Written::at(self.born);
        let is_taken = |(index, block): (u16, TableBlock)| {
            blocks.has(index) && !block.addr.is_lost() && block.written <= birth
        };
        self.is_empty()
            && !base.has_overlay()
            && base.len() == blocks.iter().count()
            && base.table_blocks().all(is_taken)
    }

    pub fn in_memory(&self, index: u16) -> Option<&InMemory> {
        self.overlay.get(&index)
    }

    pub fn set_base(&mut self, base: Option<VolumeId>) {
        self.base = base;
    }

    /// Blocks of the device that it refers to, those included whose bytes are still on their way.
    pub fn device_blocks(&self) -> impl Iterator<Item = u32> {
        let homes = self.overlay.values().filter_map(|block| block.home);
        let addrs = self.table_blocks().map(|(_, block)| block.addr);
        homes.chain(addrs.filter(|addr| !addr.is_lost())).map(|addr| addr.block)
    }

    /// What is not in memory and is not what a copy of `other` would have, by index; None for a
    /// hole.
    pub fn table_changes(&self, other: &Self) -> Vec<(u16, Option<TableBlock>)> {
        if Arc::ptr_eq(&self.table, &other.table) {
            return Vec::new();
        }
        let (mut own, mut others) =
            (self.table_blocks().peekable(), other.table_blocks().peekable());
        let birth = Written::at(self.born);
        let as_copied = |block: TableBlock| (block.addr.stored(), block.written.max(birth));
        let mut changes = Vec::new();
        loop {
            let next = own.peek().into_iter().chain(others.peek()).map(|(index, _)| *index).min();
            let Some(index) = next else { return changes };
            let here = own.next_if(|(at, _)| *at == index).map(|(_, block)| block);
            let there = others.next_if(|(at, _)| *at == index).map(|(_, block)| block);
            if here.map(as_copied) != there.map(as_copied) {
                changes.push((index, here));
            }
        }
    }

    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// Notes that the entry at `index` changes it.
    pub fn change_at(&mut self, index: u64) {
        self.changed = self.changed.max(index);
    }

    pub fn len(&self) -> usize {
        let on_device = match &*self.table {
            Table::Sparse(list) => list.len(),
            Table::Dense { count, .. } => *count,
        };
        on_device + self.overlay.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn has_overlay(&self) -> bool {
        !self.overlay.is_empty()
    }

    pub fn overlay(&self) -> impl Iterator<Item = (u16, &InMemory)> {
        self.overlay.iter().map(|(i, b)| (*i, b))
    }

    pub fn place(&self, index: u16) -> Place {
        match self.overlay.get(&index) {
            Some(block) => Place::Memory(block.bytes.clone()),
            None => match self.device(index) {
                None => Place::Hole,
                Some(TableBlock { addr, .. }) if addr.is_lost() => Place::Lost(addr),
                Some(TableBlock { addr, .. }) => Place::Device(addr),
            },
        }
    }

    pub fn has(&self, index: u16) -> bool {
        self.overlay.contains_key(&index) || self.device(index).is_some()
    }

    /// When the block was written last; None if it is a hole.
    pub fn written(&self, index: u16) -> Option<Written> {
        let in_memory = self.overlay.get(&index).map(|block| block.written);
        let written = in_memory.or_else(|| Some(self.device(index)?.written))?;
        Some(written.max(Written::at(self.born)))
    }

    /// Every block that is not in memory, by index: on the device, or lost.
    pub fn table_blocks(&self) -> impl Iterator<Item = (u16, TableBlock)> + '_ {
        // One of the two is empty: a checkpoint looks at every block, too often for a `dyn`.
        let (list, slots): (&[_], &[_]) = match &*self.table {
            Table::Sparse(list) => (list, &[]),
            Table::Dense { slots, .. } => (&[], &**slots),
        };
        let slots = slots.iter().enumerate().filter(|(_, block)| **block != VACANT);
        list.iter().copied().chain(slots.map(|(index, block)| (index as u16, *block)))
    }

    /// Indices of blocks that are not holes, in order.
    pub fn occupied(&self) -> Vec<u16> {
        let mut all: Vec<u16> =
            self.table_blocks().map(|(i, _)| i).chain(self.overlay.keys().copied()).collect();
        all.sort_unstable();
        all
    }

    /// The checksum of every block that is not a hole, by index; None of one that is lost. `crc` makes
    /// that of a block in memory that has none yet.
    pub fn checksums(&self, crc: impl Fn(&[u8]) -> u32) -> Vec<(u16, Option<u32>)> {
        let of_memory = |(index, block): (&u16, &InMemory)| {
            (*index, Some(block.home.map_or_else(|| crc(&block.bytes), |home| home.crc)))
        };
        let of_table = |(index, block): (u16, TableBlock)| {
            (index, (!block.addr.is_lost()).then_some(block.addr.crc))
        };
        let mut all: Vec<_> = self.table_blocks().map(of_table).collect();
        if !self.overlay.is_empty() {
            all.extend(self.overlay.iter().map(of_memory));
            all.sort_unstable_by_key(|(index, _)| *index);
        }
        all
    }

    /// Puts a block into memory.
    pub fn write(&mut self, index: u16, block: InMemory) -> Displaced {
        debug_assert_eq!(block.bytes.len() as u64, curve_types::BLOCK_SIZE);
        match self.overlay.insert(index, block) {
            Some(old) => old.displaced(),
            None => self.remove_device(index),
        }
    }

    /// Makes a block one that is on the device, or lost.
    pub fn adopt(&mut self, index: u16, block: TableBlock) -> Displaced {
        let displaced = self.clear(index);
        self.set_device(index, block);
        displaced
    }

    /// Takes over from `old`, which it replaces, those blocks of which `keeps` says so and that it
    /// does not have itself. What happens to all others of `old` is told to `displaced`.
    pub fn keep_from(
        &mut self,
        old: &Self,
        keeps: impl Fn(u16) -> bool,
        mut displaced: impl FnMut(Displaced),
    ) {
        let stays = |new: &Self, index: u16| keeps(index) && !new.has(index);
        let born = Written::at(old.born);
        for (index, block) in old.table_blocks() {
            match stays(self, index) {
                true => {
                    let written = block.written.max(born);
                    self.set_device(index, TableBlock { written, ..block });
                }
                false if block.addr.is_lost() => displaced(Displaced::Lost),
                false => displaced(Displaced::Device(block.addr.block)),
            }
        }
        for (index, block) in &old.overlay {
            match stays(self, *index) {
                true => {
                    let written = block.written.max(born);
                    self.overlay.insert(*index, InMemory { written, ..block.clone() });
                }
                false => displaced(block.clone().displaced()),
            }
        }
    }

    /// Makes a block a hole.
    pub fn clear(&mut self, index: u16) -> Displaced {
        match self.overlay.remove(&index) {
            Some(old) => old.displaced(),
            None => self.remove_device(index),
        }
    }

    /// Whether the block in memory is still these very bytes, with the same home.
    pub fn holds(&self, index: u16, block: &InMemory) -> bool {
        let same = |held: &InMemory| {
            held.bytes.as_ptr() == block.bytes.as_ptr() && held.home == block.home
        };
        self.overlay.get(&index).is_some_and(same)
    }

    /// The block in memory is now at `addr`.
    pub fn flushed(&mut self, index: u16, addr: BlockAddr) {
        if let Some(InMemory { written, .. }) = self.overlay.remove(&index) {
            self.set_device(index, TableBlock { addr, written });
        }
    }

    /// The whole table of a chunk that has none yet. Each index appears once.
    pub fn fill(&mut self, mut blocks: Vec<(u16, TableBlock)>) {
        let table = if blocks.len() >= DENSE_FROM {
            dense(&blocks)
        } else {
            blocks.sort_unstable_by_key(|(index, _)| *index);
            Table::Sparse(blocks)
        };
        self.table = Arc::new(table);
    }

    /// Records a block that is on the device; there was a hole before.
    pub fn set_device(&mut self, index: u16, block: TableBlock) {
        let table = Arc::make_mut(&mut self.table);
        match table {
            Table::Sparse(list) => {
                match list.binary_search_by_key(&index, |(i, _)| *i) {
                    Ok(at) => list[at].1 = block,
                    Err(at) => list.insert(at, (index, block)),
                }
                if list.len() >= DENSE_FROM {
                    *table = dense(list);
                }
            }
            Table::Dense { slots, count } => {
                let slot = &mut slots[usize::from(index)];
                *count += usize::from(*slot == VACANT);
                *slot = block;
            }
        }
    }

    fn device(&self, index: u16) -> Option<TableBlock> {
        match &*self.table {
            Table::Sparse(list) => {
                let at = list.binary_search_by_key(&index, |(i, _)| *i).ok()?;
                Some(list[at].1)
            }
            Table::Dense { slots, .. } => {
                Some(slots[usize::from(index)]).filter(|block| *block != VACANT)
            }
        }
    }

    /// Makes a block that is not in memory a hole.
    pub fn remove_device(&mut self, index: u16) -> Displaced {
        if self.device(index).is_none() {
            return Displaced::Nothing;
        }
        let removed = match Arc::make_mut(&mut self.table) {
            Table::Sparse(list) => {
                list.binary_search_by_key(&index, |(i, _)| *i).ok().map(|at| list.remove(at).1)
            }
            Table::Dense { slots, count } => {
                let slot = std::mem::replace(&mut slots[usize::from(index)], VACANT);
                *count -= usize::from(slot != VACANT);
                Some(slot).filter(|block| *block != VACANT)
            }
        };
        match removed.map(|block| block.addr) {
            None => Displaced::Nothing,
            Some(addr) if addr.is_lost() => Displaced::Lost,
            Some(addr) => Displaced::Device(addr.block),
        }
    }
}

fn dense(blocks: &[(u16, TableBlock)]) -> Table {
    let mut slots = Box::new([VACANT; BLOCKS]);
    blocks.iter().for_each(|(index, block)| slots[usize::from(*index)] = *block);
    Table::Dense { slots, count: blocks.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_and_dense_tables_answer_alike() {
        let mut chunk = Chunk::default();
        let addr = |i: u16| BlockAddr { block: u32::from(i) + 7, crc: u32::from(i) };
        let written = Written::at(70);
        let on_device = |i: u16| TableBlock { addr: addr(i), written };
        for index in (0..BLOCKS as u16).rev() {
            chunk.set_device(index, on_device(index));
            assert_eq!(chunk.place(index), Place::Device(addr(index)));
        }
        assert!(matches!(*chunk.table, Table::Dense { count: BLOCKS, .. }));
        assert_eq!(chunk.clear(5), Displaced::Device(12));
        assert_eq!(chunk.clear(5), Displaced::Nothing);
        let bytes = Bytes::from(vec![1; 4096]);
        let home = Some(addr(90));
        let block = InMemory { bytes: bytes.clone(), written: Written::at(140), home };
        assert_eq!(chunk.write(6, InMemory { home: None, ..block.clone() }), Displaced::Device(13));
        assert_eq!(chunk.write(6, block.clone()), Displaced::Memory);
        assert_eq!(chunk.adopt(6, on_device(6)), Displaced::Both(97));
        assert_eq!(chunk.write(6, block), Displaced::Device(13));
        let held =
            |bytes: &Bytes, home| chunk.holds(6, &InMemory { bytes: bytes.clone(), written, home });
        assert!(held(&bytes, home) && !held(&Bytes::from(vec![1; 4096]), home));
        assert!(!held(&bytes, None) && !held(&bytes, Some(addr(91))));
        chunk.flushed(6, addr(90));
        assert!(!chunk.has_overlay());
        assert_eq!(chunk.place(6), Place::Device(addr(90)));
        assert_eq!(chunk.written(6), Some(Written::at(140)));
        assert_eq!((chunk.written(7), chunk.written(5)), (Some(written), None));
        assert_eq!((chunk.len(), chunk.occupied().len()), (BLOCKS - 1, BLOCKS - 1));
    }

    #[test]
    fn a_block_counts_as_written_after_every_index_it_may_have_been() {
        for index in [0, 1, 63, 64, 65, 1 << 37] {
            let written = Written::at(index);
            assert!(index.checked_sub(1).is_none_or(|before| written.is_after(before)));
            assert!(!written.is_after(index / 64 * 64 + 64));
        }
        for index in [(1 << 38) - 1, 1 << 38, u64::MAX] {
            assert!(Written::at(index).is_after(u64::MAX - 1), "{index}");
        }
    }

    #[test]
    fn a_chunk_takes_over_what_it_is_told_to_keep() {
        let block = |number: u32, index: u64| TableBlock {
            addr: BlockAddr { block: number, crc: number },
            written: Written::at(index),
        };
        let in_memory = |byte: u8| InMemory {
            bytes: Bytes::from(vec![byte; 4096]),
            written: Written::at(1),
            home: None,
        };
        let mut old = Chunk::default();
        old.set_device(0, block(10, 100));
        old.set_device(1, block(11, 100));
        old.set_device(2, block(12, 100));
        old.set_device(3, TableBlock { addr: BlockAddr::lost(1), written: Written(0) });
        old.write(4, in_memory(4));
        old.write(5, in_memory(5));
        let mut new = Chunk::default();
        new.set_device(1, block(21, 200));
        let mut displaced = Vec::new();
        new.keep_from(&old, |index| [0, 1, 4].contains(&index), |what| displaced.push(what));
        assert_eq!(new.place(0), Place::Device(block(10, 100).addr));
        assert_eq!(new.written(0), Some(Written::at(100)));
        assert_eq!(new.place(1), Place::Device(block(21, 200).addr));
        assert_eq!(new.place(4), Place::Memory(Bytes::from(vec![4; 4096])));
        assert_eq!(new.occupied(), [0, 1, 4]);
        let device = |number| Displaced::Device(number);
        assert_eq!(displaced, [device(11), device(12), Displaced::Lost, Displaced::Memory]);
    }
}
