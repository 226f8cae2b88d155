//! Log entries as the store keeps them, configurations, and the blob that goes into checkpoints.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use curve_store::LogEntry;
use openraft::EntryPayload;

use super::{Malformed, Reader, put_optional_log_id};
use crate::types::{Entry, Membership, NodeId, Proposal, StoredMembership, log_id, position};

const KIND_BLANK: u8 = 0;
const KIND_COMMAND: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;
/// Most members of one group. A copyset has a handful; the bound keeps a bad message small.
const MEMBERS_MAX: usize = 64;
/// Old and new voters while a change is under way.
const CONFIGS_MAX: u8 = 2;
/// First byte of the checkpoint blob.
const BLOB_VERSION: u8 = 0;

pub(crate) fn to_log(entry: Entry) -> LogEntry {
    let (kind, header, payload) = match entry.payload {
        EntryPayload::Blank => (KIND_BLANK, Bytes::new(), Bytes::new()),
        EntryPayload::Normal(Proposal { header, payload }) => (KIND_COMMAND, header, payload),
        EntryPayload::Membership(membership) => {
            let mut out = BytesMut::new();
            put_membership(&mut out, &membership);
            (KIND_MEMBERSHIP, out.freeze(), Bytes::new())
        }
    };
    LogEntry { position: position(&entry.log_id), kind, header, payload }
}

pub(crate) fn from_log(entry: LogEntry) -> Result<Entry, Malformed> {
    let LogEntry { position, kind, header, payload } = entry;
    let payload = match kind {
        KIND_BLANK if header.is_empty() && payload.is_empty() => EntryPayload::Blank,
        KIND_BLANK => return Err(Malformed::Rule("a blank entry has content")),
        KIND_COMMAND => EntryPayload::Normal(Proposal { header, payload }),
        KIND_MEMBERSHIP => {
            let mut reader = Reader::new(header);
            let membership = read_membership(&mut reader)?;
            reader.end()?;
            EntryPayload::Membership(membership)
        }
        found => {
            let (what, expected) = ("entry kind", "0 to 2");
            return Err(Malformed::Value { what, found: found.into(), expected });
        }
    };
    Ok(Entry { log_id: log_id(position), payload })
}

fn put_ids<'a>(out: &mut BytesMut, ids: impl ExactSizeIterator<Item = &'a NodeId>) {
    out.put_u16_le(ids.len() as u16);
    ids.for_each(|id| out.put_slice(&id.0.to_bytes()));
}

fn read_ids(reader: &mut Reader) -> Result<BTreeSet<NodeId>, Malformed> {
    let count = usize::from(reader.u16("number of members")?);
    if count > MEMBERS_MAX {
        let (what, expected) = ("number of members", "at most 64");
        return Err(Malformed::Value { what, found: count as u64, expected });
    }
    (0..count).map(|_| reader.device("member").map(NodeId)).collect()
}

fn put_membership(out: &mut BytesMut, membership: &Membership) {
    let configs = membership.get_joint_config();
    out.put_u8(configs.len() as u8);
    configs.iter().for_each(|voters| put_ids(out, voters.iter()));
    let learners: Vec<NodeId> = membership.learner_ids().collect();
    put_ids(out, learners.iter());
}

/// A configuration is empty (of a replica that has heard of none) or has voters in each part.
fn read_membership(reader: &mut Reader) -> Result<Membership, Malformed> {
    let count = reader.u8("number of configurations")?;
    if count > CONFIGS_MAX {
        let (what, expected) = ("number of configurations", "at most 2");
        return Err(Malformed::Value { what, found: count.into(), expected });
    }
    let configs = (0..count).map(|_| read_ids(reader)).collect::<Result<Vec<_>, _>>()?;
    if configs.iter().any(BTreeSet::is_empty) {
        return Err(Malformed::Rule("a configuration has no voters"));
    }
    let learners = read_ids(reader)?;
    Ok(Membership::new_with_defaults(configs, learners))
}

pub(crate) fn put_stored_membership(out: &mut BytesMut, stored: &StoredMembership) {
    put_optional_log_id(out, stored.log_id().as_ref());
    put_membership(out, stored.membership());
}

pub(crate) fn read_stored_membership(reader: &mut Reader) -> Result<StoredMembership, Malformed> {
    let id = reader.optional_log_id("configuration position")?;
    Ok(StoredMembership::new(id, read_membership(reader)?))
}

/// What a checkpoint holds for us: the last applied configuration, then the state machine's own.
pub(crate) fn encode_blob(membership: &StoredMembership, state: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(256 + state.len());
    out.put_u8(BLOB_VERSION);
    put_stored_membership(&mut out, membership);
    out.put_slice(state);
    out.freeze()
}

/// An empty blob is that of a new replica: no configuration, no state.
pub(crate) fn decode_blob(blob: Bytes) -> Result<(StoredMembership, Option<Bytes>), Malformed> {
    if blob.is_empty() {
        return Ok((StoredMembership::default(), None));
    }
    let mut reader = Reader::new(blob);
    match reader.u8("blob version")? {
        BLOB_VERSION => {}
        found => {
            let (what, expected) = ("blob version", "0");
            return Err(Malformed::Value { what, found: found.into(), expected });
        }
    }
    let membership = read_stored_membership(&mut reader)?;
    Ok((membership, Some(reader.rest())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u64]) -> BTreeSet<NodeId> {
        numbers.iter().map(|n| NodeId::from(*n)).collect()
    }

    fn entry(payload: EntryPayload<Proposal, NodeId, openraft::EmptyNode>) -> Entry {
        let position = curve_store::LogPosition { term: 3, node: NodeId::from(7).0, index: 9 };
        Entry { log_id: log_id(position), payload }
    }

    #[test]
    fn entries_come_back_as_they_were() {
        let membership =
            Membership::new_with_defaults(vec![ids(&[1, 2, 3]), ids(&[2, 3, 4])], ids(&[5]));
        let proposal =
            Proposal { header: Bytes::from_static(b"h"), payload: Bytes::from_static(b"pp") };
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(proposal),
            EntryPayload::Membership(membership),
        ] {
            let before = entry(payload);
            let after = from_log(to_log(before.clone())).expect("decodes");
            assert_eq!((before.log_id, before.payload), (after.log_id, after.payload));
        }
    }

    #[test]
    fn a_configuration_cut_anywhere_is_refused() {
        let membership = Membership::new_with_defaults(vec![ids(&[1, 2, 3])], ids(&[5]));
        let whole = to_log(entry(EntryPayload::Membership(membership)));
        for len in 0..whole.header.len() {
            let cut = LogEntry { header: whole.header.slice(..len), ..whole.clone() };
            assert!(from_log(cut).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_configuration_without_voters_is_refused() {
        let header = Bytes::from_static(&[1, 0, 0, 0, 0]);
        let bad = LogEntry { kind: KIND_MEMBERSHIP, header, ..to_log(entry(EntryPayload::Blank)) };
        assert!(matches!(from_log(bad), Err(Malformed::Rule(_))));
    }

    #[test]
    fn a_checkpoint_blob_keeps_configuration_and_state_apart() {
        let membership = Membership::new_with_defaults(vec![ids(&[1, 2, 3])], ids(&[]));
        let stored = StoredMembership::new(Some(entry(EntryPayload::Blank).log_id), membership);
        let blob = encode_blob(&stored, b"state");
        assert_eq!(decode_blob(blob), Ok((stored, Some(Bytes::from_static(b"state")))));
        assert_eq!(decode_blob(Bytes::new()), Ok((StoredMembership::default(), None)));
        assert!(decode_blob(Bytes::from_static(b"\x09")).is_err());
    }
}
