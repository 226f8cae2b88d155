//! The open device: threads, groups, checkpoints, usage.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use curve_types::{BLOCK_SIZE, CopysetId};

use crate::core::{Core, Upkeep};
use crate::data::{DataArea, Overlay};
use crate::group::GroupInner;
use crate::health::Device;
use crate::log::index::LogIndex;
use crate::recover::{Recovery, recover};
use crate::root::{self, Root};
use crate::simulate::Loops;
use crate::space::{ChunkMap, Space};
use crate::superblock;
use crate::upkeep::UpkeepThread;
use crate::wal::format::Record;
use crate::wal::queue::{Job, Queue, Queued};
use crate::wal::ring::Ring;
use crate::wal::space::{Purpose, WalSpace};
use crate::wal::writer::{Capture, Commits, Writer, WriterStats};
use crate::{AsyncReads, Disk, Group, LogPosition, LogState, StoreError, Superblock, Vote};

/// The overlay takes at most this part of the data area's size, so that the reserve kept for
/// flushing it stays a small part of a small device.
const OVERLAY_PART: u64 = 48;
/// Least size of the overlay: a few entries of the largest size.
const OVERLAY_MIN: u64 = 1 << 20;
/// What half of the largest ring (4 GiB) holds of writes of 4 KiB, so that only smaller entries,
/// of which it would hold many millions, are purged earlier. Memory remembers the place of each
/// entry in under 200 bytes: about 100 MB then.
const LOG_ENTRIES_PRESSED: u64 = 1 << 19;

/// Completion of a durable operation. Runs on the disk's IO thread, in log order: it must not
/// block and must not call into the store in a way that waits (see `Group::append`).
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Supplies a group's applied position and state when the store checkpoints.
pub trait StateProvider: Send + Sync {
    /// Called on the store's upkeep thread (or by `Group::view`) while the group's apply
    /// lock is held, so the answer matches the chunk tables exactly. It must not call
    /// `begin_apply`, and a lock that it takes must never be held by a caller of `begin_apply`.
    fn state(&self) -> (Option<LogPosition>, Bytes);
}

/// Settings of an open store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Applied blocks held in memory before the flusher has written them. `begin_apply` waits
    /// while more than this is dirty.
    pub overlay_bytes_max: u64,
    /// Recent log entries kept in memory; older ones are read back from the WAL.
    pub log_cache_bytes_max: u64,
    /// An idle log writes one mark-only batch after this time, so that damage to the last
    /// acknowledged batch is told from a torn tail.
    pub idle_mark_after: Duration,
    /// How long `append` waits for room in a full WAL before it answers `WalFull`.
    pub wal_full_wait: Duration,
    /// Entries in the logs of all groups at which pressure begins, however full the WAL is.
    pub log_entries_pressed: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            overlay_bytes_max: 64 << 20,
            log_cache_bytes_max: 64 << 20,
            idle_mark_after: Duration::from_millis(100),
            wal_full_wait: Duration::from_secs(10),
            log_entries_pressed: LOG_ENTRIES_PRESSED,
        }
    }
}

/// A group found at open. The host replays the log after `applied` through its state machine,
/// as far as it knows it committed.
#[derive(Clone, Debug)]
pub struct RecoveredGroup {
    pub group: Group,
    pub vote: Option<Vote>,
    pub log_state: LogState,
    /// Last entry whose effect the chunk tables and `state` contain.
    pub applied: Option<LogPosition>,
    /// Blob of the last checkpoint; empty when there was none.
    pub state: Bytes,
}

/// Space on the device. Blocks are of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub data_blocks_total: u64,
    /// Blocks that live chunk tables refer to, overlay blocks included.
    pub data_blocks_used: u64,
    /// Blocks that may be written at once.
    pub data_blocks_free: u64,
    /// Superseded, but still referred to by the last checkpoint or a view.
    pub data_blocks_pending_free: u64,
    /// Part of these that only views hold back, as of the last checkpoint.
    pub data_blocks_pinned: u64,
    /// Kept free so that what was admitted can always be flushed, and for payloads in the log.
    pub data_blocks_reserve: u64,
    /// Blocks that hold payloads of log entries, applied or not, and most that may.
    pub data_blocks_logged: u64,
    pub data_blocks_logged_max: u64,
    pub wal_bytes_total: u64,
    pub wal_bytes_used: u64,
    pub overlay_bytes: u64,
    pub overlay_bytes_max: u64,
    /// Of the last checkpoint, and most that one may have.
    pub checkpoint_bytes: u64,
    pub checkpoint_bytes_max: u64,
    /// Counters since the open.
    pub wal_batches_written: u64,
    pub wal_records_written: u64,
    pub wal_bytes_written: u64,
    /// Since the format.
    pub roots_written: u64,
}

impl Usage {
    /// How full the log is: its ring or the blocks that it may hold, whichever is fuller.
    pub fn log_sixteenths(&self) -> u64 {
        let part = |used: u64, total: u64| used * 16 / total.max(1);
        part(self.wal_bytes_used, self.wal_bytes_total)
            .max(part(self.data_blocks_logged, self.data_blocks_logged_max))
    }

    /// Blocks that proposals may still be admitted for. Everything admitted but not yet applied
    /// must be subtracted by the caller.
    pub fn admissible_blocks(&self) -> u64 {
        self.data_blocks_total
            .saturating_sub(self.data_blocks_used)
            .saturating_sub(self.data_blocks_pinned)
            .saturating_sub(self.data_blocks_reserve)
    }
}

/// Handle to an open device. When the last handle (groups, views and installs count) is gone,
/// what was queued is written and the threads end.
#[derive(Clone)]
pub struct Store {
    owner: Arc<Owner>,
}

/// Ends the threads when the last handle goes.
pub(crate) struct Owner {
    pub core: Arc<Core>,
    /// Upkeep and IO; taken by the drop. None in a simulation.
    threads: Option<[JoinHandle<()>; 2]>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Some([upkeep, io]) = self.threads.take() else { return self.core.close() };
        let me = std::thread::current().id();
        // If a callback held the last handle, the threads end by themselves.
        let by_callback = [&upkeep, &io].iter().any(|thread| thread.thread().id() == me);
        let join = |thread: JoinHandle<()>| {
            if !by_callback && thread.join().is_err() {
                tracing::error!("a thread of the store has panicked");
            }
        };
        // The upkeep thread may wait for the IO thread, so it ends first.
        self.core.upkeep.stop();
        join(upkeep);
        self.core.queue.close();
        join(io);
    }
}

impl Store {
    /// Opens a formatted device: last checkpoint plus WAL. The groups come back sorted by id.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
    ) -> Result<(Self, Vec<RecoveredGroup>), StoreError> {
        let superblock = superblock::load(&*disk)?;
        if superblock.has_log_elsewhere() && !disk.has_log() {
            let what = "its log lies on another device, which was not given".to_owned();
            return Err(StoreError::Unusable { what });
        }
        let device = Arc::new(Device::new(disk));
        // What we are about to read may still be in a volatile cache: pin it down first.
        device.sync("sync before recovery")?;
        let root = root::load(device.disk(), &superblock)?;
        let layout = superblock.layout;
        let ring = Ring { device: device.clone(), offset: layout.wal_offset, len: layout.wal_len };
        let found = recover(&device, &superblock, &root, &ring)?;
        let end = found.end;
        if end.cut {
            tracing::warn!(
                position = end.lsn,
                batch = end.seq,
                "the log ended in a write that was never acknowledged; it is cut there"
            );
        }
        let next = found.next.clone();
        let (core, recovered) = build_core(superblock, options, device, ring, &root, found);
        let owner = start_threads(core, root, next)?;
        let store = Self { owner: owner.clone() };
        store.record_open(end.cut)?;
        if store.superblock().has_log_elsewhere() {
            // Logs and devices can be mixed up: an older copy of this log ends before this.
            store.await_done(|core, done| core.upkeep.root(done))?;
        }
        let groups = recovered
            .into_iter()
            .map(|(inner, applied, state)| {
                let (vote, log_state) = inner.log().vote_and_state();
                let group = Group { owner: owner.clone(), inner };
                RecoveredGroup { group, vote, log_state, applied, state }
            })
            .collect();
        Ok((store, groups))
    }

    /// Begins the new generation of the log, durably.
    fn record_open(&self, cut: bool) -> Result<(), StoreError> {
        let reserved = WalSpace::cost(Record::LEN_MAX);
        self.core().reserve(reserved, Purpose::Open)?;
        let job = Job::Record { group: CopysetId::MDS, record: Record::Open { cut } };
        self.await_done(|core, done| {
            core.queue.push([Queued { done: Some(done), ..Queued::new(job, reserved) }], ());
        })
    }

    fn await_done(&self, start: impl FnOnce(&Core, Done)) -> Result<(), StoreError> {
        let (answer, question) = mpsc::channel();
        start(self.core(), Box::new(move |result| drop(answer.send(result))));
        self.core().serve();
        question.recv().unwrap_or_else(|_| self.core().device.check())
    }

    fn core(&self) -> &Core {
        &self.owner.core
    }

    pub fn superblock(&self) -> &Superblock {
        &self.core().superblock
    }

    fn handle(&self, inner: Arc<GroupInner>) -> Group {
        Group { owner: self.owner.clone(), inner }
    }

    /// A group that exists.
    pub fn group(&self, id: CopysetId) -> Option<Group> {
        let groups = self.core().groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.get(&id).cloned().map(|inner| self.handle(inner))
    }

    /// All groups, sorted by id.
    pub fn groups(&self) -> Vec<Group> {
        self.core().groups().into_iter().map(|inner| self.handle(inner)).collect()
    }

    /// Creates an empty group: usable on return, durable at `done`. An existing one is refused.
    pub fn create_group(&self, id: CopysetId, done: Done) -> Result<Group, StoreError> {
        let core = self.core();
        let reserved = WalSpace::cost(Record::LEN_MAX);
        core.reserve(reserved, Purpose::Control)?;
        let mut groups = core.groups.write().unwrap_or_else(PoisonError::into_inner);
        if groups.contains_key(&id) {
            core.wal.written(0, reserved);
            return Err(StoreError::invalid(format!("copyset {id} exists already")));
        }
        let space = Space::new(core.data.clone(), ChunkMap::new());
        let inner = GroupInner::new(id, u64::MAX, LogIndex::default(), space, (None, Bytes::new()));
        groups.insert(id, inner.clone());
        let job = Job::Create { group: inner.clone() };
        core.queue.push([Queued { done: Some(done), ..Queued::new(job, reserved) }], groups);
        Ok(self.handle(inner))
    }

    /// Forgets a group and all its data, durable at `done`.
    pub fn remove_group(&self, id: CopysetId, done: Done) -> Result<(), StoreError> {
        let core = self.core();
        let reserved = WalSpace::cost(Record::LEN_MAX);
        core.reserve(reserved, Purpose::Open)?;
        let mut groups = core.groups.write().unwrap_or_else(PoisonError::into_inner);
        let Some(inner) = groups.remove(&id) else {
            core.wal.written(0, reserved);
            return Err(StoreError::NoGroup(id));
        };
        {
            let mut log = inner.log();
            log.clear();
            let job = Job::Record { group: id, record: Record::RemoveGroup };
            let queued = Queued { job, reserved, freed: log.take_freed(), done: Some(done) };
            core.queue.push([queued], log);
        }
        drop(groups);
        let children = {
            // So that nothing leaves it any more.
            let _whole_entries = inner.lock_apply();
            core.retire(inner.space.clone());
            inner.abandon_children()
        };
        children.into_iter().try_for_each(|(child, left)| {
            left(Err(StoreError::NoGroup(id)));
            self.remove_group(child, Box::new(|_| ()))
        })
    }

    /// Starts a checkpoint of all groups that covers at least what was applied before the call.
    pub fn checkpoint(&self, done: Done) {
        match self.core().device.check() {
            Ok(()) => self.core().upkeep.checkpoint(done),
            Err(error) => done(Err(error)),
        }
    }

    /// Reads begun by `Group::begin_read`; they end when these are reaped. None where the disk
    /// reads with threads only.
    pub fn async_reads(&self) -> Option<&Arc<AsyncReads>> {
        self.core().device.disk().async_reads()
    }

    /// How fast the device has been so far.
    pub fn commits(&self) -> Commits {
        *self.core().stats.commits()
    }

    pub fn usage(&self) -> Usage {
        self.core().usage()
    }

    /// Called (on the IO thread, must not block) each time the log becomes fuller than half (see
    /// `Usage::log_sixteenths`), or the logs reach `log_entries_pressed`, and again for each further 1/16; also before an
    /// append waits for room in a full WAL. The store checkpoints by itself; the host must purge.
    pub fn on_wal_pressure(&self, callback: Box<dyn Fn() + Send + Sync>) {
        *self.core().pressure.write().unwrap_or_else(PoisonError::into_inner) = Some(callback);
    }

    /// Called once when the store fails; at once if it already has.
    pub fn on_failure(&self, callback: Box<dyn FnOnce(StoreError) + Send>) {
        self.core().device.on_failure(callback);
    }

    /// The error that failed the store, if any.
    pub fn failure(&self) -> Option<StoreError> {
        self.core().device.failure()
    }
}

type RecoveredInner = (Arc<GroupInner>, Option<LogPosition>, Bytes);

fn build_core(
    superblock: Superblock,
    options: StoreOptions,
    device: Arc<Device>,
    ring: Ring,
    root: &Root,
    found: Recovery,
) -> (Arc<Core>, Vec<RecoveredInner>) {
    let layout = superblock.layout;
    let data_len = layout.data_blocks * BLOCK_SIZE;
    let overlay =
        Overlay::new(options.overlay_bytes_max.min(data_len / OVERLAY_PART).max(OVERLAY_MIN));
    let data =
        DataArea::new(device.clone(), layout.data_offset, found.alloc, overlay, layout.data_blocks);
    let data = Arc::new(if superblock.has_log_elsewhere() { data.deferring() } else { data });
    let recovered: Vec<RecoveredInner> = found
        .groups
        .into_iter()
        .map(|(id, group)| {
            let first_lsn = found.next.groups.get(&id).map_or(0, |known| known.first_lsn);
            let space = Space::new(data.clone(), group.chunks);
            let state = (group.applied, group.state.clone());
            (GroupInner::new(id, first_lsn, group.log, space, state), group.applied, group.state)
        })
        .collect();
    // Each space has counted the blocks that its tables share as often as they appear.
    let shared = data.shared.load(Ordering::Relaxed);
    data.live.fetch_sub(shared, Ordering::Relaxed);
    let core = Arc::new(Core {
        wal: WalSpace::new(layout.wal_len, root.tail_lsn, found.end.lsn, root.checkpoint_lsn),
        superblock,
        options,
        device: device.clone(),
        ring,
        queue: Queue::default(),
        data: data.clone(),
        groups: RwLock::new(recovered.iter().map(|(g, _, _)| (g.id, g.clone())).collect()),
        installing: Mutex::default(),
        retired: Mutex::default(),
        upkeep: Upkeep::default(),
        root_seq: AtomicU64::new(root.seq),
        checkpoint_bytes: AtomicU64::new(root.checkpoint_bytes()),
        pressure: RwLock::default(),
        stats: WriterStats::default(),
        loops: Mutex::default(),
    });
    found.removed.into_iter().for_each(|chunks| core.retire(Space::new(data.clone(), chunks)));
    let weak = Arc::downgrade(&core);
    device.set_wakers(Box::new(move || {
        if let Some(core) = weak.upgrade() {
            core.wake_all();
        }
    }));
    (core, recovered)
}

fn start_threads(core: Arc<Core>, root: Root, next: Capture) -> Result<Arc<Owner>, StoreError> {
    let writer = || Writer::new(core.clone(), next.clone());
    let upkeep = || UpkeepThread::new(core.clone(), root);
    if let Some(loops) = Loops::start(&core, writer, upkeep) {
        *core.loops.lock().unwrap_or_else(PoisonError::into_inner) = Some(loops);
        return Ok(Arc::new(Owner { core, threads: None }));
    }
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|source| StoreError::io("start a thread", 0, source))
    };
    let (writer, upkeep) = (writer(), upkeep());
    let io = spawn("curve-store-io", Box::new(move || writer.run()))?;
    let threads = match spawn("curve-store-up", Box::new(move || upkeep.run())) {
        Ok(up) => Some([up, io]),
        Err(error) => {
            core.queue.close();
            return Err(error);
        }
    };
    Ok(Arc::new(Owner { core, threads }))
}
