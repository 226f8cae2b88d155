//! The root: one 4 KiB block, written alternately to two places, that says which checkpoint holds
//! and where the WAL begins. Writing it is the moment a checkpoint takes effect.

use curve_types::BLOCK_SIZE;

use crate::aligned::AlignedBuf;
use crate::checkpoint::FRAME_LEN;
use crate::codec::{Get, Malformed, Put, seal, unseal};
use crate::disk::ALIGN;
use crate::{Disk, StoreError, Superblock};

const MAGIC: &[u8; 8] = b"CURVROOT";
/// Byte offsets of the two places; a root goes to `seq % 2`.
const PLACES: [u64; 2] = [2 * BLOCK_SIZE, 3 * BLOCK_SIZE];

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Root {
    /// Grows by one with every root written.
    pub seq: u64,
    /// Sequence of the checkpoint, stamped into its frames; its slot is `checkpoint_seq % 2`.
    pub checkpoint_seq: u64,
    pub frames: u32,
    /// CRC-32C over the frames' CRCs.
    pub frames_crc: u32,
    /// Votes and existence of groups are in the checkpoint as of this WAL position.
    pub checkpoint_lsn: u64,
    /// Start of the batch from which the WAL must be read; everything before may be overwritten.
    pub tail_lsn: u64,
    /// End of what was durable when the root was written, with the sequence and generation the
    /// batch there would have. A WAL that ends before this is damaged, never torn.
    pub head_lsn: u64,
    pub head_seq: u64,
    pub generation: u64,
}

impl Root {
    pub fn checkpoint_bytes(&self) -> u64 {
        u64::from(self.frames) * FRAME_LEN as u64
    }
}

/// Writes the root. Everything it refers to is already durable; the caller syncs afterwards.
pub(crate) fn write(disk: &dyn Disk, sb: &Superblock, root: &Root) -> Result<(), StoreError> {
    let offset = PLACES[(root.seq % 2) as usize];
    let block = encode(sb.salt(), root);
    assert_eq!(decode(sb, &block), Ok(*root), "a root must read back as it was written");
    disk.write_at(&block, offset).map_err(|source| StoreError::io("write root", offset, source))
}

/// The newest valid root.
pub(crate) fn load(disk: &dyn Disk, sb: &Superblock) -> Result<Root, StoreError> {
    let mut found: [Result<Root, Malformed>; 2] =
        [Err(Malformed("unread")), Err(Malformed("unread"))];
    for (place, offset) in PLACES.into_iter().enumerate() {
        let mut block = AlignedBuf::take(ALIGN);
        disk.read_at(&mut block, offset)
            .map_err(|source| StoreError::io("read root", offset, source))?;
        found[place] = decode(sb, &block).and_then(|root| match root.seq % 2 == place as u64 {
            true => Ok(root),
            false => Err(Malformed("it is in the other root's place")),
        });
    }
    let newest = found.iter().filter_map(|f| f.as_ref().ok()).max_by_key(|root| root.seq);
    newest.copied().ok_or_else(|| {
        let [a, b] = found.map(|f| f.err().map_or("", |e| e.0));
        StoreError::corrupt(format!("both roots are unreadable: {a}; {b}"))
    })
}

fn encode(salt: u64, root: &Root) -> AlignedBuf {
    let mut buf = AlignedBuf::with_capacity(ALIGN);
    buf.put(MAGIC);
    buf.put_u64(salt);
    buf.put_u64(root.seq);
    buf.put_u64(root.checkpoint_seq);
    buf.put_u32(root.frames);
    buf.put_u32(root.frames_crc);
    for value in [root.checkpoint_lsn, root.tail_lsn, root.head_lsn, root.head_seq] {
        buf.put_u64(value);
    }
    buf.put_u64(root.generation);
    seal(buf)
}

fn decode(sb: &Superblock, block: &[u8]) -> Result<Root, Malformed> {
    let fields = &mut unseal(block, MAGIC)?;
    if fields.u64()? != sb.salt() {
        return Err(Malformed("it belongs to another device"));
    }
    let root = Root {
        seq: fields.u64()?,
        checkpoint_seq: fields.u64()?,
        frames: fields.u32()?,
        frames_crc: fields.u32()?,
        checkpoint_lsn: fields.u64()?,
        tail_lsn: fields.u64()?,
        head_lsn: fields.u64()?,
        head_seq: fields.u64()?,
        generation: fields.u64()?,
    };
    let aligned =
        root.tail_lsn.is_multiple_of(BLOCK_SIZE) && root.head_lsn.is_multiple_of(BLOCK_SIZE);
    let ordered = root.tail_lsn <= root.checkpoint_lsn && root.checkpoint_lsn <= root.head_lsn;
    if !aligned || !ordered || root.head_lsn - root.tail_lsn > sb.layout.wal_len {
        return Err(Malformed("its WAL positions contradict each other"));
    }
    Ok(root)
}
