//! The data-plane frame: a fixed 64-byte header and a body, both covered by CRC32C.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `CRV1` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | direction: 0 request, 1 reply |
//! | 6 | 2 | kind |
//! | 8 | 4 | body length, at most `BODY_LEN_MAX` |
//! | 12 | 4 | CRC32C of the body |
//! | 16 | 8 | request id, chosen by the caller, echoed by the reply |
//! | 24 | 4 | Raft group (copyset) |
//! | 28 | 4 | tenant |
//! | 32 | 4 | deadline in milliseconds from receipt, 0 for none |
//! | 36 | 4 | features, must be 0 in version 1 |
//! | 40 | 16 | trace id |
//! | 56 | 4 | reserved, 0 |
//! | 60 | 4 | CRC32C of bytes 0 to 59 |
//!
//! All integers are little-endian.

use bytes::Bytes;
use thiserror::Error;

/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Largest body: a 4 MiB chunk and its command header, with room for Raft's envelope.
pub const BODY_LEN_MAX: u32 = 8 << 20;
const MAGIC: [u8; 4] = *b"CRV1";
const VERSION: u8 = 1;

/// Whether a frame asks or answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Request,
    Reply,
}

/// A decoded header. `body_len` and `body_crc` describe the bytes that follow it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub direction: Direction,
    pub kind: u16,
    pub body_len: u32,
    pub body_crc: u32,
    pub request_id: u64,
    pub group: u32,
    pub tenant: u32,
    pub deadline_ms: u32,
    pub trace_id: u128,
}

/// A header with its body, verified.
#[derive(Clone, Debug)]
pub struct Frame {
    pub header: Header,
    pub body: Bytes,
}

/// Why bytes are not a frame. The connection is of no further use then: its framing is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FrameError {
    #[error("frame starts with {0:02x?}, expected the magic \"CRV1\"")]
    Magic([u8; 4]),
    #[error("frame header checksum is {found:#010x}, expected {expected:#010x}")]
    HeaderCrc { found: u32, expected: u32 },
    #[error("frame version is {0}, this process speaks version 1")]
    Version(u8),
    #[error("frame direction is {0}, expected 0 (request) or 1 (reply)")]
    Direction(u8),
    #[error("frame asks for features {0:#x}, this process knows none")]
    Features(u32),
    #[error("frame body is {0} bytes long, at most {BODY_LEN_MAX} are accepted")]
    BodyLen(u32),
    #[error("frame body checksum is {found:#010x}, expected {expected:#010x}")]
    BodyCrc { found: u32, expected: u32 },
}

/// CRC32C (Castagnoli), as in iSCSI and ext4.
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

impl Header {
    /// The 64 bytes that precede the body.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = match self.direction {
            Direction::Request => 0,
            Direction::Reply => 1,
        };
        out[6..8].copy_from_slice(&self.kind.to_le_bytes());
        out[8..12].copy_from_slice(&self.body_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.body_crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.request_id.to_le_bytes());
        out[24..28].copy_from_slice(&self.group.to_le_bytes());
        out[28..32].copy_from_slice(&self.tenant.to_le_bytes());
        out[32..36].copy_from_slice(&self.deadline_ms.to_le_bytes());
        out[40..56].copy_from_slice(&self.trace_id.to_le_bytes());
        let crc = crc32c(&[&out[..60]]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Validates a header before its body is read, so that no length from outside is trusted.
    pub fn decode(raw: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let u32_at = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("4 bytes"));
        let magic: [u8; 4] = raw[0..4].try_into().expect("4 bytes");
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let expected = crc32c(&[&raw[..60]]);
        if u32_at(60) != expected {
            return Err(FrameError::HeaderCrc { found: u32_at(60), expected });
        }
        if raw[4] != VERSION {
            return Err(FrameError::Version(raw[4]));
        }
        let direction = match raw[5] {
            0 => Direction::Request,
            1 => Direction::Reply,
            other => return Err(FrameError::Direction(other)),
        };
        if u32_at(36) != 0 {
            return Err(FrameError::Features(u32_at(36)));
        }
        let body_len = u32_at(8);
        if body_len > BODY_LEN_MAX {
            return Err(FrameError::BodyLen(body_len));
        }
        Ok(Self {
            direction,
            kind: u16::from_le_bytes([raw[6], raw[7]]),
            body_len,
            body_crc: u32_at(12),
            request_id: u64::from_le_bytes(raw[16..24].try_into().expect("8 bytes")),
            group: u32_at(24),
            tenant: u32_at(28),
            deadline_ms: u32_at(32),
            trace_id: u128::from_le_bytes(raw[40..56].try_into().expect("16 bytes")),
        })
    }

    /// Checks a received body against the header.
    pub fn verify_body(&self, body: &[u8]) -> Result<(), FrameError> {
        let found = crc32c(&[body]);
        if found == self.body_crc {
            Ok(())
        } else {
            Err(FrameError::BodyCrc { found, expected: self.body_crc })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            direction: Direction::Reply,
            kind: 0x0201,
            body_len: 3,
            body_crc: crc32c(&[b"abc"]),
            request_id: 77,
            group: 5,
            tenant: 9,
            deadline_ms: 250,
            trace_id: 1 << 100,
        }
    }

    #[test]
    fn a_header_survives_the_wire() {
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
        assert_eq!(header().verify_body(b"abc"), Ok(()));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        for bit in 0..HEADER_LEN * 8 {
            let mut raw = header().encode();
            raw[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&raw).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_body_that_is_too_long_is_refused_before_it_is_read() {
        let raw = Header { body_len: BODY_LEN_MAX + 1, ..header() }.encode();
        assert_eq!(Header::decode(&raw), Err(FrameError::BodyLen(BODY_LEN_MAX + 1)));
    }

    #[test]
    fn a_flipped_body_is_noticed() {
        assert!(matches!(header().verify_body(b"abd"), Err(FrameError::BodyCrc { .. })));
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // Check value of CRC-32/ISCSI for "123456789" in the catalogue of parametrised CRCs.
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
    }
}
