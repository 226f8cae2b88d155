//! The data area shared by all groups: its blocks, the budget of blocks in memory, and the clock
//! that orders supersession against pins.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;
use curve_types::BLOCK_SIZE;

use crate::StoreError;
use crate::aligned::AlignedBuf;
use crate::alloc::{Allocator, Holder};
use crate::chunk::BlockAddr;
use crate::codec::crc32c;
use crate::health::Device;

/// Blocks of one flush write.
const RUN_BLOCKS_MAX: usize = 256;
/// The log may hold this part of the data area as payloads, up to `LOGGED_BYTES_MAX`: room that no
/// volume gets, and that bounds what a member can catch up on from the log.
const LOGGED_PART: u64 = 16;
const LOGGED_BYTES_MAX: u64 = 4 << 30;
/// A checkpoint is due when it would free this part of the data area.
const RECLAIM_PART: u64 = 32;

/// With the log on a device of its own: up to this length a payload is written there alone, so that
/// only that device is waited for, and is brought to the data area later, many at once. Of longer
/// ones the second write costs more than the wait.
const DEFERRED_MAX: usize = 32 << 10;

pub(crate) struct DataArea {
    pub device: Arc<Device>,
    offset: u64,
    pub blocks_total: u64,
    /// Payloads up to this length go into the log's records.
    pub deferred_max: usize,
    pub alloc: Mutex<Allocator>,
    pub overlay: Overlay,
    /// Ticks with every pin. A block superseded at tick `t` is referred to by no pin younger
    /// than `t`.
    clock: AtomicU64,
    /// Blocks that live tables refer to, those in memory included.
    pub live: AtomicU64,
    /// Entries of live tables beyond the first that refer to a block; see `Allocator::shared`.
    pub shared: AtomicU64,
    /// Superseded blocks not yet released.
    pub pending: AtomicU64,
    /// Part of `pending` that only views and installs hold back, as of the last release.
    pub pinned: AtomicU64,
}

impl DataArea {
    pub fn new(
        device: Arc<Device>,
        offset: u64,
        alloc: Allocator,
        overlay: Overlay,
        total: u64,
    ) -> Self {
        Self {
            device,
            offset,
            blocks_total: total,
            deferred_max: 0,
            shared: AtomicU64::new(alloc.shared()),
            alloc: Mutex::new(alloc),
            overlay,
            clock: AtomicU64::new(1),
            live: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
        }
    }

    /// The same with its log on another device.
    pub fn deferring(self) -> Self {
        Self { deferred_max: DEFERRED_MAX, ..self }
    }

    /// Notes that one more table refers to each of the blocks.
    pub fn share(&self, blocks: impl Iterator<Item = u32>) -> u64 {
        let mut alloc = self.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        let before = alloc.shared();
        blocks.for_each(|block| alloc.share(block));
        self.shared.store(alloc.shared(), Ordering::Relaxed);
        alloc.shared() - before
    }

    /// As `share`, of blocks that were counted for each table while they were in memory.
    pub fn share_flushed(&self, blocks: impl Iterator<Item = u32>) {
        let shared = self.share(blocks);
        self.live.fetch_sub(shared, Ordering::Relaxed);
    }

    /// Takes from the list the blocks that other tables go on referring to.
    pub fn unshare(&self, blocks: &mut Vec<u32>) {
        if blocks.is_empty() || self.shared.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut alloc = self.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.retain(|block| !alloc.unshare(*block));
        self.shared.store(alloc.shared(), Ordering::Relaxed);
    }

    /// A tick later than every supersession so far.
    pub fn pin_tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    pub fn free_blocks(&self) -> u64 {
        self.free_and_logged_blocks().0
    }

    /// Blocks that nobody holds, and blocks that the log holds as payloads.
    pub fn free_and_logged_blocks(&self) -> (u64, u64) {
        let alloc = self.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        (alloc.free_blocks(), alloc.logged_blocks())
    }

    /// Most blocks that the log may hold.
    pub fn logged_max(&self) -> u64 {
        (self.blocks_total / LOGGED_PART).min(LOGGED_BYTES_MAX / BLOCK_SIZE)
    }

    /// Blocks that a checkpoint must be able to find for what is in memory: a full overlay, what
    /// it supersedes, and what is written while the checkpoint runs.
    pub fn flush_reserve(&self) -> u64 {
        self.overlay.bytes_max / BLOCK_SIZE * 3
    }

    /// Superseded blocks that the next checkpoint will release.
    pub fn reclaimable(&self) -> u64 {
        let pending = self.pending.load(Ordering::Relaxed);
        pending.saturating_sub(self.pinned.load(Ordering::Relaxed))
    }

    /// Whether enough waits for a checkpoint to write one for it.
    pub fn wants_checkpoint(&self) -> bool {
        self.reclaimable() > self.blocks_total / RECLAIM_PART
    }

    pub fn device_offset(&self, block: u32) -> u64 {
        self.offset + u64::from(block) * BLOCK_SIZE
    }

    /// Reads blocks of this area; see the function of that name.
    pub fn read_verified(
        &self,
        addrs: &[BlockAddr],
        buf: &mut [u8],
    ) -> Result<Option<usize>, StoreError> {
        read_verified(&self.device, self.offset, addrs, buf)
    }

    /// Writes blocks to fresh places, in runs as long as free space allows, and tells `placed`
    /// of each. Durable after the next sync.
    pub fn write(
        &self,
        blocks: &[Bytes],
        mut placed: impl FnMut(usize, BlockAddr),
    ) -> Result<(), StoreError> {
        let mut at = 0;
        while at < blocks.len() {
            let want = (blocks.len() - at).min(RUN_BLOCKS_MAX) as u32;
            let run = {
                let mut alloc = self.alloc.lock().unwrap_or_else(PoisonError::into_inner);
                alloc.take_run(want, Holder::Table)
            };
            let Some((start, len)) = run else {
                let what = format!(
                    "no free block for applied data: {} in use, {} superseded but held by the \
                     last checkpoint or a view",
                    self.live.load(Ordering::Relaxed),
                    self.pending.load(Ordering::Relaxed)
                );
                return Err(StoreError::NoSpace { what });
            };
            let run = &blocks[at..at + len as usize];
            let mut buf = AlignedBuf::take(run.len() * BLOCK_SIZE as usize);
            let mut crcs = Vec::with_capacity(run.len());
            for (block, target) in run.iter().zip(buf.chunks_exact_mut(BLOCK_SIZE as usize)) {
                target.copy_from_slice(block);
                crcs.push(crc32c(target));
            }
            self.device.write("write data", &buf, self.device_offset(start))?;
            for (i, crc) in crcs.into_iter().enumerate() {
                placed(at + i, BlockAddr { block: start + i as u32, crc });
            }
            at += run.len();
        }
        Ok(())
    }
}

/// Reads blocks of the data area that begins at `offset` into `buf`, neighbours at once. The answer
/// is the first of them whose bytes do not match their checksum, if any.
pub(crate) fn read_verified(
    device: &Device,
    offset: u64,
    addrs: &[BlockAddr],
    buf: &mut [u8],
) -> Result<Option<usize>, StoreError> {
    let mut at = 0;
    while let Some(first) = addrs.get(at) {
        let follows =
            |(i, addr): &(usize, &BlockAddr)| addr.block as usize == first.block as usize + i;
        let run = addrs[at..].iter().enumerate().take_while(follows).count();
        let bytes = &mut buf[at * BLOCK_SIZE as usize..(at + run) * BLOCK_SIZE as usize];
        device.read("read data", bytes, offset + u64::from(first.block) * BLOCK_SIZE)?;
        at += run;
    }
    Ok(first_bad(addrs, buf))
}

/// The first block whose bytes do not match its checksum.
pub(crate) fn first_bad(addrs: &[BlockAddr], buf: &[u8]) -> Option<usize> {
    let mut blocks = addrs.iter().zip(buf.chunks_exact(BLOCK_SIZE as usize));
    blocks.position(|(addr, bytes)| crc32c(bytes) != addr.crc)
}

/// Counts blocks in memory and makes appliers wait for the flusher.
pub(crate) struct Overlay {
    pub bytes_max: u64,
    bytes: AtomicU64,
    gate: Mutex<()>,
    room: Condvar,
}

impl Overlay {
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: AtomicU64::new(0), gate: Mutex::new(()), room: Condvar::new() }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether the flusher should work: early enough that appliers rarely wait.
    pub fn wants_flush(&self) -> bool {
        self.bytes() > self.bytes_max / 2
    }

    pub fn add_blocks(&self, count: u64) {
        self.bytes.fetch_add(count * BLOCK_SIZE, Ordering::Relaxed);
    }

    pub fn remove_blocks(&self, count: u64) {
        if count > 0
            && self.bytes.fetch_sub(count * BLOCK_SIZE, Ordering::Relaxed) >= self.bytes_max
        {
            self.wake();
        }
    }

    pub fn wake(&self) {
        drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
        self.room.notify_all();
    }

    /// Waits until less than the maximum is in memory, or the store failed.
    pub fn wait_for_room(&self, device: &Device, ask_flush: impl Fn()) -> Result<(), StoreError> {
        device.check()?;
        if self.bytes() < self.bytes_max {
            return Ok(());
        }
        ask_flush();
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        while self.bytes() >= self.bytes_max {
            device.check()?;
            gate = self.room.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}
