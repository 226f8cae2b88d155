//! Our own encoding of everything Raft stores or sends. Little-endian. Decoding trusts nothing:
//! lengths are bounded before anything is allocated, and whatever openraft would assert is checked
//! here first.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use curve_store::LogPosition;
use curve_types::DeviceId;
use thiserror::Error;

use crate::types::{LeaderId, LogId, NodeId, Vote, log_id, position};

pub(crate) mod entry;
pub(crate) mod message;

/// Why bytes from a peer or from the log are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum Malformed {
    #[error("ends before {0}")]
    Short(&'static str),
    #[error("{0} bytes are left over")]
    Trailing(usize),
    #[error("{what} is {found}, expected {expected}")]
    Value { what: &'static str, found: u64, expected: &'static str },
    #[error("{0}")]
    Rule(&'static str),
}

impl From<Malformed> for std::io::Error {
    fn from(error: Malformed) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Takes values off the front of a message.
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }

    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<Bytes, Malformed> {
        match len <= self.rest.len() {
            true => Ok(self.rest.split_to(len)),
            false => Err(Malformed::Short(what)),
        }
    }

    fn need(&self, len: usize, what: &'static str) -> Result<(), Malformed> {
        if self.rest.len() < len { Err(Malformed::Short(what)) } else { Ok(()) }
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.need(1, what)?;
        Ok(self.rest.get_u8())
    }

    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.need(2, what)?;
        Ok(self.rest.get_u16_le())
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.need(4, what)?;
        Ok(self.rest.get_u32_le())
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.need(8, what)?;
        Ok(self.rest.get_u64_le())
    }

    pub fn flag(&mut self, what: &'static str) -> Result<bool, Malformed> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(Malformed::Value { what, found: found.into(), expected: "0 or 1" }),
        }
    }

    pub fn device(&mut self, what: &'static str) -> Result<DeviceId, Malformed> {
        let mut raw = [0; 16];
        raw.copy_from_slice(&self.bytes(16, what)?);
        Ok(DeviceId::from_bytes(raw))
    }

    pub fn position(&mut self, what: &'static str) -> Result<LogPosition, Malformed> {
        let (term, node) = (self.u64(what)?, self.device(what)?);
        let index = self.u64(what)?;
        if index == u64::MAX {
            return Err(Malformed::Value { what, found: index, expected: "a lower index" });
        }
        Ok(LogPosition { term, node, index })
    }

    pub fn log_id(&mut self, what: &'static str) -> Result<LogId, Malformed> {
        self.position(what).map(log_id)
    }

    pub fn optional_log_id(&mut self, what: &'static str) -> Result<Option<LogId>, Malformed> {
        match self.flag(what)? {
            true => self.log_id(what).map(Some),
            false => Ok(None),
        }
    }

    pub fn vote(&mut self, what: &'static str) -> Result<Vote, Malformed> {
        let leader_id = LeaderId { term: self.u64(what)?, node_id: NodeId(self.device(what)?) };
        Ok(Vote { leader_id, committed: self.flag(what)? })
    }

    pub fn rest(self) -> Bytes {
        self.rest
    }

    pub fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(Malformed::Trailing(left)),
        }
    }
}

pub(crate) fn put_position(out: &mut BytesMut, position: &LogPosition) {
    out.put_u64_le(position.term);
    out.put_slice(&position.node.to_bytes());
    out.put_u64_le(position.index);
}

fn put_log_id(out: &mut BytesMut, id: &LogId) {
    put_position(out, &position(id));
}

pub(crate) fn put_optional_log_id(out: &mut BytesMut, id: Option<&LogId>) {
    out.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

pub(crate) fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_slice(&vote.leader_id.node_id.0.to_bytes());
    out.put_u8(u8::from(vote.committed));
}
