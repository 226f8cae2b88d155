//! Little-endian fields: bounds-checked reading, and writing into any growing buffer.

use curve_types::DeviceId;

use crate::aligned::AlignedBuf;
use crate::disk::ALIGN;
use crate::log::{LogPosition, Vote};

/// Fields did not fit into the bytes given, or hold a value outside their set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub &'static str);

/// CRC-32C (Castagnoli), the checksum of everything on the device.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Fills a block of the device up and ends it with the checksum of all before.
pub(crate) fn seal(mut block: AlignedBuf) -> AlignedBuf {
    block.pad();
    let crc = crc32c(&block[..ALIGN - 4]);
    block[ALIGN - 4..].copy_from_slice(&crc.to_le_bytes());
    block
}

/// What follows the magic in a block that `seal` ended.
pub(crate) fn unseal<'a>(block: &'a [u8], magic: &[u8]) -> Result<&'a [u8], Malformed> {
    let (sealed, mut crc) = block.split_at(ALIGN - 4);
    let fields = sealed.strip_prefix(magic).ok_or(Malformed("no magic"))?;
    match crc.u32()? == crc32c(sealed) {
        true => Ok(fields),
        false => Err(Malformed("checksum does not match")),
    }
}

pub(crate) trait Put {
    fn put_bytes(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, v: u8) {
        self.put_bytes(&[v]);
    }
    fn put_u16(&mut self, v: u16) {
        self.put_bytes(&v.to_le_bytes());
    }
    fn put_u32(&mut self, v: u32) {
        self.put_bytes(&v.to_le_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.put_bytes(&v.to_le_bytes());
    }

    /// 32 bytes: term, node, index.
    fn put_position(&mut self, p: LogPosition) {
        self.put_u64(p.term);
        self.put_bytes(&p.node.to_bytes());
        self.put_u64(p.index);
    }

    /// 33 bytes: presence, then the position or zeroes.
    fn put_position_option(&mut self, p: Option<LogPosition>) {
        self.put_u8(u8::from(p.is_some()));
        self.put_position(p.unwrap_or_default());
    }

    /// 25 bytes: flags (1 node present, 2 committed), term, node.
    fn put_vote(&mut self, vote: Vote) {
        self.put_u8(u8::from(vote.node.is_some()) | u8::from(vote.committed) << 1);
        self.put_u64(vote.term);
        self.put_bytes(&vote.node.unwrap_or_default().to_bytes());
    }
}

impl Put for Vec<u8> {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Put for AlignedBuf {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }
}

/// Reads fields one after another. `fill` is the only thing an implementation supplies.
pub(crate) trait Get {
    type Error: From<Malformed>;

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), Self::Error>;

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Self::Error> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
    fn u8(&mut self) -> Result<u8, Self::Error> {
        Ok(self.array::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16, Self::Error> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, Self::Error> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, Self::Error> {
        self.array().map(u64::from_le_bytes)
    }

    fn position(&mut self) -> Result<LogPosition, Self::Error> {
        let term = self.u64()?;
        let node = DeviceId::from_bytes(self.array()?);
        let index = self.u64()?;
        if index == u64::MAX {
            return Err(Malformed("a log position that nothing can follow").into());
        }
        Ok(LogPosition { term, node, index })
    }

    fn position_option(&mut self) -> Result<Option<LogPosition>, Self::Error> {
        let present = self.u8()?;
        let position = self.position()?;
        match present {
            0 => Ok(None),
            1 => Ok(Some(position)),
            _ => Err(Malformed("presence of a log position is neither 0 nor 1").into()),
        }
    }

    fn vote(&mut self) -> Result<Vote, Self::Error> {
        let flags = self.u8()?;
        if flags > 3 {
            return Err(Malformed("vote flags above 3").into());
        }
        let term = self.u64()?;
        let node = DeviceId::from_bytes(self.array()?);
        Ok(Vote { term, node: (flags & 1 != 0).then_some(node), committed: flags & 2 != 0 })
    }
}

impl Get for &[u8] {
    type Error = Malformed;

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), Malformed> {
        let (head, rest) = self.split_at_checked(buf.len()).ok_or(Malformed("cut short"))?;
        buf.copy_from_slice(head);
        *self = rest;
        Ok(())
    }
}
