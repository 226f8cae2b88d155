use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1 << 20;

fn request(command: u16, flags: u16, offset: u64, len: u32) -> RequestHeader {
    RequestHeader { flags, command, cookie: 7, offset, len }
}

fn encode(header: &RequestHeader) -> [u8; REQUEST_LEN] {
    let mut out = [0; REQUEST_LEN];
    out[..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
    out[4..6].copy_from_slice(&header.flags.to_be_bytes());
    out[6..8].copy_from_slice(&header.command.to_be_bytes());
    out[8..16].copy_from_slice(&header.cookie.to_be_bytes());
    out[16..24].copy_from_slice(&header.offset.to_be_bytes());
    out[24..].copy_from_slice(&header.len.to_be_bytes());
    out
}

#[test]
fn a_request_reads_back_as_it_was_sent() {
    let sent = request(CMD_WRITE, CMD_FLAG_FUA, 4096, 512);
    assert_eq!(RequestHeader::parse(&encode(&sent)), Ok(sent));
    assert_eq!(sent.payload_len(), 512);
    assert_eq!(request(CMD_TRIM, 0, 0, u32::MAX).payload_len(), 0);
}

#[test]
fn a_write_longer_than_the_limit_ends_the_connection() {
    let long = request(CMD_WRITE, 0, 0, PAYLOAD_LEN_MAX + 512);
    let refused = Err(ProtocolError::PayloadLength(PAYLOAD_LEN_MAX + 512));
    assert_eq!(RequestHeader::parse(&encode(&long)), refused);
}

#[test]
fn requests_become_what_they_ask_for() {
    let cases = [
        (request(CMD_READ, CMD_FLAG_DF, 512, 512), Action::Read { offset: 512, len: 512 }),
        (request(CMD_WRITE, CMD_FLAG_FUA, 0, 512), Action::Write { offset: 0, fua: true }),
        (request(CMD_FLUSH, 0, 99, 99), Action::Flush),
        (
            request(CMD_TRIM, 0, 0, SIZE as u32),
            Action::Discard { offset: 0, len: SIZE as u32, fua: false },
        ),
        (
            request(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO, 512, 1024),
            Action::WriteZeroes { offset: 512, len: 1024, fua: false },
        ),
    ];
    for (header, action) in cases {
        assert_eq!(validate(&header, SIZE, false), Ok(action));
    }
}

#[test]
fn what_an_export_cannot_do_is_refused_with_the_errno_of_the_protocol() {
    let end = SIZE - 512;
    let cases = [
        (request(CMD_WRITE, 0, end, 1024), false, NbdErrno::NoSpace),
        (request(CMD_READ, 0, end, 1024), false, NbdErrno::Invalid),
        (request(CMD_READ, 0, u64::MAX - 511, 512), false, NbdErrno::Invalid),
        (request(CMD_READ, 0, 1, 512), false, NbdErrno::Invalid),
        (request(CMD_READ, 0, 0, 0), false, NbdErrno::Invalid),
        (request(CMD_READ, CMD_FLAG_NO_HOLE, 0, 512), false, NbdErrno::Invalid),
        (request(CMD_WRITE, 0, 0, 512), true, NbdErrno::Perm),
        (request(CMD_WRITE_ZEROES, 0, 0, 512), true, NbdErrno::Perm),
        (request(77, 0, 0, 512), false, NbdErrno::Invalid),
    ];
    for (header, read_only, errno) in cases {
        let refusal = validate(&header, SIZE, read_only).expect_err("refused");
        assert_eq!(refusal.errno, errno, "{header:?}");
    }
    let long = request(CMD_READ, 0, 0, PAYLOAD_LEN_MAX + 512);
    assert_eq!(validate(&long, 1 << 40, false).expect_err("refused").errno, NbdErrno::Invalid);
}

#[test]
fn a_structured_read_reply_announces_offset_and_data() {
    let mut out = Vec::new();
    put_reply(&mut out, true, 0x0102, Outcome::Data { offset: 4096, len: 512 });
    let mut wanted = MAGIC_STRUCTURED_REPLY.to_be_bytes().to_vec();
    wanted.extend_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 2, 8]);
    wanted.extend_from_slice(&4096u64.to_be_bytes());
    assert_eq!(out, wanted);
}

#[test]
fn errors_are_simple_or_structured_as_agreed() {
    let refusal = Refusal { errno: NbdErrno::NoSpace, message: "full" };
    let mut simple = Vec::new();
    put_reply(&mut simple, false, 1, Outcome::Failed(refusal));
    assert_eq!(simple, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 1]);
    let mut structured = Vec::new();
    put_reply(&mut structured, true, 1, Outcome::Failed(refusal));
    assert_eq!(&structured[4..8], [0, 1, 0x80, 1]);
    assert_eq!(&structured[16..], [&[0, 0, 0, 10, 0, 0, 0, 28, 0, 4][..], b"full"].concat());
}

proptest! {
    #[test]
    fn any_request_bytes_are_parsed_or_refused(mut raw in any::<[u8; REQUEST_LEN]>(), keep in any::<bool>()) {
        if keep {
            raw[..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
        }
        if let Ok(header) = RequestHeader::parse(&raw) {
            prop_assert!(header.payload_len() <= PAYLOAD_LEN_MAX as usize);
            prop_assert!(header.memory() <= PAYLOAD_LEN_MAX as usize);
            if let Ok(Action::Read { offset, len }) = validate(&header, SIZE, false) {
                prop_assert!(offset + u64::from(len) <= SIZE);
            }
        }
    }

    #[test]
    fn any_option_bytes_are_parsed_or_refused(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Some(request) = InfoRequest::parse(&raw) {
            prop_assert_eq!(4 + request.name.len() + 2 + 2 * request.wanted.len(), raw.len());
        }
    }
}
