//! Data-plane messages about chunks: commands that go through a copyset's log, reads that its
//! leader answers, blocks that its replicas ask of each other, and the ways each can fail.
//!
//! All requests share one 64-byte header, followed by the payload of a write:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | operation |
//! | 1 | 3 | reserved, 0 |
//! | 4 | 4 | offset in the chunk, bytes |
//! | 8 | 4 | length, bytes |
//! | 12 | 4 | chunk index |
//! | 16 | 16 | volume id |
//! | 32 | 8 | session |
//! | 40 | 8 | epoch |
//! | 48 | 8 | seq |
//! | 56 | 8 | floor |
//!
//! Payload of what is about a snapshot: the id of the snapshot (16). A digest has the number of the
//! scrub as its seq. Payload of a split: the id of the new copyset and the first and the end of its
//! shards (4 each).

use bytes::{Bytes, BytesMut};
use curve_types::{
    BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, ChunkIndex, ChunkKey, CopysetId, DeviceId, Epoch,
    SessionId, ShardRange, VolumeId,
};
use thiserror::Error;

/// Frame kind of a command to be logged and applied.
pub const KIND_PROPOSE: u16 = 0x0201;
/// Frame kind of a read.
pub const KIND_READ: u16 = 0x0202;
/// Frame kind of a replica's question for a block as its peer has it.
pub const KIND_PEER_READ: u16 = 0x0203;
/// Frame kind of the question which blocks of a chunk differ from those of a snapshot.
pub const KIND_CHANGES: u16 = 0x0204;
/// Bytes before the payload.
const OP_HEADER_LEN: usize = 64;

const OP_WRITE: u8 = 1;
const OP_ZERO: u8 = 2;
const OP_DISCARD: u8 = 3;
const OP_FENCE: u8 = 4;
const OP_DELETE: u8 = 5;
const OP_READ: u8 = 6;
const OP_REVOKE: u8 = 7;
const OP_PEER_READ: u8 = 8;
const OP_SNAPSHOT: u8 = 9;
const OP_THAW: u8 = 10;
const OP_RESTORE: u8 = 11;
const OP_CHANGES: u8 = 12;
const OP_DIGEST: u8 = 13;
const OP_SPLIT: u8 = 14;

/// Who writes. `seq` numbers the writes of a session; `floor` is the lowest `seq` that is still
/// unresolved, so that no delayed duplicate below it may take effect any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Writer {
    pub session: SessionId,
    pub epoch: Epoch,
    pub seq: u64,
    pub floor: u64,
}

/// A byte range of one chunk. Validated: `offset + len <= CHUNK_SIZE`, `len > 0`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkRange {
    pub key: ChunkKey,
    pub offset: u32,
    pub len: u32,
}

/// What a copyset's log holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// `data.len() == range.len`.
    Write {
        range: ChunkRange,
        writer: Writer,
        data: Bytes,
    },
    WriteZeroes {
        range: ChunkRange,
        writer: Writer,
    },
    Discard {
        range: ChunkRange,
        writer: Writer,
    },
    /// Refuse, for good, everything of this volume below `min_epoch`.
    Fence {
        volume: VolumeId,
        min_epoch: Epoch,
    },
    /// Refuse, for good, everything of this one session below `min_epoch`.
    Revoke {
        volume: VolumeId,
        session: SessionId,
        min_epoch: Epoch,
    },
    /// Drop all chunks and the fence of a volume that the MDS has deleted; its id never returns.
    DeleteVolume {
        volume: VolumeId,
    },
    /// Keep what the volume's chunks are now as those of `snapshot`, and freeze the volume: until
    /// it is thawed, its writes are refused. A repetition is done while that freeze lasts, and
    /// `Thawed` later.
    Snapshot {
        volume: VolumeId,
        snapshot: VolumeId,
    },
    /// End the freeze that `snapshot` began; done if that is over.
    Thaw {
        volume: VolumeId,
        snapshot: VolumeId,
    },
    /// Give the volume the chunks of `snapshot` for its own, once: at or below an epoch that it
    /// was done at before it changes nothing. Refuses, for good, what is below `epoch`.
    Restore {
        volume: VolumeId,
        snapshot: VolumeId,
        epoch: Epoch,
    },
    /// Make a digest of the whole copyset as it is here, for this scrub. Changes nothing: replicas
    /// say what theirs is, and whoever hears that compares.
    Digest {
        scrub: u64,
    },
    /// Give the chunks of these shards to the copyset `to`, which begins with that, on the same
    /// devices, and knows of every volume what this one does.
    Split {
        to: CopysetId,
        shards: ShardRange,
    },
}

/// A read by a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Read {
    pub range: ChunkRange,
    pub session: SessionId,
    pub epoch: Epoch,
}

/// Why a chunk message cannot be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ChunkMessageError {
    #[error("chunk message has {0} bytes, at least {OP_HEADER_LEN} are needed")]
    Short(usize),
    #[error("chunk operation is {0}, expected 1 to 14")]
    Operation(u8),
    #[error("chunk range {offset}+{len} is empty or leaves the chunk of {CHUNK_SIZE} bytes")]
    Range { offset: u32, len: u32 },
    #[error("write payload has {found} bytes, its header says {expected}")]
    Payload { found: usize, expected: u32 },
}

struct OpHeader {
    op: u8,
    offset: u32,
    len: u32,
    index: u32,
    volume: VolumeId,
    writer: Writer,
}

impl OpHeader {
    fn encode(&self) -> [u8; OP_HEADER_LEN] {
        let mut out = [0; OP_HEADER_LEN];
        out[0] = self.op;
        out[4..8].copy_from_slice(&self.offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..16].copy_from_slice(&self.index.to_le_bytes());
        out[16..32].copy_from_slice(&self.volume.to_bytes());
        out[32..40].copy_from_slice(&self.writer.session.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.writer.epoch.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.writer.seq.to_le_bytes());
        out[56..64].copy_from_slice(&self.writer.floor.to_le_bytes());
        out
    }

    fn decode(raw: &[u8]) -> Result<Self, ChunkMessageError> {
        if raw.len() < OP_HEADER_LEN {
            return Err(ChunkMessageError::Short(raw.len()));
        }
        let u32_at = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().expect("8 bytes"));
        Ok(Self {
            op: raw[0],
            offset: u32_at(4),
            len: u32_at(8),
            index: u32_at(12),
            volume: VolumeId::from_bytes(raw[16..32].try_into().expect("16 bytes")),
            writer: Writer {
                session: SessionId(u64_at(32)),
                epoch: Epoch(u64_at(40)),
                seq: u64_at(48),
                floor: u64_at(56),
            },
        })
    }

    fn range(&self) -> Result<ChunkRange, ChunkMessageError> {
        let end = u64::from(self.offset) + u64::from(self.len);
        if self.len == 0 || end > CHUNK_SIZE {
            return Err(ChunkMessageError::Range { offset: self.offset, len: self.len });
        }
        let key = ChunkKey { volume: self.volume, index: ChunkIndex(self.index) };
        Ok(ChunkRange { key, offset: self.offset, len: self.len })
    }

    fn of(op: u8, range: ChunkRange, writer: Writer) -> Self {
        let ChunkRange { key, offset, len } = range;
        Self { op, offset, len, index: key.index.0, volume: key.volume, writer }
    }
}

impl Command {
    /// The command's header and its payload, to be sent or logged one after the other.
    pub fn encode(&self) -> (Bytes, Bytes) {
        let (header, data) = match self {
            Self::Write { range, writer, data } => {
                (OpHeader::of(OP_WRITE, *range, *writer), data.clone())
            }
            Self::WriteZeroes { range, writer } => {
                (OpHeader::of(OP_ZERO, *range, *writer), Bytes::new())
            }
            Self::Discard { range, writer } => {
                (OpHeader::of(OP_DISCARD, *range, *writer), Bytes::new())
            }
            Self::Fence { volume, min_epoch } => {
                let writer = Writer { epoch: *min_epoch, ..Writer::default() };
                (Self::volume_header(OP_FENCE, *volume, writer), Bytes::new())
            }
            Self::Revoke { volume, session, min_epoch } => {
                let writer = Writer { session: *session, epoch: *min_epoch, ..Writer::default() };
                (Self::volume_header(OP_REVOKE, *volume, writer), Bytes::new())
            }
            Self::DeleteVolume { volume } => {
                (Self::volume_header(OP_DELETE, *volume, Writer::default()), Bytes::new())
            }
            Self::Snapshot { volume, snapshot } => {
                (Self::volume_header(OP_SNAPSHOT, *volume, Writer::default()), id_bytes(*snapshot))
            }
            Self::Thaw { volume, snapshot } => {
                (Self::volume_header(OP_THAW, *volume, Writer::default()), id_bytes(*snapshot))
            }
            Self::Restore { volume, snapshot, epoch } => {
                let writer = Writer { epoch: *epoch, ..Writer::default() };
                (Self::volume_header(OP_RESTORE, *volume, writer), id_bytes(*snapshot))
            }
            Self::Digest { scrub } => {
                let writer = Writer { seq: *scrub, ..Writer::default() };
                (Self::volume_header(OP_DIGEST, VolumeId::default(), writer), Bytes::new())
            }
            Self::Split { to, shards } => {
                let header = Self::volume_header(OP_SPLIT, VolumeId::default(), Writer::default());
                let fields = [to.0, shards.first, shards.end].map(u32::to_le_bytes);
                (header, Bytes::copy_from_slice(fields.as_flattened()))
            }
        };
        (Bytes::copy_from_slice(&header.encode()), data)
    }

    fn volume_header(op: u8, volume: VolumeId, writer: Writer) -> OpHeader {
        OpHeader { op, offset: 0, len: 0, index: 0, volume, writer }
    }

    /// Cuts a command between header and payload, without copying or looking into either.
    pub fn split(raw: &Bytes) -> Result<(Bytes, Bytes), ChunkMessageError> {
        if raw.len() < OP_HEADER_LEN {
            return Err(ChunkMessageError::Short(raw.len()));
        }
        Ok((raw.slice(..OP_HEADER_LEN), raw.slice(OP_HEADER_LEN..)))
    }

    /// Decodes a command that was cut by `split` or made by `encode`.
    pub fn decode_parts(header: &[u8], payload: Bytes) -> Result<Self, ChunkMessageError> {
        let header = OpHeader::decode(header)?;
        match header.op {
            OP_WRITE => {
                let range = header.range()?;
                if payload.len() != range.len as usize {
                    let (found, expected) = (payload.len(), range.len);
                    return Err(ChunkMessageError::Payload { found, expected });
                }
                Ok(Self::Write { range, writer: header.writer, data: payload })
            }
            OP_ZERO => Ok(Self::WriteZeroes { range: header.range()?, writer: header.writer }),
            OP_DISCARD => Ok(Self::Discard { range: header.range()?, writer: header.writer }),
            OP_FENCE => Ok(Self::Fence { volume: header.volume, min_epoch: header.writer.epoch }),
            OP_REVOKE => Ok(Self::Revoke {
                volume: header.volume,
                session: header.writer.session,
                min_epoch: header.writer.epoch,
            }),
            OP_DELETE => Ok(Self::DeleteVolume { volume: header.volume }),
            OP_SNAPSHOT | OP_THAW | OP_RESTORE => {
                let OpHeader { volume, writer: Writer { epoch, .. }, .. } = header;
                let found = payload.len();
                let raw = payload[..].try_into();
                let raw = raw.map_err(|_| ChunkMessageError::Payload { found, expected: 16 })?;
                let snapshot = VolumeId::from_bytes(raw);
                Ok(match header.op {
                    OP_SNAPSHOT => Self::Snapshot { volume, snapshot },
                    OP_THAW => Self::Thaw { volume, snapshot },
                    _ => Self::Restore { volume, snapshot, epoch },
                })
            }
            OP_DIGEST => Ok(Self::Digest { scrub: header.writer.seq }),
            OP_SPLIT => {
                let (&[to, first, end], []) = payload.as_chunks() else {
                    return Err(ChunkMessageError::Payload { found: payload.len(), expected: 12 });
                };
                let [to, first, end] = [to, first, end].map(u32::from_le_bytes);
                Ok(Self::Split { to: CopysetId(to), shards: ShardRange { first, end } })
            }
            other => Err(ChunkMessageError::Operation(other)),
        }
    }

    /// The volume that the command is about, if it is about one.
    pub fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::Write { range, .. }
            | Self::WriteZeroes { range, .. }
            | Self::Discard { range, .. } => Some(range.key.volume),
            Self::Fence { volume, .. }
            | Self::Revoke { volume, .. }
            | Self::DeleteVolume { volume }
            | Self::Snapshot { volume, .. }
            | Self::Thaw { volume, .. }
            | Self::Restore { volume, .. } => Some(*volume),
            Self::Digest { .. } | Self::Split { .. } => None,
        }
    }
}

fn id_bytes(id: VolumeId) -> Bytes {
    Bytes::copy_from_slice(&id.to_bytes())
}

impl Read {
    pub fn encode(&self) -> Bytes {
        let writer = Writer { session: self.session, epoch: self.epoch, ..Writer::default() };
        Bytes::copy_from_slice(&OpHeader::of(OP_READ, self.range, writer).encode())
    }

    pub fn decode(raw: &[u8]) -> Result<Self, ChunkMessageError> {
        let header = OpHeader::decode(raw)?;
        if header.op != OP_READ {
            return Err(ChunkMessageError::Operation(header.op));
        }
        let Writer { session, epoch, .. } = header.writer;
        Ok(Self { range: header.range()?, session, epoch })
    }
}

/// Which blocks of a snapshot's chunk hold other data than those of `base`, an earlier or later
/// snapshot of the same volume; without one, which hold data at all. Answered by a bitmap: bit
/// `i % 8` of byte `i / 8` for block `i`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changes {
    pub key: ChunkKey,
    pub base: Option<VolumeId>,
    pub session: SessionId,
    pub epoch: Epoch,
}

impl Changes {
    /// Of the answer.
    pub const BITMAP_LEN: usize = BLOCKS_PER_CHUNK as usize / 8;

    pub fn encode(&self) -> Bytes {
        let writer = Writer { session: self.session, epoch: self.epoch, ..Writer::default() };
        let range = ChunkRange { key: self.key, offset: 0, len: CHUNK_SIZE as u32 };
        let header = OpHeader::of(OP_CHANGES, range, writer).encode();
        [&header[..], &self.base.unwrap_or_default().to_bytes()].concat().into()
    }

    pub fn decode(raw: &[u8]) -> Result<Self, ChunkMessageError> {
        let header = OpHeader::decode(raw)?;
        if header.op != OP_CHANGES {
            return Err(ChunkMessageError::Operation(header.op));
        }
        let payload = &raw[OP_HEADER_LEN..];
        let found = payload.len();
        let base = payload.try_into();
        let base = base.map_err(|_| ChunkMessageError::Payload { found, expected: 16 })?;
        let base = Some(VolumeId::from_bytes(base)).filter(|base| !base.is_nil());
        let Writer { session, epoch, .. } = header.writer;
        Ok(Self { key: header.range()?.key, base, session, epoch })
    }
}

/// One block, asked of a peer by a replica whose own copy is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerRead {
    pub key: ChunkKey,
    /// Number within the chunk.
    pub block: u32,
}

impl PeerRead {
    pub fn encode(&self) -> Bytes {
        let offset = self.block * BLOCK_SIZE as u32;
        let range = ChunkRange { key: self.key, offset, len: BLOCK_SIZE as u32 };
        let header = OpHeader::of(OP_PEER_READ, range, Writer::default());
        Bytes::copy_from_slice(&header.encode())
    }

    pub fn decode(raw: &[u8]) -> Result<Self, ChunkMessageError> {
        let header = OpHeader::decode(raw)?;
        if header.op != OP_PEER_READ {
            return Err(ChunkMessageError::Operation(header.op));
        }
        let ChunkRange { key, offset, len } = header.range()?;
        match offset % BLOCK_SIZE as u32 == 0 && u64::from(len) == BLOCK_SIZE {
            true => Ok(Self { key, block: offset / BLOCK_SIZE as u32 }),
            false => Err(ChunkMessageError::Range { offset, len }),
        }
    }
}

/// The answer to a `PeerRead`, inside of a `ChunkReply`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerBlock {
    /// Log index up to which the replica has applied what the block shows.
    pub applied: u64,
    /// Always 4096.
    pub data: Bytes,
}

impl PeerBlock {
    pub fn encode(&self) -> Bytes {
        [&self.applied.to_le_bytes()[..], &self.data].concat().into()
    }

    pub fn decode(raw: &Bytes) -> Result<Self, ChunkMessageError> {
        match raw.split_first_chunk() {
            Some((applied, data)) if data.len() as u64 == BLOCK_SIZE => {
                Ok(Self { applied: u64::from_le_bytes(*applied), data: raw.slice(8..) })
            }
            _ => Err(ChunkMessageError::Short(raw.len())),
        }
    }
}

/// Why a chunk request was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ChunkError {
    /// Ask `leader`, or anyone if it is unknown. Nothing was applied.
    #[error("this replica does not lead the copyset")]
    NotLeader { leader: Option<DeviceId> },
    /// This device has no replica of the copyset. Nothing was applied.
    #[error("no replica of the copyset here")]
    NoSuchCopyset,
    /// A newer attachment owns the volume; this session never succeeds again.
    #[error("fenced: the volume accepts epoch {min_epoch} and above")]
    Fenced { min_epoch: Epoch },
    /// The volume was deleted.
    #[error("the volume was deleted")]
    Deleted,
    /// `seq` lies below the session's floor: a late duplicate.
    #[error("the write's sequence number lies below the session's floor")]
    Stale,
    #[error("the copyset's devices are full")]
    NoSpace,
    /// It may or may not be applied later; retry with the same `seq`.
    #[error("the copyset cannot answer now")]
    Unavailable,
    #[error("the request is malformed or its range is not allowed")]
    BadRequest,
    #[error("this connection may not do that")]
    Forbidden,
    /// Stored bytes do not match their checksum.
    #[error("stored data is damaged")]
    Damaged,
    /// A snapshot is being taken. Nothing was applied; it is over within seconds.
    #[error("the volume is frozen while a snapshot is taken")]
    Frozen,
    /// The snapshot was taken here before, and the volume has been written since.
    #[error("the freeze of this snapshot has ended")]
    Thawed,
    /// A newer map says which copyset has the chunk now.
    #[error("the chunk is another copyset's by now")]
    Moved,
}

/// Answer to a command (empty) or a read (its data).
pub type ChunkReply = Result<Bytes, ChunkError>;

/// Encodes a reply body: one status byte, then what belongs to the status.
pub fn encode_reply(reply: &ChunkReply) -> (Bytes, Bytes) {
    let mut head = BytesMut::with_capacity(17);
    let mut data = Bytes::new();
    let status: u8 = match reply {
        Ok(bytes) => {
            data = bytes.clone();
            0
        }
        Err(ChunkError::NotLeader { .. }) => 1,
        Err(ChunkError::NoSuchCopyset) => 2,
        Err(ChunkError::Fenced { .. }) => 3,
        Err(ChunkError::Deleted) => 4,
        Err(ChunkError::Stale) => 5,
        Err(ChunkError::NoSpace) => 6,
        Err(ChunkError::Unavailable) => 7,
        Err(ChunkError::BadRequest) => 8,
        Err(ChunkError::Forbidden) => 9,
        Err(ChunkError::Damaged) => 10,
        Err(ChunkError::Frozen) => 11,
        Err(ChunkError::Thawed) => 12,
        Err(ChunkError::Moved) => 13,
    };
    head.extend_from_slice(&[status]);
    match reply {
        Err(ChunkError::NotLeader { leader }) => {
            head.extend_from_slice(&leader.unwrap_or_default().to_bytes());
        }
        Err(ChunkError::Fenced { min_epoch }) => {
            head.extend_from_slice(&min_epoch.0.to_le_bytes());
        }
        _ => {}
    }
    (head.freeze(), data)
}

/// Inverse of `encode_reply`. The outer error means that the peer sent nonsense.
pub fn decode_reply(body: &Bytes) -> Result<ChunkReply, ChunkMessageError> {
    let status = *body.first().ok_or(ChunkMessageError::Short(0))?;
    let rest = body.slice(1..);
    let short = || ChunkMessageError::Short(body.len());
    let error = match status {
        0 => return Ok(Ok(rest)),
        1 => {
            let raw: [u8; 16] = rest[..].try_into().map_err(|_| short())?;
            let leader = DeviceId::from_bytes(raw);
            ChunkError::NotLeader { leader: (!leader.is_nil()).then_some(leader) }
        }
        2 => ChunkError::NoSuchCopyset,
        3 => {
            let raw: [u8; 8] = rest[..].try_into().map_err(|_| short())?;
            ChunkError::Fenced { min_epoch: Epoch(u64::from_le_bytes(raw)) }
        }
        4 => ChunkError::Deleted,
        5 => ChunkError::Stale,
        6 => ChunkError::NoSpace,
        7 => ChunkError::Unavailable,
        8 => ChunkError::BadRequest,
        9 => ChunkError::Forbidden,
        10 => ChunkError::Damaged,
        11 => ChunkError::Frozen,
        12 => ChunkError::Thawed,
        13 => ChunkError::Moved,
        other => return Err(ChunkMessageError::Operation(other)),
    };
    Ok(Err(error))
}

#[cfg(test)]
mod tests;
