//! Settings of a host and what it reports.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use curve_store::{Group, RecoveredGroup, Store};
use curve_types::{CopysetId, DeviceId};
use curve_wire::auth::Key;

use crate::StateMachine;

/// Makes the state machine of a group: from the blob of its last checkpoint, or empty.
pub type Factory = Arc<
    dyn Fn(CopysetId, &Group, Option<Bytes>) -> io::Result<Box<dyn StateMachine>> + Send + Sync,
>;

/// Where devices are now. Asked at every dial: addresses change and are never stored.
pub trait Resolve: Send + Sync + 'static {
    /// `host:port` of the device's data plane, if known.
    fn address(&self, device: DeviceId) -> Option<String>;
}

/// How `read_barrier` makes sure that this replica still leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReadPolicy {
    /// By the lease that a quorum's answers grant; without one, as `ReadIndex`.
    #[default]
    Lease,
    /// By asking a quorum for every batch of reads: no assumption about clocks.
    ReadIndex,
}

/// Raft's clocks. All members of a cluster must use the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    pub heartbeat: Duration,
    /// Silence after which a follower stands for election: random between the two.
    pub election_min: Duration,
    pub election_max: Duration,
    /// A leader serves reads alone for this long after it sent what a quorum answered.
    pub lease: Duration,
    /// A follower helps nobody to replace a leader that it heard within this time; longer than
    /// `lease` by the clock drift that is tolerated (a twentieth, far above what clocks do).
    pub lease_hold: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            election_min: Duration::from_millis(1800),
            election_max: Duration::from_millis(2400),
            lease: Duration::from_millis(760),
            lease_hold: Duration::from_millis(800),
        }
    }
}

/// What a host needs.
#[derive(Clone)]
pub struct HostOptions {
    /// This device: Raft node id and identity towards peers.
    pub device: DeviceId,
    pub store: Store,
    /// What `Store::open` found.
    pub recovered: Vec<RecoveredGroup>,
    /// Key of this kind of process among its peers.
    pub peer_key: Key,
    pub resolver: Arc<dyn Resolve>,
    pub timing: Timing,
    pub read_policy: ReadPolicy,
    /// Most bytes per second that this host sends as snapshots; 0 for no limit.
    pub snapshot_bytes_per_second: u64,
}

/// One group as this host sees it, for heartbeats to the MDS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupReport {
    pub id: CopysetId,
    pub term: u64,
    pub leader: Option<DeviceId>,
    pub is_leader: bool,
    /// Index of the last applied entry.
    pub applied: Option<u64>,
    /// Index of the last entry in this replica's log.
    pub last: Option<u64>,
    /// Log index of the committed configuration; what `change_membership` expects.
    pub config_index: Option<u64>,
    /// A change of configuration is under way (joint, or not yet committed).
    pub changing: bool,
    pub voters: BTreeSet<DeviceId>,
    pub learners: BTreeSet<DeviceId>,
    /// Members whose log is as good as complete. Known to the leader only, else empty.
    pub caught_up: BTreeSet<DeviceId>,
    /// Members that answered within the election timeout. Known to the leader only, else empty.
    pub reachable: BTreeSet<DeviceId>,
    /// Why this replica stopped for good, if it did.
    pub failure: Option<String>,
}
