//! What can go wrong with one disk.

use std::io;
use std::sync::Arc;

use curve_types::{ByteSize, ChunkKey, CopysetId};

/// Cloneable because one failed sync answers every waiting caller.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused an operation. The store is failed from here on: what a failed sync left
    /// on the disk is unknowable, so nothing is retried.
    #[error("{step} at byte {offset} of the device")]
    Io {
        step: &'static str,
        offset: u64,
        #[source]
        source: Arc<io::Error>,
    },
    /// An earlier error failed the store; every later call answers this.
    #[error("the store has failed: {reason}")]
    Failed { reason: Arc<str> },
    /// Bytes that were acknowledged, or that a durable root refers to, are damaged. Nothing is
    /// cut: the replica must be repaired from its peers.
    #[error("device is damaged: {what}")]
    Corrupt { what: String },
    /// The device cannot be opened as it is: blank, foreign, truncated, or of another format.
    #[error("device cannot be used: {what}")]
    Unusable { what: String },
    /// A block's bytes do not match its checksum. Only this block is affected; the store goes on.
    #[error(
        "block {block} of chunk {key} does not match its checksum (device block {device_block})"
    )]
    BadBlock { key: ChunkKey, block: u32, device_block: u32 },
    /// The block was damaged when part of it was written. Only this block is affected; only the
    /// other replicas know its bytes.
    #[error(
        "block {block} of chunk {key} is lost here: it was damaged when part of it was written"
    )]
    LostBlock { key: ChunkKey, block: u32 },
    /// The WAL has no room, and neither a checkpoint nor the pressure callback made any in time.
    /// Nothing of the refused call took effect.
    #[error("write-ahead log is full: {used} of {total} used")]
    WalFull { used: ByteSize, total: ByteSize },
    /// Chunk data or tables do not fit: admission let through more than the device holds. Fatal
    /// for the replica, since skipping the write would make it differ from its peers. From
    /// `Install::put` it is a refusal only: the snapshot is too large, the store goes on.
    #[error("no space on the device: {what}")]
    NoSpace { what: String },
    /// The caller broke a rule of this interface; nothing was changed.
    #[error("refused: {what}")]
    Invalid { what: String },
    /// What says how far a group is applied has ended, while its tables may be further than it last
    /// said: no checkpoint can show them. What was not checkpointed comes from the log.
    #[error("the host of copyset {0} has ended")]
    HostGone(CopysetId),
    /// The group does not exist here, or was removed.
    #[error("no copyset {0} on this device")]
    NoGroup(CopysetId),
}

impl StoreError {
    /// The block that this replica can read only once it was repaired, if that is the error.
    pub fn unreadable_block(&self) -> Option<(ChunkKey, u32)> {
        match self {
            Self::BadBlock { key, block, .. } | Self::LostBlock { key, block } => {
                Some((*key, *block))
            }
            _ => None,
        }
    }

    pub(crate) fn io(step: &'static str, offset: u64, source: io::Error) -> Self {
        Self::Io { step, offset, source: Arc::new(source) }
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }
}
