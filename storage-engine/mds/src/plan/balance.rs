//! Evens replicas out over devices: one at a time from the fullest to the emptiest device that may
//! take it, where full means replicas per byte, as in `placement`.
//!
//! A move must leave the device that gave at least as full as the one that took. The sum of
//! `replicas² / bytes` then falls with every move, so that moves end and none is ever taken back.

use std::collections::BTreeSet;
use std::time::Duration;

use curve_types::{CopysetId, DeviceId, PoolId};

use super::placement::Load;
use super::repair::{can_take_in, replacement, replica_bytes};
use crate::log::command::Kind;
use crate::state::{Copyset, Device, Joining, Pool};
use crate::view::{Condition, Scene};

/// Replicas on their way in the whole cluster for the sake of balance. Nobody waits for them, and
/// each reads from one disk and writes to another.
const MOVES_MAX: usize = 8;
/// A device must have been up for so long before it is given replicas: one that has just come may
/// go again, and several that come together are all there when the first replica moves.
const STEADY: Duration = Duration::from_secs(30);

/// Begins moves, as far as the limits allow: a device gives or takes one replica at a time.
pub fn plan_moves(scene: Scene<'_>) -> Vec<Kind> {
    let mut load = Load::of(scene);
    let joining = || scene.state.copysets.values().filter_map(|copyset| copyset.joining);
    let mut busy: BTreeSet<DeviceId> = joining().flat_map(|j| [j.add, j.remove]).collect();
    let mut moves = joining().count();
    let mut begun = BTreeSet::new();
    let mut commands = Vec::new();
    for (id, pool) in scene.state.pools.iter().filter(|(id, _)| is_calm(scene, **id)) {
        let own = Load::of_pool(scene, *id);
        let mut givers: Vec<_> = scene.candidates(pool).collect();
        givers.sort_by_cached_key(|(id, device)| load.rank(*id, device, 0));
        for (giver, device) in givers.iter().rev() {
            if moves >= MOVES_MAX {
                return commands;
            }
            if busy.contains(giver) {
                continue;
            }
            let takers = givers
                .iter()
                .take_while(|(taker, facts)| load.evens_out((*giver, device), (*taker, facts)));
            let takers = takers
                .filter(|(taker, _)| !busy.contains(taker) && scene.is_steady(*taker, STEADY));
            // Pools that share devices are to share each of them.
            let takers =
                takers.filter(|(taker, facts)| own.is_fuller((*giver, device), (*taker, facts), 0));
            let found = takers.filter_map(|taker| {
                let copyset = choose(scene, &begun, (*id, pool), *giver, *taker)?;
                Some((copyset, Joining { add: taker.0, remove: *giver }))
            });
            let Some((copyset, joining)) = found.into_iter().next() else { continue };
            begun.insert(copyset);
            load.move_replica(joining);
            busy.extend([joining.add, joining.remove]);
            moves += 1;
            commands.push(Kind::BeginReplacement(replacement(copyset, joining)));
        }
    }
    commands
}

/// Whether every replica of the pool is where it belongs and up: only then is there time for more.
pub fn is_calm(scene: Scene<'_>, pool: PoolId) -> bool {
    let in_order = |(id, copyset): (CopysetId, &Copyset)| {
        let leader = scene.view.leader_of(id, scene.now);
        copyset.active
            && leader.is_some_and(|(_, report)| copyset.has_voters(&report.voters))
            && scene.condition(id, copyset) == Condition::Whole
    };
    scene.state.copysets_of(pool).all(in_order)
}

/// Whether a move that has begun, from a device that is up, should go on. Loads may have changed
/// since; less is asked of it than of one that is yet to begin.
pub fn still_evens_out(scene: Scene<'_>, load: &Load, joining: Joining) -> bool {
    let device = |id| scene.state.devices.get(&id).map(|device| (id, device));
    let ends = device(joining.remove).zip(device(joining.add));
    ends.is_some_and(|(giver, taker)| load.is_fuller(giver, taker, 1))
}

/// The copyset of the pool whose replica moves; replicas that are not to lead go first.
fn choose(
    scene: Scene<'_>,
    begun: &BTreeSet<CopysetId>,
    (id, pool): (PoolId, &Pool),
    giver: DeviceId,
    (taker, facts): (DeviceId, &Device),
) -> Option<CopysetId> {
    let domain = facts.domain(pool.failure_domain);
    let fits = |(copyset_id, copyset): &(CopysetId, &Copyset)| {
        let clashes = |voter: &DeviceId| {
            let device = scene.state.devices.get(voter);
            *voter == taker
                || *voter != giver
                    && device.is_none_or(|device| device.domain(pool.failure_domain) == domain)
        };
        copyset.joining.is_none()
            && !begun.contains(copyset_id)
            && copyset.voters.contains(&giver)
            && !copyset.voters.iter().any(clashes)
            && can_take_in(scene, taker, replica_bytes(scene, copyset))
            && scene.view.leader_of(*copyset_id, scene.now).is_some()
    };
    let leads = |copyset: &Copyset| copyset.voters.first() == Some(&giver);
    let of_pool = scene.state.copysets_of(id).filter(fits);
    of_pool.min_by_key(|(id, copyset)| (leads(copyset), *id)).map(|(id, _)| id)
}

#[cfg(test)]
mod tests;
