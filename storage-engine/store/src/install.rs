//! A Raft snapshot on its way in: blocks that arrive go to shadow tables, and together with what is
//! kept of the present state they take its place in one durable step.
//!
//! What a group has applied is a prefix of one log. So a block that the sender has not written
//! since the position up to which the receiver has applied is the same on both, and need not
//! travel: the sender names it, and the receiver keeps its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use curve_types::{BLOCK_SIZE, ChunkKey, VolumeId};

use crate::chunk::{Displaced, Taken, Written};
use crate::core::Switch;
use crate::space::{ChunkMap, Space, check_range, own_bases};
use crate::{BlockSet, Done, Group, LogPosition, StoreError};

/// What the receiver of a snapshot keeps of a chunk; what arrives of it replaces that.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Keep {
    #[default]
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

/// What the receiver of a snapshot is told of a chunk besides its blocks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChunkHead {
    /// Index of the last entry that changed the chunk.
    pub changed: u64,
    /// What the receiver has of it already.
    pub keep: Keep,
    pub copy: Option<CopyOf>,
    /// Blocks that are those of the copy's base, as that is in the snapshot.
    pub shared: Option<Box<BlockSet>>,
}

/// What a chunk is a copy of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyOf {
    /// The volume whose chunk of the same index is probably most like it.
    pub base: VolumeId,
    /// Index of the entry that made it: what it was given counts as written by that. 0: none did.
    pub born: u64,
}

impl ChunkHead {
    fn check(&self) -> Result<(), &'static str> {
        let kept = |block| self.keep.keeps(block);
        match (&self.shared, self.copy) {
            (Some(_), None) => Err("shares blocks and is no copy"),
            (Some(shared), _) if shared.is_empty() => Err("shares no blocks, and a list of them"),
            (Some(shared), Some(_)) if shared.iter().any(kept) => {
                Err("shares blocks that it keeps")
            }
            _ => Ok(()),
        }
    }
}

/// The chunks of a group after a switch.
#[derive(Default)]
pub(crate) struct Merged {
    pub chunks: ChunkMap,
    /// What chunks took over from others.
    pub taken: Vec<(ChunkKey, Taken)>,
}

/// What has arrived.
pub(crate) struct Staged {
    /// Blocks that arrived.
    pub space: Arc<Space>,
    heads: BTreeMap<ChunkKey, ChunkHead>,
}

impl Staged {
    /// The chunks after the switch: `arrived`, and what is kept of `old`.
    pub fn merge(
        &self,
        old: ChunkMap,
        arrived: ChunkMap,
        applied: u64,
        mut displaced: impl FnMut(Displaced),
    ) -> Merged {
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
        let sharing = self.heads.iter().filter(|(_, head)| head.shared.is_some());
        let sharing: BTreeSet<ChunkKey> = sharing.map(|(key, _)| *key).collect();
        for key in &sharing {
            chunks.entry(*key).or_default();
        }
        for (key, chunk) in &mut chunks {
            let head = self.heads.get(key);
            let changed = head.map_or(applied, |head| head.changed);
            if chunk.changed() != changed {
                Arc::make_mut(chunk).change_at(changed);
            }
            match head.and_then(|head| head.copy) {
                Some(copy) if chunk.born() != copy.born => {
                    Arc::make_mut(chunk).become_copy(copy.born, Some(copy.base));
                }
                // All bases are those of the sender, among which none leads back to itself.
                copy if chunk.base() != copy.map(|copy| copy.base) => {
                    Arc::make_mut(chunk).set_base(copy.map(|copy| copy.base));
                }
                _ => {}
            }
        }
        let taken = self.share(&mut chunks, sharing);
        chunks.retain(|_, chunk| !chunk.is_empty());
        Merged { chunks, taken }
    }

    fn base_of(&self, key: ChunkKey) -> Option<ChunkKey> {
        Some(ChunkKey { volume: self.heads.get(&key)?.copy?.base, ..key })
    }

    /// Gives the chunks what they share with their bases, those first that others are based on.
    fn share(
        &self,
        chunks: &mut ChunkMap,
        mut waiting: BTreeSet<ChunkKey>,
    ) -> Vec<(ChunkKey, Taken)> {
        let mut taken = Vec::new();
        while let Some(first) = waiting.pop_first() {
            let mut chain = vec![first];
            let mut at = first;
            while let Some(base) = self.base_of(at).filter(|base| waiting.remove(base)) {
                chain.push(base);
                at = base;
            }
            while let Some(key) = chain.pop() {
                let base = self.base_of(key).and_then(|base| chunks.get(&base).cloned());
                let shared = self.heads.get(&key).and_then(|head| head.shared.as_deref());
                if let (Some(chunk), Some(shared)) = (chunks.get_mut(&key), shared) {
                    let chunk = Arc::make_mut(chunk);
                    taken.push((key, chunk.take_shared(base.as_deref(), shared)));
                }
            }
        }
        taken
    }
}

/// A snapshot on its way in. Dropped without `commit`, it leaves no trace: its blocks count as
/// unused at once, and are free with the next checkpoint.
pub struct Install {
    group: Group,
    space: Arc<Space>,
    heads: Mutex<BTreeMap<ChunkKey, ChunkHead>>,
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
    /// Begins a chunk. `Invalid` if what is to be kept of it is not here: then this replica does not
    /// have the state that the sender takes it to have. Of chunks that are not named nothing is
    /// kept.
    pub fn begin_chunk(&self, key: ChunkKey, head: ChunkHead) -> Result<(), StoreError> {
        head.check().map_err(|why| StoreError::invalid(format!("chunk {key} {why}")))?;
        let changed = head.changed;
        if !self.group.inner.space.can_keep(key, changed, &head.keep) {
            return Err(StoreError::invalid(format!(
                "the sender of a snapshot takes chunk {key} to be here, as entry {changed} left it"
            )));
        }
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        match heads.insert(key, head) {
            None => Ok(()),
            Some(_) => Err(StoreError::invalid(format!("chunk {key} comes twice"))),
        }
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
        core.data.overlay.wait_for_room(&core.device, || {
            core.upkeep.request_flush();
            core.serve();
        })?;
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
        let mut heads = std::mem::take(heads);
        cut_cycles(&mut heads);
        let staged = Staged { space: self.space.clone(), heads };
        core.upkeep.switch(Switch {
            group: self.group.inner.clone(),
            staged,
            applied,
            state,
            done,
        });
    }
}

/// Forgets a base that leads back to itself. None does on a sound peer, and no checkpoint could
/// show it.
fn cut_cycles(heads: &mut BTreeMap<ChunkKey, ChunkHead>) {
    let keys: Vec<ChunkKey> = heads.keys().copied().collect();
    for key in own_bases(keys, |key| Some(heads.get(&key)?.copy?.base)) {
        tracing::error!(chunk = %key, "a snapshot's chunk is its own base");
        if let Some(head) = heads.get_mut(&key) {
            // What it shares is lost then, and the peers have it.
            head.copy = None;
        }
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        if !self.committed {
            self.group.core().retire(self.space.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use curve_types::ChunkIndex;

    use super::*;

    #[test]
    fn a_base_that_leads_back_to_itself_is_forgotten() {
        let key = |n: u8| ChunkKey { volume: VolumeId::from_bytes([n; 16]), index: ChunkIndex(0) };
        let based = |n: u8, base: u8| {
            let copy = Some(CopyOf { base: key(base).volume, born: 1 });
            (key(n), ChunkHead { copy, ..ChunkHead::default() })
        };
        let mut heads: BTreeMap<ChunkKey, ChunkHead> =
            [(1, 2), (2, 3), (3, 9), (4, 1), (5, 6), (6, 7), (7, 5), (8, 8)]
                .into_iter()
                .map(|(n, base)| based(n, base))
                .collect();
        cut_cycles(&mut heads);
        let left: Vec<u8> = (1..9).filter(|n| heads[&key(*n)].copy.is_some()).collect();
        assert_eq!(left, [1, 2, 3, 4, 6, 7]);
    }
}
