//! A Raft snapshot on its way in: blocks that arrive go to shadow tables, and together with what is
//! kept of the present state they take its place in one durable step.
//!
//! What a group has applied is a prefix of one log. So a block that the sender has not written
//! since the position up to which the receiver has applied is the same on both, and need not
//! travel: the sender names it, and the receiver keeps its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use curve_types::{BLOCK_SIZE, ChunkKey};

use crate::chunk::{Displaced, Written};
use crate::core::Switch;
use crate::space::{ChunkMap, Space, check_range};
use crate::{BlockSet, Done, Group, LogPosition, StoreError};

/// What the receiver of a snapshot keeps of a chunk; what arrives of it replaces that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Keep {
    Nothing,
    /// No entry since has changed it.
    All,
    Blocks(Box<BlockSet>),
}

impl Keep {
    pub fn of_blocks(blocks: impl IntoIterator<Item = u16>) -> Self {
        let blocks: BlockSet = blocks.into_iter().collect();
        match blocks.is_empty() {
            true => Self::Nothing,
            false => Self::Blocks(Box::new(blocks)),
        }
    }

    fn keeps(&self, block: u16) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Blocks(blocks) => blocks.has(block),
        }
    }
}

struct Head {
    /// Index of the last entry that changed the chunk.
    changed: u64,
    keep: Keep,
}

/// What has arrived.
pub(crate) struct Staged {
    /// Blocks that arrived.
    pub space: Arc<Space>,
    heads: BTreeMap<ChunkKey, Head>,
}

impl Staged {
    /// The chunks after the switch: `arrived`, and what is kept of `old`.
    pub fn merge(
        &self,
        old: ChunkMap,
        arrived: ChunkMap,
        applied: u64,
        mut displaced: impl FnMut(Displaced),
    ) -> ChunkMap {
        let mut chunks = arrived;
        for (key, chunk) in old {
            let keep = self.heads.get(&key).map_or(&Keep::Nothing, |head| &head.keep);
            if *keep == Keep::All && !chunks.contains_key(&key) {
                chunks.insert(key, chunk);
                continue;
            }
            let mut merged = chunks.remove(&key).map(Arc::unwrap_or_clone).unwrap_or_default();
            merged.keep_from(&chunk, |block| keep.keeps(block), &mut displaced);
            if !merged.is_empty() {
                chunks.insert(key, Arc::new(merged));
            }
        }
        for (key, chunk) in &mut chunks {
            let changed = self.heads.get(key).map_or(applied, |head| head.changed);
            if chunk.changed() != changed {
                Arc::make_mut(chunk).change_at(changed);
            }
        }
        chunks
    }
}

/// A snapshot on its way in. Dropped without `commit`, it leaves no trace: its blocks count as
/// unused at once, and are free with the next checkpoint.
pub struct Install {
    group: Group,
    space: Arc<Space>,
    heads: Mutex<BTreeMap<ChunkKey, Head>>,
    /// The switch has what arrived.
    committed: bool,
}

impl Group {
    /// Starts receiving a snapshot into shadow tables. The present state stays in use.
    pub fn begin_install(&self) -> Result<Install, StoreError> {
        let core = self.core();
        core.device.check()?;
        let space = Space::new(core.data.clone(), ChunkMap::new());
        let mut installing = core.installing.lock().unwrap_or_else(PoisonError::into_inner);
        installing.push(Arc::downgrade(&space));
        drop(installing);
        Ok(Install { group: self.clone(), space, heads: Mutex::default(), committed: false })
    }
}

impl Install {
    /// Says what is kept of a chunk, and the index of the last entry that changed it. `Invalid` if
    /// that is not here: then this replica does not have the state that the sender takes it to
    /// have. Of chunks that are not named nothing is kept.
    pub fn begin_chunk(&self, key: ChunkKey, changed: u64, keep: Keep) -> Result<(), StoreError> {
        if !self.group.inner.space.can_keep(key, changed, &keep) {
            return Err(StoreError::invalid(format!(
                "the sender of a snapshot takes chunk {key} to be here, as entry {changed} left it"
            )));
        }
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.insert(key, Head { changed, keep });
        Ok(())
    }

    /// Stores whole blocks that arrived, with when each was written; `offset` is a multiple of
    /// 4096. Waits while the overlay is full. `NoSpace` (without effect, and the store goes on) if
    /// writes of that size would not be admitted either: the present state keeps its blocks until
    /// `commit`, so a device must have room for both. Every block counts as new.
    pub fn put(
        &self,
        key: ChunkKey,
        offset: u32,
        data: &Bytes,
        written: &[Written],
    ) -> Result<(), StoreError> {
        let core = self.group.core();
        let blocks = written.len() as u64;
        if !u64::from(offset).is_multiple_of(BLOCK_SIZE) || data.len() as u64 != blocks * BLOCK_SIZE
        {
            let len = data.len();
            return Err(StoreError::invalid(format!(
                "installed bytes at {offset}, {len} long, are not {blocks} whole blocks"
            )));
        }
        check_range(offset, data.len() as u64)?;
        core.data.overlay.wait_for_room(&core.device, || core.upkeep.request_flush())?;
        let one_at_a_time = core.installing.lock().unwrap_or_else(PoisonError::into_inner);
        let room = core.usage().admissible_blocks();
        if blocks > room {
            let what = format!("a snapshot needs {blocks} more blocks, room is for {room}");
            return Err(StoreError::NoSpace { what });
        }
        self.space.put(key, (u64::from(offset) / BLOCK_SIZE) as u16, data, written);
        drop(one_at_a_time);
        if core.data.overlay.wants_flush() {
            core.upkeep.request_flush();
        }
        Ok(())
    }

    /// Replaces the group's chunk space, applied position, state and log base in one durable
    /// step. The log keeps entries after `applied` if it holds `applied` itself; otherwise it is
    /// emptied and continues after it. The switch is visible when `done` is called; until then
    /// (and after a crash before it) the old state holds. Nothing may be applied or appended
    /// between this call and `done`, and the provider must answer with the new state before
    /// `begin_apply` is called again. `done` runs on the upkeep thread.
    pub fn commit(mut self, applied: LogPosition, state: Bytes, done: Done) {
        let core = self.group.owner.core.clone();
        if let Err(error) = core.device.check() {
            done(Err(error));
            return;
        }
        self.committed = true;
        let heads = self.heads.get_mut().unwrap_or_else(PoisonError::into_inner);
        let staged = Staged { space: self.space.clone(), heads: std::mem::take(heads) };
        core.upkeep.switch(Switch {
            group: self.group.inner.clone(),
            staged,
            applied,
            state,
            done,
        });
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        if !self.committed {
            self.group.core().retire(self.space.clone());
        }
    }
}
