//! Writes zeroes to free blocks that were never written, in the background.
//!
//! A preallocated file consists of extents that the file system marks as unwritten. The first
//! write to a block makes the next sync commit the file system's journal, which costs a small
//! write a quarter of its speed; done ahead of time in large pieces, it costs nobody anything.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use curve_types::BLOCK_SIZE;

use crate::StoreError;
use crate::aligned::AlignedBuf;
use crate::alloc::Holder;
use crate::core::Core;

/// Blocks of one step: little enough that a write which comes meanwhile hardly waits.
const STEP_BLOCKS: u64 = 64;
/// Between two steps: at most 125 MiB/s on an idle device, 50 MiB/s beside other work.
const PAUSE_IDLE: Duration = Duration::from_millis(2);
const PAUSE_BUSY: Duration = Duration::from_millis(5);

pub(crate) struct Toucher {
    core: Arc<Core>,
    /// Blocks that the file system calls unwritten, from where the next step begins.
    range: Range<u64>,
    /// Nothing is left to do.
    done: bool,
    /// Batches of the log that were written until the last step.
    batches: u64,
    zeroes: AlignedBuf,
}

impl Toucher {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core, range: 0..0, done: false, batches: 0, zeroes: AlignedBuf::with_capacity(0) }
    }

    /// How long to wait for other work before the next step; None if there is none.
    pub fn pause(&mut self) -> Option<Duration> {
        if self.done || self.core.is_failed() {
            return None;
        }
        let batches = self.core.stats.batches.load(Ordering::Relaxed);
        let busy = std::mem::replace(&mut self.batches, batches) != batches;
        Some(if busy { PAUSE_BUSY } else { PAUSE_IDLE })
    }

    pub fn step(&mut self) -> Result<(), StoreError> {
        while !self.done {
            if self.range.is_empty() {
                self.find();
                continue;
            }
            let end = self.range.end.min(self.range.start + STEP_BLOCKS);
            let touched = self.touch(self.range.start as u32..end as u32)?;
            self.range.start = end;
            if touched {
                break;
            }
        }
        Ok(())
    }

    /// Looks for the next range.
    fn find(&mut self) {
        let data = &self.core.data;
        let from = data.device_offset(0) + self.range.end * BLOCK_SIZE;
        let found = self.core.device.disk().next_unwritten(from).unwrap_or_else(|error| {
            tracing::info!(%error, "blocks are not written ahead of time");
            None
        });
        let block = |offset: u64| (offset - data.device_offset(0)) / BLOCK_SIZE;
        self.range = match found {
            Some(range) => block(range.start.max(from))..block(range.end).min(data.blocks_total),
            None => 0..0,
        };
        self.done = self.range.is_empty();
        if self.done {
            self.zeroes = AlignedBuf::with_capacity(0);
        }
    }

    /// Writes zeroes to those of the blocks that nobody holds; false if there was none.
    fn touch(&mut self, blocks: Range<u32>) -> Result<bool, StoreError> {
        let data = &self.core.data;
        let claimed: Vec<u32> = {
            let mut alloc = data.alloc.lock().unwrap_or_else(PoisonError::into_inner);
            blocks.filter(|block| alloc.claim_free(*block, Holder::Table)).collect()
        };
        if self.zeroes.is_empty() {
            let len = (STEP_BLOCKS * BLOCK_SIZE) as usize;
            self.zeroes = AlignedBuf::with_capacity(len);
            self.zeroes.set_len(len);
            self.zeroes.fill(0);
        }
        let written = claimed.chunk_by(|a, b| a + 1 == *b).try_for_each(|run| {
            let bytes = &self.zeroes[..run.len() * BLOCK_SIZE as usize];
            self.core.device.write("write ahead of time", bytes, data.device_offset(run[0]))
        });
        let mut alloc = data.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.iter().for_each(|block| alloc.release(*block, Holder::Table));
        written.map(|()| !claimed.is_empty())
    }
}
