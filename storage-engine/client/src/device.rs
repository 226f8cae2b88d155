//! The block device as front ends see it.

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;

/// Why block IO failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BlockError {
    /// For good: a newer attachment owns the volume. All IO of this device fails from here on.
    #[error("the volume is attached elsewhere: this attachment is fenced")]
    Fenced,
    /// For good: the volume was deleted.
    #[error("the volume was deleted")]
    Deleted,
    #[error("the pool's devices are full")]
    NoSpace,
    #[error("bytes {offset}+{len} leave the device of {size} bytes")]
    OutOfRange { offset: u64, len: u64, size: u64 },
    #[error("the volume is attached read-only")]
    ReadOnly,
    /// Stored bytes do not match their checksum.
    #[error("stored data is damaged")]
    Damaged,
    /// The copyset did not answer before the IO deadline. A write may still take effect, but no
    /// later than a following write to the same place.
    #[error("the volume's copysets did not answer in time: {last}")]
    Unavailable { last: String },
    /// The engine refused what it should have accepted: versions or configuration differ.
    #[error("the chunkserver refused the request: {why}")]
    Refused { why: String },
    /// The device was closed.
    #[error("the device is closed")]
    Closed,
}

/// A block device. Every method may be called concurrently. A write that returned Ok is durable;
/// overlapping writes in flight take effect in the order in which they were called.
#[async_trait]
pub trait BlockDevice: Send + Sync {
    /// Bytes. May grow while the device is open.
    fn size(&self) -> u64;
    /// True if every write is refused.
    fn read_only(&self) -> bool;
    /// Reads exactly `len` bytes; what was never written reads as zeroes.
    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, BlockError>;
    /// Writes `data`. Each aligned 4 KiB is written whole or not at all.
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), BlockError>;
    /// Returns once every write that has returned is durable.
    async fn flush(&self) -> Result<(), BlockError>;
    /// Frees the whole 4 KiB blocks of the range, which then read as zeroes; the rest is untouched.
    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError>;
    /// Makes the range read as zeroes.
    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError>;
}
