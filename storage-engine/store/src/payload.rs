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
use crate::disk::ALIGN;

/// Where a payload lies, block by block.
pub(crate) type Blocks = Arc<[BlockAddr]>;

/// Takes fresh blocks for a payload that consists of whole ones. None if it does not, if it is
/// short and the log has a device of its own, or if the log holds as many blocks as it may or the
/// flusher needs what is free: it then goes into the log's record, and is written a second time
/// after it is applied.
pub(crate) fn place(data: &DataArea, payload: &Bytes) -> Option<Blocks> {
    let count = payload.len() as u64 / BLOCK_SIZE;
    if payload.len() <= data.deferred_max {
        return None;
    }
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

/// Payloads of one batch on their way to the disk.
pub(crate) struct Gather {
    /// Copies of those that the disk cannot take from where they are; reused.
    copied: AlignedBuf,
    runs: Vec<Run>,
    /// Bytes of all.
    len: usize,
}

/// Neighbouring blocks, both on the device and in memory.
struct Run {
    start: u32,
    blocks: usize,
    source: Source,
}

enum Source {
    /// From here on in `copied`.
    Copied(usize),
    Payload(Bytes),
}

/// Shorter payloads are copied: neighbours make one write, of which there is one after the other
/// where io_uring is refused.
const COPY_MAX: usize = 256 << 10;

impl Gather {
    pub fn new(bytes_max: usize) -> Self {
        Self { copied: AlignedBuf::with_capacity(bytes_max), runs: Vec::new(), len: 0 }
    }

    pub fn clear(&mut self) {
        self.copied.clear();
        self.runs.clear();
        self.len = 0;
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn add(&mut self, payload: &Bytes, blocks: &[BlockAddr]) {
        self.len += payload.len();
        let copied = payload.len() <= COPY_MAX || !payload.as_ptr().addr().is_multiple_of(ALIGN);
        let mut at = 0;
        for run in blocks.chunk_by(|one, next| one.block + 1 == next.block) {
            let bytes = payload.slice(at..at + run.len() * BLOCK_SIZE as usize);
            at += bytes.len();
            match copied {
                true => self.copy(&bytes, run),
                false => {
                    let source = Source::Payload(bytes);
                    self.runs.push(Run { start: run[0].block, blocks: run.len(), source });
                }
            }
        }
    }

    fn copy(&mut self, bytes: &[u8], run: &[BlockAddr]) {
        let at = self.copied.len();
        self.copied.put(bytes);
        match self.runs.last_mut() {
            Some(Run { start, blocks, source: Source::Copied(_) })
                if *start as usize + *blocks == run[0].block as usize =>
            {
                *blocks += run.len();
            }
            _ => {
                let source = Source::Copied(at);
                self.runs.push(Run { start: run[0].block, blocks: run.len(), source });
            }
        }
    }

    /// What is to be written where.
    pub fn writes<'a>(&'a self, data: &'a DataArea) -> impl Iterator<Item = (u64, &'a [u8])> {
        self.runs.iter().map(|run| {
            let bytes = match &run.source {
                Source::Copied(at) => &self.copied[*at..*at + run.blocks * BLOCK_SIZE as usize],
                Source::Payload(bytes) => bytes,
            };
            (data.device_offset(run.start), bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = BLOCK_SIZE as usize;

    /// Blocks of one byte each, at an address that the disk takes, or one that it does not.
    fn payload(bytes: &[u8], aligned: bool) -> Bytes {
        let shift = usize::from(!aligned);
        let mut buf = AlignedBuf::take(bytes.len() * BLOCK + shift);
        for (block, byte) in buf[shift..].chunks_mut(BLOCK).zip(bytes) {
            block.fill(*byte);
        }
        Bytes::from_owner(buf).slice(shift..)
    }

    fn blocks(numbers: impl IntoIterator<Item = u32>) -> Vec<BlockAddr> {
        numbers.into_iter().map(|block| BlockAddr { block, crc: 0 }).collect()
    }

    /// First block, number of blocks, byte of the first, and whether it is a copy.
    fn runs(gather: &Gather) -> Vec<(u32, usize, u8, bool)> {
        let run = |run: &Run| match &run.source {
            Source::Copied(at) => (run.start, run.blocks, gather.copied[*at], true),
            Source::Payload(bytes) => (run.start, run.blocks, bytes[0], false),
        };
        gather.runs.iter().map(run).collect()
    }

    #[test]
    fn only_what_the_disk_cannot_take_is_copied_and_short_neighbours_are_one_write() {
        let mut gather = Gather::new(1 << 20);
        gather.add(&payload(&[1], true), &blocks([7]));
        gather.add(&payload(&[2, 3], true), &blocks([8, 9]));
        let long: Vec<u8> = (10..80).collect();
        gather.add(&payload(&long, true), &blocks((10..20).chain(30..90)));
        gather.add(&payload(&long, false), &blocks(90..160));
        gather.add(&payload(&[4], true), &blocks([160]));
        let expected =
            [(7, 3, 1, true), (10, 10, 10, false), (30, 60, 20, false), (90, 71, 10, true)];
        assert_eq!(runs(&gather), expected);
        assert_eq!(gather.len(), 144 * BLOCK);
        gather.clear();
        assert_eq!((runs(&gather), gather.len()), (Vec::new(), 0));
    }
}
