//! What a group replicates: the deterministic state machine that its owner implements.

use std::io;

use bytes::Bytes;
use curve_store::{Apply, ChunkView, Install, LogPosition};
use curve_types::{ChunkKey, CopysetId};

/// What became of a command.
pub struct Answer {
    /// For whoever proposed it.
    pub reply: Bytes,
    /// Set if it divides the group.
    pub division: Option<Division>,
}

impl From<Bytes> for Answer {
    fn from(reply: Bytes) -> Self {
        Self { reply, division: None }
    }
}

/// Some of a group's chunks are another's from a command on. That has the same members, and its log
/// goes on where the command was.
pub struct Division {
    pub id: CopysetId,
    /// The new group's own, as `StateMachine::state` would return it.
    pub state: Bytes,
    /// Which chunks it gets.
    pub moves: Box<dyn Fn(&ChunkKey) -> bool + Send>,
}

/// One per group. Called by one task, never concurrently.
///
/// A command is applied under the store's apply lock, so that a checkpoint sees whole commands.
/// Use the given `Apply` for every change of chunks; never call `Group::begin_apply`,
/// `Group::view` or `Group::begin_install` from inside these methods.
pub trait StateMachine: Send + 'static {
    /// Carries out a committed command and returns the answer for whoever proposed it. Every
    /// replica must come to the same state and answer: no clock, no randomness, no local settings.
    /// `header` and `payload` are what `GroupHandle::propose` was given.
    ///
    /// An error stops this replica for good (it would differ from its peers otherwise); a command
    /// that is merely refused is an answer.
    fn apply(
        &mut self,
        apply: &Apply<'_>,
        position: LogPosition,
        header: Bytes,
        payload: Bytes,
    ) -> io::Result<Answer>;

    /// Everything but the chunks, as a blob: it goes into checkpoints and snapshots, and `restore`
    /// of another replica (perhaps of a later version) reads it. At most 64 MiB.
    fn state(&self) -> Bytes;

    /// Replaces the state by one that `state` returned. The chunks are already switched.
    fn restore(&mut self, state: Bytes) -> io::Result<()>;

    /// The chunks of a snapshot, as parts. The default has none.
    fn snapshot(&self, view: ChunkView) -> Box<dyn SnapshotSource> {
        drop(view);
        Box::new(NoParts)
    }

    /// Takes in what a peer's `snapshot` gave. The default expects no part.
    fn begin_install(&self) -> Box<dyn SnapshotSink> {
        Box::new(NoParts)
    }
}

/// Parts of a pinned state, in order. May block on the disk.
pub trait SnapshotSource: Send + 'static {
    /// Called before the first part, if the receiver has the state as the entry at `index` left it:
    /// what has not changed since may be named instead of sent.
    fn since(&mut self, index: u64) {
        let _ = index;
    }

    /// The next part, at most 1 MiB; `None` after the last.
    fn next(&mut self) -> io::Result<Option<Bytes>>;
}

/// Receives the parts in order. May block on the disk.
pub trait SnapshotSink: Send + 'static {
    /// Validates a part and puts its chunks into `install`, whose switch the host makes. An error
    /// of kind `InvalidData` makes the next snapshot a whole one.
    fn put(&mut self, install: &Install, part: Bytes) -> io::Result<()>;
}

/// For state machines that keep nothing in chunks.
#[derive(Clone, Copy, Debug)]
pub struct NoParts;

impl SnapshotSource for NoParts {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        Ok(None)
    }
}

impl SnapshotSink for NoParts {
    fn put(&mut self, _install: &Install, _part: Bytes) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::InvalidData, "snapshot part where none is expected"))
    }
}
