//! Payloads that are written once: straight to blocks of the data area while the log's record
//! holds their numbers and checksums. Applying the entry hands the same blocks to a chunk table.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use curve_types::BLOCK_SIZE;

use crate::StoreError;
use crate::aligned::{AlignedBuf, PooledBuf};
use crate::alloc::Holder;
use crate::chunk::BlockAddr;
use crate::codec::crc32c;
use crate::data::DataArea;

/// Where a payload lies, block by block.
pub(crate) type Blocks = Arc<[BlockAddr]>;

/// Takes fresh blocks for a payload that consists of whole ones. None if it does not, or if the
/// log holds as many blocks as it may or the flusher needs what is free: it then goes into the
/// log's record, and is written a second time when it is applied.
pub(crate) fn place(data: &DataArea, payload: &Bytes) -> Option<Blocks> {
    let count = payload.len() as u64 / BLOCK_SIZE;
    if count == 0 || !(payload.len() as u64).is_multiple_of(BLOCK_SIZE) {
        return None;
    }
    let mut numbers = Vec::with_capacity(count as usize);
    {
        let mut alloc = data.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        let roomy = alloc.free_blocks() >= data.flush_reserve() + count
            && alloc.logged_blocks() + count <= data.logged_max();
        if !roomy {
            return None;
        }
        while (numbers.len() as u64) < count {
            // There are enough, as was seen above.
            let (start, len) = alloc.take_run(count as u32 - numbers.len() as u32, Holder::Log)?;
            numbers.extend(start..start + len);
        }
    }
    let blocks = payload.chunks_exact(BLOCK_SIZE as usize).zip(numbers);
    Some(blocks.map(|(bytes, block)| BlockAddr { block, crc: crc32c(bytes) }).collect())
}

/// The log needs these blocks no more.
pub(crate) fn let_go<'a>(data: &DataArea, payloads: impl IntoIterator<Item = &'a Blocks>) {
    let mut alloc = data.alloc.lock().unwrap_or_else(PoisonError::into_inner);
    let addrs = payloads.into_iter().flat_map(|blocks| blocks.iter());
    addrs.for_each(|addr| alloc.release(addr.block, Holder::Log));
}

/// Reads a payload back. `Corrupt` if it is not what was written.
pub(crate) fn read(data: &DataArea, blocks: &[BlockAddr]) -> Result<Bytes, StoreError> {
    let mut buf: PooledBuf = AlignedBuf::take(blocks.len() * BLOCK_SIZE as usize);
    match data.read_verified(blocks, &mut buf)? {
        None => Ok(Bytes::from_owner(buf)),
        Some(bad) => Err(StoreError::corrupt(format!(
            "a payload's block {bad} does not match its checksum (device block {})",
            blocks[bad].block
        ))),
    }
}

/// Payloads of one batch, gathered into one buffer for the disk, which is reused.
pub(crate) struct Gather {
    buf: AlignedBuf,
    /// First block on the device and number of blocks; one after another in `buf`.
    runs: Vec<(u32, usize)>,
}

impl Gather {
    pub fn new(bytes_max: usize) -> Self {
        Self { buf: AlignedBuf::with_capacity(bytes_max), runs: Vec::new() }
    }

    pub fn clear(&mut self) {
        self.buf.clear();
        self.runs.clear();
    }

    pub fn len(&self) -> usize {
        self.buf.len()
    }

    pub fn add(&mut self, payload: &Bytes, blocks: &[BlockAddr]) {
        self.buf.put(payload);
        for BlockAddr { block, .. } in blocks {
            match self.runs.last_mut() {
                Some((start, len)) if *start as usize + *len == *block as usize => *len += 1,
                _ => self.runs.push((*block, 1)),
            }
        }
    }

    /// What is to be written where.
    pub fn writes<'a>(&'a self, data: &'a DataArea) -> impl Iterator<Item = (u64, &'a [u8])> {
        let mut rest = &self.buf[..];
        self.runs.iter().map(move |(start, len)| {
            let (run, after) = rest.split_at(len * BLOCK_SIZE as usize);
            rest = after;
            (data.device_offset(*start), run)
        })
    }
}
