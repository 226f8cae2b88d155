//! Checkpoint bytes: frames of 256 KiB in one of two slots, holding every group's meta, state blob
//! and chunk tables. Encodes and decodes; decides nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use curve_types::{BLOCKS_PER_CHUNK, ByteSize, ChunkIndex, ChunkKey, CopysetId, VolumeId};

use crate::aligned::AlignedBuf;
use crate::chunk::{BlockAddr, Chunk, TableBlock, Written};
use crate::codec::{Get, Malformed, Put, crc32c};
use crate::log::{LogPosition, Vote};
use crate::root::Root;
use crate::space::own_bases;
use crate::{BlockSet, Disk, StoreError, Superblock};

/// Length of a frame with its header.
pub(crate) const FRAME_LEN: usize = 256 << 10;
const MAGIC: u32 = u32::from_le_bytes(*b"CKPT");
/// magic, salt, checkpoint sequence, frame number, payload length, CRC.
const HEADER_LEN: usize = 4 + 8 + 8 + 4 + 4 + 4;
/// Blocks in a chunk from which the bitmap is shorter than a list.
const DENSE_FROM: usize = 64;
const FORM_LIST: u8 = 0;
const FORM_BITMAP: u8 = 1;
/// As the chunk of the same index of the base volume, but for what is listed.
const FORM_CHANGES: u8 = 2;
/// With the form: the chunk is a copy.
const COPY: u8 = 0x80;
/// What is there of a group's meta.
const HAS_VOTE: u8 = 1;
const HAS_LOST: u8 = 2;
/// Bytes of a block in each form.
const LISTED_LEN: usize = 14;
const MAPPED_LEN: usize = 12;

/// What a checkpoint says of a group, besides its chunks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct GroupMeta {
    pub vote: Option<Vote>,
    pub applied: Option<LogPosition>,
    pub last_purged: Option<LogPosition>,
    /// Damage has taken entries up to this one from the log, at some time.
    pub lost: Option<LogPosition>,
    /// Log records before this WAL position are dead: of an earlier group of the same id, or from
    /// before a snapshot was installed.
    pub first_lsn: u64,
    pub state: Bytes,
}

/// Writes frames one by one into a slot.
pub(crate) struct Writer<'a> {
    disk: &'a dyn Disk,
    sb: &'a Superblock,
    seq: u64,
    frame: AlignedBuf,
    frames: u32,
    crcs: Vec<u8>,
    /// Of the chunk being written.
    blocks: Vec<u8>,
    failed: Option<StoreError>,
}

impl<'a> Writer<'a> {
    pub fn new(disk: &'a dyn Disk, sb: &'a Superblock, seq: u64) -> Self {
        let mut writer = Self {
            disk,
            sb,
            seq,
            frame: AlignedBuf::with_capacity(FRAME_LEN),
            frames: 0,
            crcs: Vec::new(),
            blocks: Vec::new(),
            failed: None,
        };
        writer.begin_frame();
        writer
    }

    fn begin_frame(&mut self) {
        self.frame.clear();
        self.frame.put(&[0; HEADER_LEN]);
    }

    fn end_frame(&mut self) -> Result<(), StoreError> {
        let slot_len = self.sb.layout.slot_len;
        let at = u64::from(self.frames) * FRAME_LEN as u64;
        if at >= slot_len {
            let what = format!("a checkpoint needs more than its slot of {}", ByteSize(slot_len));
            return Err(StoreError::NoSpace { what });
        }
        let header =
            frame_header(self.sb.salt(), self.seq, self.frames, self.frame.len() - HEADER_LEN);
        self.frame[..header.len()].copy_from_slice(&header);
        let crc = frame_crc(&self.frame);
        self.frame[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        self.crcs.put_u32(crc);
        self.frame.pad();
        let offset = slot_offset(self.sb, self.seq) + at;
        self.disk
            .write_at(&self.frame, offset)
            .map_err(|source| StoreError::io("write checkpoint", offset, source))?;
        self.frames += 1;
        self.begin_frame();
        Ok(())
    }

    /// Writes the last frame. Returns the number of frames and the CRC over their CRCs.
    pub fn finish(mut self) -> Result<(u32, u32), StoreError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.frame.len() > HEADER_LEN || self.frames == 0 {
            self.end_frame()?;
        }
        Ok((self.frames, crc32c(&self.crcs)))
    }

    pub fn group_count(&mut self, count: usize) {
        self.put_u32(count as u32);
    }

    pub fn group(&mut self, id: CopysetId, meta: &GroupMeta, chunks: usize) {
        self.put_u32(id.0);
        let flag = |is_there, flag| if is_there { flag } else { 0 };
        self.put_u8(flag(meta.vote.is_some(), HAS_VOTE) | flag(meta.lost.is_some(), HAS_LOST));
        self.put_vote(meta.vote.unwrap_or_default());
        if let Some(lost) = meta.lost {
            self.put_position(lost);
        }
        self.put_position_option(meta.applied);
        self.put_position_option(meta.last_purged);
        self.put_u64(meta.first_lsn);
        self.put_u32(meta.state.len() as u32);
        self.put_bytes(&meta.state);
        self.put_u64(chunks as u64);
    }

    /// The chunk has no block in memory any more; nor has `base`, the chunk that it names as such.
    pub fn chunk(&mut self, key: ChunkKey, chunk: &Chunk, base: Option<&Chunk>) {
        assert!(!chunk.has_overlay(), "a checkpoint refers to blocks on the device only");
        assert!(!chunk.is_empty(), "a chunk without blocks is none");
        let count = chunk.len();
        let whole_len = match count >= DENSE_FROM {
            true => BlockSet::LEN + count * MAPPED_LEN,
            false => count * LISTED_LEN,
        };
        // Put together before it goes into frames, as there are many.
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.clear();
        let changes = base.map(|base| chunk.table_changes(base));
        if let Some(changes) = changes.filter(|changes| changes.len() * LISTED_LEN < whole_len) {
            self.chunk_head(key, chunk, FORM_CHANGES, changes.len());
            for (index, block) in changes {
                put_listed(&mut blocks, index, block.unwrap_or(TableBlock::HOLE));
            }
        } else if count >= DENSE_FROM {
            self.chunk_head(key, chunk, FORM_BITMAP, count);
            let indices: BlockSet = chunk.table_blocks().map(|(index, _)| index).collect();
            self.put_bytes(indices.as_bytes());
            chunk.table_blocks().for_each(|(_, block)| blocks.put_bytes(&mapped(block)));
        } else {
            self.chunk_head(key, chunk, FORM_LIST, count);
            chunk.table_blocks().for_each(|(index, block)| put_listed(&mut blocks, index, block));
        }
        self.put_bytes(&blocks);
        self.blocks = blocks;
    }

    fn chunk_head(&mut self, key: ChunkKey, chunk: &Chunk, form: u8, count: usize) {
        let (born, base) = (chunk.born(), chunk.base());
        let is_copy = born > 0 || base.is_some();
        self.put_bytes(&key.volume.to_bytes());
        self.put_u32(key.index.0);
        self.put_u64(chunk.changed());
        self.put_u16(count as u16);
        self.put_u8(form | if is_copy { COPY } else { 0 });
        if is_copy {
            self.put_u64(born);
            self.put_bytes(&base.unwrap_or_default().to_bytes());
        }
    }
}

fn mapped(block: TableBlock) -> [u8; MAPPED_LEN] {
    let TableBlock { addr, written } = block.stored();
    let mut bytes = [0; MAPPED_LEN];
    bytes[..4].copy_from_slice(&addr.block.to_le_bytes());
    bytes[4..8].copy_from_slice(&addr.crc.to_le_bytes());
    bytes[8..].copy_from_slice(&written.0.to_le_bytes());
    bytes
}

fn put_listed(blocks: &mut Vec<u8>, index: u16, block: TableBlock) {
    blocks.put_u16(index);
    blocks.put_bytes(&mapped(block));
}

impl Put for Writer<'_> {
    fn put_bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.failed.is_none() {
            let (head, rest) = bytes.split_at(bytes.len().min(FRAME_LEN - self.frame.len()));
            self.frame.put(head);
            bytes = rest;
            if self.frame.len() == FRAME_LEN
                && let Err(error) = self.end_frame()
            {
                self.failed = Some(error);
            }
        }
    }
}

fn slot_offset(sb: &Superblock, seq: u64) -> u64 {
    sb.layout.checkpoint_offset + seq % 2 * sb.layout.slot_len
}

fn frame_header(salt: u64, seq: u64, number: u32, payload: usize) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    header.put_u32(MAGIC);
    header.put_u64(salt);
    header.put_u64(seq);
    header.put_u32(number);
    header.put_u32(payload as u32);
    header
}

/// CRC over the frame except the CRC field itself.
fn frame_crc(frame: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&frame[..HEADER_LEN - 4]);
    digest.update(&frame[HEADER_LEN..]);
    digest.finalize() as u32
}

/// The checkpoint of a fresh device. Returns the root that makes it hold.
pub(crate) fn write_empty(disk: &dyn Disk, sb: &Superblock) -> Result<Root, StoreError> {
    let mut writer = Writer::new(disk, sb, 0);
    writer.group_count(0);
    let (frames, frames_crc) = writer.finish()?;
    Ok(Root { frames, frames_crc, head_seq: 1, ..Root::default() })
}

/// Why a checkpoint cannot be read.
pub(crate) enum ReadError {
    Store(StoreError),
    Malformed(Malformed),
}

impl From<Malformed> for ReadError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// Reads frames one by one; each is verified before its first byte is used.
pub(crate) struct Reader<'a> {
    disk: &'a dyn Disk,
    sb: &'a Superblock,
    root: &'a Root,
    frame: AlignedBuf,
    at: usize,
    end: usize,
    next: u32,
    crcs: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub fn new(disk: &'a dyn Disk, sb: &'a Superblock, root: &'a Root) -> Result<Self, ReadError> {
        if u64::from(root.frames) > sb.layout.slot_len / FRAME_LEN as u64 || root.frames == 0 {
            return Err(Malformed("the root's number of frames does not fit a slot").into());
        }
        let frame = AlignedBuf::with_capacity(FRAME_LEN);
        Ok(Self { disk, sb, root, frame, at: 0, end: 0, next: 0, crcs: Vec::new() })
    }

    fn load_frame(&mut self) -> Result<(), ReadError> {
        if self.next == self.root.frames {
            return Err(Malformed("its content goes past its last frame").into());
        }
        let offset = slot_offset(self.sb, self.root.checkpoint_seq)
            + u64::from(self.next) * FRAME_LEN as u64;
        self.frame.set_len(FRAME_LEN);
        self.disk.read_at(&mut self.frame, offset).map_err(|source| {
            ReadError::Store(StoreError::io("read checkpoint", offset, source))
        })?;
        let payload =
            u32::from_le_bytes(self.frame[24..28].try_into().expect("four bytes")) as usize;
        let crc = u32::from_le_bytes(self.frame[28..32].try_into().expect("four bytes"));
        if payload > FRAME_LEN - HEADER_LEN {
            return Err(Malformed("a frame's length is out of range").into());
        }
        let header = frame_header(self.sb.salt(), self.root.checkpoint_seq, self.next, payload);
        self.end = HEADER_LEN + payload;
        if self.frame[..header.len()] != header || crc != frame_crc(&self.frame[..self.end]) {
            return Err(Malformed("a frame's header or checksum is wrong").into());
        }
        self.crcs.put_u32(crc);
        self.at = HEADER_LEN;
        self.next += 1;
        Ok(())
    }

    /// Bytes that can still follow; bounds what a length field may claim.
    fn remaining_max(&self) -> usize {
        self.end - self.at + (self.root.frames - self.next) as usize * FRAME_LEN
    }

    /// Checks that nothing follows and that the frames are those the root was written for.
    pub fn finish(self) -> Result<(), ReadError> {
        if self.at != self.end || self.next != self.root.frames {
            return Err(Malformed("there is data after its end").into());
        }
        match crc32c(&self.crcs) == self.root.frames_crc {
            true => Ok(()),
            false => Err(Malformed("its frames are not those its root refers to").into()),
        }
    }

    pub fn group(&mut self) -> Result<(CopysetId, GroupMeta), ReadError> {
        let id = CopysetId(self.u32()?);
        let there = self.u8()?;
        if there & !(HAS_VOTE | HAS_LOST) != 0 {
            return Err(Malformed("a group has fields that are not known").into());
        }
        let vote = self.vote()?;
        let lost = (there & HAS_LOST != 0).then(|| self.position()).transpose()?;
        let mut meta = GroupMeta {
            vote: (there & HAS_VOTE != 0).then_some(vote),
            lost,
            applied: self.position_option()?,
            last_purged: self.position_option()?,
            first_lsn: self.u64()?,
            state: Bytes::new(),
        };
        let len = self.u32()? as usize;
        if len > self.remaining_max() {
            return Err(Malformed("a state blob is longer than the checkpoint").into());
        }
        let mut state = vec![0; len];
        self.fill(&mut state)?;
        meta.state = state.into();
        Ok((id, meta))
    }

    /// The chunks of the group read just before. `claim` is told every device block of each.
    pub fn chunks(
        &mut self,
        mut claim: impl FnMut(u32) -> Result<(), Malformed>,
    ) -> Result<BTreeMap<ChunkKey, Chunk>, ReadError> {
        let mut chunks = BTreeMap::new();
        let mut changed = BTreeMap::new();
        for _ in 0..self.u64()? {
            let volume = VolumeId::from_bytes(self.array()?);
            let key = ChunkKey { volume, index: ChunkIndex(self.u32()?) };
            let last_change = self.u64()?;
            let count = self.u16()?;
            let form = self.u8()?;
            if u64::from(count) > BLOCKS_PER_CHUNK {
                return Err(Malformed("a chunk's number of blocks is out of range").into());
            }
            let (born, base) = match form & COPY {
                0 => (0, VolumeId::default()),
                _ => (self.u64()?, VolumeId::from_bytes(self.array()?)),
            };
            let base = (!base.is_nil()).then_some(base);
            let blocks = self.blocks(form & !COPY, count)?;
            let mut chunk = Chunk::restored(None, born, base);
            chunk.change_at(last_change);
            let doubled = if form & !COPY == FORM_CHANGES {
                changed.insert(key, (chunk, blocks)).is_some() || chunks.contains_key(&key)
            } else {
                if blocks.is_empty() {
                    return Err(Malformed("a chunk has no blocks").into());
                }
                chunk.fill(blocks);
                chunks.insert(key, chunk).is_some() || changed.contains_key(&key)
            };
            if doubled {
                return Err(Malformed("a chunk appears twice").into());
            }
        }
        resolve(&mut chunks, changed)?;
        if !own_bases(chunks.keys().copied(), |key| chunks.get(&key)?.base()).is_empty() {
            return Err(Malformed("chunks are each other's base").into());
        }
        chunks.values().flat_map(Chunk::device_blocks).try_for_each(&mut claim)?;
        Ok(chunks)
    }

    /// The blocks of a chunk in one of the forms.
    fn blocks(&mut self, form: u8, count: u16) -> Result<Vec<(u16, TableBlock)>, ReadError> {
        let mapped = match form {
            FORM_BITMAP => Some(BlockSet::from_bytes(self.array()?)),
            FORM_LIST | FORM_CHANGES => None,
            _ => return Err(Malformed("a chunk's form is unknown").into()),
        };
        let len = if mapped.is_some() { MAPPED_LEN } else { LISTED_LEN };
        let mut bytes = [0; BLOCKS_PER_CHUNK as usize * LISTED_LEN];
        let bytes = &mut bytes[..usize::from(count) * len];
        self.fill(bytes)?;
        let mut bytes = &*bytes;
        let mut mapped = mapped.as_ref().map(|blocks| blocks.iter());
        let mut blocks = Vec::with_capacity(usize::from(count));
        let mut seen = BlockSet::from_bytes([0; BlockSet::LEN]);
        for _ in 0..count {
            let index = match &mut mapped {
                Some(set) => set.next().ok_or(Malformed("a chunk's bitmap has too few blocks"))?,
                None => bytes.u16()?,
            };
            if u64::from(index) >= BLOCKS_PER_CHUNK || seen.has(index) {
                return Err(Malformed("a chunk's block index is out of range or doubled").into());
            }
            seen.insert(index);
            let addr = BlockAddr { block: bytes.u32()?, crc: bytes.u32()? };
            let block = TableBlock { addr, written: Written(bytes.u32()?) };
            if block.addr == TableBlock::HOLE.addr && form != FORM_CHANGES {
                return Err(Malformed("a hole is listed").into());
            }
            blocks.push((index, block));
        }
        Ok(blocks)
    }
}

fn put_blocks(chunk: &mut Chunk, blocks: &[(u16, TableBlock)]) {
    for (index, block) in blocks {
        match block.addr == TableBlock::HOLE.addr {
            true => drop(chunk.remove_device(*index)),
            false => chunk.set_device(*index, *block),
        }
    }
}

/// Adds the chunks of which only the difference from their base is known.
fn resolve(
    chunks: &mut BTreeMap<ChunkKey, Chunk>,
    mut changed: BTreeMap<ChunkKey, (Chunk, Vec<(u16, TableBlock)>)>,
) -> Result<(), Malformed> {
    while let Some(first) = changed.keys().next().copied() {
        // Down to one that is known, and back up.
        let mut chain = vec![first];
        let mut base = loop {
            let key = chain[chain.len() - 1];
            let (chunk, _) = changed.get(&key).ok_or(Malformed("a chunk's base is missing"))?;
            let volume = chunk.base().ok_or(Malformed("a chunk's base is not named"))?;
            let below = ChunkKey { volume, ..key };
            if let Some(known) = chunks.get(&below) {
                break known.clone();
            }
            if chain.len() > changed.len() {
                return Err(Malformed("chunks are each other's base"));
            }
            chain.push(below);
        };
        while let Some(key) = chain.pop() {
            let Some((head, blocks)) = changed.remove(&key) else { continue };
            let mut chunk = Chunk::restored(Some(&base), head.born(), head.base());
            chunk.change_at(head.changed());
            put_blocks(&mut chunk, &blocks);
            if chunk.is_empty() {
                return Err(Malformed("a chunk has no blocks"));
            }
            chunks.insert(key, chunk.clone());
            base = chunk;
        }
    }
    Ok(())
}

impl Get for Reader<'_> {
    type Error = ReadError;

    fn fill(&mut self, mut buf: &mut [u8]) -> Result<(), ReadError> {
        while !buf.is_empty() {
            if self.at == self.end {
                self.load_frame()?;
            }
            let len = buf.len().min(self.end - self.at);
            let (head, rest) = buf.split_at_mut(len);
            head.copy_from_slice(&self.frame[self.at..self.at + len]);
            self.at += len;
            buf = rest;
        }
        Ok(())
    }
}
