//! Reads everything that the device stores, over and over, so that damage is found and repaired
//! while other replicas still have the bytes.

use std::sync::Arc;
use std::time::Duration;

use curve_raft::{GroupHandle, RaftHost};
use curve_store::{Store, StoreError};
use curve_types::{BLOCK_SIZE, ChunkIndex, ChunkKey, CopysetId, VolumeId};
use curve_wire::chunk::PeerRead;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::repair::{Finder, Repairer, blocking};
use crate::service::{Replica, Replicas};

/// Blocks of one read: a client's read waits no longer for the disk than for these.
const WINDOW: u16 = 64;
/// Between two reads, however little is stored, and between two walks.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Times the disk is left alone after a read for as long as that took: a slow or busy disk is
/// scrubbed in more than the period.
const REST: u32 = 3;

/// Scrubs one device.
pub(crate) struct Scrubber {
    pub host: RaftHost,
    pub replicas: Replicas,
    pub store: Store,
    pub repairer: Arc<Repairer>,
    pub metrics: Metrics,
    /// In which everything is read once.
    pub period: Duration,
}

impl Scrubber {
    /// Scrubs until dropped.
    pub async fn run(&self) {
        // Each start begins elsewhere: of a process that restarts often, no chunk is always the
        // one that is not reached.
        let mut after = Some(ChunkKey { volume: VolumeId::random(), index: ChunkIndex(0) });
        let mut copysets: Vec<CopysetId> = self.replicas.ids().into_iter().collect();
        if !copysets.is_empty() {
            let first = rand::random_range(0..copysets.len());
            copysets.rotate_left(first);
        }
        loop {
            for copyset in copysets {
                if let Err(error) = self.scrub_copyset(copyset, after.take()).await {
                    // It was dropped, or the device has failed, which ends the process.
                    tracing::info!(%copyset, %error, "not scrubbed to its end");
                }
            }
            tokio::time::sleep(self.period.min(PAUSE_MAX)).await;
            copysets = self.replicas.ids().into_iter().collect();
        }
    }

    async fn scrub_copyset(
        &self,
        id: CopysetId,
        mut after: Option<ChunkKey>,
    ) -> Result<(), StoreError> {
        let (Some(handle), Some(replica)) = (self.host.group(id), self.replicas.get(id)) else {
            return Ok(());
        };
        let mut rest = Duration::ZERO;
        while let Some((key, blocks)) = replica.group.chunk_after(after) {
            for window in blocks.chunk_by(|a, b| a / WINDOW == b / WINDOW) {
                let pause = self.pause(window.len());
                tokio::time::sleep(pause.max(rest)).await;
                let began = Instant::now();
                self.scrub_window(&handle, &replica, key, window).await?;
                rest = began.elapsed() * REST;
            }
            after = Some(key);
        }
        Ok(())
    }

    /// The part of the period that so many blocks are of all that is stored.
    fn pause(&self, blocks: usize) -> Duration {
        let stored = self.store.usage().data_blocks_used.max(1);
        let part = blocks as f64 / stored as f64;
        self.period.mul_f64(part.min(1.0)).min(PAUSE_MAX)
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
            let Err(error) = read else { break };
            let Some((key, block)) = error.unreadable_block() else { return Err(error) };
            let damaged = PeerRead { key, block };
            self.repairer.repair(handle, &replica.group, damaged, Finder::Scrub).await?;
            // Those before it were whole. What was not repaired is found again the next time.
            from = block + 1;
        }
        self.metrics.scrubbed(window.len() as u64 * BLOCK_SIZE);
        Ok(())
    }
}
