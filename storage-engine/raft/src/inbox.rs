//! Frames from peers, to the group they are for.

use std::sync::Arc;

use bytes::Bytes;
use curve_types::DeviceId;
use curve_wire::frame::Frame;
use curve_wire::rpc::Replier;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::codec::message::{self, Refusal};
use crate::core::{GroupCore, Raft};
use crate::peers::Lane;
use crate::room::Admitted;
use crate::snapshot::refuse;
use crate::types::{AppendRequest, VoteRequest, VoteResponse, log_id, position};
use crate::witness::{ReplicaId, tell};

/// Appends of one group that wait for its Raft core. Leaders keep four in flight, so this is full
/// only when the core hangs.
pub(crate) const INBOX_MAX: usize = 64;

/// With the room that it takes in the log, until it is answered.
pub(crate) type Delivery = (AppendRequest, Option<Admitted>, Replier);

impl GroupCore {
    /// Called in the order of arrival on each connection; must not block.
    pub fn on_frame(self: &Arc<Self>, from: DeviceId, frame: Frame, replier: Replier) {
        let result = match frame.header.kind {
            message::APPEND => self.on_append(from, frame, replier),
            message::SNAPSHOT_BEGIN | message::SNAPSHOT_PART | message::SNAPSHOT_FINISH => {
                self.snapshots.on_frame(self, &self.shared.metrics, from, frame, replier);
                Ok(())
            }
            message::VOTE | message::PRE_VOTE => self.on_vote(from, frame, replier),
            message::TRANSFER => self.on_transfer(from, frame, replier),
            message::PROBE => self.on_probe(frame, replier),
            _ => Err((replier, Refusal::Malformed)),
        };
        if let Err((replier, refusal)) = result {
            self.shared.metrics.refused_frames.inc();
            tracing::debug!(group = %self.id, %from, ?refusal, "refused a frame");
            refuse(replier, refusal);
        }
    }

    fn on_append(
        &self,
        from: DeviceId,
        frame: Frame,
        replier: Replier,
    ) -> Result<(), (Replier, Refusal)> {
        let len = frame.body.len();
        let request = match message::decode_append(frame.body) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(group = %self.id, %from, %error, "malformed append");
                return Err((replier, Refusal::Malformed));
            }
        };
        if !message::speaks_for(&request.vote, from) {
            return Err((replier, Refusal::Stranger));
        }
        // A heartbeat needs no room.
        let len = if request.entries.is_empty() { 0 } else { len };
        let Some(room) = self.admit_bytes(len) else {
            return Err((replier, Refusal::Busy));
        };
        if !self.gate.admit_leader(&request.vote.leader_id, Instant::now()) {
            return Err((replier, Refusal::Deposed));
        }
        self.inbox.try_send((request, room, replier)).map_err(|error| match error {
            mpsc::error::TrySendError::Full((_, _, replier)) => (replier, Refusal::Busy),
            mpsc::error::TrySendError::Closed((_, _, replier)) => (replier, Refusal::Stopped),
        })
    }

    /// Room for an append; one without entries needs none, however full the log is.
    fn admit_bytes(&self, len: usize) -> Option<Option<Admitted>> {
        if len == 0 { Some(None) } else { self.shared.room.admit_append(len).map(Some) }
    }

    fn on_vote(
        self: &Arc<Self>,
        from: DeviceId,
        frame: Frame,
        replier: Replier,
    ) -> Result<(), (Replier, Refusal)> {
        let pre_vote = frame.header.kind == message::PRE_VOTE;
        let request = match message::decode_vote(frame.body) {
            Ok(request) => request,
            Err(_) => return Err((replier, Refusal::Malformed)),
        };
        if !message::speaks_for(&request.vote, from) {
            return Err((replier, Refusal::Stranger));
        }
        let this = self.clone();
        tokio::spawn(async move {
            let voted =
                if pre_vote { this.pre_vote(request).await } else { this.vote_for(request).await };
            let body = match voted {
                Some(response) => message::encode_vote_reply(&response),
                None => Refusal::Stopped.encode(),
            };
            replier.reply(body, Bytes::new()).await;
        });
        Ok(())
    }

    fn denial(&self) -> VoteResponse {
        let last = self.group.log_state().last.map(log_id);
        VoteResponse::new(self.vote(), last, false)
    }

    /// A blank replica has no vote; that of one which lost entries is what it would be with them.
    fn may_get_vote(&self, request: &VoteRequest) -> bool {
        let owed = self.group.owes().map(log_id);
        !self.is_blank() && owed.is_none_or(|owed| request.last_log_id >= Some(owed))
    }

    async fn pre_vote(&self, request: VoteRequest) -> Option<VoteResponse> {
        if !self.may_get_vote(&request) || !self.gate.may_replace(Instant::now()) {
            return Some(self.denial());
        }
        self.raft.pre_vote(request).await.ok()
    }

    /// See `gate`. openraft's own lease is longer; when the leader's connection is gone, only ours
    /// counts, and the request is passed on as one that the leader wished for.
    async fn vote_for(&self, mut request: VoteRequest) -> Option<VoteResponse> {
        if !self.may_get_vote(&request) {
            return Some(self.denial());
        }
        if request.leadership_transfer {
            return self.raft.vote(request).await.ok();
        }
        if !self.gate.may_replace(Instant::now()) {
            return Some(self.denial());
        }
        let lost = self.followed().filter(|leader| self.has_lost(leader.node_id.0));
        let deposed = lost.filter(|leader| self.gate.depose(*leader, Instant::now()));
        request.leadership_transfer = deposed.is_some();
        let response = self.raft.vote(request).await.ok();
        if let Some(leader) = deposed {
            self.gate.reinstate(leader);
        }
        response
    }

    fn has_lost(&self, leader: DeviceId) -> bool {
        leader != self.device() && self.shared.peers.link(leader, Lane::Control).lost()
    }

    fn on_transfer(
        &self,
        from: DeviceId,
        frame: Frame,
        replier: Replier,
    ) -> Result<(), (Replier, Refusal)> {
        let request = match message::decode_transfer(frame.body) {
            Ok(request) => request,
            Err(_) => return Err((replier, Refusal::Malformed)),
        };
        if !message::speaks_for(request.from_leader(), from) {
            return Err((replier, Refusal::Stranger));
        }
        let raft = self.raft.clone();
        tokio::spawn(async move {
            // Waits until the log is complete; the answer need not.
            if let Err(error) = raft.handle_transfer_leader(request).await {
                tracing::warn!(%error, "leadership was not taken over");
            }
        });
        tokio::spawn(replier.reply(message::encode_done(), Bytes::new()));
        Ok(())
    }

    fn on_probe(&self, frame: Frame, replier: Replier) -> Result<(), (Replier, Refusal)> {
        let probe = match message::Probe::decode(frame.body) {
            Ok(probe) => probe,
            Err(_) => return Err((replier, Refusal::Malformed)),
        };
        let last = self.group.owes().or(self.group.log_state().last).map(log_id);
        let granted = last.is_some()
            && probe.last >= last
            && self.followed() == Some(probe.leader)
            && self.gate.may_replace(Instant::now())
            && self.has_lost(probe.leader.node_id.0);
        tokio::spawn(replier.reply(message::encode_probe_reply(granted), Bytes::new()));
        Ok(())
    }
}

/// Hands appends to Raft in order and answers each when it is durable. The futures are polled
/// first in the order they were pushed, and their first poll queues the append.
pub(crate) async fn serve_appends(
    replica: ReplicaId,
    raft: Raft,
    mut inbox: mpsc::Receiver<Delivery>,
) {
    let mut pending = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            delivery = inbox.recv(), if pending.len() < INBOX_MAX => {
                let Some((request, room, replier)) = delivery else { return };
                let raft = raft.clone();
                let term = request.vote.leader_id.into();
                let last = request.entries.last().map(|entry| position(&entry.log_id));
                pending.push(async move {
                    let body = match raft.append_entries(request).await {
                        Ok(response) => {
                            if let Some(last) = last.filter(|_| response.is_success()) {
                                tell(|witness| witness.acknowledged(replica, term, last));
                            }
                            message::encode_append_reply(&response)
                        }
                        Err(_) => Refusal::Stopped.encode(),
                    };
                    drop(room);
                    replier.reply(body, Bytes::new()).await;
                });
            }
            Some(()) = pending.next(), if !pending.is_empty() => {}
        }
    }
}
