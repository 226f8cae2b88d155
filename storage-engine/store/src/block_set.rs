//! A set of blocks of one chunk, as checkpoints and snapshots write it.

use curve_types::BLOCKS_PER_CHUNK;

/// Block `i` is in it if bit `i % 8` of byte `i / 8` is set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockSet([u8; Self::LEN]);

impl BlockSet {
    pub const LEN: usize = BLOCKS_PER_CHUNK as usize / 8;

    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    pub fn has(&self, block: u16) -> bool {
        self.0[usize::from(block) / 8] >> (block % 8) & 1 != 0
    }

    pub fn insert(&mut self, block: u16) {
        self.0[usize::from(block) / 8] |= 1 << (block % 8);
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..BLOCKS_PER_CHUNK as u16).filter(|block| self.has(*block))
    }
}

impl FromIterator<u16> for BlockSet {
    fn from_iter<I: IntoIterator<Item = u16>>(blocks: I) -> Self {
        let mut set = Self([0; Self::LEN]);
        blocks.into_iter().for_each(|block| set.insert(block));
        set
    }
}
