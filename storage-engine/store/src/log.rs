//! The vocabulary of a group's replicated log, as the store keeps it: positions, entries, votes.

use std::fmt;

use bytes::Bytes;
use curve_types::DeviceId;

pub(crate) mod index;

/// Identifies a log entry: the leader (term and node) that proposed it, and its index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LogPosition {
    pub term: u64,
    pub node: DeviceId,
    pub index: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T{}-N{}-{}", self.term, self.node, self.index)
    }
}

/// One entry. The store never looks into `kind`, `header` and `payload`; they are kept apart so
/// that a payload received from the network is never copied to be joined with its header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    pub position: LogPosition,
    /// Meaning chosen by the Raft host (blank, normal, membership).
    pub kind: u8,
    pub header: Bytes,
    pub payload: Bytes,
}

impl LogEntry {
    /// Most bytes that header and payload of one entry may have together.
    pub const BYTES_MAX: usize = 2 << 20;

    /// Bytes of header and payload.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.len()
    }

    /// True when both header and payload are empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A vote (or, once `committed`, the leader it elected).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vote {
    pub term: u64,
    pub node: Option<DeviceId>,
    pub committed: bool,
}

/// Ends of a group's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogState {
    /// Everything up to here is gone from the log (and is part of the applied state).
    pub last_purged: Option<LogPosition>,
    /// Last entry, or `last_purged` when the log is empty.
    pub last: Option<LogPosition>,
}
