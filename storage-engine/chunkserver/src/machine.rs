//! The state machine of a copyset: who may still write (`state`), chunks in the store, and the
//! parts of a snapshot (`snapshot`). Deterministic: every replica gives the same answer.

mod snapshot;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use curve_raft::{Answer, Division, SnapshotSink, SnapshotSource, StateMachine};
use curve_store::{Apply, ChunkView, CopyKind, LogPosition, StoreError};
use curve_types::planted::{self, Bug};
use curve_types::{ChunkKey, CopysetId, ShardRange, chunk_shard};
use curve_wire::chunk::{ChunkError, ChunkRange, ChunkReply, Command, encode_reply};

use self::snapshot::{Receiver, Sender};
pub(crate) use self::state::BlockState;
use crate::digest::{DigestSlot, Taken};

/// Read by the service, changed by the machine. Held for moments only, never across store calls.
pub(crate) type SharedState = Arc<RwLock<BlockState>>;

/// One copyset's replica.
pub(crate) struct BlockMachine {
    state: SharedState,
    digest: DigestSlot,
}

impl BlockMachine {
    /// `blob` is what `state` returned at the last checkpoint.
    pub fn open(state: SharedState, digest: DigestSlot, blob: Option<Bytes>) -> io::Result<Self> {
        let machine = Self { state, digest };
        if let Some(blob) = blob.filter(|blob| !blob.is_empty()) {
            machine.replace(&blob)?;
        }
        Ok(machine)
    }

    fn replace(&self, blob: &[u8]) -> io::Result<()> {
        let decoded = BlockState::decode(blob)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = decoded;
        Ok(())
    }

    fn change_state<T>(&self, change: impl FnOnce(&mut BlockState) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// An error is the disk's and stops the replica; one that is the command's is its answer.
    fn carry_out(
        &self,
        chunks: &Apply<'_>,
        position: LogPosition,
        command: Command,
    ) -> Result<Answer, StoreError> {
        let admit = |range: &ChunkRange, writer| {
            self.change_state(|state| {
                state.check_moved(range.key)?;
                state.admit(range.key.volume, writer)
            })
        };
        // Whether it may be carried out, and whether there is anything to do to the chunks.
        let decided = match &command {
            Command::Write { range, writer, .. }
            | Command::WriteZeroes { range, writer }
            | Command::Discard { range, writer } => admit(range, writer).map(|()| true),
            Command::Fence { volume, min_epoch } => {
                self.change_state(|state| state.fence(*volume, *min_epoch)).map(|()| false)
            }
            Command::Revoke { volume, session, min_epoch } => self
                .change_state(|state| state.revoke(*volume, *session, *min_epoch))
                .map(|()| false),
            Command::DeleteVolume { volume } => {
                self.change_state(|state| state.delete(*volume));
                Ok(true)
            }
            Command::Snapshot { volume, snapshot } => {
                self.change_state(|state| state.snapshot(*volume, *snapshot))
            }
            Command::Thaw { volume, snapshot } => {
                self.change_state(|state| state.thaw(*volume, *snapshot));
                Ok(false)
            }
            Command::Restore { volume, snapshot, epoch } => {
                self.change_state(|state| state.restore(*volume, *snapshot, *epoch))
            }
            Command::Digest { .. } => Ok(true),
            Command::Split { to, shards } => return Ok(self.split(*to, *shards)),
        };
        match decided {
            Ok(true) => {}
            Ok(false) => return Ok(answer(&Ok(Bytes::new()))),
            Err(error) => return Ok(answer(&Err(error))),
        }
        match command {
            Command::Write { range, data, .. } => {
                chunks.write_payload(position, range.key, range.offset, data)?;
            }
            Command::WriteZeroes { range, .. } => {
                chunks.write_zeroes(range.key, range.offset, range.len)?;
            }
            Command::Discard { range, .. } => chunks.discard(range.key, range.offset, range.len)?,
            Command::Fence { .. }
            | Command::Revoke { .. }
            | Command::Thaw { .. }
            | Command::Split { .. } => {}
            Command::DeleteVolume { volume } => chunks.delete_volume(volume)?,
            Command::Snapshot { .. } if planted::has(Bug::EmptySnapshot) => {}
            Command::Snapshot { volume, snapshot } => {
                chunks.copy_volume(volume, snapshot, CopyKind::Snapshot);
            }
            Command::Restore { volume, snapshot, .. } => {
                chunks.copy_volume(snapshot, volume, CopyKind::Clone);
            }
            Command::Digest { scrub } => {
                let (tables, state) = (chunks.hold_tables(), self.state());
                self.digest.put(Taken { scrub, index: position.index, tables, state });
            }
        }
        Ok(answer(&Ok(Bytes::new())))
    }

    fn split(&self, to: CopysetId, shards: ShardRange) -> Answer {
        match self.change_state(|state| state.split(to, shards)) {
            Err(error) => answer(&Err(error)),
            Ok(left) => {
                let division = left.map(|state| divide(to, shards, &state));
                Answer { division, ..answer(&Ok(Bytes::new())) }
            }
        }
    }
}

fn answer(reply: &ChunkReply) -> Answer {
    encode_reply(reply).0.into()
}

/// What leaves with these shards, for a copyset that begins with `state`.
fn divide(to: CopysetId, shards: ShardRange, state: &BlockState) -> Division {
    let moves = Box::new(move |key: &ChunkKey| shards.contains(chunk_shard(*key)));
    Division { id: to, state: state.encode(), moves }
}

impl StateMachine for BlockMachine {
    fn apply(
        &mut self,
        apply: &Apply<'_>,
        position: LogPosition,
        header: Bytes,
        payload: Bytes,
    ) -> io::Result<Answer> {
        match Command::decode_parts(&header, payload) {
            Ok(command) => self.carry_out(apply, position, command).map_err(io::Error::other),
            // The service lets nothing malformed through, but an answer is owed to the log.
            Err(_) => Ok(answer(&Err(ChunkError::BadRequest))),
        }
    }

    fn state(&self) -> Bytes {
        self.state.read().unwrap_or_else(PoisonError::into_inner).encode()
    }

    fn restore(&mut self, state: Bytes) -> io::Result<()> {
        self.replace(&state)
    }

    fn snapshot(&self, view: ChunkView) -> Box<dyn SnapshotSource> {
        Box::new(Sender::new(view))
    }

    fn begin_install(&self) -> Box<dyn SnapshotSink> {
        Box::new(Receiver)
    }
}
