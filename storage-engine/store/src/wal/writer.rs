//! The IO thread: drains the queue into batches, whose payloads and records are written together
//! and synced once, and then completes them in order. One batch is in flight at a time: while it
//! syncs, the next one gathers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use curve_types::CopysetId;
use curve_types::planted::{self, Bug};

use crate::StoreError;
use crate::core::Core;
use crate::group::GroupInner;
use crate::log::index::Loc;
use crate::log::{LogEntry, LogPosition, Vote};
use crate::payload::{self, Blocks, Gather};
use crate::store::Done;
use crate::wal::format::{self, BATCH_SOFT_MAX, BatchBuilder, BatchHeader, Record};
use crate::wal::queue::{Job, Next, Queued};
use crate::wal::space::{Purpose, WalSpace};

/// What the WAL says of a group up to some position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct WalGroup {
    pub vote: Option<Vote>,
    pub last_purged: Option<LogPosition>,
    pub lost: Option<LogPosition>,
    /// Records of the group before this position are dead.
    pub first_lsn: u64,
}

impl WalGroup {
    pub fn purge(&mut self, upto: LogPosition) {
        if self.last_purged.is_none_or(|purged| purged.index < upto.index) {
            self.last_purged = Some(upto);
        }
    }
}

/// The end of the durable log, and every group as of there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Capture {
    pub lsn: u64,
    pub seq: u64,
    pub generation: u64,
    pub groups: BTreeMap<CopysetId, WalGroup>,
}

/// Counters for metrics and tests.
#[derive(Default)]
pub(crate) struct WriterStats {
    pub commits: Mutex<Commits>,
    pub batches: AtomicU64,
    pub records: AtomicU64,
    pub bytes: AtomicU64,
}

impl WriterStats {
    pub fn commits(&self) -> MutexGuard<'_, Commits> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the device takes for a batch and its sync.
#[derive(Clone, Copy, Default)]
pub struct Commits {
    pub count: u64,
    /// Of all that have ended.
    time: Duration,
    under_way_since: Option<Instant>,
}

impl Commits {
    fn begin(&mut self) {
        self.under_way_since = Some(Instant::now());
    }

    fn end(&mut self) {
        let Some(since) = self.under_way_since.take() else { return };
        self.count += 1;
        self.time += since.elapsed();
    }

    /// What one took on average since `before`, or takes by now; None if there was none.
    pub fn mean_since(&self, before: &Self) -> Option<Duration> {
        let count = u32::try_from(self.count - before.count).unwrap_or(u32::MAX);
        let ended = (self.time - before.time).checked_div(count);
        let under_way = self.under_way_since.map(|since| since.elapsed());
        ended.max(under_way)
    }
}

struct CachedEntry {
    group: Arc<GroupInner>,
    index: u64,
    id: u64,
    len: usize,
}

pub(crate) struct Writer {
    core: Arc<Core>,
    batch: BatchBuilder,
    /// Payloads of the batch.
    payloads: Gather,
    /// Payloads that durable batches have dropped. The last of these batches may also hold the
    /// entries; until a mark covers it, a recovery reads their payloads to tell whether it is torn.
    freed: Vec<Blocks>,
    /// Position, sequence and generation of the next batch.
    next: Capture,
    /// Entries in memory that may be evicted, oldest first.
    cache: VecDeque<CachedEntry>,
    cache_bytes: usize,
    /// A durable batch is not covered by a mark yet.
    mark_owed: bool,
    /// Fullness at which the pressure callback is due next, in sixteenths of the ring.
    pressure_at: u64,
    /// Records to be written until the logs' entries are counted again: before, there cannot be
    /// too many.
    count_after: u64,
}

/// Sixteenths of the ring, or of the blocks that the log may hold, at which pressure begins.
const PRESSURE_FROM: u64 = 8;
/// A batch takes no further entry once its payloads are this long: several of the largest writes
/// share a sync, and none waits long for the others.
const PAYLOADS_SOFT_MAX: usize = 4 << 20;

impl Writer {
    pub fn new(core: Arc<Core>, next: Capture) -> Self {
        Self {
            core,
            batch: BatchBuilder::new(),
            payloads: Gather::new(PAYLOADS_SOFT_MAX + LogEntry::BYTES_MAX),
            freed: Vec::new(),
            next,
            cache: VecDeque::new(),
            cache_bytes: 0,
            mark_owed: false,
            pressure_at: PRESSURE_FROM,
            // Those that were found at the open are counted with the first.
            count_after: 0,
        }
    }

    /// Runs until the queue is closed and empty.
    pub fn run(mut self) {
        loop {
            let idle: Option<Duration> =
                self.mark_owed.then_some(self.core.options.idle_mark_after);
            match self.core.queue.take(idle) {
                Next::Jobs(jobs) => self.write_all(jobs),
                Next::Idle => self.write_mark(),
                Next::Closed => return,
            }
        }
    }

    /// Writes what is queued now.
    pub fn step(&mut self) {
        let jobs = self.core.queue.take_now();
        if !jobs.is_empty() {
            self.write_all(jobs);
        }
    }

    /// Writes the mark that is owed, if one is.
    pub fn mark(&mut self) {
        if self.mark_owed {
            self.write_mark();
        }
    }

    /// Writes the jobs as one batch or several.
    fn write_all(&mut self, mut jobs: VecDeque<Queued>) {
        while !jobs.is_empty() {
            let mut taken = Vec::new();
            let mut reserved = 0;
            self.batch.start();
            self.payloads.clear();
            while self.batch.len() < BATCH_SOFT_MAX
                && self.payloads.len() < PAYLOADS_SOFT_MAX
                && let Some(queued) = jobs.pop_front()
            {
                if matches!(queued.job, Job::Capture(_)) && !self.batch.is_empty() {
                    jobs.push_front(queued);
                    break;
                }
                reserved += queued.reserved;
                self.encode(&queued.job);
                taken.push(queued);
                if self.batch.is_empty() {
                    // No record at the front needs no batch: everything before it is durable.
                    break;
                }
            }
            let result = match self.batch.is_empty() {
                true => self.core.device.check(),
                false => self.commit(reserved, must_sync(&taken)),
            };
            self.complete(taken, result);
        }
        self.press();
    }

    fn encode(&mut self, job: &Job) {
        match job {
            Job::Record { group, record } => {
                self.add(*group, record);
            }
            Job::Create { group } => {
                let position = self.add(group.id, &Record::CreateGroup);
                group.created_at(position);
            }
            Job::Adopt { group, known } => {
                self.next.groups.insert(*group, *known);
            }
            Job::Entry { group, id, entry, blocks } => {
                let at = self.batch.len() as u32;
                let len = format::add_entry(&mut self.batch, group.id, entry, blocks.as_ref());
                if let Some(blocks) = blocks {
                    self.payloads.add(&entry.payload, blocks);
                }
                let loc = Loc { batch: self.next.lsn, at, len };
                group.log().place(entry.position.index, *id, loc);
            }
            Job::Nothing | Job::Capture(_) => {}
        }
    }

    fn add(&mut self, group: CopysetId, record: &Record) -> u64 {
        let position = self.next.lsn + self.batch.len() as u64;
        record.add_to(&mut self.batch, group);
        self.next.remember(group, record, position);
        position
    }

    /// Writes and syncs the batch that was built, with its payloads.
    fn commit(&mut self, reserved: u64, sync: bool) -> Result<(), StoreError> {
        let mut header = BatchHeader {
            lsn: self.next.lsn,
            seq: self.next.seq,
            mark: self.next.seq - 1,
            generation: self.next.generation,
            root_seq: self.core.root_seq.load(Ordering::Acquire),
            len: 0,
            records: 0,
            body_crc: 0,
        };
        let bytes = self.batch.finish(self.core.superblock.salt(), &mut header);
        let len = bytes.len() as u64;
        let records = self.core.ring.writes(header.lsn, bytes);
        let writes: Vec<(u64, &[u8])> =
            self.payloads.writes(&self.core.data).chain(records).collect();
        self.core.stats.commits().begin();
        self.core.device.write_all("write log and payloads", &writes)?;
        if sync && self.payloads.len() == 0 {
            self.core.device.sync_log("sync log")?;
        } else if sync {
            self.core.device.sync("sync log and payloads")?;
        }
        self.core.stats.commits().end();
        // They need not stay in memory until the next batch.
        self.payloads.clear();
        // This batch's mark covers those that dropped them.
        payload::let_go(&self.core.data, &std::mem::take(&mut self.freed));
        self.next.lsn += len;
        self.next.seq += 1;
        self.mark_owed = header.records > 0;
        self.count_after = self.count_after.saturating_sub(u64::from(header.records));
        self.core.wal.written(len, reserved);
        let stats = &self.core.stats;
        stats.batches.fetch_add(1, Ordering::Relaxed);
        stats.records.fetch_add(u64::from(header.records), Ordering::Relaxed);
        stats.bytes.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    fn complete(&mut self, taken: Vec<Queued>, result: Result<(), StoreError>) {
        let mut calls: Vec<Done> = Vec::new();
        for mut queued in taken {
            self.freed.append(&mut queued.freed);
            match queued.job {
                Job::Entry { group, id, entry, .. } if result.is_ok() => {
                    let len = entry.len();
                    group.log().durable(id);
                    self.cache_bytes += len;
                    self.cache.push_back(CachedEntry {
                        group,
                        index: entry.position.index,
                        id,
                        len,
                    });
                }
                // Without an answer the asker's channel closes, which it takes for the failure.
                Job::Capture(answer) if result.is_ok() => {
                    let _ = answer.send(self.next.clone());
                }
                _ => {}
            }
            calls.extend(queued.done);
        }
        if !self.mark_owed && result.is_ok() {
            payload::let_go(&self.core.data, &std::mem::take(&mut self.freed));
        }
        calls.into_iter().for_each(|done| done(result.clone()));
        while self.cache_bytes > self.core.options.log_cache_bytes_max as usize
            && let Some(oldest) = self.cache.pop_front()
        {
            oldest.group.log().evict(oldest.index, oldest.id);
            self.cache_bytes -= oldest.len;
        }
    }

    /// Covers the last batch by a mark, so that damage to it is told from a torn tail. Without room
    /// for it the mark stays owed: what that batch dropped must not be reused yet.
    fn write_mark(&mut self) {
        let cost = WalSpace::cost(0);
        let device = &self.core.device;
        match self.core.wal.reserve(cost, Purpose::Control, Duration::ZERO, device, || ()) {
            Ok(()) => {
                self.batch.start();
                self.payloads.clear();
                // A failure is already recorded by the device, and nobody waits for a mark.
                let _ = self.commit(cost, true);
                self.mark_owed = false;
            }
            // Nothing is written or freed any more once the device has failed.
            Err(_) => self.mark_owed = device.check().is_ok(),
        }
    }

    /// Asks for checkpoints and purges as the ring fills.
    fn press(&mut self) {
        let core = &self.core;
        if core.wal.since_checkpoint() > core.wal.len / 4 {
            core.upkeep.request_checkpoint();
        }
        let sixteenths = core.usage().log_sixteenths();
        if sixteenths < PRESSURE_FROM {
            self.pressure_at = PRESSURE_FROM;
        } else if sixteenths >= self.pressure_at {
            self.pressure_at = sixteenths + 1;
            core.call_pressure();
        }
        if self.count_after == 0 {
            self.count_entries();
        }
    }

    /// Asks for a purge if the logs hold too many entries: a ring that is far from half full of
    /// small ones could need gigabytes of memory.
    fn count_entries(&mut self) {
        let held: u64 = self.core.groups().iter().map(|group| group.log().len()).sum();
        let most = self.core.options.log_entries_pressed;
        if held >= most {
            self.core.press();
        }
        self.count_after = most.saturating_sub(held).max(most / 16);
    }
}

/// Always, unless a test has planted a bug.
fn must_sync(jobs: &[Queued]) -> bool {
    let is_vote =
        |queued: &Queued| matches!(queued.job, Job::Record { record: Record::Vote(_), .. });
    let skips_votes = planted::has(Bug::SkipVoteSync) && jobs.iter().all(is_vote);
    !skips_votes && !planted::has(Bug::AcknowledgeBeforeSync)
}

impl Capture {
    /// Applies a record that lies at `lsn`, while writing or while reading back.
    pub fn remember(&mut self, group: CopysetId, record: &Record, lsn: u64) {
        match record {
            Record::CreateGroup => {
                let fresh = WalGroup { first_lsn: lsn, ..WalGroup::default() };
                self.groups.insert(group, fresh);
            }
            Record::RemoveGroup => {
                self.groups.remove(&group);
            }
            Record::Vote(vote) => {
                if let Some(known) = self.groups.get_mut(&group) {
                    known.vote = Some(*vote);
                }
            }
            Record::Purge(upto) => {
                if let Some(known) = self.groups.get_mut(&group) {
                    known.purge(*upto);
                }
            }
            Record::Lost { upto, purged } => {
                if let Some(known) = self.groups.get_mut(&group) {
                    known.lost = known.lost.max(Some(*upto));
                    known.last_purged = *purged;
                }
            }
            Record::Open { .. } | Record::Truncate(_) => {}
        }
    }
}
