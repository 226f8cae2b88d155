//! The cluster as the MDS group agrees on it. Changed only by `apply`, which is pure: no clock, no
//! randomness, no I/O; every replica that applies the same commands holds the same state.

mod answered;
mod apply;
mod codec;
mod devices;
mod limits;
mod pools;
mod schedule;
mod schedulers;
mod scrubs;
mod snapshots;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use curve_types::{
    ChunkIndex, ChunkKey, ClusterId, CopysetId, DeviceId, Epoch, PoolId, SHARDS_PER_VOLUME,
    SessionId, ShardRange, VolumeId, VolumeLimits, chunk_shard,
};

pub use answered::Answered;
pub use apply::{DEFAULT_POOL, validate_name};
pub use schedule::Schedule;
pub use schedulers::Scheduler;
pub use scrubs::{Comparison, EndedScrub, Findings, RunningScrub, Scrub, Scrubs};

/// Longest name of anything, in bytes.
pub const NAME_LEN_MAX: usize = 128;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    pub id: ClusterId,
    pub name: String,
}

/// A chunkserver's device, as it was last registered or heard of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Device {
    pub name: String,
    pub host: String,
    /// Equals the host where no zone was given.
    pub zone: String,
    pub class: String,
    pub size: u64,
    /// Bytes usable for chunk data; 0 until the first heartbeat.
    pub capacity: u64,
    pub address: String,
    /// Another device registered under the same name since: this one was wiped or taken out.
    pub superseded: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureDomain {
    Host,
    Zone,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    pub name: String,
    pub replicas: u32,
    pub failure_domain: FailureDomain,
    /// Empty: any.
    pub class: String,
    /// What its volumes may have in all, of its logical capacity. The only property that changes.
    pub overcommit_percent: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copyset {
    pub pool: PoolId,
    pub shards: ShardRange,
    /// Of the committed configuration as last observed; while not active, as planned, and the
    /// first one forms the group.
    pub voters: Vec<DeviceId>,
    /// Set once its leader has been heard of. Never unset.
    pub active: bool,
    /// Log index of the configuration that `voters` was observed in.
    pub config_index: u64,
    /// A replica being moved.
    pub joining: Option<Joining>,
    /// The copyset that is leaving this one, with the upper half of its shards.
    pub splitting: Option<CopysetId>,
    /// The copyset that this one left.
    pub split_from: Option<CopysetId>,
}

/// `add` catches up as a learner, then takes the place of `remove`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joining {
    pub add: DeviceId,
    pub remove: DeviceId,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    pub name: String,
    pub pool: PoolId,
    pub size: u64,
    /// Of the newest attachment. Copysets must refuse what is below.
    pub epoch: Epoch,
    /// The epoch that all copysets are known to enforce. Below `epoch` a fence is owed.
    pub fenced_epoch: Epoch,
    /// Its chunks are being dropped; the name is free again.
    pub deleting: bool,
    pub created_unix_ms: u64,
    pub sessions: BTreeMap<SessionId, Session>,
    /// Sessions that ended while others go on at the same epoch: copysets must refuse them too.
    /// Each stays here until all are known to.
    pub revoking: BTreeSet<SessionId>,
    /// How many sessions were ended so since the epoch was raised.
    pub revoked: u32,
    /// By node.
    pub publications: BTreeMap<String, Publication>,
    pub limits: VolumeLimits,
    /// Set for a snapshot, whose `name` is then `VOLUME@SNAPSHOT`. Never unset.
    pub snapshot: Option<Snapshot>,
    /// The snapshot whose data its copysets must still take over, at `epoch`; nobody may use it
    /// before. Doing that is also the fence that the epoch owes.
    pub restoring: Option<VolumeId>,
    /// The snapshot that it was made from, which may be gone.
    pub source: Option<VolumeId>,
}

/// What one volume was at one moment. Its chunks lie where that volume's do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// May be deleted by now.
    pub volume: VolumeId,
    /// As it was then.
    pub volume_name: String,
    /// Behind the @.
    pub name: String,
    /// Every copyset has taken it; it is not to be used before.
    pub ready: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    pub epoch: Epoch,
    pub node: String,
    pub read_only: bool,
    pub shared: bool,
}

impl Volume {
    /// Whether a copyset may still accept what it must refuse, and a fence is to change that.
    pub fn owes_fence(&self) -> bool {
        let owed = self.fenced_epoch < self.epoch || !self.revoking.is_empty();
        owed && self.restoring.is_none()
    }
}

impl Session {
    /// Whether sessions of several nodes may exist beside this one.
    pub fn tolerant(&self) -> bool {
        self.read_only || self.shared
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Publication {
    pub read_only: bool,
    pub shared: bool,
}

/// Why a command changed nothing. The message is for a person.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    Invalid = 1,
    NotFound = 2,
    AlreadyExists = 3,
    Precondition = 4,
    Exhausted = 5,
    Forbidden = 6,
    /// It will be possible later, without anyone changing the request.
    NotReady = 7,
}

impl Refusal {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub cluster: Option<Cluster>,
    /// The MDS group itself: process name to Raft node id.
    pub members: BTreeMap<String, DeviceId>,
    pub devices: BTreeMap<DeviceId, Device>,
    /// Raised by every change of what a device map shows.
    pub device_map_version: u64,
    pub pools: BTreeMap<PoolId, Pool>,
    pub copysets: BTreeMap<CopysetId, Copyset>,
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// They begin nothing more.
    pub paused: BTreeSet<Scheduler>,
    pub scrubs: Scrubs,
    next_pool: u32,
    next_copyset: u32,
    next_session: u64,
    answered: Answered,
    /// Derived: volumes that are not being deleted, by name.
    names: BTreeMap<String, VolumeId>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            cluster: None,
            members: BTreeMap::new(),
            devices: BTreeMap::new(),
            device_map_version: 1,
            pools: BTreeMap::new(),
            copysets: BTreeMap::new(),
            volumes: BTreeMap::new(),
            paused: BTreeSet::new(),
            scrubs: Scrubs::default(),
            next_pool: 1,
            // 0 is the MDS's own group.
            next_copyset: 1,
            next_session: 1,
            answered: Answered::default(),
            names: BTreeMap::new(),
        }
    }
}

impl State {
    pub fn pool_by_name(&self, name: &str) -> Option<(PoolId, &Pool)> {
        self.pools.iter().find(|(_, pool)| pool.name == name).map(|(id, pool)| (*id, pool))
    }

    /// A volume that is not being deleted.
    pub fn volume_by_name(&self, name: &str) -> Option<(VolumeId, &Volume)> {
        let id = *self.names.get(name)?;
        Some((id, self.volumes.get(&id)?))
    }

    /// Volumes that are not being deleted, without snapshots, in order of their names, after `name`.
    pub fn volumes_after<'a>(
        &'a self,
        name: &str,
    ) -> impl Iterator<Item = (VolumeId, &'a Volume)> + use<'a> {
        self.records_after(name).filter(|(_, volume)| volume.snapshot.is_none())
    }

    /// Snapshots that are not being deleted, in order of their names, after `name`.
    pub fn snapshots_after<'a>(
        &'a self,
        name: &str,
    ) -> impl Iterator<Item = (VolumeId, &'a Volume, &'a Snapshot)> + use<'a> {
        let records = self.records_after(name);
        records.filter_map(|(id, volume)| Some((id, volume, volume.snapshot.as_ref()?)))
    }

    fn records_after<'a>(
        &'a self,
        name: &str,
    ) -> impl Iterator<Item = (VolumeId, &'a Volume)> + use<'a> {
        let from = (std::ops::Bound::Excluded(name.to_owned()), std::ops::Bound::Unbounded);
        self.names.range(from).filter_map(|(_, id)| Some((*id, self.volumes.get(id)?)))
    }

    pub fn copysets_of(&self, pool: PoolId) -> impl Iterator<Item = (CopysetId, &Copyset)> {
        let of_pool = move |(_, copyset): &(&CopysetId, &Copyset)| copyset.pool == pool;
        self.copysets.iter().filter(of_pool).map(|(id, copyset)| (*id, copyset))
    }

    /// Every copyset that may hold a chunk of the volume, whatever its size.
    pub fn copysets_of_volume(&self, volume: VolumeId, pool: PoolId) -> BTreeSet<CopysetId> {
        let shards: Vec<_> = (0..SHARDS_PER_VOLUME)
            .map(|index| chunk_shard(ChunkKey { volume, index: ChunkIndex(index) }))
            .collect();
        self.copysets_of(pool)
            .filter(|(_, copyset)| shards.iter().any(|shard| copyset.shards.contains(*shard)))
            .map(|(id, _)| id)
            .collect()
    }

    /// Copysets of which the device has, or is to get, a replica.
    pub fn copysets_on(&self, device: DeviceId) -> impl Iterator<Item = (CopysetId, &Copyset)> {
        let here = move |(_, copyset): &(&CopysetId, &Copyset)| copyset.is_on(device);
        self.copysets.iter().filter(here).map(|(id, copyset)| (*id, copyset))
    }

    /// The device that took the name of a superseded one.
    pub fn successor(&self, superseded: &Device) -> Option<DeviceId> {
        let successor = |(_, device): &(&DeviceId, &Device)| {
            !device.superseded && device.name == superseded.name
        };
        self.devices.iter().find(successor).map(|(id, _)| *id)
    }
}

impl Copyset {
    /// Whether the device has, or is to get, a replica.
    pub fn is_on(&self, device: DeviceId) -> bool {
        self.voters.contains(&device) || self.joining.is_some_and(|joining| joining.add == device)
    }

    /// Whether these are its voters, in any order.
    pub fn has_voters(&self, voters: &[DeviceId]) -> bool {
        voters.len() == self.voters.len() && voters.iter().all(|id| self.voters.contains(id))
    }

    pub fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }
}

impl Device {
    pub fn domain(&self, kind: FailureDomain) -> &str {
        match kind {
            FailureDomain::Host => &self.host,
            FailureDomain::Zone => &self.zone,
        }
    }

    /// Whether the pool may place replicas here.
    pub fn suits(&self, pool: &Pool) -> bool {
        !self.superseded && (pool.class.is_empty() || pool.class == self.class)
    }
}

#[cfg(test)]
mod tests;
