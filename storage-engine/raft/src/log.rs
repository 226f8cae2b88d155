//! openraft's log storage on a group of the store.
//!
//! The store fires completions of one device in log order, which is exactly the watermark that
//! openraft expects; nothing is reordered or awaited here but votes.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use curve_store::{Group, LogEntry, Store, StoreError};
use futures::Stream;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::blocking::patiently;
use crate::codec::entry::{from_log, to_log};
use crate::types::{Entry, LogId, Types, Vote, log_id, position, raft_vote, stored_vote};
use crate::witness::{ReplicaId, tell};

/// Bytes of entries in one append to a peer; a single longer entry goes alone.
const APPEND_BYTES_MAX: usize = 1 << 20;
/// Bytes of entries read at once to be applied.
const APPLY_BYTES_MAX: usize = 2 << 20;

/// Lets an append that continues a snapshot wait until that snapshot is installed: openraft takes
/// the two on different tasks.
pub(crate) struct InstallGate {
    exclusive: tokio::sync::Mutex<()>,
    /// Snapshots that were handed to openraft and are not yet installed, refused or failed.
    pending: AtomicUsize,
    /// One of them failed; the replica is about to stop.
    failed: AtomicBool,
}

impl InstallGate {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            exclusive: tokio::sync::Mutex::default(),
            pending: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        })
    }

    /// A snapshot is on its way through openraft until the returned value is dropped.
    pub fn announce(self: &Arc<Self>) -> Announced {
        self.pending.fetch_add(1, Ordering::AcqRel);
        Announced(self.clone())
    }

    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// The right to change the log, or to install, alone.
    pub async fn exclusive(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.exclusive.lock().await
    }
}

pub(crate) struct Announced(Arc<InstallGate>);

impl Drop for Announced {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Log and vote of one replica.
#[derive(Clone)]
pub(crate) struct LogStore {
    store: Store,
    group: Group,
    gate: Arc<InstallGate>,
}

impl LogStore {
    pub fn new(store: Store, group: Group, gate: Arc<InstallGate>) -> Self {
        Self { store, group, gate }
    }

    fn next_index(&self) -> u64 {
        self.group.log_state().last.map_or(0, |last| last.index + 1)
    }

    /// Waits while the log ends before `index` and a snapshot is on its way that will close the
    /// gap, then gives the exclusive right to change the log. Looks from time to time: the
    /// announcement ends only when Raft has answered, and Raft is what waits here.
    async fn wait_for_base(&self, index: u64) -> io::Result<tokio::sync::MutexGuard<'_, ()>> {
        loop {
            let guard = self.gate.exclusive().await;
            let announced = self.gate.pending.load(Ordering::Acquire) > 0;
            if self.next_index() >= index || !announced {
                return Ok(guard);
            }
            if self.gate.failed.load(Ordering::Acquire) {
                return Err(io::Error::other("the snapshot before this entry was not installed"));
            }
            drop(guard);
            tokio::time::sleep(INSTALL_LOOK).await;
        }
    }

    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let read = || self.group.entries(range.clone(), bytes_max);
        // Recent entries are in memory; older ones cost a read of the disk.
        let recent = range.start + RECENT_ENTRIES >= self.next_index();
        let entries = if recent { read() } else { patiently(read) };
        entries
            .map_err(io::Error::other)?
            .into_iter()
            .map(|entry| from_log(entry).map_err(io::Error::from))
            .collect()
    }
}

/// Between looks at whether a snapshot has been installed.
const INSTALL_LOOK: Duration = Duration::from_millis(5);
/// Entries this close to the end are taken to be in the store's cache.
const RECENT_ENTRIES: u64 = 2048;

fn to_range(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = to_range(&range);
        if range.is_empty() { Ok(Vec::new()) } else { self.read(range, usize::MAX) }
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, APPEND_BYTES_MAX)
    }

    /// Reads ahead by a bounded number of bytes, however far behind the state machine is.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.clone();
        let state = (log, to_range(&range), Vec::new().into_iter());
        futures::stream::unfold(state, |(log, mut range, mut batch)| async move {
            if let Some(entry) = batch.next() {
                return Some((Ok(entry), (log, range, batch)));
            }
            if range.is_empty() {
                return None;
            }
            match log.read(range.clone(), APPLY_BYTES_MAX) {
                Ok(entries) => {
                    let last = entries.last().map(|entry: &Entry| entry.log_id.index)?;
                    range.start = last + 1;
                    batch = entries.into_iter();
                    let first = batch.next()?;
                    Some((Ok(first), (log, range, batch)))
                }
                Err(error) => {
                    range.start = range.end;
                    Some((Err(error), (log, range, batch)))
                }
            }
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.group.vote().map(raft_vote))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.group.log_state();
        Ok(LogState {
            last_purged_log_id: state.last_purged.map(log_id),
            last_log_id: state.last.map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        self.group.save_vote(stored_vote(vote), Box::new(|result| drop(done.send(result))));
        durable.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        let (device, group) = (self.store.superblock().device, self.group.id());
        tell(|witness| witness.voted(ReplicaId { device, group }, vote.leader_id.into()));
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().map(to_log).collect();
        let Some(first) = entries.first() else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let _exclusive = self.wait_for_base(first.position.index).await?;
        let done = Box::new(move |result: Result<(), StoreError>| {
            callback.io_completed(result.map_err(io::Error::other));
        });
        let append = || self.group.append(entries, done);
        let usage = self.store.usage();
        let roomy = usage.wal_bytes_used < usage.wal_bytes_total / 2;
        if roomy { append() } else { patiently(append) }.map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let _exclusive = self.gate.exclusive().await;
        self.group
            .truncate_after(last.map(|last| last.index), Box::new(log_failure))
            .map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let _exclusive = self.gate.exclusive().await;
        let purged = self.group.log_state().last_purged;
        if purged.is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        self.group.purge(position(&upto), Box::new(log_failure)).map_err(io::Error::other)
    }
}

/// Nobody waits for a truncation or a purge to be durable: both come before whatever is written
/// next. If they failed, so has the store, and it has told its owner.
fn log_failure(result: Result<(), StoreError>) {
    if let Err(error) = result {
        tracing::error!(%error, "log change was not written");
    }
}
