//! How full of data pools are, and when that is worth an alarm. Pure.
//!
//! What volumes were promised counts when they are made (`capacity`); here it is what was written.

use std::collections::BTreeMap;

use curve_types::{ByteSize, PoolId};
use curve_wire::proto::Health;

use crate::view::Scene;

/// Time enough to order and add devices.
const FILLING_PERCENT: u128 = 75;
/// Whoever fills it must be stopped now.
const NEARLY_FULL_PERCENT: u128 = 90;

/// Bytes of one pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    /// What is stored, each byte counted once. Of devices that pools share, each has the part that
    /// its replicas there are of all.
    pub used: u64,
    pub capacity: u64,
    pub provisioned: u64,
    /// What volumes and snapshots would take if they shared nothing.
    pub possible: u64,
}

impl Fill {
    /// That of each pool.
    pub fn of_pools(scene: Scene<'_>) -> BTreeMap<PoolId, Self> {
        let state = scene.state;
        let mut stored = BTreeMap::<PoolId, u128>::new();
        for (device, seen) in &scene.view.devices {
            let mut replicas = BTreeMap::<PoolId, u128>::new();
            for (_, copyset) in state.copysets_on(*device) {
                *replicas.entry(copyset.pool).or_default() += 1;
            }
            let all: u128 = replicas.values().sum();
            for (pool, own) in replicas {
                *stored.entry(pool).or_default() += u128::from(seen.used) * own / all;
            }
        }
        let fill = |id: PoolId, replicas: u32| {
            let used = stored.get(&id).copied().unwrap_or(0) / u128::from(replicas.max(1));
            let volumes = state.volumes.values().filter(|volume| volume.pool == id);
            Self {
                used: u64::try_from(used).unwrap_or(u64::MAX),
                capacity: state.logical_capacity(id),
                provisioned: state.provisioned(id),
                possible: volumes.fold(0, |sum, volume| sum.saturating_add(volume.size)),
            }
        };
        state.pools.iter().map(|(id, pool)| (*id, fill(*id, pool.replicas))).collect()
    }

    /// A pool whose volumes and snapshots all fit cannot run out of room, however full it is.
    pub fn health(&self) -> Health {
        let reached = |percent| {
            u128::from(self.used) * 100 >= u128::from(self.capacity) * percent && self.used > 0
        };
        if self.possible <= self.capacity || !reached(FILLING_PERCENT) {
            Health::Ok
        } else if reached(NEARLY_FULL_PERCENT) {
            Health::Error
        } else {
            Health::Warn
        }
    }

    /// What is wrong with the pool of that name, and what to do.
    pub fn message(&self, name: &str) -> Option<String> {
        let how = match self.health() {
            Health::Error => "is nearly full",
            Health::Warn => "is filling up",
            Health::Ok | Health::Unknown => return None,
        };
        Some(format!(
            "pool {name:?} {how}: {} of {} are used and {} are provisioned; writes will fail when \
             it is full: add chunkservers, delete volumes or snapshots, or trim file systems",
            ByteSize(self.used),
            ByteSize(self.capacity),
            ByteSize(self.provisioned)
        ))
    }
}

#[cfg(test)]
mod tests;
