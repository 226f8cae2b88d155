//! Which blocks of the data area are free. Pure memory: rebuilt from checkpoint and log at open.
//!
//! A block may have two holders at once: the log, as an entry's payload, from the append on until
//! the entry is dropped for good; and a chunk table, from the moment the entry is applied until the
//! block is superseded. It is free when neither holds it. Snapshots make several tables hold one
//! block: how many more than one is counted apart, as most blocks are in one only.

/// Who needs a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    Table,
    Log,
}

/// Blocks whose further tables are counted together.
const SHARES_PAGE: usize = 4096;
/// A block of which so many copies exist is never free again until the next open counts anew.
const SHARES_MAX: u16 = u16::MAX;

/// Two bitmaps with a moving cursor, so that blocks written together lie together.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// One bit per block, set when held; the bits past the last block are set for the table.
    table: Vec<u64>,
    log: Vec<u64>,
    blocks: u32,
    free: u32,
    logged: u32,
    /// How many tables beyond the first hold each block; a page is there once it counts something.
    shares: Vec<Option<Box<[u16; SHARES_PAGE]>>>,
    /// Sum of `shares`.
    shared: u64,
    /// Where the next search starts.
    cursor: u32,
}

impl Allocator {
    pub fn new(blocks: u32) -> Self {
        let words = (blocks as usize).div_ceil(64);
        let mut table = vec![0; words];
        if !blocks.is_multiple_of(64)
            && let Some(last) = table.last_mut()
        {
            *last = u64::MAX << (blocks % 64);
        }
        let mut shares = Vec::new();
        shares.resize_with((blocks as usize).div_ceil(SHARES_PAGE), || None);
        let log = vec![0; words];
        Self { table, log, blocks, free: blocks, logged: 0, shares, shared: 0, cursor: 0 }
    }

    /// How many fewer blocks there are than entries of tables that refer to one.
    pub fn shared(&self) -> u64 {
        self.shared
    }

    /// Notes one more table that holds the block; false if there is no such block.
    pub fn claim_for_table(&mut self, block: u32) -> bool {
        if block < self.blocks && self.holds(block, Holder::Table) {
            self.share(block);
            return true;
        }
        self.claim(block, Holder::Table)
    }

    /// Notes one more table that holds a block which a table holds already.
    pub fn share(&mut self, block: u32) {
        assert!(self.holds(block, Holder::Table), "block {block} is shared and no table's");
        let page = self.shares[block as usize / SHARES_PAGE]
            .get_or_insert_with(|| Box::new([0; SHARES_PAGE]));
        let count = &mut page[block as usize % SHARES_PAGE];
        if *count < SHARES_MAX {
            *count += 1;
            self.shared += 1;
        }
    }

    /// One of the tables that hold the block lets go of it; false, without effect, if there is only
    /// one.
    pub fn unshare(&mut self, block: u32) -> bool {
        let page = self.shares.get_mut(block as usize / SHARES_PAGE).and_then(Option::as_mut);
        let count = page.map(|page| &mut page[block as usize % SHARES_PAGE]);
        let Some(count) = count.filter(|count| **count > 0) else { return false };
        if *count < SHARES_MAX {
            *count -= 1;
            self.shared -= 1;
        }
        true
    }

    pub fn free_blocks(&self) -> u64 {
        u64::from(self.free)
    }

    /// Blocks that the log holds, whether or not a table holds them too.
    pub fn logged_blocks(&self) -> u64 {
        u64::from(self.logged)
    }

    /// Notes a holder; false if there is no such block or it is that holder's already.
    pub fn claim(&mut self, block: u32, holder: Holder) -> bool {
        if block >= self.blocks || self.holds(block, holder) {
            return false;
        }
        self.set(block, holder);
        true
    }

    /// Takes a block that nobody holds; false if there is no such block.
    pub fn claim_free(&mut self, block: u32, holder: Holder) -> bool {
        if block >= self.blocks || self.taken(block) {
            return false;
        }
        self.set(block, holder);
        true
    }

    /// Takes a run of 1 to `max` neighbouring free blocks; None when nothing is free.
    pub fn take_run(&mut self, max: u32, holder: Holder) -> Option<(u32, u32)> {
        let start = self.next_free(self.cursor).or_else(|| self.next_free(0))?;
        let mut len = 0;
        while len < max && start + len < self.blocks && !self.taken(start + len) {
            self.set(start + len, holder);
            len += 1;
        }
        self.cursor = start + len;
        Some((start, len))
    }

    pub fn release(&mut self, block: u32, holder: Holder) {
        let held = block < self.blocks && self.holds(block, holder);
        assert!(held, "block {block} is released twice by {holder:?}");
        self.words(holder)[block as usize / 64] &= !(1 << (block % 64));
        self.logged -= u32::from(holder == Holder::Log);
        self.free += u32::from(!self.taken(block));
    }

    fn words(&mut self, holder: Holder) -> &mut [u64] {
        match holder {
            Holder::Table => &mut self.table,
            Holder::Log => &mut self.log,
        }
    }

    fn holds(&self, block: u32, holder: Holder) -> bool {
        let words = match holder {
            Holder::Table => &self.table,
            Holder::Log => &self.log,
        };
        words[block as usize / 64] >> (block % 64) & 1 != 0
    }

    fn taken(&self, block: u32) -> bool {
        self.holds(block, Holder::Table) || self.holds(block, Holder::Log)
    }

    fn set(&mut self, block: u32, holder: Holder) {
        self.free -= u32::from(!self.taken(block));
        self.logged += u32::from(holder == Holder::Log);
        self.words(holder)[block as usize / 64] |= 1 << (block % 64);
    }

    fn next_free(&self, from: u32) -> Option<u32> {
        let first = from as usize / 64;
        let held = |index: usize| Some(self.table.get(index)? | self.log[index]);
        let masked = held(first)? | ((1u64 << (from % 64)) - 1);
        if masked != u64::MAX {
            return Some(first as u32 * 64 + masked.trailing_ones());
        }
        let (index, word) = (first + 1..self.table.len())
            .filter_map(|index| Some((index, held(index)?)))
            .find(|(_, word)| *word != u64::MAX)?;
        Some(index as u32 * 64 + word.trailing_ones())
    }
}

#[cfg(test)]
mod tests {
    use super::Holder::{Log, Table};
    use super::*;

    #[test]
    fn every_block_is_given_out_exactly_once() {
        let mut allocator = Allocator::new(150);
        assert!(allocator.claim(70, Table) && !allocator.claim(70, Table));
        assert!(!allocator.claim(150, Table) && allocator.claim(71, Log));
        let mut seen = vec![70, 71];
        while let Some((start, len)) = allocator.take_run(13, Table) {
            seen.extend(start..start + len);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..150).collect::<Vec<_>>());
        assert_eq!(allocator.free_blocks(), 0);
        allocator.release(33, Table);
        assert_eq!(allocator.take_run(8, Log), Some((33, 1)));
    }

    #[test]
    fn a_block_of_several_tables_stays_until_the_last_lets_go() {
        let mut allocator = Allocator::new(5000);
        assert!(!allocator.claim_for_table(5000) && !allocator.unshare(4999));
        (0..3).for_each(|_| assert!(allocator.claim_for_table(4999)));
        assert_eq!((allocator.free_blocks(), allocator.shared()), (4999, 2));
        assert!(allocator.unshare(4999) && allocator.unshare(4999) && !allocator.unshare(4999));
        assert_eq!((allocator.free_blocks(), allocator.shared()), (4999, 0));
        allocator.release(4999, Table);
        assert_eq!(allocator.free_blocks(), 5000);
    }

    #[test]
    fn a_block_is_free_when_its_last_holder_lets_go() {
        for [first, second] in [[Table, Log], [Log, Table]] {
            let mut allocator = Allocator::new(1);
            assert!(allocator.claim(0, Table) && allocator.claim(0, Log));
            assert_eq!((allocator.free_blocks(), allocator.logged_blocks()), (0, 1));
            assert!(!allocator.claim_free(0, first));
            allocator.release(0, first);
            assert!(!allocator.claim_free(0, first));
            assert_eq!((allocator.free_blocks(), allocator.take_run(1, Log)), (0, None));
            allocator.release(0, second);
            assert_eq!((allocator.free_blocks(), allocator.logged_blocks()), (1, 0));
        }
    }
}
