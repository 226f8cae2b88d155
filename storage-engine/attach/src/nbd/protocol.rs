//! Bytes of the NBD protocol: constants, parsing and encoding. Pure: no socket, no device.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. All numbers are
//! big-endian.

use thiserror::Error;

pub const MAGIC_INIT: u64 = 0x4e42_444d_4147_4943;
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Flags of server and client in the first exchange.
pub const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1;
pub const HANDSHAKE_NO_ZEROES: u16 = 2;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
pub const REP_ERR_INVALID: u32 = (1 << 31) + 3;
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags: what the export can do.
pub const EXPORT_HAS_FLAGS: u16 = 1;
pub const EXPORT_READ_ONLY: u16 = 1 << 1;
pub const EXPORT_SEND_FLUSH: u16 = 1 << 2;
pub const EXPORT_SEND_FUA: u16 = 1 << 3;
pub const EXPORT_SEND_TRIM: u16 = 1 << 5;
pub const EXPORT_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub const EXPORT_SEND_DF: u16 = 1 << 7;
pub const EXPORT_CAN_MULTI_CONN: u16 = 1 << 8;
pub const EXPORT_SEND_FAST_ZERO: u16 = 1 << 11;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_WRITE_ZEROES: u16 = 6;

pub const CMD_FLAG_FUA: u16 = 1;
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub const CMD_FLAG_DF: u16 = 1 << 2;
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_ERROR: u16 = (1 << 15) + 1;
const CHUNK_FLAG_DONE: u16 = 1;

/// Bytes of a request before its payload.
pub const REQUEST_LEN: usize = 28;
/// Bytes of an option before its data.
pub const OPTION_LEN: usize = 16;
/// Longest name the protocol allows.
pub const NAME_LEN_MAX: usize = 4096;

/// Requests must start and end on this boundary: the sector that every guest knows.
pub const BLOCK_SIZE_MIN: u32 = 512;
/// The engine's own block: smaller writes cost it a read of the block's rest.
pub const BLOCK_SIZE_PREFERRED: u32 = 4096;
/// Longest read or write; the protocol's own default, which clients rely on.
pub const PAYLOAD_LEN_MAX: u32 = 32 << 20;

/// An errno that NBD can carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum NbdErrno {
    Perm = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Shutdown = 108,
}

/// The peer does not speak NBD, or no longer: the connection must end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProtocolError {
    #[error("client flags are {0:#x}, only 0x3 is defined")]
    ClientFlags(u32),
    #[error("option starts with {0:#018x} instead of its magic number")]
    OptionMagic(u64),
    #[error("request starts with {0:#010x} instead of its magic number")]
    RequestMagic(u32),
    #[error("write of {0} bytes, at most {PAYLOAD_LEN_MAX} are accepted")]
    PayloadLength(u32),
}

/// What precedes an option's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    pub option: u32,
    pub len: u32,
}

impl OptionHeader {
    pub fn parse(raw: &[u8; OPTION_LEN]) -> Result<Self, ProtocolError> {
        let magic = u64_at(raw, 0);
        if magic != MAGIC_OPTION {
            return Err(ProtocolError::OptionMagic(magic));
        }
        Ok(Self { option: u32_at(raw, 8), len: u32_at(raw, 12) })
    }
}

/// What INFO and GO ask: an export's name and the facts wanted about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InfoRequest<'a> {
    pub name: &'a [u8],
    pub wanted: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// `None` if the lengths inside do not add up to the data.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (len, rest) = data.split_first_chunk::<4>()?;
        let len = u32::from_be_bytes(*len) as usize;
        if len > NAME_LEN_MAX {
            return None;
        }
        let (name, rest) = rest.split_at_checked(len)?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        if rest.len() != usize::from(u16::from_be_bytes(*count)) * 2 {
            return None;
        }
        let wanted = rest.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        Some(Self { name, wanted: wanted.collect() })
    }
}

/// Appends one reply to an option.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&MAGIC_OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

/// One command of the transmission phase, as sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

impl RequestHeader {
    pub fn parse(raw: &[u8; REQUEST_LEN]) -> Result<Self, ProtocolError> {
        let magic = u32_at(raw, 0);
        if magic != MAGIC_REQUEST {
            return Err(ProtocolError::RequestMagic(magic));
        }
        let header = Self {
            flags: u16::from_be_bytes([raw[4], raw[5]]),
            command: u16::from_be_bytes([raw[6], raw[7]]),
            cookie: u64_at(raw, 8),
            offset: u64_at(raw, 16),
            len: u32_at(raw, 24),
        };
        // The payload of a longer write could only be skipped at the peer's pace.
        if header.command == CMD_WRITE && header.len > PAYLOAD_LEN_MAX {
            return Err(ProtocolError::PayloadLength(header.len));
        }
        Ok(header)
    }

    /// Bytes that follow the header on the wire.
    pub fn payload_len(&self) -> usize {
        if self.command == CMD_WRITE { self.len as usize } else { 0 }
    }

    /// Bytes that the request holds in memory until it is answered.
    pub fn memory(&self) -> usize {
        match self.command {
            CMD_READ | CMD_WRITE => self.len.min(PAYLOAD_LEN_MAX) as usize,
            _ => 0,
        }
    }
}

/// What a valid request asks of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Read { offset: u64, len: u32 },
    Write { offset: u64, fua: bool },
    Flush,
    Discard { offset: u64, len: u32, fua: bool },
    WriteZeroes { offset: u64, len: u32, fua: bool },
}

/// Why a request is not carried out; the connection goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub errno: NbdErrno,
    pub message: &'static str,
}

/// Checks a request against the export. `size` is the device's size now. DISC is not a request
/// that has an answer, the caller handles it before.
pub fn validate(header: &RequestHeader, size: u64, read_only: bool) -> Result<Action, Refusal> {
    let invalid = |message| Err(Refusal { errno: NbdErrno::Invalid, message });
    let RequestHeader { flags, command, offset, len, .. } = *header;
    let allowed = match command {
        CMD_READ => CMD_FLAG_DF | CMD_FLAG_FUA,
        CMD_WRITE | CMD_TRIM | CMD_FLUSH => CMD_FLAG_FUA,
        CMD_WRITE_ZEROES => CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
        _ => return invalid("unknown command"),
    };
    if flags & !allowed != 0 {
        return invalid("flag not allowed for this command");
    }
    if command == CMD_FLUSH {
        return Ok(Action::Flush);
    }
    if read_only && command != CMD_READ {
        return Err(Refusal { errno: NbdErrno::Perm, message: "the export is read-only" });
    }
    if len == 0 || !(offset | u64::from(len)).is_multiple_of(u64::from(BLOCK_SIZE_MIN)) {
        return invalid("offset and length must be multiples of 512, length above 0");
    }
    if offset.checked_add(u64::from(len)).is_none_or(|end| end > size) {
        let errno = if command == CMD_READ { NbdErrno::Invalid } else { NbdErrno::NoSpace };
        return Err(Refusal { errno, message: "range leaves the volume" });
    }
    let fua = flags & CMD_FLAG_FUA != 0;
    match command {
        CMD_READ if len > PAYLOAD_LEN_MAX => invalid("read is longer than 32 MiB"),
        CMD_READ => Ok(Action::Read { offset, len }),
        CMD_WRITE => Ok(Action::Write { offset, fua }),
        CMD_TRIM => Ok(Action::Discard { offset, len, fua }),
        _ => Ok(Action::WriteZeroes { offset, len, fua }),
    }
}

/// What a reply says beside its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done, no data.
    Done,
    /// Done; `len` bytes read at `offset` follow the encoded head.
    Data {
        offset: u64,
        len: u32,
    },
    Failed(Refusal),
}

/// Appends a reply up to its data.
pub fn put_reply(out: &mut impl bytes::BufMut, structured: bool, cookie: u64, outcome: Outcome) {
    // Without structured replies the protocol wants simple ones; with them, simple ones remain
    // allowed for everything but reads, and are shorter.
    let is_plain = matches!(outcome, Outcome::Done);
    if !structured || is_plain {
        let errno = match outcome {
            Outcome::Failed(refusal) => refusal.errno as u32,
            Outcome::Done | Outcome::Data { .. } => 0,
        };
        out.put_u32(MAGIC_SIMPLE_REPLY);
        out.put_u32(errno);
        out.put_u64(cookie);
        return;
    }
    out.put_u32(MAGIC_STRUCTURED_REPLY);
    out.put_u16(CHUNK_FLAG_DONE);
    match outcome {
        Outcome::Done => {
            out.put_u16(CHUNK_NONE);
            out.put_u64(cookie);
            out.put_u32(0);
        }
        Outcome::Data { offset, len } => {
            out.put_u16(CHUNK_OFFSET_DATA);
            out.put_u64(cookie);
            out.put_u32(8 + len);
            out.put_u64(offset);
        }
        Outcome::Failed(Refusal { errno, message }) => {
            out.put_u16(CHUNK_ERROR);
            out.put_u64(cookie);
            out.put_u32(6 + message.len() as u32);
            out.put_u32(errno as u32);
            out.put_u16(message.len() as u16);
            out.put_slice(message.as_bytes());
        }
    }
}

fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(raw[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(raw[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests;
