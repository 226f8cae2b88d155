//! Reads the blocks of all chunks when the MDS says so, so that damage is found and repaired while
//! other replicas still have the bytes; then lets all replicas make a digest, to see that they are
//! alike.

mod book;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use curve_raft::{GroupHandle, RaftHost, in_thread};
use curve_store::{Store, StoreError};
use curve_types::{BLOCK_SIZE, CopysetId};
use curve_wire::chunk::{Command, PeerRead};
use curve_wire::proto::{ScrubOrder, ScrubReport};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::book::{Book, Found, Step, Visit};
use crate::metrics::Metrics;
use crate::repair::{Finder, Outcome, Repairer, blocking};
use crate::service::{Replica, Replicas};

/// Blocks of one read, 256 KiB: a client's read waits no longer for the disk than for these, and
/// a disk reads them not much slower than it would read more.
const WINDOW: u16 = 64;
/// Longest pause between two reads, so that a device that was nearly empty is read before long.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// After a read, repairs included, the disk is left alone this many times as long as it took: at
/// most a quarter of a slow or busy disk's time is the scrub's.
const REST: u32 = 3;

/// After a step that failed, or that asks again what no peer answered.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks for digests to be made.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// All replicas have so long to make and report a digest before the leader asks for another.
const DIGEST_AGAIN: Duration = Duration::from_secs(10);
/// What is not committed by then is tried again.
const PROPOSE_WAIT: Duration = Duration::from_secs(3);

/// Orders and how far they are, shared by heartbeats and the scrubber.
#[derive(Clone, Default)]
pub(crate) struct Scrubs(Arc<(Mutex<Book>, Notify)>);

impl Scrubs {
    fn with<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        work(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over all orders that there are.
    pub fn order(&self, orders: Vec<ScrubOrder>) {
        self.with(|book| book.on_orders(orders));
        self.0.1.notify_one();
    }

    /// By copyset; without digests.
    pub fn reports(&self) -> BTreeMap<CopysetId, ScrubReport> {
        self.with(|book| book.reports())
    }

    async fn changed(&self) {
        self.0.1.notified().await;
    }
}

/// Scrubs one device, a copyset at a time, as the MDS orders.
pub(crate) struct Scrubber {
    pub host: RaftHost,
    pub replicas: Replicas,
    pub store: Store,
    pub repairer: Arc<Repairer>,
    pub metrics: Metrics,
    pub scrubs: Scrubs,
}

impl Scrubber {
    /// Scrubs until dropped.
    pub async fn run(&self) {
        tokio::join!(self.walk(), self.make_digests());
    }

    async fn walk(&self) {
        loop {
            let Some(step) = self.scrubs.with(|book| book.next()) else {
                self.scrubs.changed().await;
                continue;
            };
            match self.take(step).await {
                Ok(true) => {
                    self.metrics.scrub_walked();
                    let Step { copyset, number, .. } = step;
                    tracing::info!(%copyset, number, "all blocks of the replica are read");
                }
                Ok(false) => {}
                Err(error) => {
                    // It was dropped, or the device has failed, which ends the process.
                    tracing::info!(copyset = %step.copyset, %error, "not scrubbed to its end");
                    self.scrubs.with(|book| book.on_failed(step));
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Whether it was the last one of its copyset.
    async fn take(&self, step: Step) -> Result<bool, StoreError> {
        let id = step.copyset;
        let (Some(handle), Some(replica)) = (self.host.group(id), self.replicas.get(id)) else {
            return Err(StoreError::NoGroup(id));
        };
        let Some(visit) = step.visit else {
            let keys = from_anywhere(replica.group.chunk_keys()?);
            return Ok(self.scrubs.with(|book| book.on_listed(step, keys)));
        };
        let mut all = Found::default();
        let mut rest = if visit.tries > 0 { RETRY_PAUSE } else { Duration::ZERO };
        // Of a chunk that shares all its blocks nothing is read: many such are not to keep others
        // from running.
        tokio::task::yield_now().await;
        let blocks = replica.group.table_blocks(visit.key);
        for window in blocks.chunk_by(|a, b| a / WINDOW == b / WINDOW) {
            let stored = self.store.usage().data_blocks_used;
            if !self.pause(step, pause(step.period, window.len(), stored).max(rest)).await {
                return Ok(false);
            }
            let began = Instant::now();
            let found = self.scrub_window(&handle, &replica, step, visit, window).await?;
            all.lost += found.lost;
            all.unrepaired += found.unrepaired;
            if found.unrepaired > 0 && !visit.is_last() {
                // Clients whose reads want a repair are not to queue for what no peer answers.
                break;
            }
            rest = began.elapsed() * REST;
        }
        Ok(self.scrubs.with(|book| book.on_visited(step, all)))
    }

    /// False if the step is not what is to be done any more.
    async fn pause(&self, step: Step, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        loop {
            let wanted = self.scrubs.with(|book| book.next()) == Some(step);
            if !wanted || Instant::now() >= deadline {
                return wanted;
            }
            let _ = tokio::time::timeout_at(deadline, self.scrubs.changed()).await;
        }
    }

    /// Reads these blocks of a chunk, and repairs those that cannot be read.
    async fn scrub_window(
        &self,
        handle: &GroupHandle,
        replica: &Replica,
        step: Step,
        visit: Visit,
        window: &[u16],
    ) -> Result<Found, StoreError> {
        let mut found = Found::default();
        let (Some(first), Some(last)) = (window.first(), window.last()) else { return Ok(found) };
        let (key, mut from, end) = (visit.key, u32::from(*first), u32::from(*last) + 1);
        while from < end {
            let (offset, len) = (from * BLOCK_SIZE as u32, (end - from) * BLOCK_SIZE as u32);
            let read = blocking(&replica.group, move |group| group.read(key, offset, len)).await;
            let Err(error) = read else {
                from = end;
                break;
            };
            let Some((key, block)) = error.unreadable_block() else { return Err(error) };
            // Those before it were whole.
            from = block + 1;
            let damaged = PeerRead { key, block };
            match self.repairer.repair(handle, &replica.group, damaged, Finder::Scrub).await? {
                Outcome::Repaired => found.repaired += 1,
                Outcome::Superseded => {}
                Outcome::Lost => found.lost += 1,
                Outcome::Unfinished => {
                    found.unrepaired += 1;
                    if !visit.is_last() {
                        break;
                    }
                }
            }
        }
        let read = window.iter().take_while(|index| u32::from(**index) < from).count();
        let bytes = read as u64 * BLOCK_SIZE;
        self.metrics.scrubbed(bytes);
        self.scrubs.with(|book| book.on_read(step, bytes, found.repaired));
        Ok(found)
    }

    /// Makes the digests that are due here, and asks for those that are wanted of all replicas.
    async fn make_digests(&self) {
        loop {
            tokio::time::sleep(LOOK_PAUSE).await;
            for id in self.replicas.ids() {
                let Some(Replica { digest, .. }) = self.replicas.get(id) else { continue };
                if digest.is_due() {
                    // Every replica makes it of the same state: a panic must not end them all.
                    let _ = tokio::spawn(in_thread(move || digest.make())).await;
                }
            }
            for (copyset, scrub) in self.scrubs.with(|book| book.digests_wanted()) {
                self.propose_digest(copyset, scrub).await;
            }
        }
    }

    async fn propose_digest(&self, copyset: CopysetId, scrub: u64) {
        let (Some(handle), Some(replica)) = (self.host.group(copyset), self.replicas.get(copyset))
        else {
            return;
        };
        if !handle.is_leader() || replica.digest.age(scrub).is_some_and(|age| age < DIGEST_AGAIN) {
            return;
        }
        let (header, payload) = Command::Digest { scrub }.encode();
        match tokio::time::timeout(PROPOSE_WAIT, handle.propose(header, payload)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(%copyset, %error, "no digest now"),
            Err(_) => tracing::info!(%copyset, "no digest now: it was not committed in time"),
        }
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
