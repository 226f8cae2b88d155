//! For fuzzers: message bodies as a peer may send them. What was understood encodes to something
//! that is understood alike.

use bytes::Bytes;

use crate::codec::message::{
    PartHead, Probe, SnapshotHead, decode_append, decode_append_reply, decode_transfer,
    decode_vote, decode_vote_reply, encode_append, encode_append_reply, encode_transfer,
    encode_vote, encode_vote_reply, read_reply,
};
use crate::codec::{Malformed, Reader};

/// Decodes a body as a message of one kind.
pub fn message(kind: u8, body: Bytes) {
    match kind {
        0 => stable(body, decode_append, |append| {
            let (head, payload) = encode_append(append);
            [head, payload].concat().into()
        }),
        1 => stable(body, reply(decode_append_reply), |reply| encode_append_reply(&reply)),
        2 => stable(body, decode_vote, |vote| encode_vote(&vote)),
        3 => stable(body, reply(decode_vote_reply), |reply| encode_vote_reply(&reply)),
        4 => stable(body, decode_transfer, |transfer| encode_transfer(&transfer)),
        5 => stable(body, Probe::decode, |probe| probe.encode()),
        6 => stable(body, SnapshotHead::decode, |head| head.encode()),
        7 => stable(body, PartHead::decode, |(head, part)| [head.encode(), part].concat().into()),
        _ => {}
    }
}

/// Decodes an answer's content; a refusal is none.
fn reply<T>(
    decode: impl Fn(Reader) -> Result<T, Malformed>,
) -> impl Fn(Bytes) -> Result<T, Malformed> {
    move |body| match read_reply(body)? {
        Ok(reader) => decode(reader),
        Err(_) => Err(Malformed::Rule("refused")),
    }
}

fn stable<T>(
    body: Bytes,
    decode: impl Fn(Bytes) -> Result<T, Malformed>,
    encode: impl Fn(T) -> Bytes,
) {
    let Ok(message) = decode(body) else { return };
    let encoded = encode(message);
    assert_eq!(decode(encoded.clone()).map(encode), Ok(encoded));
}
