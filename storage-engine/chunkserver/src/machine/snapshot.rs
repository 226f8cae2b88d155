//! The chunks of a snapshot as parts of at most 1 MiB, and back.
//!
//! A part is a sequence of extents: volume (16 bytes), chunk index (4), offset (4), length (4),
//! then the data. Offset and length are multiples of 4096. Holes are left out.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use curve_raft::{SnapshotSink, SnapshotSource};
use curve_store::{ChunkView, Install};
use curve_types::{BLOCK_SIZE, CHUNK_SIZE, ChunkIndex, ChunkKey, VolumeId};

const PART_LEN_MAX: usize = 1 << 20;
const EXTENT_HEADER_LEN: usize = 28;
const BLOCK: usize = BLOCK_SIZE as usize;

/// Reads a pinned view.
pub(super) struct Sender {
    view: ChunkView,
    chunks: VecDeque<ChunkKey>,
    /// Runs of blocks of the chunk under way.
    runs: VecDeque<(ChunkKey, Range<u32>)>,
}

impl Sender {
    pub fn new(view: ChunkView) -> Self {
        let chunks = view.chunks().into();
        Self { view, chunks, runs: VecDeque::new() }
    }

    /// The next run of blocks, cut to `blocks_max`.
    fn next_run(&mut self, blocks_max: u32) -> Option<(ChunkKey, Range<u32>)> {
        while self.runs.is_empty() {
            let key = self.chunks.pop_front()?;
            self.runs = self.view.block_ranges(key).into_iter().map(|run| (key, run)).collect();
        }
        let (key, run) = self.runs.pop_front()?;
        let end = run.end.min(run.start.saturating_add(blocks_max));
        if end < run.end {
            self.runs.push_front((key, end..run.end));
        }
        Some((key, run.start..end))
    }
}

impl SnapshotSource for Sender {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut part = BytesMut::new();
        loop {
            let room = PART_LEN_MAX - part.len();
            let Some(blocks_max) = room.checked_sub(EXTENT_HEADER_LEN).map(|room| room / BLOCK)
            else {
                break;
            };
            if blocks_max == 0 {
                break;
            }
            let Some((key, run)) = self.next_run(blocks_max as u32) else { break };
            let data = self.view.read(key, run.clone()).map_err(io::Error::other)?;
            part.reserve(EXTENT_HEADER_LEN + data.len());
            part.put_slice(&key.volume.to_bytes());
            part.put_u32_le(key.index.0);
            part.put_u32_le(run.start * BLOCK_SIZE as u32);
            part.put_u32_le(data.len() as u32);
            part.put_slice(&data);
        }
        Ok((!part.is_empty()).then(|| part.freeze()))
    }
}

/// Puts parts into shadow tables.
pub(super) struct Receiver;

/// A run of blocks as it travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub key: ChunkKey,
    pub offset: u32,
    pub data: Bytes,
}

impl SnapshotSink for Receiver {
    fn put(&mut self, install: &Install, part: Bytes) -> io::Result<()> {
        for extent in decode(part)? {
            let Extent { key, offset, data } = extent;
            install.put(key, offset, data).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// All extents of a part, or an error that names what is wrong with it.
pub(super) fn decode(mut part: Bytes) -> io::Result<Vec<Extent>> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut extents = Vec::new();
    while !part.is_empty() {
        if part.len() < EXTENT_HEADER_LEN {
            return Err(invalid(format!("snapshot part ends with {} stray bytes", part.len())));
        }
        let mut volume = [0; 16];
        part.copy_to_slice(&mut volume);
        let index = ChunkIndex(part.get_u32_le());
        let (offset, len) = (part.get_u32_le(), part.get_u32_le());
        let aligned = offset.is_multiple_of(BLOCK as u32) && len.is_multiple_of(BLOCK as u32);
        if len == 0 || !aligned || u64::from(offset) + u64::from(len) > CHUNK_SIZE {
            return Err(invalid(format!(
                "snapshot extent {offset}+{len} is not blocks of a chunk"
            )));
        }
        if len as usize > part.len() {
            return Err(invalid(format!("snapshot extent of {len} bytes has {}", part.len())));
        }
        let key = ChunkKey { volume: VolumeId::from_bytes(volume), index };
        extents.push(Extent { key, offset, data: part.split_to(len as usize) });
    }
    Ok(extents)
}
