//! Where the replicas of new copysets go.
//!
//! Greedy and deterministic: each copyset takes, from the least loaded failure domains, the least
//! loaded device of each, where load is replicas per byte of device. Ties are broken by a hash, so
//! that equal devices are combined in many different sets: when two devices fail, few copysets
//! lose two replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use curve_types::{CopysetId, DeviceId, PoolId, SHARDS_PER_POOL, ShardRange};

use crate::log::{self, command::Kind, ids_to_wire};
use crate::state::{Copyset, Device, Joining, Pool};
use crate::view::Scene;

/// Fewest copysets of a pool: enough to spread leaders over three disks, few enough that a shallow
/// queue still batches.
const COPYSETS_MIN: u32 = 8;
/// A pool is divided once no device has been added for so long, so that a cluster that is just
/// starting is divided over all of its devices.
const SETTLE: Duration = Duration::from_secs(2);
/// A device that should form a group and is silent for so long is replaced: nothing is lost, the
/// group holds nothing yet.
const FORM_PATIENCE: Duration = Duration::from_secs(30);

/// Divides pools that have no copysets and enough failure domains.
pub fn plan_new_copysets(scene: Scene<'_>) -> Vec<Kind> {
    if scene.now.saturating_sub(scene.view.devices_changed) < SETTLE {
        return Vec::new();
    }
    let mut load = Load::of(scene);
    let undivided = |id: &PoolId| scene.state.copysets_of(*id).next().is_none();
    let mut commands = Vec::new();
    for (id, pool) in scene.state.pools.iter().filter(|(id, _)| undivided(id)) {
        let devices: Vec<_> = scene.candidates(pool).collect();
        let count = copyset_count(devices.len() as u32);
        let placements: Option<Vec<log::Placement>> = ShardRange::divide(count)
            .enumerate()
            .map(|(nth, shards)| {
                let seed = u64::from(id.0) << 32 | nth as u64;
                let voters = load.place(pool, &devices, seed)?;
                Some(log::Placement {
                    shard_first: shards.first,
                    shard_end: shards.end,
                    voters: ids_to_wire(&voters),
                })
            })
            .collect();
        if let Some(placements) = placements {
            commands.push(Kind::AddCopysets(log::AddCopysets { pool: id.0, placements }));
        }
    }
    commands
}

/// Starts over with copysets that cannot be formed, because too few of their devices are left.
pub fn plan_recreations(scene: Scene<'_>) -> Vec<Kind> {
    let mut load = Load::of(scene);
    let lost =
        |id: &DeviceId| scene.is_out(*id) || scene.view.silence(*id, scene.now) > FORM_PATIENCE;
    let hopeless = |copyset: &Copyset| {
        let left = copyset.voters.iter().filter(|voter| !lost(voter)).count();
        !copyset.active && left < copyset.quorum()
    };
    let mut commands = Vec::new();
    for (id, copyset) in scene.state.copysets.iter().filter(|(_, copyset)| hopeless(copyset)) {
        let pool = &scene.state.pools[&copyset.pool];
        let devices: Vec<_> = scene.candidates(pool).collect();
        if let Some(voters) = load.place(pool, &devices, seed_of(*id)) {
            let voters = ids_to_wire(&voters);
            let recreate = log::RecreateCopyset { copyset: id.0, voters };
            commands.push(Kind::RecreateCopyset(recreate));
        }
    }
    commands
}

fn seed_of(id: CopysetId) -> u64 {
    u64::from(id.0)
}

/// Copysets of a pool over so many disks: 8/3 per disk, a power of two so that they can be split
/// evenly later.
pub fn copyset_count(disks: u32) -> u32 {
    (disks * 8 / 3).next_power_of_two().clamp(COPYSETS_MIN, SHARDS_PER_POOL)
}

/// Replicas and planned leaders of every device, kept up to date while planning.
pub struct Load {
    replicas: BTreeMap<DeviceId, u64>,
    leaders: BTreeMap<DeviceId, u64>,
}

impl Load {
    pub fn of(scene: Scene<'_>) -> Self {
        Self::count(scene.state.copysets.values())
    }

    pub fn of_pool(scene: Scene<'_>, pool: PoolId) -> Self {
        Self::count(scene.state.copysets_of(pool).map(|(_, copyset)| copyset))
    }

    fn count<'a>(copysets: impl Iterator<Item = &'a Copyset>) -> Self {
        let mut load = Self { replicas: BTreeMap::new(), leaders: BTreeMap::new() };
        for copyset in copysets {
            if let Some(first) = copyset.voters.first() {
                *load.leaders.entry(*first).or_default() += 1;
            }
            let joining = copyset.joining.iter().map(|joining| &joining.add);
            for device in copyset.voters.iter().chain(joining) {
                load.add_replica(*device);
            }
        }
        load
    }

    pub fn add_replica(&mut self, device: DeviceId) {
        *self.replicas.entry(device).or_default() += 1;
    }

    /// Orders devices from the emptiest to the fullest, as it would be with one replica more.
    pub fn rank(&self, id: DeviceId, device: &Device, seed: u64) -> (u128, u64) {
        let replicas = self.replicas_on(id) + 1;
        ((replicas << 64) / mebibytes(device), mix(seed, id))
    }

    pub fn move_replica(&mut self, joining: Joining) {
        self.add_replica(joining.add);
        if let Some(replicas) = self.replicas.get_mut(&joining.remove) {
            *replicas = replicas.saturating_sub(1);
        }
    }

    /// Whether the giver, without one of its replicas, is still as full as the taker with it.
    pub fn evens_out(&self, giver: (DeviceId, &Device), taker: (DeviceId, &Device)) -> bool {
        let (given, taken) = (self.replicas_on(giver.0), self.replicas_on(taker.0) + 1);
        given > 0 && (given - 1) * mebibytes(taker.1) >= taken * mebibytes(giver.1)
    }

    /// Whether the giver is fuller than the taker without so many replicas that are on their way.
    pub fn is_fuller(
        &self,
        giver: (DeviceId, &Device),
        taker: (DeviceId, &Device),
        arriving: u128,
    ) -> bool {
        let (given, taken) = (self.replicas_on(giver.0), self.replicas_on(taker.0));
        given * mebibytes(taker.1) > taken.saturating_sub(arriving) * mebibytes(giver.1)
    }

    fn replicas_on(&self, device: DeviceId) -> u128 {
        u128::from(self.replicas.get(&device).copied().unwrap_or(0))
    }

    /// Voters of one new copyset, the one that should lead first; None if there are too few
    /// failure domains.
    fn place(
        &mut self,
        pool: &Pool,
        devices: &[(DeviceId, &Device)],
        seed: u64,
    ) -> Option<Vec<DeviceId>> {
        let mut ranked: Vec<_> = devices
            .iter()
            .map(|(id, device)| (self.rank(*id, device, seed), *id, *device))
            .collect();
        ranked.sort_by_key(|(rank, id, _)| (*rank, *id));
        let mut domains = BTreeSet::new();
        let mut voters: Vec<DeviceId> = ranked
            .into_iter()
            .filter(|(_, _, device)| domains.insert(device.domain(pool.failure_domain)))
            .map(|(_, id, _)| id)
            .take(pool.replicas as usize)
            .collect();
        if voters.len() < pool.replicas as usize {
            return None;
        }
        voters.iter().for_each(|voter| self.add_replica(*voter));
        voters.sort_by_key(|voter| {
            (self.leaders.get(voter).copied().unwrap_or(0), mix(seed, *voter))
        });
        *self.leaders.entry(voters[0]).or_default() += 1;
        Some(voters)
    }
}

fn mebibytes(device: &Device) -> u128 {
    u128::from((device.capacity >> 20).max(1))
}

/// A hash of both, to break ties evenly (finalizer of SplitMix64).
fn mix(seed: u64, id: DeviceId) -> u64 {
    let id = id.0.as_u128();
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (id as u64) ^ ((id >> 64) as u64);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copysets_grow_with_the_disks() {
        let cases = [(3, 8), (4, 16), (6, 16), (12, 32), (48, 128), (100_000, 1024)];
        for (disks, copysets) in cases {
            assert_eq!(copyset_count(disks), copysets, "{disks} disks");
        }
    }
}
