//! openraft's way to a peer: one `Network` per group, peer and lane, all sharing the peer's
//! connections.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use curve_types::{CopysetId, DeviceId};
use curve_wire::frame::Frame;
use curve_wire::rpc::{Connection, RpcError};
use futures::{Stream, StreamExt, TryFutureExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderResponse,
};
use openraft::{EmptyNode, OptionalSend};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::codec::message::{
    self, decode_append_reply, decode_vote_reply, encode_append, encode_transfer, encode_vote,
    read_reply,
};
use crate::codec::{Malformed, Reader};
use crate::commits::coalesce;
use crate::heard::Heard;
use crate::peers::{Lane, Link, Peers};
use crate::replica::SnapshotData;
use crate::snapshot::Sender;
use crate::types::{
    AppendRequest, AppendResponse, NodeId, TransferRequest, Types, Vote, VoteRequest, VoteResponse,
};

/// Appends in flight per group and peer: more only makes batches smaller.
const APPENDS_IN_FLIGHT: usize = 4;
/// An append unanswered for this long is sent again. A disk may stall for seconds; a connection
/// that breaks is noticed at once, without this.
const APPEND_TIMEOUT: Duration = Duration::from_secs(3);
/// A first dial is waited for at most this long.
const CONNECT_WAIT: Duration = Duration::from_millis(300);

type Snapshot = openraft::type_config::alias::SnapshotOf<Types, SnapshotData>;
type Rpc = RPCError<Types>;

fn unreachable(why: impl ToString) -> Rpc {
    Unreachable::from_string(why).into()
}

fn broken(error: &RpcError) -> Rpc {
    NetworkError::new(error).into()
}

fn malformed(error: Malformed) -> Rpc {
    unreachable(format!("malformed reply: {error}"))
}

/// A refusal is no answer of Raft: back off and try again.
fn accepted(frame: Frame) -> Result<Reader, Rpc> {
    match read_reply(frame.body).map_err(malformed)? {
        Ok(reader) => Ok(reader),
        Err(refusal) => Err(unreachable(format!("refused: {refusal:?}"))),
    }
}

#[derive(Clone)]
pub(crate) struct NetworkFactory {
    pub group: CopysetId,
    pub peers: Arc<Peers>,
    pub heard: Arc<Heard>,
    pub snapshots: Arc<Sender>,
}

impl NetworkFactory {
    fn network(&self, target: NodeId, lane: Lane) -> Network {
        let target = target.0;
        Network { shared: self.clone(), target, link: self.peers.link(target, lane) }
    }
}

impl RaftNetworkFactory<Types> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> Network {
        self.network(target, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _node: &EmptyNode) -> Network {
        self.network(target, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, _node: &EmptyNode) -> Network {
        self.network(target, Lane::Control)
    }
}

pub(crate) struct Network {
    shared: NetworkFactory,
    target: DeviceId,
    link: Arc<Link>,
}

/// An append that was sent in this term, just after this time.
struct SentAppend {
    term: u64,
    at: Instant,
    answer: oneshot::Receiver<Frame>,
}

impl Network {
    async fn connection(&self) -> Result<Arc<Connection>, Rpc> {
        let connection = self.link.connection(CONNECT_WAIT).await;
        connection.ok_or_else(|| unreachable(format!("{} is not connected", self.target)))
    }

    /// Queues an append; the answer comes later.
    async fn send_append(&self, request: AppendRequest) -> Result<SentAppend, Rpc> {
        let (term, at) = (request.vote.leader_id.term, Instant::now());
        let (head, payload) = encode_append(request);
        let connection = self.connection().await?;
        let sent = connection.send(message::APPEND, self.shared.group.0, head, payload).await;
        Ok(SentAppend { term, at, answer: sent.map_err(|error| broken(&error))? })
    }

    async fn append_answer(&self, sent: SentAppend) -> Result<AppendResponse, Rpc> {
        let frame = match tokio::time::timeout(APPEND_TIMEOUT, sent.answer).await {
            Ok(answered) => answered.map_err(|_| broken(&RpcError::Closed))?,
            Err(_) => return Err(unreachable("no answer in time")),
        };
        let response = decode_append_reply(accepted(frame)?).map_err(malformed)?;
        if !matches!(response, AppendResponse::HigherVote(_)) {
            self.shared.heard.note(sent.term, NodeId(self.target), sent.at);
        }
        Ok(response)
    }

    /// A small request on the control lane, whatever lane this network is for.
    async fn call(&self, kind: u16, body: Bytes, within: Duration) -> Result<Reader, Rpc> {
        let link = self.shared.peers.link(self.target, Lane::Control);
        let exchange = async {
            let connection = link.connection(CONNECT_WAIT).await;
            let connection = connection
                .ok_or_else(|| unreachable(format!("{} is not connected", self.target)))?;
            let called = connection.call(kind, self.shared.group.0, body, Bytes::new());
            accepted(called.map_err(|error| broken(&error)).await?)
        };
        match tokio::time::timeout(within, exchange).await {
            Ok(answered) => answered,
            Err(_) => Err(unreachable("no answer in time")),
        }
    }
}

impl RaftNetworkV2<Types> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendRequest,
        _option: RPCOption,
    ) -> Result<AppendResponse, Rpc> {
        self.append_answer(self.send_append(rpc).await?).await
    }

    /// Sends one after the other, so that order on the connection is order in the log, and awaits
    /// several answers at a time.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, Rpc>>, Rpc>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        let this: &'s Self = self;
        let sent = coalesce(input).then(move |request| async move {
            let prev = request.prev_log_id;
            let last = request.entries.last().map(|entry| entry.log_id).or(prev);
            (this.send_append(request).await, prev, last)
        });
        let answered = sent.map(move |(sent, prev, last)| async move {
            match this.append_answer(sent?).await? {
                AppendResponse::Conflict => match prev {
                    Some(prev) => Ok(Err(StreamAppendError::Conflict(prev))),
                    None => Err(unreachable("the peer refuses the beginning of the log")),
                },
                response => Ok(response.into_stream_result(prev, last)),
            }
        });
        let stream: BoxStream<'s, _> = Box::pin(answered.buffered(APPENDS_IN_FLIGHT));
        Box::pin(async move { Ok(stream) })
    }

    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, Rpc> {
        let reader = self.call(message::VOTE, encode_vote(&rpc), option.soft_ttl()).await?;
        decode_vote_reply(reader).map_err(malformed)
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, Rpc> {
        let reader = self.call(message::PRE_VOTE, encode_vote(&rpc), option.soft_ttl()).await?;
        decode_vote_reply(reader).map_err(malformed)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let SnapshotData::Outgoing { state, parts } = snapshot.snapshot else {
            return Err(ReplicationClosed::new("not a snapshot of this replica").into());
        };
        let send = self.shared.snapshots.send(
            (self.shared.group, self.target),
            (vote, snapshot.meta),
            state,
            parts,
        );
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = send => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => {
                    let error = curve_wire::with_causes(&error);
                    tracing::warn!(group = %self.shared.group, target = %self.target, error, "snapshot not sent");
                    Err(Unreachable::from_string(error).into())
                }
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferRequest,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, Rpc> {
        let body = encode_transfer(&request);
        self.call(message::TRANSFER, body, option.soft_ttl()).await?.end().map_err(malformed)?;
        Ok(Ok(()))
    }
}
