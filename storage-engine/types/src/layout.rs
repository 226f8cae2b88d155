//! Where a byte of a volume lives: chunks, shards and the arithmetic between them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::VolumeId;

/// Unit of checksums, allocation and linearizability.
pub const BLOCK_SIZE: u64 = 4096;
/// Unit of placement.
pub const CHUNK_SIZE: u64 = 4 << 20;
/// Blocks of one chunk.
pub const BLOCKS_PER_CHUNK: u64 = CHUNK_SIZE / BLOCK_SIZE;
/// Fixed slices of a pool's chunk space; copysets own ranges of them.
pub const SHARDS_PER_POOL: u32 = 1024;
/// A volume spreads over at most this many shards: enough for parallelism, few enough that a
/// shallow queue still batches within one Raft group.
pub const SHARDS_PER_VOLUME: u32 = 64;

/// Position of a chunk in its volume, in units of `CHUNK_SIZE`.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize,
)]
pub struct ChunkIndex(pub u32);

/// One of a pool's `SHARDS_PER_POOL` slices.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize,
)]
pub struct ShardId(pub u32);

/// Names one chunk in the whole cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ChunkKey {
    pub volume: VolumeId,
    pub index: ChunkIndex,
}

impl fmt::Display for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.index.0)
    }
}

/// Shards `first..end` of a pool, owned by one copyset.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ShardRange {
    pub first: u32,
    pub end: u32,
}

impl ShardRange {
    /// Divides all shards of a pool into `parts` contiguous ranges whose sizes differ by at most
    /// one. `parts` is clamped to `1..=SHARDS_PER_POOL`.
    pub fn divide(parts: u32) -> impl Iterator<Item = Self> {
        let parts = parts.clamp(1, SHARDS_PER_POOL);
        (0..parts).map(move |i| Self {
            first: i * SHARDS_PER_POOL / parts,
            end: (i + 1) * SHARDS_PER_POOL / parts,
        })
    }

    #[expect(clippy::len_without_is_empty, reason = "no copyset owns nothing")]
    pub fn len(self) -> u32 {
        self.end - self.first
    }

    /// Lower and upper half; None of a single shard.
    pub fn halves(self) -> Option<(Self, Self)> {
        let middle = self.first + self.len().div_ceil(2);
        let upper = Self { first: middle, ..self };
        (upper.len() > 0).then_some((Self { end: middle, ..self }, upper))
    }

    /// Whether `shard` belongs to this range.
    pub fn contains(self, shard: ShardId) -> bool {
        (self.first..self.end).contains(&shard.0)
    }
}

/// Shard of a chunk. Consecutive chunks of a volume go to shards that lie evenly apart, starting
/// at a place that depends on the volume, so that both a single large volume and many small ones
/// load every copyset alike.
pub fn chunk_shard(key: ChunkKey) -> ShardId {
    let stride = SHARDS_PER_POOL / SHARDS_PER_VOLUME;
    let slot = bit_reverse_slot(key.index.0 % SHARDS_PER_VOLUME);
    ShardId((first_shard(key.volume) + slot * stride) % SHARDS_PER_POOL)
}

/// Shard of a volume's first chunk; those of the others follow from it.
fn first_shard(volume: VolumeId) -> u32 {
    let id = volume.0.as_u128();
    (splitmix64(id as u64 ^ (id >> 64) as u64) % u64::from(SHARDS_PER_POOL)) as u32
}

impl VolumeId {
    /// A fresh random identity whose chunks lie in the same shards as those of `other`, so that
    /// each copyset can give it the blocks of `other`'s chunks. One in `SHARDS_PER_POOL` random
    /// ones is, which takes well under a millisecond to find.
    pub fn random_beside(other: Self) -> Self {
        let place = first_shard(other);
        loop {
            let candidate = Self::random();
            if first_shard(candidate) == place {
                return candidate;
            }
        }
    }
}

/// Orders the slots so that any run of neighbouring chunks spreads over the whole shard space.
fn bit_reverse_slot(slot: u32) -> u32 {
    slot.reverse_bits() >> (32 - SHARDS_PER_VOLUME.trailing_zeros())
}

/// Finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The part of a volume's byte range that lies in one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkSpan {
    pub index: ChunkIndex,
    /// First byte, relative to the chunk.
    pub offset: u32,
    /// Bytes, at most `CHUNK_SIZE - offset`.
    pub len: u32,
}

/// Cuts `offset..offset + len` (bytes of a volume) at chunk boundaries, in ascending order.
pub fn split_range(offset: u64, len: u64) -> impl Iterator<Item = ChunkSpan> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let within = at % CHUNK_SIZE;
        let take = (CHUNK_SIZE - within).min(end - at);
        let span = ChunkSpan {
            index: ChunkIndex((at / CHUNK_SIZE) as u32),
            offset: within as u32,
            len: take as u32,
        };
        at += take;
        Some(span)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_all_of_a_range_and_a_single_shard_has_none() {
        for (first, end) in [(0, 1024), (3, 8), (7, 9)] {
            let (lower, upper) = ShardRange { first, end }.halves().expect("two halves");
            assert_eq!((lower.first, lower.end, upper.end), (first, upper.first, end));
            assert!(lower.len() - upper.len() <= 1 && upper.len() > 0);
        }
        assert_eq!(ShardRange { first: 7, end: 8 }.halves(), None);
    }

    #[test]
    fn ranges_cover_every_shard_once() {
        for parts in [1, 3, 8, 13, 1024, 5000] {
            let owners: Vec<ShardRange> = ShardRange::divide(parts).collect();
            for shard in 0..SHARDS_PER_POOL {
                assert_eq!(owners.iter().filter(|r| r.contains(ShardId(shard))).count(), 1);
            }
        }
    }

    #[test]
    fn a_volume_loads_eight_copysets_alike() {
        let ranges: Vec<ShardRange> = ShardRange::divide(8).collect();
        for volume in (0..50).map(|_| VolumeId::random()) {
            let mut load = [0u32; 8];
            for index in 0..64 {
                let shard = chunk_shard(ChunkKey { volume, index: ChunkIndex(index) });
                load[ranges.iter().position(|r| r.contains(shard)).expect("owned")] += 1;
            }
            assert_eq!(load, [8; 8]);
        }
    }

    #[test]
    fn neighbouring_chunks_use_different_copysets() {
        let ranges: Vec<ShardRange> = ShardRange::divide(8).collect();
        let volume = VolumeId::random();
        let owners: std::collections::BTreeSet<_> = (0..8)
            .map(|i| chunk_shard(ChunkKey { volume, index: ChunkIndex(i) }))
            .map(|shard| ranges.iter().position(|r| r.contains(shard)))
            .collect();
        assert_eq!(owners.len(), 8);
    }

    #[test]
    fn a_volume_beside_another_lies_in_the_same_shards() {
        let volume = VolumeId::random();
        let beside = VolumeId::random_beside(volume);
        assert_ne!(volume, beside);
        for index in (0..130).map(ChunkIndex) {
            let shard = |volume| chunk_shard(ChunkKey { volume, index });
            assert_eq!(shard(volume), shard(beside));
        }
    }

    #[test]
    fn a_range_is_cut_at_chunk_boundaries() {
        let spans: Vec<ChunkSpan> = split_range(CHUNK_SIZE - 512, CHUNK_SIZE + 1024).collect();
        let parts: Vec<_> = spans.iter().map(|s| (s.index.0, s.offset, s.len)).collect();
        let chunk = CHUNK_SIZE as u32;
        assert_eq!(parts, [(0, chunk - 512, 512), (1, 0, chunk), (2, 0, 512)]);
        assert_eq!(split_range(7, 0).count(), 0);
    }
}
