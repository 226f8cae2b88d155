use proptest::prelude::*;

use super::super::protocol::{MAGIC_OPTION_REPLY, REP_ERR_TOO_BIG};
use super::*;

fn export() -> Export {
    Export { name: "data".into(), description: "a volume".into(), size: 1 << 30, read_only: false }
}

/// Replies as (kind, data); panics if the bytes are not replies to `option`.
fn replies(option: u32, mut raw: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !raw.is_empty() {
        assert_eq!(raw[..8], MAGIC_OPTION_REPLY.to_be_bytes());
        assert_eq!(raw[8..12], option.to_be_bytes());
        let kind = u32::from_be_bytes(raw[12..16].try_into().expect("4 bytes"));
        let len = u32::from_be_bytes(raw[16..20].try_into().expect("4 bytes")) as usize;
        found.push((kind, raw[20..20 + len].to_vec()));
        raw = &raw[20 + len..];
    }
    found
}

fn ask(option: u32, data: &[u8]) -> (Step, Vec<(u32, Vec<u8>)>) {
    let mut out = Vec::new();
    let step = Negotiation::new(3).expect("flags").on_option(&export(), option, data, &mut out);
    (step, replies(option, &out))
}

fn info_request(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

#[test]
fn go_tells_size_flags_and_block_sizes_and_starts_transmission() {
    for name in ["", "data"] {
        let (step, replies) = ask(OPT_GO, &info_request(name, &[INFO_NAME]));
        assert_eq!(step, Step::Transmit);
        assert_eq!(replies[0].1[2..10], (1u64 << 30).to_be_bytes());
        assert_eq!(replies[1].1, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]);
        assert_eq!(replies[2].1, b"\0\x01data");
        assert_eq!(replies[3], (REP_ACK, Vec::new()));
    }
}

#[test]
fn an_unknown_export_is_named_in_the_refusal() {
    let (step, replies) = ask(OPT_GO, &info_request("other", &[]));
    assert_eq!((step, replies[0].0), (Step::Continue, REP_ERR_UNKNOWN));
    assert!(String::from_utf8_lossy(&replies[0].1).contains("data"));
    let (step, replies) = ask(OPT_EXPORT_NAME, b"other");
    assert_eq!((step, replies.len()), (Step::Close, 0));
}

#[test]
fn tls_and_unknown_options_are_declined_and_the_haggling_goes_on() {
    for option in [OPT_STARTTLS, 10, 11, 0xdead] {
        let (step, replies) = ask(option, &[]);
        assert_eq!((step, replies[0].0), (Step::Continue, REP_ERR_UNSUP));
    }
}

#[test]
fn options_with_malformed_data_are_declined() {
    for (option, data) in [
        (OPT_GO, &[0, 0, 0, 9, b'x'][..]),
        (OPT_INFO, &[]),
        (OPT_LIST, b"x"),
        (OPT_STRUCTURED_REPLY, b"x"),
    ] {
        let (step, replies) = ask(option, data);
        assert_eq!((step, replies[0].0), (Step::Continue, REP_ERR_INVALID));
    }
}

#[test]
fn the_old_way_in_pads_unless_told_not_to() {
    for (client_flags, len) in [(3, 10), (1, 134), (0, 134)] {
        let mut out = Vec::new();
        let mut negotiation = Negotiation::new(client_flags).expect("flags");
        let step = negotiation.on_option(&export(), OPT_EXPORT_NAME, b"data", &mut out);
        assert_eq!((step, out.len()), (Step::Transmit, len));
    }
    assert!(Negotiation::new(4).is_err());
}

#[test]
fn dont_fragment_is_offered_only_with_structured_replies() {
    assert_eq!(export().flags(false) & EXPORT_SEND_DF, 0);
    assert_ne!(export().flags(true) & EXPORT_SEND_DF, 0);
    let read_only = Export { read_only: true, ..export() };
    assert_eq!(read_only.flags(true) & EXPORT_SEND_WRITE_ZEROES, 0);
}

proptest! {
    #[test]
    fn any_option_gets_replies_to_itself(option in 0u32..16, data in proptest::collection::vec(any::<u8>(), 0..80)) {
        prop_assume!(option != OPT_EXPORT_NAME);
        let (step, replies) = ask(option, &data);
        prop_assert!(!replies.is_empty());
        prop_assert!(replies.iter().all(|(kind, _)| *kind <= REP_INFO || *kind >= REP_ERR_UNSUP));
        prop_assert!(replies.iter().all(|(kind, _)| *kind <= REP_ERR_TOO_BIG));
        prop_assert_eq!(step == Step::Transmit, option == OPT_GO && replies.last().is_some_and(|r| r.0 == REP_ACK));
    }
}
