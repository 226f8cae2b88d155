//! Reads the blocks of all chunks, over and over, so that damage is found and repaired while other
//! replicas still have the bytes.

use std::sync::Arc;
use std::time::Duration;

use curve_raft::{GroupHandle, RaftHost};
use curve_store::{Store, StoreError};
use curve_types::{BLOCK_SIZE, ChunkKey, CopysetId};
use curve_wire::chunk::PeerRead;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::repair::{Finder, Outcome, Repairer, blocking};
use crate::service::{Replica, Replicas};

/// Blocks of one read, 256 KiB: a client's read waits no longer for the disk than for these, and
/// a disk reads them not much slower than it would read more.
const WINDOW: u16 = 64;
/// Longest pause between two reads and between two walks, so that a device that was nearly empty
/// is looked at again before long.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// After a read, repairs included, the disk is left alone this many times as long as it took: at
/// most a quarter of a slow or busy disk's time is the scrub's, and a walk then takes longer.
const REST: u32 = 3;

/// Scrubs one device.
pub(crate) struct Scrubber {
    pub host: RaftHost,
    pub replicas: Replicas,
    pub store: Store,
    pub repairer: Arc<Repairer>,
    pub metrics: Metrics,
    /// In which one walk over all blocks should be made.
    pub period: Duration,
}

impl Scrubber {
    /// Scrubs until dropped.
    pub async fn run(&self) {
        loop {
            let mut complete = true;
            for copyset in from_anywhere(self.replicas.ids()) {
                if let Err(error) = self.scrub_copyset(copyset).await {
                    // It was dropped, or the device has failed, which ends the process.
                    tracing::info!(%copyset, %error, "not scrubbed to its end");
                    complete = false;
                }
            }
            if complete {
                self.metrics.scrub_walked();
            }
            tokio::time::sleep(self.period.min(PAUSE_MAX)).await;
        }
    }

    async fn scrub_copyset(&self, id: CopysetId) -> Result<(), StoreError> {
        let (Some(handle), Some(replica)) = (self.host.group(id), self.replicas.get(id)) else {
            return Ok(());
        };
        let mut rest = Duration::ZERO;
        for key in from_anywhere(replica.group.chunk_keys()?) {
            let blocks = replica.group.table_blocks(key);
            for window in blocks.chunk_by(|a, b| a / WINDOW == b / WINDOW) {
                let stored = self.store.usage().data_blocks_used;
                tokio::time::sleep(pause(self.period, window.len(), stored).max(rest)).await;
                let began = Instant::now();
                self.scrub_window(&handle, &replica, key, window).await?;
                rest = began.elapsed() * REST;
            }
        }
        Ok(())
    }

    /// Reads these blocks of a chunk, and repairs those that cannot be read.
    async fn scrub_window(
        &self,
        handle: &GroupHandle,
        replica: &Replica,
        key: ChunkKey,
        window: &[u16],
    ) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (window.first(), window.last()) else { return Ok(()) };
        let (mut from, end) = (u32::from(*first), u32::from(*last) + 1);
        while from < end {
            let (offset, len) = (from * BLOCK_SIZE as u32, (end - from) * BLOCK_SIZE as u32);
            let read = blocking(&replica.group, move |group| group.read(key, offset, len)).await;
            let Err(error) = read else {
                from = end;
                break;
            };
            let Some((key, block)) = error.unreadable_block() else { return Err(error) };
            // Those before it were whole. What is not repaired is found again by the next walk.
            from = block + 1;
            let damaged = PeerRead { key, block };
            match self.repairer.repair(handle, &replica.group, damaged, Finder::Scrub).await? {
                Outcome::Repaired | Outcome::Superseded | Outcome::Lost => {}
                // No peer answers now. Clients whose reads want a repair are not to queue for that.
                Outcome::Unfinished => break,
            }
        }
        let read = window.iter().take_while(|index| u32::from(**index) < from).count();
        self.metrics.scrubbed(read as u64 * BLOCK_SIZE);
        Ok(())
    }
}

/// The same list, begun at a random place: of a process that restarts often, no part is always the
/// one that is not reached.
fn from_anywhere<T>(mut list: Vec<T>) -> Vec<T> {
    if !list.is_empty() {
        let first = rand::random_range(0..list.len());
        list.rotate_left(first);
    }
    list
}

/// The part of the period that `blocks` are of all that is stored.
fn pause(period: Duration, blocks: usize, stored: u64) -> Duration {
    let part = blocks as f64 / stored.max(1) as f64;
    period.mul_f64(part.min(1.0)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    #[test]
    fn the_pauses_of_a_walk_add_up_to_the_period() {
        // 1 TiB in whole windows, and in windows of one block.
        let stored = 1u64 << 28;
        for blocks in [64, 1] {
            let walk = pause(WEEK, blocks, stored).mul_f64((stored / blocks as u64) as f64);
            assert!(walk.abs_diff(WEEK) < WEEK / 100, "{walk:?} with windows of {blocks}");
        }
        assert_eq!(pause(Duration::from_secs(8), 1, 4), Duration::from_secs(2));
    }

    #[test]
    fn no_pause_is_longer_than_the_longest() {
        assert_eq!(pause(WEEK, 1, 0), PAUSE_MAX);
        assert_eq!(pause(WEEK, 64, 100), PAUSE_MAX);
        // Blocks that were freed since they were counted.
        assert_eq!(pause(Duration::from_secs(8), 64, 1), Duration::from_secs(8));
    }

    #[test]
    fn a_walk_that_begins_anywhere_misses_nothing() {
        for _ in 0..20 {
            let mut list = from_anywhere((0..7).collect());
            list.sort_unstable();
            assert_eq!(list, (0..7).collect::<Vec<_>>());
        }
        assert!(from_anywhere(Vec::<u8>::new()).is_empty());
    }
}
