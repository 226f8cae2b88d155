//! Whole volumes of a group: copies of all their chunks, which share the blocks, and their end.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use curve_types::{BLOCKS_PER_CHUNK, ChunkIndex, ChunkKey, VolumeId};

use super::{Space, Tables};
use crate::BlockSet;
use crate::chunk::{Chunk, Taken};

/// What a copy is for. Its content is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyKind {
    /// It stays as it is while the original goes on. What was copied before is then more like the
    /// newest copy than like the original.
    Snapshot,
    /// It goes its own way.
    Clone,
}

impl Space {
    /// See `Apply::copy_volume`. Takes time for every block of `from` (some 20 ms for 10 GiB).
    pub fn copy_volume(&self, entry: u64, from: VolumeId, to: VolumeId, kind: CopyKind) {
        let Some(mut tables) = self.changeable() else { return };
        self.drop_volume(&mut tables, to);
        let copies: Vec<(ChunkKey, Chunk)> = tables
            .chunks
            .range(all_of(from))
            .map(|(key, chunk)| (ChunkKey { volume: to, ..*key }, chunk.copied(entry, from)))
            .collect();
        if kind == CopyKind::Snapshot {
            let children = tables.chunks.values_mut().filter(|chunk| chunk.base() == Some(from));
            children.for_each(|chunk| Arc::make_mut(chunk).set_base(Some(to)));
        }
        for (key, copy) in copies {
            self.note_shared(&mut tables, key, &copy.taken());
            tables.chunks.insert(key, Arc::new(copy));
        }
    }

    /// Accounts for blocks that a chunk refers to like others. Those without a place on the device
    /// count for each until they have one.
    pub(super) fn note_shared(&self, tables: &mut Tables, key: ChunkKey, taken: &Taken) {
        let shared = self.data.share(taken.device.iter().copied());
        self.data.live.fetch_add(taken.blocks - shared, Ordering::Relaxed);
        self.data.overlay.add_blocks(taken.in_memory.len() as u64);
        if !taken.in_memory.is_empty() {
            tables.dirty.insert(key);
        }
    }

    /// See `Group::changes`. None once the space is retired.
    pub fn changes(&self, key: ChunkKey, base: Option<VolumeId>) -> Option<BlockSet> {
        let tables = self.tables();
        if tables.retired {
            return None;
        }
        let chunk = tables.chunks.get(&key);
        let base = base.and_then(|volume| tables.chunks.get(&ChunkKey { volume, ..key }));
        let differs = |index: &u16| match (chunk, base) {
            (Some(chunk), Some(base)) => {
                !chunk.shares(base, *index) && (chunk.has(*index) || base.has(*index))
            }
            (Some(only), None) | (None, Some(only)) => only.has(*index),
            (None, None) => false,
        };
        Some((0..BLOCKS_PER_CHUNK as u16).filter(differs).collect())
    }

    pub fn delete_volume(&self, volume: VolumeId) {
        if let Some(mut tables) = self.changeable() {
            self.drop_volume(&mut tables, volume);
        }
    }

    /// Of a chunk that is gone: gives those that are based on it another base.
    pub(super) fn orphan(&self, tables: &mut Tables, gone: ChunkKey, base: Option<VolumeId>) {
        if self.data.shared.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut heirs = BTreeMap::new();
        let mut next = tables.chunks.keys().next().copied();
        while let Some(ChunkKey { volume, .. }) = next {
            let key = ChunkKey { volume, ..gone };
            if let Some(chunk) = tables.chunks.get_mut(&key)
                && chunk.base() == Some(gone.volume)
            {
                let base = inherit(heirs.entry(gone.index), volume, || base);
                Arc::make_mut(chunk).set_base(base);
            }
            let last = ChunkKey { volume, index: ChunkIndex(u32::MAX) };
            let behind = (Bound::Excluded(last), Bound::Unbounded);
            next = tables.chunks.range(behind).next().map(|(key, _)| *key);
        }
    }

    fn drop_volume(&self, tables: &mut Tables, volume: VolumeId) {
        let keys: Vec<ChunkKey> =
            tables.chunks.range(all_of(volume)).map(|(key, _)| *key).collect();
        let dropped: Vec<(ChunkKey, Arc<Chunk>)> =
            keys.into_iter().filter_map(|key| Some((key, tables.chunks.remove(&key)?))).collect();
        let base_of = |index: ChunkIndex| {
            let at = dropped.binary_search_by_key(&index, |(key, _)| key.index).ok()?;
            dropped[at].1.base()
        };
        let mut heirs: BTreeMap<ChunkIndex, VolumeId> = BTreeMap::new();
        let orphans = tables.chunks.iter_mut().filter(|(_, chunk)| chunk.base() == Some(volume));
        for (key, chunk) in orphans {
            let base = inherit(heirs.entry(key.index), key.volume, || base_of(key.index));
            Arc::make_mut(chunk).set_base(base);
        }
        self.forget(dropped.into_iter().map(|(_, chunk)| chunk));
    }
}

/// Of each cycle of chunks that are each other's base, one chunk.
pub(crate) fn own_bases(
    keys: impl IntoIterator<Item = ChunkKey>,
    base_of: impl Fn(ChunkKey) -> Option<VolumeId>,
) -> Vec<ChunkKey> {
    let mut sound: BTreeSet<ChunkKey> = BTreeSet::new();
    let mut found = Vec::new();
    for key in keys.into_iter().filter(|key| base_of(*key).is_some()) {
        let mut path = BTreeSet::new();
        let mut at = key;
        while !sound.contains(&at) {
            if !path.insert(at) {
                found.push(at);
                break;
            }
            let Some(volume) = base_of(at) else { break };
            at = ChunkKey { volume, ..at };
        }
        sound.extend(path);
    }
    found
}

fn all_of(volume: VolumeId) -> RangeInclusive<ChunkKey> {
    let at = |index| ChunkKey { volume, index: ChunkIndex(index) };
    at(0)..=at(u32::MAX)
}

/// The base of a chunk that has lost its own: of the first, what that was based on, of the others
/// the first, as they are more alike than either is to what is left.
fn inherit(
    heir: Entry<'_, ChunkIndex, VolumeId>,
    volume: VolumeId,
    base: impl FnOnce() -> Option<VolumeId>,
) -> Option<VolumeId> {
    match heir {
        Entry::Occupied(heir) => Some(*heir.get()),
        Entry::Vacant(place) => {
            place.insert(volume);
            base()
        }
    }
}
