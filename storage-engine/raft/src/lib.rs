//! Many Raft groups in one process, over one log and one set of connections.
//!
//! `host` starts and stops groups and takes in frames, `group` is what callers hold, `machine` is
//! what they implement. Nothing here knows what a command means, what a copyset stores, or where a
//! peer lives (`Resolve` does).

mod blocking;
mod codec;
mod commits;
mod core;
mod election;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gate;
mod group;
mod heard;
mod host;
mod inbox;
mod lease;
mod log;
mod machine;
mod metrics;
mod network;
mod options;
mod peers;
mod replica;
mod room;
mod snapshot;
mod types;
pub mod witness;

pub use blocking::in_thread;
pub use group::{ChangeError, GroupHandle, Leadership, ProposeError, ReadError, TransferError};
pub use host::{HostError, RaftHost};
pub use machine::{Answer, Division, NoParts, SnapshotSink, SnapshotSource, StateMachine};
pub use options::{Factory, GroupReport, HostOptions, ReadPolicy, Resolve, Timing};
pub use peers::DialError;

/// What the owner of a host needs of the store to open its device and to implement a
/// `StateMachine`, for crates that may not know the store itself.
pub mod device {
    pub use curve_store::{
        Apply, DeviceState, Disk, FileDisk, FormatOptions, Group, LogPosition, RecoveredGroup,
        Store, StoreError, StoreOptions, Superblock, format, inspect, simulate::open_or_create,
    };
}

#[cfg(test)]
mod tests;
