//! Messages survive the way there and back; anything cut, grown or out of order is refused.

use openraft::EntryPayload;

use super::*;
use crate::types::{Entry, NodeId, Proposal, StoredMembership};

fn id(term: u64, index: u64) -> LogId {
    let node_id = NodeId::from(1);
    LogId { leader_id: LeaderId { term, node_id }, index }
}

fn command(term: u64, index: u64, payload: &'static [u8]) -> Entry {
    let payload = Proposal { header: Bytes::from_static(b"hh"), payload: payload.into() };
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(payload) }
}

fn append() -> AppendRequest {
    AppendRequest {
        vote: Vote::new_committed(4, NodeId::from(1)),
        prev_log_id: Some(id(2, 6)),
        entries: vec![
            command(3, 7, b"seven"),
            Entry { log_id: id(4, 8), payload: EntryPayload::Blank },
            command(4, 9, b"nine"),
        ],
        leader_commit: Some(id(2, 6)),
    }
}

fn body(request: AppendRequest) -> Bytes {
    let (head, payload) = encode_append(request);
    [head, payload].concat().into()
}

#[test]
fn an_append_comes_back_as_it_was() {
    let after = decode_append(body(append())).expect("decodes");
    let before = append();
    assert_eq!((after.vote, after.prev_log_id), (before.vote, before.prev_log_id));
    assert_eq!(after.leader_commit, before.leader_commit);
    let payloads = |request: AppendRequest| {
        request.entries.into_iter().map(|e| (e.log_id, e.payload)).collect::<Vec<_>>()
    };
    assert_eq!(payloads(after), payloads(before));
}

#[test]
fn an_append_cut_or_grown_anywhere_is_refused() {
    let whole = body(append());
    for len in 0..whole.len() {
        assert!(decode_append(whole.slice(..len)).is_err(), "{len} bytes");
    }
    assert!(matches!(
        decode_append([whole, Bytes::from_static(b"x")].concat().into()),
        Err(Malformed::Trailing(1))
    ));
}

#[test]
fn no_garbage_makes_the_decoders_panic() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let whole = body(append());
    for _ in 0..20_000 {
        let mut bytes = whole.to_vec();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        let bytes = Bytes::from(bytes);
        let _ = decode_append(bytes.clone());
        let _ = decode_vote(bytes.clone());
        let _ = decode_transfer(bytes.clone());
        let _ = Probe::decode(bytes.clone());
        let _ = SnapshotHead::decode(bytes.clone());
        let _ = PartHead::decode(bytes.clone());
        let _ = read_reply(bytes).map(|reply| reply.map(decode_append_reply));
    }
}

#[test]
fn entries_that_raft_would_choke_on_are_refused() {
    let broken: [fn(&mut AppendRequest); 5] = [
        |a| a.entries[1].log_id.index = 9,
        |a| a.prev_log_id = Some(id(2, 5)),
        |a| a.entries[1].log_id.leader_id.term = 2,
        |a| a.vote = Vote::new_committed(3, NodeId::from(1)),
        |a| a.vote = Vote::new(4, NodeId::from(1)),
    ];
    for (number, change) in broken.iter().enumerate() {
        let mut request = append();
        change(&mut request);
        assert!(matches!(decode_append(body(request)), Err(Malformed::Rule(_))), "{number}");
    }
}

#[test]
fn replies_come_back_as_they_were() {
    for before in [
        AppendResponse::Success,
        AppendResponse::PartialSuccess(Some(id(1, 2))),
        AppendResponse::PartialSuccess(None),
        AppendResponse::Conflict,
        AppendResponse::HigherVote(Vote::new(9, NodeId::from(2))),
    ] {
        let reader = read_reply(encode_append_reply(&before)).expect("decodes").ok();
        assert_eq!(decode_append_reply(reader.expect("accepted")), Ok(before));
    }
    for refusal in Refusal::ALL {
        assert!(matches!(read_reply(refusal.encode()), Ok(Err(found)) if found == refusal));
    }
}

#[test]
fn votes_and_snapshot_heads_come_back_as_they_were() {
    let mut vote = VoteRequest::new(Vote::new(5, NodeId::from(3)), Some(id(4, 9)));
    vote.leadership_transfer = true;
    assert_eq!(decode_vote(encode_vote(&vote)), Ok(vote));
    let transfer =
        TransferRequest::new(Vote::new_committed(5, NodeId::from(3)), NodeId::from(2), None);
    assert_eq!(decode_transfer(encode_transfer(&transfer)), Ok(transfer));
    let head = SnapshotHead {
        transfer: 3,
        vote: Vote::new_committed(5, NodeId::from(3)),
        meta: SnapshotMeta {
            last_log_id: Some(id(4, 9)),
            last_membership: StoredMembership::default(),
        },
        state_len: 12,
    };
    assert_eq!(SnapshotHead::decode(head.encode()), Ok(head));
}
