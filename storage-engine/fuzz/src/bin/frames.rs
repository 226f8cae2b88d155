//! Fuzzes what the data plane reads from sockets: frame headers, and the bodies of chunk and Raft
//! messages. What was understood must encode to something that is understood alike.
#![no_main]

use bytes::Bytes;
use curve_wire::chunk::{Command, PeerBlock, PeerRead, Read, decode_reply, encode_reply};
use curve_wire::frame::{HEADER_LEN, Header, crc32c};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let body = Bytes::copy_from_slice(data);
    match kind {
        0 => header(data),
        1 => stable(command, |command| joined(command.encode()), body),
        2 => stable(|body| Read::decode(&body).ok(), Read::encode, body),
        3 => stable(|body| PeerRead::decode(&body).ok(), PeerRead::encode, body),
        4 => stable(|body| PeerBlock::decode(&body).ok(), PeerBlock::encode, body),
        5 => stable(|body| decode_reply(&body).ok(), |reply| joined(encode_reply(reply)), body),
        kind => curve_raft::fuzzing::message(kind - 6, body),
    }
});

fn stable<T: PartialEq + std::fmt::Debug>(
    decode: impl Fn(Bytes) -> Option<T>,
    encode: impl Fn(&T) -> Bytes,
    body: Bytes,
) {
    if let Some(message) = decode(body) {
        assert_eq!(decode(encode(&message)).as_ref(), Some(&message));
    }
}

fn command(body: Bytes) -> Option<Command> {
    let (header, payload) = Command::split(&body).ok()?;
    Command::decode_parts(&header, payload).ok()
}

fn joined((head, payload): (Bytes, Bytes)) -> Bytes {
    [head, payload].concat().into()
}

/// With the checksum that belongs to it.
fn header(data: &[u8]) {
    let Some(raw) = data.first_chunk::<HEADER_LEN>() else { return };
    let mut raw = *raw;
    let crc = crc32c(&[&raw[..HEADER_LEN - 4]]);
    raw[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    if let Ok(header) = Header::decode(&raw) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        let _ = header.verify_body(&data[HEADER_LEN..]);
    }
}
