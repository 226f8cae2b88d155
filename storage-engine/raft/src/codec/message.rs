//! Frames between hosts. Requests carry their kind in the frame header; a reply begins with a
//! status byte: 0 and the answer, or 1 and a `Refusal`.

use bytes::{BufMut, Bytes, BytesMut};
use curve_store::LogEntry;
use curve_types::DeviceId;

use super::entry::{from_log, put_stored_membership, read_stored_membership, to_log};
use super::{Malformed, Reader, put_optional_log_id, put_position, put_vote};
use crate::types::{
    AppendRequest, AppendResponse, LeaderId, LogId, SnapshotMeta, TransferRequest, Vote,
    VoteRequest, VoteResponse, log_id, next_index,
};

pub(crate) const APPEND: u16 = 0x0101;
pub(crate) const VOTE: u16 = 0x0102;
pub(crate) const PRE_VOTE: u16 = 0x0103;
pub(crate) const TRANSFER: u16 = 0x0104;
pub(crate) const PROBE: u16 = 0x0105;
pub(crate) const SNAPSHOT_BEGIN: u16 = 0x0110;
pub(crate) const SNAPSHOT_PART: u16 = 0x0111;
pub(crate) const SNAPSHOT_FINISH: u16 = 0x0112;

/// Entries in one append; openraft is configured to send fewer.
const ENTRIES_MAX: u32 = 4096;
/// Bytes before header and payload of each entry: position, kind and two lengths.
const ENTRY_HEAD_LEN: usize = 32 + 1 + 4 + 4;
/// Longest state blob that a snapshot may announce.
const STATE_BYTES_MAX: u64 = 64 << 20;

/// Why a peer did not carry out a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The caller is not a peer, or speaks for another device.
    Stranger,
    NoGroup,
    /// Queues or the log are full; later.
    Busy,
    /// The replica has stopped for good.
    Stopped,
    Malformed,
    /// The replica is helping to replace this leader.
    Deposed,
    /// The snapshot transfer is not (or no longer) the current one, or its content was refused.
    Snapshot,
}

impl Refusal {
    const ALL: [Self; 7] = [
        Self::Stranger,
        Self::NoGroup,
        Self::Busy,
        Self::Stopped,
        Self::Malformed,
        Self::Deposed,
        Self::Snapshot,
    ];

    pub fn encode(self) -> Bytes {
        Bytes::copy_from_slice(&[1, self as u8])
    }
}

/// Splits a reply into its answer or the refusal.
pub(crate) fn read_reply(body: Bytes) -> Result<Result<Reader, Refusal>, Malformed> {
    let mut reader = Reader::new(body);
    if !reader.flag("reply status")? {
        return Ok(Ok(reader));
    }
    let code = reader.u8("refusal")?;
    match Refusal::ALL.get(usize::from(code)) {
        Some(refusal) => Ok(Err(*refusal)),
        None => {
            let (what, expected) = ("refusal", "0 to 6");
            Err(Malformed::Value { what, found: code.into(), expected })
        }
    }
}

fn reply() -> BytesMut {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(0);
    out
}

/// An answer without content.
pub(crate) fn encode_done() -> Bytes {
    reply().freeze()
}

/// An append as head and payload of a frame: all lengths and headers first, then the payloads. A
/// lone payload (and the last of several) is not copied.
pub(crate) fn encode_append(request: AppendRequest) -> (Bytes, Bytes) {
    let entries: Vec<LogEntry> = request.entries.into_iter().map(to_log).collect();
    let bytes: usize = entries.iter().map(LogEntry::len).sum();
    let last_payload = entries.last().map_or(Bytes::new(), |entry| entry.payload.clone());
    let capacity = 128 + entries.len() * ENTRY_HEAD_LEN + bytes - last_payload.len();
    let mut out = BytesMut::with_capacity(capacity);
    put_vote(&mut out, &request.vote);
    put_optional_log_id(&mut out, request.prev_log_id.as_ref());
    put_optional_log_id(&mut out, request.leader_commit.as_ref());
    out.put_u32_le(entries.len() as u32);
    for entry in &entries {
        put_position(&mut out, &entry.position);
        out.put_u8(entry.kind);
        out.put_u32_le(entry.header.len() as u32);
        out.put_u32_le(entry.payload.len() as u32);
        out.put_slice(&entry.header);
    }
    let copied = entries.len().saturating_sub(1);
    entries[..copied].iter().for_each(|entry| out.put_slice(&entry.payload));
    (out.freeze(), last_payload)
}

/// Checks also what Raft takes for granted: entries follow `prev` without a gap, leaders never go
/// back, and none is from beyond the sender's own term.
pub(crate) fn decode_append(body: Bytes) -> Result<AppendRequest, Malformed> {
    let mut reader = Reader::new(body);
    let vote = reader.vote("leader")?;
    if !vote.committed {
        return Err(Malformed::Rule("an append comes from a leader that nobody elected"));
    }
    let prev_log_id = reader.optional_log_id("previous position")?;
    let leader_commit = reader.optional_log_id("committed position")?;
    let count = reader.u32("number of entries")?;
    if count > ENTRIES_MAX {
        let (what, expected) = ("number of entries", "at most 4096");
        return Err(Malformed::Value { what, found: count.into(), expected });
    }
    let mut heads = Vec::with_capacity(count as usize);
    let mut before = prev_log_id;
    for _ in 0..count {
        let position = reader.position("entry position")?;
        let id = log_id(position);
        let kind = reader.u8("entry kind")?;
        let (header_len, payload_len) =
            (reader.u32("header length")? as usize, reader.u32("payload length")? as usize);
        if header_len.saturating_add(payload_len) > LogEntry::BYTES_MAX {
            return Err(Malformed::Rule("an entry is longer than a log entry may be"));
        }
        if id.index != next_index(before.as_ref())
            || before.is_some_and(|b| b.leader_id > id.leader_id)
        {
            return Err(Malformed::Rule("entries do not follow each other"));
        }
        before = Some(id);
        heads.push((position, kind, reader.bytes(header_len, "entry header")?, payload_len));
    }
    if before.is_some_and(|id| id.leader_id > vote.leader_id) {
        return Err(Malformed::Rule("an entry is from beyond the leader's term"));
    }
    let mut entries = Vec::with_capacity(heads.len());
    for (position, kind, header, payload_len) in heads {
        let payload = reader.bytes(payload_len, "entry payload")?;
        entries.push(from_log(LogEntry { position, kind, header, payload })?);
    }
    reader.end()?;
    Ok(AppendRequest { vote, prev_log_id, entries, leader_commit })
}

pub(crate) fn encode_append_reply(response: &AppendResponse) -> Bytes {
    let mut out = reply();
    match response {
        AppendResponse::Success => out.put_u8(0),
        AppendResponse::PartialSuccess(upto) => {
            out.put_u8(1);
            put_optional_log_id(&mut out, upto.as_ref());
        }
        AppendResponse::Conflict => out.put_u8(2),
        AppendResponse::HigherVote(vote) => {
            out.put_u8(3);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

pub(crate) fn decode_append_reply(mut reader: Reader) -> Result<AppendResponse, Malformed> {
    let response = match reader.u8("append result")? {
        0 => AppendResponse::Success,
        1 => AppendResponse::PartialSuccess(reader.optional_log_id("accepted position")?),
        2 => AppendResponse::Conflict,
        3 => AppendResponse::HigherVote(reader.vote("higher vote")?),
        found => {
            let (what, expected) = ("append result", "0 to 3");
            return Err(Malformed::Value { what, found: found.into(), expected });
        }
    };
    reader.end()?;
    Ok(response)
}

pub(crate) fn encode_vote(request: &VoteRequest) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    put_vote(&mut out, &request.vote);
    put_optional_log_id(&mut out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

pub(crate) fn decode_vote(body: Bytes) -> Result<VoteRequest, Malformed> {
    let mut reader = Reader::new(body);
    let vote = reader.vote("candidate")?;
    if vote.committed {
        return Err(Malformed::Rule("a candidate claims to be elected"));
    }
    let mut request = VoteRequest::new(vote, reader.optional_log_id("last position")?);
    request.leadership_transfer = reader.flag("leadership transfer")?;
    reader.end()?;
    Ok(request)
}

pub(crate) fn encode_vote_reply(response: &VoteResponse) -> Bytes {
    let mut out = reply();
    put_vote(&mut out, &response.vote);
    out.put_u8(u8::from(response.vote_granted));
    put_optional_log_id(&mut out, response.last_log_id.as_ref());
    out.freeze()
}

pub(crate) fn decode_vote_reply(mut reader: Reader) -> Result<VoteResponse, Malformed> {
    let (vote, granted) = (reader.vote("voter's vote")?, reader.flag("vote granted")?);
    let response = VoteResponse::new(vote, reader.optional_log_id("last position")?, granted);
    reader.end()?;
    Ok(response)
}

pub(crate) fn encode_transfer(request: &TransferRequest) -> Bytes {
    let mut out = BytesMut::with_capacity(96);
    put_vote(&mut out, request.from_leader());
    out.put_slice(&request.to_node_id().0.to_bytes());
    put_optional_log_id(&mut out, request.last_log_id());
    out.freeze()
}

pub(crate) fn decode_transfer(body: Bytes) -> Result<TransferRequest, Malformed> {
    let mut reader = Reader::new(body);
    let from = reader.vote("leader")?;
    let to = crate::types::NodeId(reader.device("next leader")?);
    let request = TransferRequest::new(from, to, reader.optional_log_id("last position")?);
    reader.end()?;
    Ok(request)
}

/// "Would you help to replace this leader, whose connection I lost, by me?"
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Probe {
    pub leader: LeaderId,
    pub last: Option<LogId>,
}

impl Probe {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        put_vote(&mut out, &Vote { leader_id: self.leader, committed: true });
        put_optional_log_id(&mut out, self.last.as_ref());
        out.freeze()
    }

    pub fn decode(body: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let leader = reader.vote("lost leader")?.leader_id;
        let probe = Self { leader, last: reader.optional_log_id("last position")? };
        reader.end()?;
        Ok(probe)
    }
}

pub(crate) fn encode_probe_reply(granted: bool) -> Bytes {
    let mut out = reply();
    out.put_u8(u8::from(granted));
    out.freeze()
}

/// The transfer that a `SNAPSHOT_*` frame belongs to; all bodies begin with it. None if it is too
/// short, which those who decode it say.
pub(crate) fn transfer_of(body: &Bytes) -> Option<u64> {
    Some(u64::from_le_bytes(*body.first_chunk()?))
}

/// Opens a snapshot transfer. `transfer` names it in the frames that follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SnapshotHead {
    pub transfer: u64,
    pub vote: Vote,
    pub meta: SnapshotMeta,
    pub state_len: u64,
}

impl SnapshotHead {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(256);
        out.put_u64_le(self.transfer);
        put_vote(&mut out, &self.vote);
        put_optional_log_id(&mut out, self.meta.last_log_id.as_ref());
        put_stored_membership(&mut out, &self.meta.last_membership);
        out.put_u64_le(self.state_len);
        out.freeze()
    }

    pub fn decode(body: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let transfer = reader.u64("transfer")?;
        let vote = reader.vote("leader")?;
        if !vote.committed {
            return Err(Malformed::Rule("a snapshot comes from a leader that nobody elected"));
        }
        let last = reader.optional_log_id("snapshot position")?;
        let Some(last) = last.filter(|last| last.leader_id <= vote.leader_id) else {
            return Err(Malformed::Rule("a snapshot is empty or from beyond the leader's term"));
        };
        let last_membership = read_stored_membership(&mut reader)?;
        if last_membership.log_id().is_some_and(|id| id > last) {
            return Err(Malformed::Rule("a snapshot is older than its configuration"));
        }
        let state_len = reader.u64("state length")?;
        if state_len > STATE_BYTES_MAX {
            let (what, expected) = ("state length", "at most 64 MiB");
            return Err(Malformed::Value { what, found: state_len, expected });
        }
        reader.end()?;
        let meta = SnapshotMeta { last_log_id: Some(last), last_membership };
        Ok(Self { transfer, vote, meta, state_len })
    }
}

/// Precedes the bytes of a part; of `SNAPSHOT_FINISH` it is the whole body, with `seq` one past
/// the last part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartHead {
    pub transfer: u64,
    pub seq: u64,
    /// A piece of the state blob rather than one of the chunks.
    pub state: bool,
}

impl PartHead {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(17);
        out.put_u64_le(self.transfer);
        out.put_u64_le(self.seq);
        out.put_u8(u8::from(self.state));
        out.freeze()
    }

    pub fn decode(body: Bytes) -> Result<(Self, Bytes), Malformed> {
        let mut reader = Reader::new(body);
        let transfer = reader.u64("transfer")?;
        let seq = reader.u64("part number")?;
        let state = reader.flag("part kind")?;
        Ok((Self { transfer, seq, state }, reader.rest()))
    }
}

/// The answer to `SNAPSHOT_BEGIN`: the receiver's vote, and up to which index it has applied the
/// log, if the sender may build on that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SnapshotBegun {
    pub vote: Vote,
    pub base: Option<u64>,
}

impl SnapshotBegun {
    pub fn encode(&self) -> Bytes {
        let mut out = reply();
        put_vote(&mut out, &self.vote);
        out.put_u8(u8::from(self.base.is_some()));
        out.put_u64_le(self.base.unwrap_or(0));
        out.freeze()
    }

    pub fn decode(mut reader: Reader) -> Result<Self, Malformed> {
        let vote = reader.vote("receiver's vote")?;
        let (has_base, base) = (reader.flag("base present")?, reader.u64("base")?);
        reader.end()?;
        Ok(Self { vote, base: has_base.then_some(base) })
    }
}

/// The answer to `SNAPSHOT_FINISH`: the receiver's vote.
pub(crate) fn encode_snapshot_reply(vote: &Vote) -> Bytes {
    let mut out = reply();
    put_vote(&mut out, vote);
    out.freeze()
}

/// Whether the sender of a message is who it speaks for.
pub(crate) fn speaks_for(vote: &Vote, device: DeviceId) -> bool {
    vote.leader_id.node_id.0 == device
}

#[cfg(test)]
mod tests;
