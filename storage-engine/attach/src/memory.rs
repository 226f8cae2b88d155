//! A block device in memory, for this crate's tests.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use curve_client::{BlockDevice, BlockError};
use curve_types::BLOCK_SIZE;

/// Keeps everything, counts flushes, and can be fenced.
pub struct MemoryDevice {
    bytes: Mutex<Vec<u8>>,
    size: AtomicU64,
    pub fenced: AtomicBool,
    pub flushes: AtomicU32,
    pub discarded: AtomicU64,
    /// Milliseconds that a read of the first block takes.
    pub first_block_delay_ms: AtomicU64,
}

impl MemoryDevice {
    pub fn new(size: u64) -> Self {
        Self {
            bytes: Mutex::new(vec![0; size as usize]),
            size: AtomicU64::new(size),
            fenced: AtomicBool::new(false),
            flushes: AtomicU32::new(0),
            discarded: AtomicU64::new(0),
            first_block_delay_ms: AtomicU64::new(0),
        }
    }

    pub fn grow(&self, size: u64) {
        self.bytes.lock().expect("lock").resize(size as usize, 0);
        self.size.store(size, Ordering::SeqCst);
    }

    pub fn contents(&self) -> Vec<u8> {
        self.bytes.lock().expect("lock").clone()
    }

    fn with(
        &self,
        offset: u64,
        len: u64,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), BlockError> {
        if self.fenced.load(Ordering::SeqCst) {
            return Err(BlockError::Fenced);
        }
        let mut bytes = self.bytes.lock().expect("lock");
        let size = bytes.len() as u64;
        let range = offset as usize..(offset + len) as usize;
        let part = bytes.get_mut(range).ok_or(BlockError::OutOfRange { offset, len, size })?;
        change(part);
        Ok(())
    }
}

#[async_trait]
impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, BlockError> {
        if offset == 0 {
            let delay = self.first_block_delay_ms.load(Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
        }
        let mut out = Bytes::new();
        self.with(offset, u64::from(len), |part| out = Bytes::copy_from_slice(part))?;
        Ok(out)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), BlockError> {
        self.with(offset, data.len() as u64, |part| part.copy_from_slice(&data))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.with(0, 0, |_| ())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let first = offset.next_multiple_of(BLOCK_SIZE);
        let end = (offset + len) / BLOCK_SIZE * BLOCK_SIZE;
        let whole = end.saturating_sub(first);
        self.discarded.fetch_add(whole, Ordering::SeqCst);
        self.with(first.min(self.size()), whole, |part| part.fill(0))
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.with(offset, len, |part| part.fill(0))
    }
}
