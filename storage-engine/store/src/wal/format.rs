//! Bytes of batches and records.

use bytes::Bytes;
use curve_types::{BLOCK_SIZE, CopysetId};

use crate::aligned::AlignedBuf;
use crate::chunk::BlockAddr;
use crate::codec::{Get, Malformed, Put, crc32c};
use crate::log::{LogEntry, LogPosition, Vote};
use crate::payload::Blocks;

const MAGIC: u32 = u32::from_le_bytes(*b"CWAL");
/// magic, CRC, salt, lsn, sequence, mark, generation, root sequence, length, records, body CRC.
pub(crate) const BATCH_HEADER_LEN: usize = 4 + 4 + 6 * 8 + 4 + 4 + 4;
/// crc, length, kind, entry kind, two zero bytes, group.
const RECORD_HEADER_LEN: usize = 16;
/// Term, node, index, header length, payload length.
const ENTRY_FIELDS_LEN: usize = 32 + 4 + 4;
/// A batch takes no further record once it is this long: larger ones gain no throughput and
/// delay those who wait for the first record.
pub(crate) const BATCH_SOFT_MAX: usize = 1 << 20;
/// Longest batch: one entry of the largest size on top of the soft limit.
pub(crate) const BATCH_MAX: usize = BATCH_SOFT_MAX + LogEntry::BYTES_MAX + (16 << 10);

/// Header of a batch. `lsn / ring length` is the lap, `lsn % ring length` the place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchHeader {
    /// Position of the batch in the endless log, in bytes.
    pub lsn: u64,
    /// One more than the batch before.
    pub seq: u64,
    /// Highest sequence known to be durable when this batch was written.
    pub mark: u64,
    /// Grows by one with every open of the store.
    pub generation: u64,
    /// Sequence of the newest root known to be durable when this batch was written.
    pub root_seq: u64,
    /// Bytes with this header, without padding.
    pub len: u32,
    pub records: u32,
    /// CRC over the CRCs of the records.
    pub body_crc: u32,
}

impl BatchHeader {
    /// Position of the batch that follows.
    pub fn end(&self) -> u64 {
        self.lsn + u64::from(self.len).next_multiple_of(BLOCK_SIZE)
    }

    fn fields(&self, salt: u64) -> Vec<u8> {
        let mut fields = Vec::with_capacity(BATCH_HEADER_LEN - 8);
        let longs = [salt, self.lsn, self.seq, self.mark, self.generation, self.root_seq];
        longs.iter().for_each(|v| fields.put_u64(*v));
        [self.len, self.records, self.body_crc].iter().for_each(|v| fields.put_u32(*v));
        fields
    }

    /// Reads a header that lies at the start of `bytes`; None unless it is whole and ours.
    pub fn decode(salt: u64, bytes: &[u8]) -> Option<Self> {
        let (mut fields, _) = bytes.split_at_checked(BATCH_HEADER_LEN)?;
        if fields.u32().ok()? != MAGIC {
            return None;
        }
        let crc = fields.u32().ok()?;
        if crc != crc32c(fields) || fields.u64().ok()? != salt {
            return None;
        }
        let header = Self {
            lsn: fields.u64().ok()?,
            seq: fields.u64().ok()?,
            mark: fields.u64().ok()?,
            generation: fields.u64().ok()?,
            root_seq: fields.u64().ok()?,
            len: fields.u32().ok()?,
            records: fields.u32().ok()?,
            body_crc: fields.u32().ok()?,
        };
        let sane = (BATCH_HEADER_LEN..=BATCH_MAX).contains(&(header.len as usize))
            && header.lsn.is_multiple_of(BLOCK_SIZE)
            && header.mark < header.seq;
        sane.then_some(header)
    }
}

/// Builds one batch in a buffer that is reused.
pub(crate) struct BatchBuilder {
    buf: AlignedBuf,
    crcs: Vec<u8>,
}

impl BatchBuilder {
    pub fn new() -> Self {
        Self { buf: AlignedBuf::with_capacity(BATCH_MAX), crcs: Vec::new() }
    }

    pub fn start(&mut self) {
        self.buf.clear();
        self.crcs.clear();
        self.buf.put(&[0; BATCH_HEADER_LEN]);
    }

    pub fn is_empty(&self) -> bool {
        self.crcs.is_empty()
    }

    /// Where the next record will start within the batch.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Adds a record; `body` writes what follows the record header. Returns the record's length.
    pub fn record(
        &mut self,
        kind: u8,
        entry_kind: u8,
        group: CopysetId,
        body: impl FnOnce(&mut AlignedBuf),
    ) -> u32 {
        let start = self.buf.len();
        self.buf.put(&[0; 8]);
        self.buf.put(&[kind, entry_kind, 0, 0]);
        self.buf.put_u32(group.0);
        body(&mut self.buf);
        let len = (self.buf.len() - start) as u32;
        self.buf[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
        let crc = crc32c(&self.buf[start + 4..]);
        self.buf[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        self.crcs.put_u32(crc);
        len
    }

    /// Completes the header (length, count and CRC are filled in) and gives the padded bytes.
    pub fn finish(&mut self, salt: u64, header: &mut BatchHeader) -> &[u8] {
        header.len = self.buf.len() as u32;
        header.records = (self.crcs.len() / 4) as u32;
        header.body_crc = crc32c(&self.crcs);
        let fields = header.fields(salt);
        self.buf[..4].copy_from_slice(&MAGIC.to_le_bytes());
        self.buf[4..8].copy_from_slice(&crc32c(&fields).to_le_bytes());
        self.buf[8..BATCH_HEADER_LEN].copy_from_slice(&fields);
        self.buf.pad();
        debug_assert_eq!(BatchHeader::decode(salt, &self.buf), Some(*header));
        &self.buf
    }
}

/// A change that is not a log entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// First record after each open: what was cut, if anything.
    Open {
        cut: bool,
    },
    CreateGroup,
    RemoveGroup,
    Vote(Vote),
    /// Keep entries up to this index.
    Truncate(Option<u64>),
    Purge(LogPosition),
    /// Damage takes entries up to this one from the log, by the truncation that follows. A purge
    /// that no checkpoint contains is taken back, as it may be of such entries.
    Lost {
        upto: LogPosition,
        purged: Option<LogPosition>,
    },
}

const KIND_OPEN: u8 = 1;
const KIND_CREATE: u8 = 2;
const KIND_REMOVE: u8 = 3;
const KIND_VOTE: u8 = 4;
const KIND_ENTRY: u8 = 5;
const KIND_TRUNCATE: u8 = 6;
const KIND_PURGE: u8 = 7;
const KIND_PLACED_ENTRY: u8 = 8;
const KIND_LOST: u8 = 9;
/// Number and checksum of a block.
const ADDR_LEN: usize = 8;

impl Record {
    pub fn add_to(&self, batch: &mut BatchBuilder, group: CopysetId) {
        let mut plain = |kind, body: &dyn Fn(&mut AlignedBuf)| {
            batch.record(kind, 0, group, body);
        };
        match self {
            Self::Open { cut } => plain(KIND_OPEN, &|b| b.put_u8(u8::from(*cut))),
            Self::CreateGroup => plain(KIND_CREATE, &|_| ()),
            Self::RemoveGroup => plain(KIND_REMOVE, &|_| ()),
            Self::Vote(vote) => plain(KIND_VOTE, &|b| b.put_vote(*vote)),
            Self::Truncate(kept) => plain(KIND_TRUNCATE, &|b| {
                b.put_u8(u8::from(kept.is_some()));
                b.put_u64(kept.unwrap_or(0));
            }),
            Self::Purge(upto) => plain(KIND_PURGE, &|b| b.put_position(*upto)),
            Self::Lost { upto, purged } => plain(KIND_LOST, &|b| {
                b.put_position(*upto);
                b.put_position_option(*purged);
            }),
        }
    }

    /// Bytes in a batch, at most.
    pub const LEN_MAX: usize = RECORD_HEADER_LEN + 65;
}

/// Bytes of an entry's record.
pub(crate) fn entry_record_len(entry: &LogEntry, blocks: Option<&Blocks>) -> usize {
    let payload = blocks.map_or(entry.payload.len(), |blocks| blocks.len() * ADDR_LEN);
    RECORD_HEADER_LEN + ENTRY_FIELDS_LEN + entry.header.len() + payload
}

pub(crate) fn add_entry(
    batch: &mut BatchBuilder,
    group: CopysetId,
    entry: &LogEntry,
    blocks: Option<&Blocks>,
) -> u32 {
    let kind = if blocks.is_some() { KIND_PLACED_ENTRY } else { KIND_ENTRY };
    batch.record(kind, entry.kind, group, |b| {
        b.put_position(entry.position);
        b.put_u32(entry.header.len() as u32);
        let Some(blocks) = blocks else {
            b.put_u32(entry.payload.len() as u32);
            b.put(&entry.header);
            b.put(&entry.payload);
            return;
        };
        b.put_u32(blocks.len() as u32);
        b.put(&entry.header);
        for addr in blocks.iter() {
            b.put_u32(addr.block);
            b.put_u32(addr.crc);
        }
    })
}

/// A record as found in a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    Record(Record),
    Entry(FoundEntry),
}

/// An entry without its header, and without its payload if that is in the record too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FoundEntry {
    pub position: LogPosition,
    kind: u8,
    header_len: usize,
    payload_len: usize,
    /// Where the payload is, unless it is in the record.
    pub blocks: Option<Blocks>,
}

impl FoundEntry {
    /// Bytes of header and payload.
    pub fn len(&self) -> usize {
        self.header_len + self.payload_len
    }
}

/// One verified record.
pub(crate) struct RawRecord<'a> {
    kind: u8,
    entry_kind: u8,
    pub group: CopysetId,
    body: &'a [u8],
    crc: u32,
}

impl<'a> RawRecord<'a> {
    /// Splits the first record off `bytes` and verifies its checksum.
    pub fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Malformed> {
        let mut fields = bytes;
        let crc = fields.u32()?;
        let len = fields.u32()? as usize;
        if len < RECORD_HEADER_LEN {
            return Err(Malformed("a record is shorter than its header"));
        }
        let (record, rest) =
            bytes.split_at_checked(len).ok_or(Malformed("a record is cut short"))?;
        if crc32c(&record[4..]) != crc {
            return Err(Malformed("a record's checksum does not match"));
        }
        let kind = fields.u8()?;
        let entry_kind = fields.u8()?;
        let _zero = fields.u16()?;
        let group = CopysetId(fields.u32()?);
        Ok((Self { kind, entry_kind, group, body: &record[RECORD_HEADER_LEN..], crc }, rest))
    }

    pub fn decode(&self) -> Result<Found, Malformed> {
        let body = &mut &self.body[..];
        let found = match self.kind {
            KIND_OPEN => Record::Open { cut: body.u8()? != 0 },
            KIND_CREATE => Record::CreateGroup,
            KIND_REMOVE => Record::RemoveGroup,
            KIND_VOTE => Record::Vote(body.vote()?),
            KIND_TRUNCATE => {
                let some = body.u8()? != 0;
                let kept = body.u64()?;
                Record::Truncate(some.then_some(kept))
            }
            KIND_PURGE => Record::Purge(body.position()?),
            KIND_LOST => Record::Lost { upto: body.position()?, purged: body.position_option()? },
            KIND_ENTRY | KIND_PLACED_ENTRY => return self.decode_entry(body).map(Found::Entry),
            _ => return Err(Malformed("a record of an unknown kind")),
        };
        match body.is_empty() {
            true => Ok(Found::Record(found)),
            false => Err(Malformed("a record is longer than its kind")),
        }
    }

    fn decode_entry(&self, body: &mut &[u8]) -> Result<FoundEntry, Malformed> {
        let position = body.position()?;
        let (header_len, count) = (body.u32()? as usize, body.u32()? as usize);
        let is_placed = self.kind == KIND_PLACED_ENTRY;
        let rest = count.checked_mul(if is_placed { ADDR_LEN } else { 1 });
        if rest.and_then(|rest| rest.checked_add(header_len)) != Some(body.len()) {
            return Err(Malformed("an entry's lengths do not add up"));
        }
        let mut entry = FoundEntry {
            position,
            kind: self.entry_kind,
            header_len,
            payload_len: count,
            blocks: None,
        };
        if is_placed {
            let addrs = &mut &body[header_len..];
            let addr = |_| Ok(BlockAddr { block: addrs.u32()?, crc: addrs.u32()? });
            entry.blocks = Some((0..count).map(addr).collect::<Result<_, Malformed>>()?);
            entry.payload_len = count * BLOCK_SIZE as usize;
        }
        Ok(entry)
    }

    /// The entry, copied out; without its payload if that is elsewhere.
    pub fn entry(&self) -> Result<LogEntry, Malformed> {
        let Found::Entry(found) = self.decode()? else {
            return Err(Malformed("not an entry"));
        };
        let mut data = Bytes::copy_from_slice(&self.body[ENTRY_FIELDS_LEN..]);
        let header = data.split_to(found.header_len);
        let payload = if found.blocks.is_none() { data } else { Bytes::new() };
        Ok(LogEntry { position: found.position, kind: found.kind, header, payload })
    }
}

/// All records of a batch (`bytes` starts with its header), each with its place and length, after
/// all checksums held.
pub(crate) fn records<'a>(
    header: &BatchHeader,
    bytes: &'a [u8],
) -> Result<Vec<(u32, u32, RawRecord<'a>)>, Malformed> {
    let whole = bytes.get(BATCH_HEADER_LEN..header.len as usize).ok_or(Malformed("cut short"))?;
    let (mut rest, mut crcs, mut found) = (whole, Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (record, after) = RawRecord::split(rest)?;
        let at = BATCH_HEADER_LEN + whole.len() - rest.len();
        crcs.put_u32(record.crc);
        found.push((at as u32, (rest.len() - after.len()) as u32, record));
        rest = after;
    }
    match found.len() == header.records as usize && crc32c(&crcs) == header.body_crc {
        true => Ok(found),
        false => Err(Malformed("the records are not those of the header")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (BatchHeader, Vec<u8>, Vec<Found>) {
        let mut batch = BatchBuilder::new();
        batch.start();
        let group = CopysetId(9);
        let position = LogPosition { term: 3, node: curve_types::DeviceId::random(), index: 17 };
        let entry = LogEntry {
            position,
            kind: 2,
            header: Bytes::from_static(b"head"),
            payload: Bytes::from(vec![5; 4096]),
        };
        let all = [
            Record::Open { cut: true },
            Record::CreateGroup,
            Record::Vote(Vote { term: 4, node: None, committed: false }),
            Record::Truncate(Some(16)),
            Record::Truncate(None),
            Record::Purge(position),
            Record::Lost { upto: position, purged: Some(position) },
            Record::Lost { upto: position, purged: None },
            Record::RemoveGroup,
        ];
        all.iter().for_each(|record| record.add_to(&mut batch, group));
        let addr = |block| BlockAddr { block, crc: block * 3 };
        let blocks: Blocks = [addr(7), addr(9)].into();
        add_entry(&mut batch, group, &entry, None);
        add_entry(&mut batch, group, &entry, Some(&blocks));
        let (lsn, seq) = (8192, 5);
        let mut header = BatchHeader {
            lsn,
            seq,
            mark: 4,
            generation: 2,
            root_seq: 1,
            len: 0,
            records: 0,
            body_crc: 0,
        };
        let bytes = batch.finish(77, &mut header).to_vec();
        let mut expected: Vec<Found> = all.into_iter().map(Found::Record).collect();
        let mut found =
            FoundEntry { position, kind: 2, header_len: 4, payload_len: 4096, blocks: None };
        expected.push(Found::Entry(found.clone()));
        (found.payload_len, found.blocks) = (2 * 4096, Some(blocks));
        expected.push(Found::Entry(found));
        (header, bytes, expected)
    }

    #[test]
    fn a_batch_reads_back_as_it_was_built() {
        let (header, bytes, expected) = sample();
        assert_eq!(bytes.len() as u64, header.end() - header.lsn);
        assert_eq!(BatchHeader::decode(77, &bytes), Some(header));
        assert_eq!(BatchHeader::decode(78, &bytes), None);
        let found = records(&header, &bytes).expect("valid");
        let decoded: Vec<Found> = found.iter().map(|r| r.2.decode().expect("valid")).collect();
        assert_eq!(decoded, expected);
        let [.., inline, placed] = &found[..] else { panic!("two entries") };
        for (record, payload_len) in [(inline, 4096), (placed, 0)] {
            let entry = record.2.entry().expect("entry");
            assert_eq!((&entry.header[..], entry.payload.len()), (&b"head"[..], payload_len));
        }
    }

    #[test]
    fn any_flipped_bit_of_a_batch_is_noticed() {
        let (header, bytes, _) = sample();
        for bit in (0..header.len as usize * 8).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = BatchHeader::decode(77, &damaged);
            let whole = read.is_some_and(|h| records(&h, &damaged).is_ok());
            assert!(!whole, "bit {bit}");
        }
    }
}
