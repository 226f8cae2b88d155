//! The table of one chunk: for each 4 KiB block where it is, on the device or still in memory.

use std::collections::BTreeMap;

use bytes::Bytes;
use curve_types::BLOCKS_PER_CHUNK;

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
const VACANT: BlockAddr = BlockAddr { block: u32::MAX, crc: 0 };
const LOST: u32 = u32::MAX - 1;

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

/// A block that is applied and must still be read from memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InMemory {
    /// Always 4096.
    pub bytes: Bytes,
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
    Sparse(Vec<(u16, BlockAddr)>),
    Dense { slots: Box<[BlockAddr; BLOCKS]>, count: usize },
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
    table: Table,
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
        Self { overlay: BTreeMap::new(), table: Table::Sparse(Vec::new()) }
    }
}

impl Chunk {
    pub fn len(&self) -> usize {
        let on_device = match &self.table {
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
                Some(addr) if addr.is_lost() => Place::Lost(addr),
                Some(addr) => Place::Device(addr),
            },
        }
    }

    pub fn has(&self, index: u16) -> bool {
        self.overlay.contains_key(&index) || self.device(index).is_some()
    }

    /// Every block that is not in memory, by index: on the device, or lost.
    pub fn table_blocks(&self) -> Box<dyn Iterator<Item = (u16, BlockAddr)> + '_> {
        match &self.table {
            Table::Sparse(list) => Box::new(list.iter().copied()),
            Table::Dense { slots, .. } => Box::new(
                slots
                    .iter()
                    .enumerate()
                    .filter(|(_, a)| **a != VACANT)
                    .map(|(i, a)| (i as u16, *a)),
            ),
        }
    }

    /// Indices of blocks that are not holes, in order.
    pub fn occupied(&self) -> Vec<u16> {
        let mut all: Vec<u16> =
            self.table_blocks().map(|(i, _)| i).chain(self.overlay.keys().copied()).collect();
        all.sort_unstable();
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
    pub fn adopt(&mut self, index: u16, addr: BlockAddr) -> Displaced {
        let displaced = self.clear(index);
        self.set_device(index, addr);
        displaced
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
        self.overlay.remove(&index);
        self.set_device(index, addr);
    }

    /// Records a block that is on the device; there was a hole before.
    pub fn set_device(&mut self, index: u16, addr: BlockAddr) {
        match &mut self.table {
            Table::Sparse(list) => {
                match list.binary_search_by_key(&index, |(i, _)| *i) {
                    Ok(at) => list[at].1 = addr,
                    Err(at) => list.insert(at, (index, addr)),
                }
                if list.len() >= DENSE_FROM {
                    let mut slots = Box::new([VACANT; BLOCKS]);
                    list.iter().for_each(|(i, a)| slots[usize::from(*i)] = *a);
                    self.table = Table::Dense { slots, count: list.len() };
                }
            }
            Table::Dense { slots, count } => {
                let slot = &mut slots[usize::from(index)];
                *count += usize::from(*slot == VACANT);
                *slot = addr;
            }
        }
    }

    fn device(&self, index: u16) -> Option<BlockAddr> {
        match &self.table {
            Table::Sparse(list) => {
                let at = list.binary_search_by_key(&index, |(i, _)| *i).ok()?;
                Some(list[at].1)
            }
            Table::Dense { slots, .. } => {
                Some(slots[usize::from(index)]).filter(|addr| *addr != VACANT)
            }
        }
    }

    fn remove_device(&mut self, index: u16) -> Displaced {
        let removed = match &mut self.table {
            Table::Sparse(list) => {
                list.binary_search_by_key(&index, |(i, _)| *i).ok().map(|at| list.remove(at).1)
            }
            Table::Dense { slots, count } => {
                let slot = std::mem::replace(&mut slots[usize::from(index)], VACANT);
                *count -= usize::from(slot != VACANT);
                Some(slot).filter(|addr| *addr != VACANT)
            }
        };
        match removed {
            None => Displaced::Nothing,
            Some(addr) if addr.is_lost() => Displaced::Lost,
            Some(addr) => Displaced::Device(addr.block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_and_dense_tables_answer_alike() {
        let mut chunk = Chunk::default();
        let addr = |i: u16| BlockAddr { block: u32::from(i) + 7, crc: u32::from(i) };
        for index in (0..BLOCKS as u16).rev() {
            chunk.set_device(index, addr(index));
            assert_eq!(chunk.place(index), Place::Device(addr(index)));
        }
        assert!(matches!(chunk.table, Table::Dense { count: BLOCKS, .. }));
        assert_eq!(chunk.clear(5), Displaced::Device(12));
        assert_eq!(chunk.clear(5), Displaced::Nothing);
        let bytes = Bytes::from(vec![1; 4096]);
        let home = Some(addr(90));
        let block = InMemory { bytes: bytes.clone(), home };
        assert_eq!(chunk.write(6, InMemory { home: None, ..block.clone() }), Displaced::Device(13));
        assert_eq!(chunk.write(6, block.clone()), Displaced::Memory);
        assert_eq!(chunk.adopt(6, addr(6)), Displaced::Both(97));
        assert_eq!(chunk.write(6, block), Displaced::Device(13));
        let held = |bytes: &Bytes, home| chunk.holds(6, &InMemory { bytes: bytes.clone(), home });
        assert!(held(&bytes, home) && !held(&Bytes::from(vec![1; 4096]), home));
        assert!(!held(&bytes, None) && !held(&bytes, Some(addr(91))));
        chunk.flushed(6, addr(90));
        assert!(!chunk.has_overlay());
        assert_eq!(chunk.place(6), Place::Device(addr(90)));
        assert_eq!((chunk.len(), chunk.occupied().len()), (BLOCKS - 1, BLOCKS - 1));
    }
}
