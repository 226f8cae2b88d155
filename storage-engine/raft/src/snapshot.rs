//! Snapshots on the wire: a head, the state blob in pieces, the parts of the chunks, a finish that
//! is answered once the receiver has switched. On a connection of its own, a few parts in flight,
//! throttled on the sending side. A receiver that has some of the state says up to which index, and
//! is sent what changed since. A transfer that breaks starts again from the beginning.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use curve_store::Install;
use curve_types::{CopysetId, DeviceId};
use curve_wire::frame::Frame;
use curve_wire::rpc::{Replier, RpcError};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::blocking::in_thread;
use crate::codec::message::{self, PartHead, Refusal, SnapshotBegun, SnapshotHead, read_reply};
use crate::codec::{Malformed, Reader};
use crate::metrics::Metrics;
use crate::peers::{DialError, Peers};
use crate::types::{SnapshotMeta, Vote};
use crate::{SnapshotSink, SnapshotSource};

/// Longest part, and length of the pieces that the state blob is cut into.
const PART_BYTES_MAX: usize = 1 << 20;
/// Parts in flight: enough to keep a link and a disk busy at once, and 4 MiB at most in memory.
const PARTS_IN_FLIGHT: usize = 4;
/// A receiver gives up on a sender that is silent for this long, and the other way round: a part
/// may have to wait for the receiver's flusher, a finish for its checkpoint.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Error)]
pub(crate) enum SendError {
    #[error("dial")]
    Dial(#[from] DialError),
    #[error("connection")]
    Connection(#[from] RpcError),
    #[error("no answer within {SILENCE_MAX:?}")]
    Silent,
    #[error("read a part of the snapshot")]
    Source(#[source] io::Error),
    /// The task that reads ended before its end: what it had not read must not count as all.
    #[error("the reading of the snapshot was cut off")]
    Lost,
    #[error("the snapshot part of {0} bytes is too long")]
    PartTooLong(usize),
    #[error("the peer refused: {0:?}")]
    Refused(Refusal),
    #[error("malformed answer")]
    Malformed(#[from] Malformed),
}

/// Sends snapshots of all groups, sharing one rate.
pub(crate) struct Sender {
    peers: Arc<Peers>,
    metrics: Metrics,
    /// 0 for no limit.
    bytes_per_second: u64,
    /// When the bytes sent so far are paid for.
    paid_until: Mutex<Option<Instant>>,
}

impl Sender {
    pub fn new(peers: Arc<Peers>, metrics: Metrics, bytes_per_second: u64) -> Arc<Self> {
        Arc::new(Self { peers, metrics, bytes_per_second, paid_until: Mutex::default() })
    }

    /// Returns the receiver's vote: after a complete transfer, or early if it is higher.
    pub async fn send(
        &self,
        (group, target): (CopysetId, DeviceId),
        (vote, meta): (Vote, SnapshotMeta),
        state: Bytes,
        mut parts: Box<dyn SnapshotSource>,
    ) -> Result<Vote, SendError> {
        let connection = self.peers.dial(target).await?;
        let transfer = rand::random();
        let last = meta.last_log_id.map(|id| id.index);
        let head = SnapshotHead { transfer, vote, meta, state_len: state.len() as u64 };
        let begun = connection.send(message::SNAPSHOT_BEGIN, group.0, head.encode(), Bytes::new());
        let SnapshotBegun { vote: theirs, base } =
            SnapshotBegun::decode(answer(begun.await?).await?)?;
        if theirs > vote {
            return Ok(theirs);
        }
        // One that is ahead of the snapshot has what the snapshot does not know.
        let base = base.filter(|base| last.is_some_and(|last| *base <= last));
        tracing::info!(%group, %target, ?base, ?last, "sending a snapshot");
        if let Some(base) = base {
            parts.since(base);
        }
        let mut source = read_ahead(state, parts);
        let mut in_flight = VecDeque::new();
        let mut seq = 0;
        while let Some((is_state, part)) = source.recv().await.ok_or(SendError::Lost)?? {
            self.pay(part.len()).await;
            self.metrics.snapshot_sent_bytes.inc_by(part.len() as u64);
            let head = PartHead { transfer, seq, state: is_state }.encode();
            seq += 1;
            let sent = connection.send(message::SNAPSHOT_PART, group.0, head, part).await?;
            in_flight.push_back(sent);
            if in_flight.len() >= PARTS_IN_FLIGHT
                && let Some(first) = in_flight.pop_front()
            {
                answer(first).await?.end()?;
            }
        }
        for sent in in_flight {
            answer(sent).await?.end()?;
        }
        let head = PartHead { transfer, seq, state: false }.encode();
        let finished = connection.send(message::SNAPSHOT_FINISH, group.0, head, Bytes::new());
        read_vote(answer(finished.await?).await?)
    }

    async fn pay(&self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = {
            let now = Instant::now();
            let mut paid = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let until = paid.unwrap_or(now).max(now);
            *paid = Some(until + cost);
            until
        };
        tokio::time::sleep_until(until).await;
    }
}

fn read_vote(mut reader: Reader) -> Result<Vote, SendError> {
    let vote = reader.vote("receiver's vote")?;
    reader.end()?;
    Ok(vote)
}

async fn answer(answered: oneshot::Receiver<Frame>) -> Result<Reader, SendError> {
    let frame = match tokio::time::timeout(SILENCE_MAX, answered).await {
        Ok(answered) => answered.map_err(|_| RpcError::Closed)?,
        Err(_) => return Err(SendError::Silent),
    };
    read_reply(frame.body)?.map_err(SendError::Refused)
}

/// Part of the state or not, and its bytes; None after the last.
type Piece = Result<Option<(bool, Bytes)>, SendError>;

/// Reads parts in a task of its own, a few ahead of the network.
fn read_ahead(mut state: Bytes, mut parts: Box<dyn SnapshotSource>) -> mpsc::Receiver<Piece> {
    let (pieces, ahead) = mpsc::channel(PARTS_IN_FLIGHT);
    tokio::spawn(async move {
        while !state.is_empty() {
            let piece = state.split_to(state.len().min(PART_BYTES_MAX));
            if pieces.send(Ok(Some((true, piece)))).await.is_err() {
                return;
            }
        }
        loop {
            let read;
            (parts, read) = in_thread(move || {
                let read = parts.next();
                (parts, read)
            })
            .await;
            let piece = match read {
                Ok(Some(part)) if part.len() > PART_BYTES_MAX + PART_SLACK => {
                    Err(SendError::PartTooLong(part.len()))
                }
                Ok(part) => Ok(part.map(|part| (false, part))),
                Err(error) => Err(SendError::Source(error)),
            };
            let is_last = !matches!(piece, Ok(Some(_)));
            if pieces.send(piece).await.is_err() || is_last {
                return;
            }
        }
    });
    ahead
}

/// Room for a part's own head beside 1 MiB of chunk bytes.
const PART_SLACK: usize = 4096;

/// Where a snapshot goes.
pub(crate) struct Destination {
    pub sink: Box<dyn SnapshotSink>,
    pub install: Install,
    /// Up to where the state that it replaces was applied; blocks of that may be kept.
    pub base: Option<u64>,
}

/// What the receiving side asks of the replica.
pub(crate) trait Target: Send + Sync + 'static {
    fn begin_install(&self) -> Result<Destination, String>;
    /// The replica's vote, and whether messages of this leader may be heard.
    fn admit(&self, leader: &Vote) -> Option<Vote>;
    /// Makes the switch; the answer is the replica's vote.
    fn install(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        state: Bytes,
        install: Install,
    ) -> impl Future<Output = Result<Vote, String>> + Send;
}

type Delivery = (u16, Bytes, Replier);

#[derive(Default)]
pub(crate) struct Receiver {
    /// The transfer that is coming in, if any; a new one replaces it. What still arrives of the old
    /// one, over another connection, must not disturb it.
    current: Mutex<Option<(Option<u64>, mpsc::Sender<Delivery>)>>,
    /// The last one did not fit the state here: the next is to bring everything.
    wants_all: Arc<AtomicBool>,
}

impl Receiver {
    /// Takes a `SNAPSHOT_*` frame of a peer, in the order of arrival.
    pub fn on_frame<T: Target>(
        &self,
        target: &Arc<T>,
        metrics: &Metrics,
        from: DeviceId,
        frame: Frame,
        replier: Replier,
    ) {
        let transfer = message::transfer_of(&frame.body);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if frame.header.kind == message::SNAPSHOT_BEGIN {
            // One more than the sender has in flight, for the finish.
            let (sender, inbox) = mpsc::channel(PARTS_IN_FLIGHT + 1);
            *current = Some((transfer, sender));
            let (target, metrics) = (target.clone(), metrics.clone());
            let wants_all = self.wants_all.clone();
            tokio::spawn(async move {
                let opening = Opening { from, head: frame.body, replier };
                if let Err(error) = receive(&*target, &metrics, &wants_all, opening, inbox).await {
                    tracing::warn!(%from, error, "snapshot not received");
                }
            });
            return;
        }
        let delivery = (frame.header.kind, frame.body, replier);
        let refused = match &*current {
            Some((known, inbox)) if *known == transfer => match inbox.try_send(delivery) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full((_, _, replier))) => (replier, Refusal::Busy),
                Err(mpsc::error::TrySendError::Closed((_, _, replier))) => {
                    (replier, Refusal::Snapshot)
                }
            },
            _ => (delivery.2, Refusal::Snapshot),
        };
        refuse(refused.0, refused.1);
    }

    /// Forgets a transfer that is under way.
    pub fn abort(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Answers a refusal without waiting for the connection.
pub(crate) fn refuse(replier: Replier, refusal: Refusal) {
    tokio::spawn(replier.reply(refusal.encode(), Bytes::new()));
}

/// What a transfer begins with.
struct Opening {
    from: DeviceId,
    head: Bytes,
    replier: Replier,
}

struct Incoming {
    head: SnapshotHead,
    sink: Box<dyn SnapshotSink>,
    install: Install,
    state: Vec<u8>,
    seq: u64,
}

impl Incoming {
    fn put(&mut self, body: Bytes) -> io::Result<usize> {
        let (head, part) = PartHead::decode(body).map_err(io::Error::other)?;
        if head.transfer != self.head.transfer || head.seq != self.seq {
            let what = format!("part {} of another transfer, or out of order", head.seq);
            return Err(io::Error::other(what));
        }
        self.seq += 1;
        let len = part.len();
        if head.state {
            if self.state.len() + len > self.head.state_len as usize {
                return Err(io::Error::other("the state is longer than announced"));
            }
            self.state.extend_from_slice(&part);
        } else {
            self.sink.put(&self.install, part)?;
        }
        Ok(len)
    }

    fn check_finish(&self, body: Bytes) -> Result<(), String> {
        let (head, rest) = PartHead::decode(body).map_err(|error| error.to_string())?;
        let whole = head.transfer == self.head.transfer
            && head.seq == self.seq
            && rest.is_empty()
            && self.state.len() as u64 == self.head.state_len;
        if whole { Ok(()) } else { Err("the finish does not match what was received".to_owned()) }
    }
}

/// One transfer, from its head to the switch. Whatever goes wrong leaves no trace.
async fn receive<T: Target>(
    target: &T,
    metrics: &Metrics,
    wants_all: &AtomicBool,
    Opening { from, head, replier }: Opening,
    mut inbox: mpsc::Receiver<Delivery>,
) -> Result<(), String> {
    let (incoming, mut begun) = match begin(target, from, head) {
        Ok(begun) => begun,
        Err(error) => {
            refuse(replier, Refusal::Snapshot);
            return Err(error);
        }
    };
    if wants_all.load(Ordering::Relaxed) {
        begun.base = None;
    }
    replier.reply(begun.encode(), Bytes::new()).await;
    let Some(mut incoming) = incoming else { return Ok(()) };
    loop {
        let delivered = tokio::time::timeout(SILENCE_MAX, inbox.recv()).await;
        let (kind, body, replier) = match delivered {
            Ok(Some(delivery)) => delivery,
            Ok(None) => return Err("replaced by another transfer".to_owned()),
            Err(_) => return Err("the sender went silent".to_owned()),
        };
        let result = match kind {
            message::SNAPSHOT_PART => {
                // Waits for the flusher when the overlay is full.
                let result;
                (incoming, result) = in_thread(move || {
                    let result = incoming.put(body);
                    (incoming, result)
                })
                .await;
                result.map_err(|error: io::Error| {
                    let unfit = error.kind() == io::ErrorKind::InvalidData;
                    wants_all.fetch_or(unfit, Ordering::Relaxed);
                    error.to_string()
                })
            }
            _ => match incoming.check_finish(body) {
                Ok(()) => {
                    finish(target, metrics, incoming, replier).await?;
                    wants_all.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) => Err(error),
            },
        };
        match result {
            Ok(len) => {
                metrics.snapshot_received_bytes.inc_by(len as u64);
                replier.reply(message::encode_done(), Bytes::new()).await;
            }
            Err(error) => {
                refuse(replier, Refusal::Snapshot);
                return Err(error);
            }
        }
    }
}

/// Nothing is begun for a leader whose vote is out of date; it is told of the higher one.
fn begin<T: Target>(
    target: &T,
    from: DeviceId,
    head: Bytes,
) -> Result<(Option<Incoming>, SnapshotBegun), String> {
    let head = SnapshotHead::decode(head).map_err(|error| error.to_string())?;
    if !message::speaks_for(&head.vote, from) {
        return Err("the sender is not the leader that it names".to_owned());
    }
    let ours = target.admit(&head.vote).ok_or("the leader is being replaced")?;
    if ours > head.vote {
        return Ok((None, SnapshotBegun { vote: ours, base: None }));
    }
    let Destination { sink, install, base } = target.begin_install()?;
    let state = Vec::with_capacity(head.state_len as usize);
    let incoming = Incoming { head, sink, install, state, seq: 0 };
    Ok((Some(incoming), SnapshotBegun { vote: ours, base }))
}

async fn finish<T: Target>(
    target: &T,
    metrics: &Metrics,
    incoming: Incoming,
    replier: Replier,
) -> Result<(), String> {
    let Incoming { head, install, state, sink, .. } = incoming;
    drop(sink);
    if target.admit(&head.vote).is_none() {
        refuse(replier, Refusal::Deposed);
        return Err("the leader is being replaced".to_owned());
    }
    match target.install(head.vote, head.meta, state.into(), install).await {
        Ok(vote) => {
            metrics.snapshots_installed.inc();
            replier.reply(message::encode_snapshot_reply(&vote), Bytes::new()).await;
            Ok(())
        }
        Err(error) => {
            refuse(replier, Refusal::Stopped);
            Err(error)
        }
    }
}
