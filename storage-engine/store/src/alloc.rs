//! Which blocks of the data area are free. Pure memory: rebuilt from the checkpoint at open.

/// Bitmap with a moving cursor, so that blocks written together lie together.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// One bit per block, set when taken.
    words: Vec<u64>,
    blocks: u32,
    free: u32,
    /// Where the next search starts.
    cursor: u32,
}

impl Allocator {
    pub fn new(blocks: u32) -> Self {
        let mut words = vec![0; (blocks as usize).div_ceil(64)];
        if !blocks.is_multiple_of(64)
            && let Some(last) = words.last_mut()
        {
            *last = u64::MAX << (blocks % 64);
        }
        Self { words, blocks, free: blocks, cursor: 0 }
    }

    pub fn free_blocks(&self) -> u64 {
        u64::from(self.free)
    }

    /// Marks one block as taken; false if there is no such block or it is taken already.
    pub fn claim(&mut self, block: u32) -> bool {
        if block >= self.blocks || self.taken(block) {
            return false;
        }
        self.set(block);
        true
    }

    /// Takes a run of 1 to `max` neighbouring blocks; None when nothing is free.
    pub fn take_run(&mut self, max: u32) -> Option<(u32, u32)> {
        let start = self.next_free(self.cursor).or_else(|| self.next_free(0))?;
        let mut len = 0;
        while len < max && start + len < self.blocks && !self.taken(start + len) {
            self.set(start + len);
            len += 1;
        }
        self.cursor = start + len;
        Some((start, len))
    }

    pub fn release(&mut self, block: u32) {
        assert!(block < self.blocks && self.taken(block), "block {block} is released twice");
        self.words[block as usize / 64] &= !(1 << (block % 64));
        self.free += 1;
    }

    fn taken(&self, block: u32) -> bool {
        self.words[block as usize / 64] >> (block % 64) & 1 != 0
    }

    fn set(&mut self, block: u32) {
        self.words[block as usize / 64] |= 1 << (block % 64);
        self.free -= 1;
    }

    fn next_free(&self, from: u32) -> Option<u32> {
        let first = from as usize / 64;
        let masked = self.words.get(first).map(|w| w | ((1u64 << (from % 64)) - 1))?;
        if masked != u64::MAX {
            return Some(first as u32 * 64 + masked.trailing_ones());
        }
        let rest = self.words.iter().enumerate().skip(first + 1);
        let (index, word) = rest.into_iter().find(|(_, w)| **w != u64::MAX)?;
        Some(index as u32 * 64 + word.trailing_ones())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_given_out_exactly_once() {
        let mut allocator = Allocator::new(150);
        assert!(allocator.claim(70) && !allocator.claim(70) && !allocator.claim(150));
        let mut seen = vec![70];
        while let Some((start, len)) = allocator.take_run(13) {
            seen.extend(start..start + len);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..150).collect::<Vec<_>>());
        assert_eq!(allocator.free_blocks(), 0);
        allocator.release(33);
        assert_eq!(allocator.take_run(8), Some((33, 1)));
    }
}
