//! Many Raft groups in one process, over one log and one set of connections.
//!
//! `host` starts and stops groups and takes in frames, `group` is what callers hold, `machine` is
//! what they implement. Nothing here knows what a command means, what a copyset stores, or where a
//! peer lives (`Resolve` does).

mod group;
mod host;
mod machine;
mod options;

pub use group::{ChangeError, GroupHandle, Leadership, ProposeError, ReadError, TransferError};
pub use host::{HostError, RaftHost};
pub use machine::{NoParts, SnapshotSink, SnapshotSource, StateMachine};
pub use options::{Factory, GroupReport, HostOptions, ReadPolicy, Resolve, Timing};
