//! The disk as the store sees it, so that tests can own it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

mod extents;
mod file;
mod reads;
#[cfg(feature = "sim")]
mod sim;
mod uring;

pub use file::FileDisk;
pub use reads::AsyncReads;
#[cfg(feature = "sim")]
pub use sim::SimDisk;

/// Alignment of every offset, length and buffer passed to a `Disk`.
pub(crate) const ALIGN: usize = 4096;

/// A random-access device of fixed length. Offsets, lengths and buffer addresses are multiples of
/// 4096. A write is durable once a later `sync` returned Ok; until then any subset of its 4 KiB
/// blocks may survive a crash.
pub trait Disk: Send + Sync + 'static {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// True for a device without any byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buf` from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Writes several buffers, each at its offset, in any order; at once where the disk can.
    fn write_all_at(&self, writes: &[(u64, &[u8])]) -> io::Result<()> {
        writes.iter().try_for_each(|(offset, buf)| self.write_at(buf, *offset))
    }
    /// The first range at or after `from` that is reserved but was never written, if the disk is a
    /// file on a file system that makes a difference of that.
    fn next_unwritten(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let _ = from;
        Ok(None)
    }
    /// How to read without a thread that waits, where the disk can.
    fn async_reads(&self) -> Option<&Arc<AsyncReads>> {
        None
    }
    /// Makes every write that has returned durable.
    fn sync(&self) -> io::Result<()>;
    /// Whether the log lies on a disk of its own.
    fn has_log(&self) -> bool {
        false
    }
    /// Makes every write to the log that has returned durable.
    fn sync_log(&self) -> io::Result<()> {
        self.sync()
    }
}

impl<D: Disk + ?Sized> Disk for Arc<D> {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_at(buf, offset)
    }

    fn write_all_at(&self, writes: &[(u64, &[u8])]) -> io::Result<()> {
        (**self).write_all_at(writes)
    }

    fn next_unwritten(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        (**self).next_unwritten(from)
    }

    fn async_reads(&self) -> Option<&Arc<AsyncReads>> {
        (**self).async_reads()
    }

    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }

    fn has_log(&self) -> bool {
        (**self).has_log()
    }

    fn sync_log(&self) -> io::Result<()> {
        (**self).sync_log()
    }
}
