//! Identity and layout of a device: the two superblock copies, formatting, and telling a blank
//! device from a foreign one.

use curve_types::{BLOCK_SIZE, ByteSize, ClusterId, DeviceId};

use crate::aligned::AlignedBuf;
use crate::codec::{Get, Malformed, Put, seal, unseal};
use crate::disk::ALIGN;
use crate::{Disk, StoreError, checkpoint, log_device, root};

/// First bytes of both superblock copies.
const MAGIC: &[u8; 8] = b"CURVEDEV";
/// Format 0 promises no compatibility.
const FORMAT: u32 = 0;
/// Bytes before the WAL: superblocks in blocks 0 and 1, roots in 2 and 3, the rest reserved.
pub(crate) const HEAD_LEN: u64 = 64 << 10;
/// Byte offsets of the two copies.
pub(crate) const COPIES: [u64; 2] = [0, BLOCK_SIZE];
/// Longest name.
const NAME_MAX: usize = 255;
/// Shortest log that can be used.
pub(crate) const WAL_LEN_LEAST: u64 = 1 << 20;
/// Shortest and longest one that is made.
pub(crate) const WAL_LEN_MIN: u64 = 8 << 20;
pub(crate) const WAL_LEN_MAX: u64 = 4 << 30;
/// Smallest device: an 8 MiB WAL and room for a few checkpointed states.
const SIZE_MIN: u64 = 64 << 20;
/// Largest device: what a 32-bit block number addresses.
const SIZE_MAX: u64 = 16 << 40;
/// Checkpoint bytes per data block in the worst case (a chunk that holds one block).
const TABLE_BYTES_PER_BLOCK: u64 = 48;

/// What a device is to become.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    pub cluster: ClusterId,
    /// Granted by the MDS; at once the Raft node id.
    pub device: DeviceId,
    /// Human name of the process that owns the device, at most 255 bytes; for error messages.
    pub name: String,
    /// Bytes of the device to use, 64 MiB to 16 TiB; rounded down to a multiple of 4096.
    pub size: u64,
}

/// Identity of a formatted device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    pub cluster: ClusterId,
    pub device: DeviceId,
    pub name: String,
    /// Bytes of the device that the format uses.
    pub size: u64,
    pub(crate) layout: Layout,
}

impl Superblock {
    /// Whether its log lies on another device; see `with_log`.
    pub fn has_log_elsewhere(&self) -> bool {
        self.layout.wal_offset >= self.size
    }

    /// Stamped into every batch, root and checkpoint frame, so that what an earlier format left
    /// on the same file is never taken for ours.
    pub(crate) fn salt(&self) -> u64 {
        self.device.0.as_u128() as u64
    }
}

/// Where the areas lie, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub wal_offset: u64,
    pub wal_len: u64,
    pub checkpoint_offset: u64,
    /// Length of one of the two slots.
    pub slot_len: u64,
    pub data_offset: u64,
    pub data_blocks: u64,
}

impl Layout {
    fn plan(size: u64) -> Self {
        let wal_len = (size / 16).clamp(WAL_LEN_MIN, WAL_LEN_MAX) / BLOCK_SIZE * BLOCK_SIZE;
        Self::plan_areas(size, wal_len)
    }

    /// Of a device whose log of that length lies elsewhere: in its addresses, after its end.
    fn plan_with_log(size: u64, wal_len: u64) -> Self {
        Self { wal_offset: size, wal_len, ..Self::plan_areas(size, 0) }
    }

    fn plan_areas(size: u64, wal_len: u64) -> Self {
        let frame = checkpoint::FRAME_LEN as u64;
        let state_len = (size / 16).clamp(2 << 20, 64 << 20);
        let rest = size - HEAD_LEN - wal_len - 2 * (state_len + 2 * frame);
        let blocks = rest / (BLOCK_SIZE + 2 * TABLE_BYTES_PER_BLOCK);
        let slot_len = (state_len + blocks * TABLE_BYTES_PER_BLOCK).next_multiple_of(frame);
        let checkpoint_offset = HEAD_LEN + wal_len;
        let data_offset = checkpoint_offset + 2 * slot_len;
        let data_blocks = (size - data_offset) / BLOCK_SIZE;
        Self {
            wal_offset: HEAD_LEN,
            wal_len,
            checkpoint_offset,
            slot_len,
            data_offset,
            data_blocks,
        }
    }

    fn validate(&self, size: u64) -> Result<(), Malformed> {
        let end =
            |offset: u64, len: u64| offset.checked_add(len).ok_or(Malformed("layout overflow"));
        let aligned = [self.wal_offset, self.wal_len, self.checkpoint_offset, self.data_offset]
            .iter()
            .all(|v| v % BLOCK_SIZE == 0);
        let slots = self.slot_len.checked_mul(2).ok_or(Malformed("layout overflow"))?;
        let data_len =
            self.data_blocks.checked_mul(BLOCK_SIZE).ok_or(Malformed("layout overflow"))?;
        let log_end = end(self.wal_offset, self.wal_len)?;
        let ordered = self.wal_offset >= HEAD_LEN
            && self.checkpoint_offset >= HEAD_LEN
            && (log_end <= self.checkpoint_offset || self.wal_offset == size)
            && end(self.checkpoint_offset, slots)? <= self.data_offset
            && end(self.data_offset, data_len)? <= size;
        let sane = self.wal_len >= WAL_LEN_LEAST
            && self.slot_len.is_multiple_of(checkpoint::FRAME_LEN as u64)
            && self.slot_len > 0
            && size <= SIZE_MAX;
        match aligned && ordered && sane {
            true => Ok(()),
            false => Err(Malformed("areas overlap, are misaligned or lie outside the device")),
        }
    }
}

/// What lies on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceState {
    /// Superblocks are all zero: may be formatted.
    Blank,
    /// Somebody else's bytes: never formatted by us.
    Foreign { what: String },
    /// Ours.
    Formatted(Superblock),
    /// Ours, but unreadable or cut short.
    Damaged { what: String },
}

/// Looks at a device without changing it.
pub fn inspect(disk: &dyn Disk) -> Result<DeviceState, StoreError> {
    if disk.len() < HEAD_LEN {
        let (is, min) = (ByteSize(disk.len()), ByteSize(SIZE_MIN));
        let what = format!("it is only {is} long, at least {min} are needed");
        return Ok(match disk.len() {
            0 => DeviceState::Damaged { what: "it is empty (0 bytes)".into() },
            _ => DeviceState::Damaged { what },
        });
    }
    let mut copies = [AlignedBuf::take(ALIGN), AlignedBuf::take(ALIGN)];
    for (buf, offset) in copies.iter_mut().zip(COPIES) {
        disk.read_at(buf, offset)
            .map_err(|source| StoreError::io("read superblock", offset, source))?;
    }
    let decoded = [decode(&copies[0]), decode(&copies[1])];
    if let Some(found) = decoded.iter().find_map(|d| d.as_ref().ok()) {
        if disk.len() < found.size {
            let (is, was) = (ByteSize(disk.len()), ByteSize(found.size));
            let what = format!("it was formatted with {was} but is cut short to {is}");
            return Ok(DeviceState::Damaged { what });
        }
        return Ok(DeviceState::Formatted(found.clone()));
    }
    if copies.iter().all(|c| c.iter().all(|b| *b == 0)) {
        return match known_signature(disk)? {
            Some(what) => Ok(DeviceState::Foreign { what }),
            None => Ok(DeviceState::Blank),
        };
    }
    if copies.iter().any(|c| c.starts_with(MAGIC)) {
        let [Err(a), Err(b)] = decoded else { unreachable!("both copies failed to decode") };
        let what = format!("both superblocks are unreadable: {}; {}", a.0, b.0);
        return Ok(DeviceState::Damaged { what });
    }
    let what = match known_signature(disk)? {
        Some(what) => what,
        None => format!("unknown data, starting with bytes {:02x?}", &copies[0][..16]),
    };
    Ok(DeviceState::Foreign { what })
}

/// Names what commonly lies on a disk. Some of these leave the first blocks zero.
fn known_signature(disk: &dyn Disk) -> Result<Option<String>, StoreError> {
    const SIGNATURES: [(u64, &[u8], &str); 11] = [
        (0, log_device::MAGIC, "the log of a Curve device"),
        (0, b"XFSB", "an xfs file system"),
        (0, b"LUKS", "a LUKS volume"),
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"\x7fELF", "an ELF binary"),
        (0, b"PK\x03\x04", "a zip archive"),
        (0, b"\x1f\x8b", "a gzip archive"),
        (512, b"EFI PART", "a GPT partition table"),
        (0x218, b"LVM2", "an LVM physical volume"),
        (0x438, b"\x53\xef", "an ext2/3/4 file system"),
        (510, b"\x55\xaa", "an MBR partition table or boot sector"),
    ];
    let mut head = AlignedBuf::take(ALIGN);
    disk.read_at(&mut head, 0).map_err(|source| StoreError::io("read first block", 0, source))?;
    let found = SIGNATURES.iter().find(|(at, magic, _)| head[*at as usize..].starts_with(magic));
    if let Some((_, _, what)) = found {
        return Ok(Some((*what).to_owned()));
    }
    let mut btrfs = AlignedBuf::take(ALIGN);
    if disk.len() >= (64 << 10) + ALIGN as u64 {
        disk.read_at(&mut btrfs, 64 << 10)
            .map_err(|source| StoreError::io("read block at 64 KiB", 64 << 10, source))?;
        if btrfs[0x40..].starts_with(b"_BHRfS_M") {
            return Ok(Some("a btrfs file system".to_owned()));
        }
    }
    Ok(None)
}

/// Formats a blank device: WAL area zeroed (so that a later overwrite needs no file system
/// journal commit), an empty checkpoint, its root, and last the superblocks, which make it ours.
pub fn format(disk: &dyn Disk, options: &FormatOptions) -> Result<Superblock, StoreError> {
    let superblock = plan(disk, options)?;
    write_format(disk, superblock)
}

/// What `format` would make of the device if its log of that length lay elsewhere.
pub(crate) fn plan_with_log(
    disk: &dyn Disk,
    options: &FormatOptions,
    wal_len: u64,
) -> Result<Superblock, StoreError> {
    let mut superblock = plan(disk, options)?;
    superblock.layout = Layout::plan_with_log(superblock.size, wal_len);
    Ok(superblock)
}

/// As `format`, with a WAL of another length (at least 1 MiB) and at most so many data blocks, so
/// that tests see many laps of the one and much reuse of the other.
#[cfg(feature = "sim")]
pub fn format_small(
    disk: &dyn Disk,
    options: &FormatOptions,
    wal_len: u64,
    data_blocks_max: u64,
) -> Result<Superblock, StoreError> {
    let mut superblock = plan(disk, options)?;
    superblock.layout.wal_len = wal_len;
    superblock.layout.data_blocks = superblock.layout.data_blocks.min(data_blocks_max);
    write_format(disk, superblock)
}

pub(crate) fn write_format(
    disk: &dyn Disk,
    superblock: Superblock,
) -> Result<Superblock, StoreError> {
    let io = |step, offset| move |source| StoreError::io(step, offset, source);
    let Layout { wal_offset, wal_len, checkpoint_offset, .. } = superblock.layout;
    zero(disk, 2 * BLOCK_SIZE, checkpoint_offset)?;
    if superblock.has_log_elsewhere() {
        zero(disk, wal_offset, wal_offset + wal_len)?;
    }
    let root = checkpoint::write_empty(disk, &superblock)?;
    root::write(disk, &superblock, &root)?;
    disk.sync().map_err(io("sync formatted areas", 0))?;
    for offset in COPIES {
        disk.write_at(&encode(&superblock), offset).map_err(io("write superblock", offset))?;
        disk.sync().map_err(io("sync superblock", offset))?;
    }
    Ok(superblock)
}

fn plan(disk: &dyn Disk, options: &FormatOptions) -> Result<Superblock, StoreError> {
    let size = options.size / BLOCK_SIZE * BLOCK_SIZE;
    let unusable = |what: String| Err(StoreError::Unusable { what });
    if !(SIZE_MIN..=SIZE_MAX).contains(&size) {
        let (size, min, max) = (ByteSize(size), ByteSize(SIZE_MIN), ByteSize(SIZE_MAX));
        return unusable(format!("size {size} is not between {min} and {max}"));
    }
    if disk.len() < size {
        let (is, want) = (ByteSize(disk.len()), ByteSize(size));
        return unusable(format!("it is {is} long, {want} are to be formatted"));
    }
    if options.name.len() > NAME_MAX {
        return unusable(format!("name is {} bytes long, at most 255 fit", options.name.len()));
    }
    // A nil cluster is allowed: an MDS formats its directory before its cluster exists.
    if options.device.is_nil() {
        return unusable("device id must not be nil".into());
    }
    match inspect(disk)? {
        DeviceState::Blank => Ok(Superblock {
            cluster: options.cluster,
            device: options.device,
            name: options.name.clone(),
            size,
            layout: Layout::plan(size),
        }),
        DeviceState::Foreign { what } => unusable(format!("it holds {what}")),
        DeviceState::Damaged { what } => unusable(what),
        DeviceState::Formatted(s) => {
            unusable(format!("it is already device {} ({})", s.device, s.name))
        }
    }
}

fn zero(disk: &dyn Disk, from: u64, to: u64) -> Result<(), StoreError> {
    let mut zeroes = AlignedBuf::take(1 << 20);
    zeroes.fill(0);
    let mut at = from;
    while at < to {
        let len = (to - at).min(zeroes.len() as u64);
        disk.write_at(&zeroes[..len as usize], at)
            .map_err(|source| StoreError::io("zero the log area", at, source))?;
        at += len;
    }
    Ok(())
}

/// The superblock of a device that can be opened; both copies are whole on return.
pub(crate) fn load(disk: &dyn Disk) -> Result<Superblock, StoreError> {
    let superblock = match inspect(disk)? {
        DeviceState::Formatted(superblock) => superblock,
        DeviceState::Blank => {
            return Err(StoreError::Unusable { what: "it is blank, not formatted".into() });
        }
        DeviceState::Foreign { what } => {
            return Err(StoreError::Unusable { what: format!("it holds {what}") });
        }
        DeviceState::Damaged { what } => return Err(StoreError::Unusable { what }),
    };
    make_whole(disk, &encode(&superblock))?;
    Ok(superblock)
}

/// Rewrites those of the two copies of a block that differ from it.
pub(crate) fn make_whole(disk: &dyn Disk, block: &[u8]) -> Result<(), StoreError> {
    for offset in COPIES {
        let mut copy = AlignedBuf::take(ALIGN);
        let io = |step| move |source| StoreError::io(step, offset, source);
        disk.read_at(&mut copy, offset).map_err(io("read a copy of the first block"))?;
        if *copy != *block {
            tracing::warn!(offset, "a copy of the first block is damaged or older, rewriting it");
            disk.write_at(block, offset).map_err(io("rewrite a copy of the first block"))?;
            disk.sync().map_err(io("sync a copy of the first block"))?;
        }
    }
    Ok(())
}

/// A block that names what a device is, as far as all of these are alike.
pub(crate) fn begin_named(magic: &[u8]) -> AlignedBuf {
    let mut buf = AlignedBuf::with_capacity(ALIGN);
    buf.put(magic);
    buf.put_u32(FORMAT);
    buf.put_u32(BLOCK_SIZE as u32);
    buf
}

/// What follows in one that was sealed.
pub(crate) fn open_named<'a>(block: &'a [u8], magic: &[u8]) -> Result<&'a [u8], Malformed> {
    let mut fields = unseal(block, magic)?;
    if fields.u32()? != FORMAT {
        return Err(Malformed("format is not 0, the only one this version reads"));
    }
    if fields.u32()? != BLOCK_SIZE as u32 {
        return Err(Malformed("block size is not 4096"));
    }
    Ok(fields)
}

fn encode(superblock: &Superblock) -> AlignedBuf {
    let mut buf = begin_named(MAGIC);
    buf.put(&superblock.cluster.to_bytes());
    buf.put(&superblock.device.to_bytes());
    buf.put_u64(superblock.size);
    let layout = &superblock.layout;
    for value in [layout.wal_offset, layout.wal_len, layout.checkpoint_offset, layout.slot_len] {
        buf.put_u64(value);
    }
    buf.put_u64(layout.data_offset);
    buf.put_u64(layout.data_blocks);
    buf.put_u8(superblock.name.len() as u8);
    buf.put(superblock.name.as_bytes());
    seal(buf)
}

fn decode(block: &[u8]) -> Result<Superblock, Malformed> {
    let fields = &mut open_named(block, MAGIC)?;
    let cluster = ClusterId::from_bytes(fields.array()?);
    let device = DeviceId::from_bytes(fields.array()?);
    let size = fields.u64()?;
    let layout = Layout {
        wal_offset: fields.u64()?,
        wal_len: fields.u64()?,
        checkpoint_offset: fields.u64()?,
        slot_len: fields.u64()?,
        data_offset: fields.u64()?,
        data_blocks: fields.u64()?,
    };
    layout.validate(size)?;
    let mut name = vec![0; usize::from(fields.u8()?)];
    fields.fill(&mut name)?;
    let name = String::from_utf8(name).map_err(|_| Malformed("name is not UTF-8"))?;
    Ok(Superblock { cluster, device, name, size, layout })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_of_all_sizes_are_valid_and_give_most_to_data() {
        for size in [SIZE_MIN, 100 << 20, 256 << 20, 1 << 30, 100 << 30, SIZE_MAX] {
            let layout = Layout::plan(size);
            layout.validate(size).unwrap_or_else(|e| panic!("{size}: {}", e.0));
            let share = layout.data_blocks * BLOCK_SIZE * 100 / size;
            assert!(share >= 69, "{size}: only {share} % for data");
            let bare = Layout::plan_with_log(size, WAL_LEN_MIN);
            bare.validate(size).unwrap_or_else(|e| panic!("{size}, log elsewhere: {}", e.0));
            assert!(bare.data_blocks >= layout.data_blocks);
            assert!(layout.data_blocks < u64::from(u32::MAX));
        }
    }

    #[test]
    fn any_flipped_bit_of_a_superblock_is_noticed() {
        let superblock = Superblock {
            cluster: ClusterId::random(),
            device: DeviceId::random(),
            name: "cs-0".into(),
            size: 1 << 30,
            layout: Layout::plan(1 << 30),
        };
        let whole = encode(&superblock);
        assert_eq!(decode(&whole), Ok(superblock));
        for bit in (0..ALIGN * 8).step_by(61) {
            let mut damaged = whole.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit}");
        }
    }
}
