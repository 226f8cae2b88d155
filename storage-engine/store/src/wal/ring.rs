//! Reading and writing byte ranges of the endless log in its ring on the device.

use std::sync::Arc;

use curve_types::BLOCK_SIZE;

use crate::StoreError;
use crate::aligned::{AlignedBuf, PooledBuf};
use crate::health::Device;

#[derive(Clone)]
pub(crate) struct Ring {
    pub device: Arc<Device>,
    pub offset: u64,
    pub len: u64,
}

impl Ring {
    /// Device offset of a position, and bytes until the ring's end.
    fn place(&self, lsn: u64) -> (u64, usize) {
        let within = lsn % self.len;
        (self.offset + within, (self.len - within) as usize)
    }

    /// Where on the device the bytes at `lsn` go: to one place, or to two if they wrap. `lsn` and
    /// the length are multiples of 4096, the length at most the ring's.
    pub fn writes<'a>(&self, lsn: u64, bytes: &'a [u8]) -> impl Iterator<Item = (u64, &'a [u8])> {
        let (offset, room) = self.place(lsn);
        let (head, wrapped) = bytes.split_at(bytes.len().min(room));
        [(offset, head), (self.offset, wrapped)].into_iter().filter(|(_, part)| !part.is_empty())
    }

    /// As for `writes`.
    pub fn read(&self, lsn: u64, bytes: &mut [u8]) -> Result<(), StoreError> {
        let (offset, room) = self.place(lsn);
        let len = bytes.len().min(room);
        let (head, wrapped) = bytes.split_at_mut(len);
        self.device.read("read log", head, offset)?;
        match wrapped.is_empty() {
            true => Ok(()),
            false => self.device.read("read log", wrapped, self.offset),
        }
    }

    /// Reads the blocks that hold `from..to`; the second value is where `from` is in them.
    pub fn read_span(&self, from: u64, to: u64) -> Result<(PooledBuf, usize), StoreError> {
        let start = from / BLOCK_SIZE * BLOCK_SIZE;
        let mut buf = AlignedBuf::take((to.next_multiple_of(BLOCK_SIZE) - start) as usize);
        self.read(start, &mut buf)?;
        Ok((buf, (from - start) as usize))
    }
}
