//! A digest of a group's tables as one log entry leaves them: replicas that are alike have the same
//! one at the same index. Nothing is read from the device; that what lies there matches its
//! checksum is for the scrub to see.

use crate::Apply;
use crate::codec::crc32c;
use crate::space::ChunkMap;

/// The tables of a group, held still. Blocks that they refer to may be reused: a digest reads none.
pub struct HeldTables {
    chunks: ChunkMap,
}

impl Apply<'_> {
    /// The tables now. Takes as long as a view; the digest, which takes longer, may be made
    /// elsewhere.
    pub fn hold_tables(&self) -> HeldTables {
        HeldTables { chunks: self.space().snapshot() }
    }
}

impl HeldTables {
    /// CRC-64/NVME over `state` and then, in order, every chunk's volume (16), index (4) and number
    /// of blocks (4), and every block's number (2) and CRC32C (4), integers little-endian. None if
    /// a block is lost: nobody knows here what it was.
    pub fn digest(&self, state: &[u8]) -> Option<u64> {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        digest.update(state);
        let mut bytes = Vec::new();
        // Whether a chunk without blocks has a table is each replica's own affair.
        for (key, chunk) in self.chunks.iter().filter(|(_, chunk)| !chunk.is_empty()) {
            bytes.clear();
            bytes.extend_from_slice(&key.volume.to_bytes());
            bytes.extend_from_slice(&key.index.0.to_le_bytes());
            bytes.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
            for (index, crc) in chunk.checksums(crc32c) {
                bytes.extend_from_slice(&index.to_le_bytes());
                bytes.extend_from_slice(&crc?.to_le_bytes());
            }
            digest.update(&bytes);
        }
        Some(digest.finalize())
    }
}
