//! Damaged blocks get their bytes back from a peer: asks for them, and lets the store judge whether
//! they are the right ones.

use std::time::Duration;

use bytes::Bytes;
use curve_raft::GroupHandle;
use curve_raft::in_thread;
use curve_store::{ChunkView, Group, Repair, StoreError};
use curve_types::DeviceId;
use curve_wire::chunk::{ChunkError, KIND_PEER_READ, PeerBlock, PeerRead, decode_reply};
use curve_wire::with_causes;
use tokio::sync::Mutex;

use crate::metrics::Metrics;

/// A reader waits so long for its turn, and then so long for the repair. Clients wait 4 s for a
/// read before they ask again.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that takes longer is asked again after the others.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// A peer that is behind, or that does not answer, is asked again after this; what it gave is
/// offered again after as long while this replica is behind.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Repairs what reads and the scrub find damaged.
pub(crate) struct Repairer {
    device: DeviceId,
    metrics: Metrics,
    /// One repair at a time: many readers may find the same block.
    turn: Mutex<()>,
}

/// Who found a block damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finder {
    Read,
    Scrub,
}

impl Finder {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Scrub => "scrub",
        }
    }
}

/// How a repair ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Repaired,
    /// The block was read again, overwritten or dropped before its bytes came.
    Superseded,
    /// No peer has the bytes.
    Lost,
    /// A peer may have them, but none has given them in time.
    Unfinished,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Repaired => "repaired",
            Self::Superseded => "superseded",
            Self::Lost => "lost",
            Self::Unfinished => "unfinished",
        }
    }
}

/// What a peer said.
enum Answer {
    Block(PeerBlock),
    /// It will not have the block later either.
    Never,
    NotNow,
}

impl Repairer {
    pub fn new(device: DeviceId, metrics: Metrics) -> Self {
        Self { device, metrics, turn: Mutex::default() }
    }

    pub async fn repair(
        &self,
        handle: &GroupHandle,
        group: &Group,
        damaged: PeerRead,
        finder: Finder,
    ) -> Result<Outcome, StoreError> {
        let outcome = match tokio::time::timeout(TIMEOUT, self.turn.lock()).await {
            Ok(_turn) => {
                let repair = self.repair_in_turn(handle, group, damaged);
                tokio::time::timeout(TIMEOUT, repair).await.unwrap_or(Ok(Outcome::Unfinished))?
            }
            Err(_) => Outcome::Unfinished,
        };
        self.metrics.repair(finder, outcome);
        let PeerRead { key, block } = damaged;
        tracing::warn!(
            copyset = %group.id(), chunk = %key, block, ?finder, ?outcome, "damaged block"
        );
        Ok(outcome)
    }

    async fn repair_in_turn(
        &self,
        handle: &GroupHandle,
        group: &Group,
        damaged: PeerRead,
    ) -> Result<Outcome, StoreError> {
        let Some(view) = blocking(group, move |group| damaged_view(group, damaged)).await? else {
            return Ok(Outcome::Superseded);
        };
        let PeerRead { key, block } = damaged;
        let mut peers = handle.members();
        peers.remove(&self.device);
        while !peers.is_empty() {
            for peer in peers.clone() {
                let PeerBlock { applied, data } = match ask(handle, peer, damaged).await {
                    Answer::Block(block) => block,
                    Answer::NotNow => continue,
                    Answer::Never => {
                        peers.remove(&peer);
                        continue;
                    }
                };
                let offer = || {
                    let (view, data) = (view.clone(), data.clone());
                    blocking(group, move |group| group.repair(&view, key, block, applied, data))
                };
                let mut repair = offer().await?;
                // A leader that is written to stays ahead: what it gave next would be as new.
                while repair == Repair::TooNew {
                    tokio::time::sleep(ASK_AGAIN).await;
                    repair = offer().await?;
                }
                match repair {
                    Repair::Done => return Ok(Outcome::Repaired),
                    Repair::Superseded => return Ok(Outcome::Superseded),
                    Repair::TooOld | Repair::TooNew => {}
                    Repair::Differs => {
                        self.metrics.replicas_differ();
                        tracing::error!(
                            copyset = %group.id(), chunk = %key, block, %peer, applied,
                            "a peer's valid copy is not what this replica's checksum was made of"
                        );
                        peers.remove(&peer);
                    }
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(Outcome::Lost)
    }
}

async fn ask(handle: &GroupHandle, peer: DeviceId, wanted: PeerRead) -> Answer {
    let asked = async {
        let connection = handle.dial(peer).await.map_err(|error| with_causes(&error))?;
        let request = wanted.encode();
        let answer = connection.call(KIND_PEER_READ, handle.id().0, request, Bytes::new());
        answer.await.map_err(|error| with_causes(&error))
    };
    let frame = match tokio::time::timeout(ASK_TIMEOUT, asked).await {
        Ok(Ok(frame)) => frame,
        Ok(Err(error)) => {
            tracing::debug!(%peer, error, "cannot ask for a block");
            return Answer::NotNow;
        }
        Err(_) => return Answer::NotNow,
    };
    match decode_reply(&frame.body) {
        Ok(Ok(body)) => PeerBlock::decode(&body).map_or(Answer::Never, Answer::Block),
        // Forbidden: one of us does not know yet whether this replica is a member. Were it taken
        // for a no, a replica that is about to be dropped would call its blocks lost.
        Ok(Err(ChunkError::Unavailable | ChunkError::NoSuchCopyset | ChunkError::Forbidden)) => {
            Answer::NotNow
        }
        Ok(Err(_)) | Err(_) => Answer::Never,
    }
}

/// The group's state now, if the block is damaged in it.
fn damaged_view(group: &Group, damaged: PeerRead) -> Result<Option<ChunkView>, StoreError> {
    let view = group.view()?;
    match view.read(damaged.key, damaged.block..damaged.block + 1) {
        Ok(_) => Ok(None),
        Err(error) if error.unreadable_block().is_some() => Ok(Some(view)),
        Err(error) => Err(error),
    }
}

/// A peer's question answered.
pub(crate) async fn peer_block(group: &Group, wanted: PeerRead) -> Result<PeerBlock, StoreError> {
    let look = move |group: &Group| {
        let view = group.view()?;
        let data = view.read(wanted.key, wanted.block..wanted.block + 1)?;
        Ok(PeerBlock { applied: view.applied().map_or(0, |applied| applied.index), data })
    };
    blocking(group, look).await
}

/// Work that may wait for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    group: &Group,
    work: impl FnOnce(&Group) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let group = group.clone();
    in_thread(move || work(&group)).await
}

pub(crate) fn stopping() -> StoreError {
    StoreError::Failed { reason: "the server is stopping".into() }
}
