//! The upkeep thread: flushes blocks from memory to the data area, checkpoints, and thereby frees
//! WAL and data space; with nothing else to do it writes blocks ahead of time. It waits for the IO
//! thread, never the other way round.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, mpsc};

use bytes::Bytes;
use curve_types::{ChunkKey, CopysetId};

use crate::StoreError;
use crate::checkpoint::{GroupMeta, Writer};
use crate::chunk::BlockAddr;
use crate::core::{Core, Requests, Switch};
use crate::group::GroupInner;
use crate::root::{self, Root};
use crate::space::{ChunkMap, DirtyBlock, Space};
use crate::split::Child;
use crate::touch::Toucher;
use crate::wal::queue::{Job, Queued};
use crate::wal::writer::Capture;

/// Blocks flushed between two updates of the tables, so that appliers get room early.
const FLUSH_BLOCKS: usize = 256;

pub(crate) struct UpkeepThread {
    core: Arc<Core>,
    root: Root,
    /// Pin tick of the last durable checkpoint.
    checkpoint_tick: u64,
}

/// One group as the checkpoint will show it.
struct Captured {
    id: CopysetId,
    meta: GroupMeta,
    chunks: ChunkMap,
    /// Blocks of `chunks` that are still in memory.
    dirty: Vec<DirtyBlock>,
    space: Arc<Space>,
    group: Arc<GroupInner>,
    /// An install replaces the log: no entry of it is needed any more.
    log_replaced: bool,
}

impl UpkeepThread {
    pub fn new(core: Arc<Core>, root: Root) -> Self {
        Self { core, root, checkpoint_tick: 0 }
    }

    /// Runs until it is stopped.
    pub fn run(mut self) {
        let mut toucher = Toucher::new(self.core.clone());
        loop {
            let requests = self.core.upkeep.take(toucher.pause());
            if requests.stop {
                return self.answer(requests);
            }
            match requests.is_empty() {
                false => self.answer(requests),
                true => self.failed(&toucher.step()),
            }
        }
    }

    /// Does what is asked for now.
    pub fn step(&mut self) {
        let requests = self.core.upkeep.take_now();
        if !requests.is_empty() {
            self.answer(requests);
        }
    }

    fn answer(&mut self, mut requests: Requests) {
        let checked = self.core.device.check();
        let result = checked.and_then(|()| self.serve(&mut requests));
        if matches!(result, Err(StoreError::HostGone(_)))
            && self.core.groups().iter().any(|group| !group.children().is_empty())
        {
            // What left a group waits for a checkpoint that nobody else may ask for.
            self.core.upkeep.request_checkpoint();
        }
        self.failed(&result);
        let left = requests.checkpointed.into_iter().chain(requests.rooted);
        left.chain(requests.switches.into_iter().map(|s| s.done))
            .for_each(|done| done(result.clone()));
    }

    /// Fails the store for an error that is its own.
    fn failed(&self, result: &Result<(), StoreError>) {
        if let Err(error) = result
            && !matches!(error, StoreError::HostGone(_))
            && !self.core.is_failed()
        {
            self.core.device.fail(error.clone());
        }
    }

    fn serve(&mut self, requests: &mut Requests) -> Result<(), StoreError> {
        if requests.flush {
            // Views may have gone since the last checkpoint, and with them what they held back.
            self.release_blocks();
        }
        let data = &self.core.data;
        let scarce = data.free_blocks() < data.flush_reserve() * 2 / 3 && data.reclaimable() > 0;
        let reclaim = scarce || data.wants_checkpoint();
        if requests.checkpoint || (requests.flush && reclaim) {
            self.checkpoint(&mut requests.switches)?;
        }
        if requests.flush && self.core.data.overlay.wants_flush() {
            self.flush_all()?;
        }
        if requests.advance && self.core.wal.used() > self.core.wal.len / 4 {
            self.advance_tail()?;
        }
        match requests.rooted.is_empty() {
            true => Ok(()),
            false => self.move_root(self.root.tail_lsn),
        }
    }

    fn flush_all(&self) -> Result<(), StoreError> {
        let mut spaces: Vec<Arc<Space>> =
            self.core.groups().iter().map(|group| group.space.clone()).collect();
        {
            let mut shadows = self.core.installing.lock().unwrap_or_else(PoisonError::into_inner);
            shadows.retain(|space| space.strong_count() > 0);
            spaces.extend(shadows.iter().filter_map(|space| space.upgrade()));
        }
        let dirty: Vec<Vec<DirtyBlock>> = spaces.iter().map(|space| space.dirty_blocks()).collect();
        self.await_homes(dirty.iter().flatten())?;
        spaces
            .iter()
            .zip(dirty)
            .try_for_each(|(space, blocks)| self.write_blocks(space, blocks, |_| ()))
    }

    /// Blocks with a home may be read there once the log has written them: waits for that.
    fn await_homes<'a>(
        &self,
        mut blocks: impl Iterator<Item = &'a DirtyBlock>,
    ) -> Result<(), StoreError> {
        match blocks.any(DirtyBlock::has_home) {
            true => self.barrier().map(drop),
            false => Ok(()),
        }
    }

    /// Brings blocks without a home to fresh places, those of copies to one, and tells first `placed`
    /// and then the tables where all are.
    fn write_blocks(
        &self,
        space: &Space,
        blocks: Vec<DirtyBlock>,
        mut placed: impl FnMut(&[(DirtyBlock, BlockAddr)]),
    ) -> Result<(), StoreError> {
        // By where they are in memory, all at once, so that no two share a place: how many there are,
        // and where they go.
        let mut homeless: HashMap<*const u8, (usize, Option<BlockAddr>)> = HashMap::new();
        for dirty in blocks.iter().filter(|dirty| !dirty.has_home()) {
            homeless.entry(dirty.block.bytes.as_ptr()).or_default().0 += 1;
        }
        let mut blocks = blocks.into_iter().peekable();
        while blocks.peek().is_some() {
            let part: Vec<DirtyBlock> = blocks.by_ref().take(FLUSH_BLOCKS).collect();
            let mut seen = HashSet::new();
            let is_fresh = |dirty: &&DirtyBlock| {
                let at = dirty.block.bytes.as_ptr();
                homeless.get(&at).is_some_and(|(_, place)| place.is_none()) && seen.insert(at)
            };
            let fresh = part.iter().filter(|dirty| !dirty.has_home()).filter(is_fresh);
            let fresh: Vec<Bytes> = fresh.map(|dirty| dirty.block.bytes.clone()).collect();
            let mut shared = Vec::new();
            self.core.data.write(&fresh, |n, addr| {
                if let Some((count, place)) = homeless.get_mut(&fresh[n].as_ptr()) {
                    *place = Some(addr);
                    shared.extend(std::iter::repeat_n(addr.block, *count - 1));
                }
            })?;
            // Before any table has it: it must not become free while others are still to get it.
            self.core.data.share_flushed(shared.into_iter());
            let arrived = part.into_iter().filter_map(|dirty| {
                let place = || homeless.get(&dirty.block.bytes.as_ptr())?.1;
                let addr = dirty.block.home.or_else(place)?;
                Some((dirty, addr))
            });
            let done: Vec<(DirtyBlock, BlockAddr)> = arrived.collect();
            placed(&done);
            space.flushed(&done);
        }
        Ok(())
    }

    /// Waits until everything queued so far is durable.
    fn barrier(&self) -> Result<Capture, StoreError> {
        let (answer, question) = mpsc::channel();
        self.core.queue.push([Queued::new(Job::Capture(answer), 0)], ());
        self.core.serve_writes();
        question.recv().map_err(|_| {
            self.core
                .device
                .check()
                .err()
                .unwrap_or_else(|| StoreError::Failed { reason: "the IO thread has ended".into() })
        })
    }

    /// Writes a checkpoint of everything; `switches` take effect with it.
    fn checkpoint(&mut self, switches: &mut Vec<Switch>) -> Result<(), StoreError> {
        // Nothing arrives for them any more, and none of it has a home.
        for Switch { staged, .. } in &*switches {
            self.write_blocks(&staged.space, staged.space.dirty_blocks(), |_| ())?;
        }
        let start = self.barrier()?;
        let tick = self.core.data.pin_tick();
        let mut captured = Vec::with_capacity(start.groups.len());
        for id in start.groups.keys() {
            captured.extend(self.capture(*id, &start, switches)?);
        }
        captured.sort_by_key(|group| group.id);
        let has_namesake = |child: &Child| start.groups.contains_key(&child.group.id);
        if captured.iter().any(|group| group.group.children().iter().any(has_namesake)) {
            // A recovery must not read after `start` that the earlier group of that id is gone.
            return self.checkpoint(switches);
        }
        self.await_homes(captured.iter().flat_map(|group| &group.dirty))?;
        captured.iter_mut().try_for_each(|group| self.write_captured(group))?;
        // Taken before the barrier: entries without a place yet will get one after `start`.
        let tail = tail_of(&captured, start.lsn);
        let end = self.barrier()?;
        self.core.device.sync("sync flushed data")?;
        let seq = self.root.checkpoint_seq + 1;
        let (frames, frames_crc) = self.write_frames(seq, &captured)?;
        let root = Root {
            seq: self.root.seq + 1,
            checkpoint_seq: seq,
            frames,
            frames_crc,
            checkpoint_lsn: start.lsn,
            tail_lsn: tail,
            head_lsn: end.lsn,
            head_seq: end.seq,
            generation: end.generation,
        };
        self.write_root(root)?;
        self.checkpoint_tick = tick;
        for done in &captured {
            let group = &done.group;
            if !switches.iter().any(|s| Arc::ptr_eq(&s.group, group)) {
                group.checkpointed(&self.core, done.meta.applied);
            }
            group.release_children(&self.core, start.lsn);
        }
        switches.drain(..).for_each(|switch| self.switch(switch));
        self.release_blocks();
        Ok(())
    }

    /// The group, and what has left it; nothing if the group was removed since `start`: the record of
    /// that will be durable before the checkpoint is. Shown as it was, its log would hold payloads that are free by then.
    fn capture(
        &self,
        id: CopysetId,
        start: &Capture,
        switches: &[Switch],
    ) -> Result<Vec<Captured>, StoreError> {
        let known = start.groups.get(&id).copied().unwrap_or_default();
        let group =
            self.core.groups.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let mut meta = GroupMeta {
            vote: known.vote,
            applied: None,
            last_purged: known.last_purged,
            lost: known.lost,
            first_lsn: known.first_lsn,
            state: Bytes::new(),
        };
        // A group created anew under the id is not the one the WAL knew at `start`.
        let Some(group) = group.filter(|group| group.first_lsn_is(known.first_lsn)) else {
            return Ok(Vec::new());
        };
        let switch = switches.iter().find(|s| Arc::ptr_eq(&s.group, &group));
        let mut log_replaced = false;
        let space = group.space.clone();
        let (chunks, mut dirty);
        // Whole entries, and no repair between the two looks at the tables.
        let excluded = group.lock_apply();
        if let Some(switch) = switch {
            meta.applied = Some(switch.applied);
            meta.state = switch.state.clone();
            log_replaced = !group.log().holds(switch.applied);
            if log_replaced {
                meta.first_lsn = start.lsn;
            }
            if meta.last_purged.is_none_or(|purged| purged.index < switch.applied.index) {
                meta.last_purged = Some(switch.applied);
            }
            let arrived = switch.staged.space.snapshot();
            dirty = space.dirty_blocks();
            let old = space.snapshot();
            let merged = switch.staged.merge(old, arrived, switch.applied.index, |_| ());
            chunks = merged.chunks;
            // Others are not in the checkpoint.
            dirty.retain(|dirty| {
                chunks.get(&dirty.key).is_some_and(|chunk| chunk.holds(dirty.index, &dirty.block))
            });
            // What was taken from those is in memory under another name as well.
            for (key, taken) in merged.taken {
                let Some(chunk) = chunks.get(&key) else { continue };
                let block = |index| Some((index, chunk.in_memory(index)?.clone()));
                let blocks = taken.in_memory.into_iter().filter_map(block);
                dirty.extend(blocks.map(|(index, block)| DirtyBlock { key, index, block }));
            }
        } else {
            (meta.applied, meta.state) = group.state()?;
            (chunks, dirty) = (space.snapshot(), space.dirty_blocks());
        }
        // What left the group before this look is in the same checkpoint, what leaves it later is
        // still in its tables.
        let children = group.children();
        let mut captured: Vec<Captured> =
            children.iter().map(|child| capture_child(child, start.lsn)).collect();
        drop(children);
        drop(excluded);
        captured.push(Captured { id, meta, chunks, dirty, space, group, log_replaced });
        Ok(captured)
    }

    /// Brings a captured group's blocks to the device.
    fn write_captured(&self, captured: &mut Captured) -> Result<(), StoreError> {
        let Captured { chunks, dirty, space, .. } = captured;
        self.write_blocks(space, std::mem::take(dirty), |placed| {
            for (block, addr) in placed {
                if let Some(chunk) = chunks.get_mut(&block.key) {
                    Arc::make_mut(chunk).flushed(block.index, *addr);
                }
            }
        })
    }

    fn write_frames(&self, seq: u64, captured: &[Captured]) -> Result<(u32, u32), StoreError> {
        let mut writer = Writer::new(self.core.device.disk(), &self.core.superblock, seq);
        writer.group_count(captured.len());
        for group in captured {
            writer.group(group.id, &group.meta, group.chunks.len());
            for (key, chunk) in &group.chunks {
                let base = chunk.base().map(|volume| ChunkKey { volume, ..*key });
                let base = base.and_then(|base| group.chunks.get(&base));
                writer.chunk(*key, chunk, base.map(|base| &**base));
            }
        }
        let written = writer.finish()?;
        self.core.device.sync("sync checkpoint")?;
        Ok(written)
    }

    /// Makes the root hold: from here on the old one's WAL and blocks may be reused.
    fn write_root(&mut self, root: Root) -> Result<(), StoreError> {
        root::write(self.core.device.disk(), &self.core.superblock, &root)?;
        self.core.device.sync("sync root")?;
        self.root = root;
        self.core.root_seq.store(root.seq, Ordering::Release);
        self.core.checkpoint_bytes.store(root.checkpoint_bytes(), Ordering::Relaxed);
        self.core.wal.root_written(root.tail_lsn, root.checkpoint_lsn);
        Ok(())
    }

    /// Same checkpoint, later tail: lets purged entries' WAL space go without a checkpoint.
    fn advance_tail(&mut self) -> Result<(), StoreError> {
        let needed = self.core.groups().into_iter().filter_map(|group| group.log().tail(None));
        let tail = needed.fold(self.root.checkpoint_lsn, u64::min);
        match tail <= self.root.tail_lsn {
            true => Ok(()),
            false => self.move_root(tail),
        }
    }

    /// Same checkpoint, and what is durable by now.
    fn move_root(&mut self, tail: u64) -> Result<(), StoreError> {
        let end = self.barrier()?;
        self.write_root(Root {
            seq: self.root.seq + 1,
            tail_lsn: tail,
            head_lsn: end.lsn,
            head_seq: end.seq,
            generation: end.generation,
            ..self.root
        })
    }

    /// The durable checkpoint shows the installed state: shows it in memory too.
    fn switch(&self, switch: Switch) {
        let Switch { group, staged, applied, state, done } = switch;
        let installed = {
            let _excluded = group.lock_apply();
            group.install(&staged, applied, state)
        };
        // What it superseded by itself, and all of it if the group was removed.
        let shadow = staged.space;
        let mut installing = self.core.installing.lock().unwrap_or_else(PoisonError::into_inner);
        installing.retain(|space| !std::ptr::eq(space.as_ptr(), Arc::as_ptr(&shadow)));
        drop(installing);
        self.core.retire(shadow);
        // Tells the WAL about the log's new base, so that the next checkpoint's view of it agrees.
        let rebased = match installed {
            true => group.rebase(&self.core, applied),
            false => Err(StoreError::NoGroup(group.id)),
        };
        done(rebased.map_err(|error| match error {
            StoreError::NoGroup(_) => error,
            other => self.core.device.fail(other),
        }));
    }

    fn release_blocks(&self) {
        let mut pinned = 0;
        for group in self.core.groups() {
            pinned += group.space.release(self.checkpoint_tick);
        }
        let mut retired = self.core.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|space| {
            pinned += space.release(self.checkpoint_tick);
            !space.is_drained()
        });
        drop(retired);
        let shadows = self.core.installing.lock().unwrap_or_else(PoisonError::into_inner);
        for space in shadows.iter().filter_map(|space| space.upgrade()) {
            pinned += space.release(self.checkpoint_tick);
        }
        self.core.data.pinned.store(pinned, Ordering::Relaxed);
    }
}

fn capture_child(child: &Child, lsn: u64) -> Captured {
    let group = child.group.clone();
    group.created_at(lsn);
    let (applied, state) = group.captured_state();
    let meta = GroupMeta {
        vote: group.log().vote,
        applied,
        last_purged: applied,
        lost: None,
        first_lsn: lsn,
        state,
    };
    let space = group.space.clone();
    let (chunks, dirty) = (space.snapshot(), space.dirty_blocks());
    Captured { id: group.id, meta, chunks, dirty, space, group, log_replaced: false }
}

/// First WAL position that a recovery from this checkpoint needs.
fn tail_of(captured: &[Captured], start: u64) -> u64 {
    let needed = captured.iter().filter_map(|captured| {
        let log = captured.group.log();
        log.tail(Some(captured.meta.applied)).filter(|_| !captured.log_replaced)
    });
    needed.fold(start, u64::min)
}
