//! Self-describing blocks, for tests that kill things and then ask what is really there.
//!
//! Every 4 KiB block says where it belongs, which write put it there, and carries a checksum. A
//! ledger remembers what was acknowledged, so that a block read back is either right, or lost,
//! torn, misplaced or from a write that never was.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use curve_types::BLOCK_SIZE;
use curve_wire::frame::crc32c;
use thiserror::Error;

const MAGIC: [u8; 8] = *b"CURVEPAT";
const BLOCK: usize = BLOCK_SIZE as usize;

/// What a block says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Index of the block in the device.
    pub block: u64,
    /// Number of the write that put it there; 0 for a block that was never written.
    pub version: u64,
}

/// Why a block is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PatternError {
    #[error("block {block} is torn or foreign")]
    Torn { block: u64 },
    #[error("block {block} holds what belongs into block {found}")]
    Misplaced { block: u64, found: u64 },
    #[error("block {block} holds write {found}, but write {acknowledged} was acknowledged")]
    Lost { block: u64, found: u64, acknowledged: u64 },
    #[error("block {block} holds write {found}, which was never sent (last: {sent})")]
    Invented { block: u64, found: u64, sent: u64 },
}

/// The bytes of `blocks` blocks from `first` on, all of write `version`.
pub fn fill(first: u64, blocks: u64, version: u64) -> Bytes {
    let mut data = BytesMut::with_capacity(blocks as usize * BLOCK);
    for block in first..first + blocks {
        let start = data.len();
        data.extend_from_slice(&MAGIC);
        data.extend_from_slice(&block.to_le_bytes());
        data.extend_from_slice(&version.to_le_bytes());
        let mut word = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version;
        while data.len() - start < BLOCK - 8 {
            // Weyl sequence: cheap, and different in every 8 bytes so that a shift is noticed.
            word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
            data.extend_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c(&[&data[start..]]);
        data.extend_from_slice(&crc.to_le_bytes());
        data.extend_from_slice(&[0; 4]);
    }
    data.freeze()
}

/// Reads the stamp of the block found at index `block`.
pub fn examine(block: u64, bytes: &[u8]) -> Result<Stamp, PatternError> {
    let torn = PatternError::Torn { block };
    if bytes.len() != BLOCK {
        return Err(torn);
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Stamp { block, version: 0 });
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    if bytes[..8] != MAGIC || word(BLOCK - 8) != u64::from(crc32c(&[&bytes[..BLOCK - 8]])) {
        return Err(torn);
    }
    let (found, version) = (word(8), word(16));
    if found != block {
        return Err(PatternError::Misplaced { block, found });
    }
    Ok(Stamp { block, version })
}

/// What was sent and what was acknowledged, per block. Versions of one block must rise.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<BTreeMap<u64, Entry>>);

#[derive(Clone, Copy, Default, Debug)]
struct Entry {
    sent: u64,
    acknowledged: u64,
}

impl Ledger {
    /// To be called before a write is sent. Returns its version.
    pub fn sending(&self, first: u64, blocks: u64) -> u64 {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let range = first..first + blocks;
        let last = entries.range(range.clone()).map(|(_, entry)| entry.sent).max().unwrap_or(0);
        range.for_each(|block| entries.entry(block).or_default().sent = last + 1);
        last + 1
    }

    /// To be called when a write was acknowledged.
    pub fn acknowledged(&self, first: u64, blocks: u64, version: u64) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for block in first..first + blocks {
            let entry = entries.entry(block).or_default();
            entry.acknowledged = entry.acknowledged.max(version);
        }
    }

    /// Checks what was read from block `first` on: at least what was acknowledged, at most what
    /// was sent.
    pub fn check(&self, first: u64, data: &[u8]) -> Result<(), PatternError> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (block, bytes) in (first..).zip(data.chunks(BLOCK)) {
            let Entry { sent, acknowledged } = entries.get(&block).copied().unwrap_or_default();
            let found = examine(block, bytes)?.version;
            if found < acknowledged {
                return Err(PatternError::Lost { block, found, acknowledged });
            }
            if found > sent {
                return Err(PatternError::Invented { block, found, sent });
            }
        }
        Ok(())
    }

    /// Blocks that were ever sent, in order.
    pub fn blocks(&self) -> Vec<u64> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_describe_themselves() {
        let data = fill(7, 2, 3);
        assert_eq!(examine(8, &data[BLOCK..]), Ok(Stamp { block: 8, version: 3 }));
        assert_eq!(examine(9, &[0; BLOCK]), Ok(Stamp { block: 9, version: 0 }));
        let misplaced = PatternError::Misplaced { block: 9, found: 8 };
        assert_eq!(examine(9, &data[BLOCK..]), Err(misplaced));
    }

    #[test]
    fn a_block_of_two_halves_is_torn() {
        let halves = [&fill(1, 1, 1)[..2048], &fill(1, 1, 2)[2048..]].concat();
        assert_eq!(examine(1, &halves), Err(PatternError::Torn { block: 1 }));
        assert_eq!(examine(1, &fill(1, 1, 1)[..512]), Err(PatternError::Torn { block: 1 }));
    }

    #[test]
    fn the_ledger_tells_lost_from_invented() {
        let ledger = Ledger::default();
        let first = ledger.sending(4, 2);
        ledger.acknowledged(4, 2, first);
        let second = ledger.sending(5, 1);
        assert_eq!((first, second), (1, 2));
        assert_eq!(ledger.check(4, &fill(4, 2, 1)), Ok(()), "the second write may be missing");
        assert_eq!(ledger.check(5, &fill(5, 1, 2)), Ok(()), "or have happened");
        let lost = PatternError::Lost { block: 4, found: 0, acknowledged: 1 };
        assert_eq!(ledger.check(4, &[0; BLOCK]), Err(lost));
        let invented = PatternError::Invented { block: 4, found: 2, sent: 1 };
        assert_eq!(ledger.check(4, &fill(4, 1, 2)), Err(invented));
        assert_eq!(ledger.check(0, &[0; BLOCK]), Ok(()), "never written reads as zeroes");
        assert_eq!(ledger.blocks(), [4, 5]);
    }
}
