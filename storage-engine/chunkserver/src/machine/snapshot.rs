//! The chunks of a snapshot as parts of at most 1 MiB, and back.
//!
//! A part is a sequence of records, each with one byte of kind, then volume (16 bytes) and chunk
//! index (4):
//! * 0, 1, 2: the chunk begins. Index of the last entry that changed it (8); of what the receiver
//!   has it keeps nothing (0), all (1), or the blocks of a bitmap (2; 128 bytes follow). Plus 128 if
//!   it is a copy: its base (16) and the index of the entry that made it (8) follow. Plus 64 if it
//!   shares blocks with its base as that is in the snapshot: their bitmap (128) follows.
//! * 3: blocks of it. Number of the first (4), how many (4), for each when it was written (4), data.
//!
//! Holes are left out. A chunk that is not named is not there any more.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use curve_raft::{SnapshotSink, SnapshotSource};
use curve_store::{
    BlockSet, ChunkDelta, ChunkHead, ChunkView, CopyOf, Install, Keep, StoreError, Written,
};
use curve_types::{BLOCK_SIZE, BLOCKS_PER_CHUNK, ChunkIndex, ChunkKey, VolumeId};

const PART_LEN_MAX: usize = 1 << 20;
/// Longest record without data.
const HEAD_LEN_MAX: usize = 21 + 8 + 24 + 2 * BlockSet::LEN;
const BLOCKS_HEAD_LEN: usize = 21 + 8;
const BLOCK: usize = BLOCK_SIZE as usize;

const KEEP_NOTHING: u8 = 0;
const KEEP_ALL: u8 = 1;
const KEEP_BLOCKS: u8 = 2;
const BLOCKS: u8 = 3;
const COPY: u8 = 128;
const SHARED: u8 = 64;

/// Reads a pinned view.
pub(super) struct Sender {
    view: ChunkView,
    /// What the receiver has applied already.
    since: Option<u64>,
    chunks: VecDeque<ChunkKey>,
    /// Runs of blocks of the chunk under way.
    runs: VecDeque<(ChunkKey, Range<u32>)>,
}

impl Sender {
    pub fn new(view: ChunkView) -> Self {
        let chunks = view.chunks().into();
        Self { view, since: None, chunks, runs: VecDeque::new() }
    }

    /// Puts as many of the next run's blocks as there is room for; false if that is none.
    fn put_run(&mut self, part: &mut BytesMut) -> io::Result<bool> {
        let Some((key, run)) = self.runs.pop_front() else { return Ok(true) };
        let room = PART_LEN_MAX.saturating_sub(part.len() + BLOCKS_HEAD_LEN);
        let end = run.end.min(run.start + (room / (BLOCK + 4)) as u32);
        if end < run.end {
            self.runs.push_front((key, end..run.end));
        }
        if end == run.start {
            return Ok(false);
        }
        let blocks = run.start..end;
        let data = self.view.read(key, blocks.clone()).map_err(io::Error::other)?;
        part.reserve(BLOCKS_HEAD_LEN + blocks.len() * 4 + data.len());
        put_key(part, BLOCKS, key);
        part.put_u32_le(blocks.start);
        part.put_u32_le(blocks.len() as u32);
        self.view.written(key, blocks).iter().for_each(|written| part.put_u32_le(written.0));
        part.put_slice(&data);
        Ok(true)
    }

    /// Puts the head of the next chunk, and notes which of its blocks must follow.
    fn begin_chunk(&mut self, part: &mut BytesMut, key: ChunkKey) {
        let ChunkDelta { head, runs } = self.view.delta(key, self.since);
        let ChunkHead { changed, keep, copy, shared } = head;
        let kind = match keep {
            Keep::Nothing => KEEP_NOTHING,
            Keep::All => KEEP_ALL,
            Keep::Blocks(_) => KEEP_BLOCKS,
        };
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        put_key(part, kind | flag(copy.is_some(), COPY) | flag(shared.is_some(), SHARED), key);
        part.put_u64_le(changed);
        if let Keep::Blocks(blocks) = keep {
            part.put_slice(blocks.as_bytes());
        }
        if let Some(CopyOf { base, born }) = copy {
            part.put_slice(&base.to_bytes());
            part.put_u64_le(born);
        }
        if let Some(blocks) = shared {
            part.put_slice(blocks.as_bytes());
        }
        self.runs = runs.into_iter().map(|run| (key, run)).collect();
    }
}

fn put_key(part: &mut BytesMut, kind: u8, key: ChunkKey) {
    part.put_u8(kind);
    part.put_slice(&key.volume.to_bytes());
    part.put_u32_le(key.index.0);
}

impl SnapshotSource for Sender {
    fn since(&mut self, index: u64) {
        self.since = Some(index);
    }

    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut part = BytesMut::new();
        loop {
            if !self.runs.is_empty() {
                if !self.put_run(&mut part)? {
                    break;
                }
            } else if part.len() + HEAD_LEN_MAX > PART_LEN_MAX {
                break;
            } else if let Some(key) = self.chunks.pop_front() {
                self.begin_chunk(&mut part, key);
            } else {
                break;
            }
        }
        Ok((!part.is_empty()).then(|| part.freeze()))
    }
}

/// Puts parts into shadow tables.
pub(super) struct Receiver;

/// One piece of a part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Record {
    Chunk { key: ChunkKey, head: ChunkHead },
    Blocks { key: ChunkKey, offset: u32, written: Vec<Written>, data: Bytes },
}

impl SnapshotSink for Receiver {
    fn put(&mut self, install: &Install, part: Bytes) -> io::Result<()> {
        let put = |record: Record| match record {
            Record::Chunk { key, head } => install.begin_chunk(key, head),
            Record::Blocks { key, offset, written, data } => {
                install.put(key, offset, &data, &written)
            }
        };
        decode(part)?.into_iter().try_for_each(put).map_err(|error| match error {
            StoreError::Invalid { .. } => io::Error::new(io::ErrorKind::InvalidData, error),
            other => io::Error::other(other),
        })
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// All records of a part, or an error that names what is wrong with it.
pub(super) fn decode(mut part: Bytes) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    while !part.is_empty() {
        records.push(decode_record(&mut part)?);
    }
    Ok(records)
}

/// The next `len` bytes.
fn take(part: &mut Bytes, len: usize, what: &str) -> io::Result<Bytes> {
    match len <= part.len() {
        true => Ok(part.split_to(len)),
        false => Err(invalid(format!("{what} of a snapshot: {len} bytes, {} left", part.len()))),
    }
}

fn take_bitmap(part: &mut Bytes) -> io::Result<Box<BlockSet>> {
    let mut bitmap = [0; BlockSet::LEN];
    take(part, BlockSet::LEN, "bitmap")?.copy_to_slice(&mut bitmap);
    Ok(Box::new(BlockSet::from_bytes(bitmap)))
}

fn take_volume(bytes: &mut Bytes) -> VolumeId {
    let mut volume = [0; 16];
    bytes.copy_to_slice(&mut volume);
    VolumeId::from_bytes(volume)
}

fn decode_record(part: &mut Bytes) -> io::Result<Record> {
    let mut fixed = take(part, BLOCKS_HEAD_LEN, "record")?;
    let kind = fixed.get_u8();
    let volume = take_volume(&mut fixed);
    let key = ChunkKey { volume, index: ChunkIndex(fixed.get_u32_le()) };
    if kind == BLOCKS {
        let (first, count) = (fixed.get_u32_le(), fixed.get_u32_le());
        let end = u64::from(first) + u64::from(count);
        if count == 0 || end > BLOCKS_PER_CHUNK {
            return Err(invalid(format!("{count} blocks from {first} on of a chunk of 1024")));
        }
        let mut stamps = take(part, count as usize * 4, "list of writes")?;
        let written = (0..count).map(|_| Written(stamps.get_u32_le())).collect();
        let data = take(part, count as usize * BLOCK, "data")?;
        return Ok(Record::Blocks { key, offset: first * BLOCK as u32, written, data });
    }
    let changed = fixed.get_u64_le();
    let keep = match kind & !(COPY | SHARED) {
        KEEP_NOTHING => Keep::Nothing,
        KEEP_ALL => Keep::All,
        KEEP_BLOCKS => Keep::Blocks(take_bitmap(part)?),
        _ => return Err(invalid(format!("record of kind {kind} in a snapshot"))),
    };
    let copy = match kind & COPY {
        0 => None,
        _ => {
            let mut copy = take(part, 24, "copy")?;
            Some(CopyOf { base: take_volume(&mut copy), born: copy.get_u64_le() })
        }
    };
    let shared = if kind & SHARED == 0 { None } else { Some(take_bitmap(part)?) };
    Ok(Record::Chunk { key, head: ChunkHead { changed, keep, copy, shared } })
}
