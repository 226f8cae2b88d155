//! How much a pool can hold. Pure arithmetic over the state.
//!
//! Data spreads evenly over a pool's shards, so a device that hosts replicas of `s` of the 1,024
//! shards receives `s / 1024` of every volume's bytes. A pool is full when the first of its
//! devices is: its logical capacity is the smallest `usable / share` over its devices, less what
//! other pools claim on them. 95 % of a device are usable; the rest absorbs uneven chunks and the
//! blocks that a copy on write holds twice.
//!
//! Volumes take up what is written to them, so a pool may promise more than it can hold: its
//! overcommit says how much. A pool claims of shared devices what it has provisioned, divided by
//! its overcommit.

use std::collections::BTreeMap;

use curve_types::{ByteSize, DeviceId, PoolId, SHARDS_PER_POOL};

use crate::state::{Pool, Reason, Refusal, State, Volume};

const USABLE_PERCENT: u128 = 95;

impl State {
    /// Sum of the sizes of a pool's volumes, those being deleted included. Snapshots share what
    /// they show with their volumes.
    pub fn provisioned(&self, pool: PoolId) -> u64 {
        let counts = |volume: &&Volume| volume.pool == pool && volume.snapshot.is_none();
        self.volumes.values().filter(counts).map(|volume| volume.size).sum()
    }

    /// Bytes that the volumes of a pool may have in all.
    pub fn provisioned_limit(&self, pool: PoolId) -> u64 {
        let percent = self.pools.get(&pool).map_or(0, |pool| pool.overcommit_percent);
        let limit = u128::from(self.logical_capacity(pool)) * u128::from(percent) / 100;
        u64::try_from(limit).unwrap_or(u64::MAX)
    }

    /// Bytes that can be stored in a pool, each counted once; 0 while it has no copysets.
    pub fn logical_capacity(&self, pool: PoolId) -> u64 {
        let mut elsewhere: BTreeMap<DeviceId, u128> = BTreeMap::new();
        for (other, Pool { overcommit_percent, .. }) in
            self.pools.iter().filter(|(id, _)| **id != pool)
        {
            let claim =
                u128::from(self.provisioned(*other)) * 100 / u128::from(*overcommit_percent);
            for (device, shards) in self.shards_on_devices(*other) {
                let share = claim * u128::from(shards) / u128::from(SHARDS_PER_POOL);
                *elsewhere.entry(device).or_default() += share;
            }
        }
        let bound = |(device, shards): (DeviceId, u32)| {
            let capacity = self.devices.get(&device).map_or(0, |device| device.capacity);
            let usable = u128::from(capacity) * USABLE_PERCENT / 100;
            let free = usable.saturating_sub(elsewhere.get(&device).copied().unwrap_or(0));
            free * u128::from(SHARDS_PER_POOL) / u128::from(shards.max(1))
        };
        let smallest = self.shards_on_devices(pool).into_iter().map(bound).min().unwrap_or(0);
        u64::try_from(smallest).unwrap_or(u64::MAX)
    }

    /// Replicated shards of the pool, by the device that hosts them.
    fn shards_on_devices(&self, pool: PoolId) -> BTreeMap<DeviceId, u32> {
        let mut shards = BTreeMap::new();
        for (_, copyset) in self.copysets_of(pool) {
            for voter in &copyset.voters {
                // What a lost device held is about to move to another: it limits nothing.
                if self.devices.get(voter).is_some_and(|device| !device.superseded) {
                    *shards.entry(*voter).or_default() += copyset.shards.end - copyset.shards.first;
                }
            }
        }
        shards
    }

    pub(crate) fn check_room(&self, pool: PoolId, more: u64) -> Result<(), Refusal> {
        let (limit, provisioned) = (self.provisioned_limit(pool), self.provisioned(pool));
        if provisioned.checked_add(more).is_some_and(|sum| sum <= limit) {
            return Ok(());
        }
        let found = &self.pools[&pool];
        let message = format!(
            "pool {:?} is full: {} more were asked for, its volumes have {} of {}, which is {} % \
             (overcommit_percent) of its capacity of {}",
            found.name,
            ByteSize(more),
            ByteSize(provisioned),
            ByteSize(limit),
            found.overcommit_percent,
            ByteSize(self.logical_capacity(pool))
        );
        Err(Refusal::new(Reason::Exhausted, message))
    }

    /// Volumes are made only once every copyset of their pool has been formed.
    pub(crate) fn check_ready(&self, pool: PoolId) -> Result<(), Refusal> {
        let total = self.copysets_of(pool).count();
        let active = self.copysets_of(pool).filter(|(_, copyset)| copyset.active).count();
        let Some(found) = self.pools.get(&pool) else {
            return Err(Refusal::new(Reason::NotFound, format!("pool {pool} does not exist")));
        };
        let name = &found.name;
        let message = match (total, active) {
            (0, _) => {
                let domains: std::collections::BTreeSet<&str> = self
                    .devices
                    .values()
                    .filter(|device| device.suits(found))
                    .map(|device| device.domain(found.failure_domain))
                    .collect();
                format!(
                    "pool {name:?} has no copysets yet: it needs devices in {} different {}s, {} \
                     are registered",
                    found.replicas,
                    found.failure_domain.as_str(),
                    domains.len()
                )
            }
            (total, active) if active < total => {
                format!("pool {name:?} is being set up: {active} of {total} copysets are formed")
            }
            _ => return Ok(()),
        };
        Err(Refusal::new(Reason::NotReady, message))
    }
}
