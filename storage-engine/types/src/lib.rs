//! Ids, units and layout arithmetic shared by every Curve process.
//!
//! Nothing here does I/O, knows a wire format or reads a clock.

mod id;
mod layout;
mod limits;
mod size;

pub mod planted;

pub use id::{ClusterId, CopysetId, DeviceId, Epoch, PoolId, SessionId, VolumeId};
pub use layout::{
    BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, ChunkIndex, ChunkKey, ChunkSpan, SHARDS_PER_POOL,
    SHARDS_PER_VOLUME, ShardId, ShardRange, chunk_shard, split_range,
};
pub use limits::{LimitError, LimitKind, LimitsChange, VolumeLimits};
pub use size::{ByteSize, ParseSizeError};

/// Fewest replicas a pool may have: with two, the loss of one leaves no majority.
pub const REPLICAS_MIN: u32 = 3;
/// Largest volume: what a 32-bit chunk index addresses, kept well below it so that tables of one
/// volume stay describable in one message.
pub const VOLUME_SIZE_MAX: u64 = 64 << 40;
