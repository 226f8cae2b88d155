//! Evens planned leaders (`voters[0]`) out over the devices of each pool: each device should lead
//! in proportion to its replicas. The order is what is changed; `orders` then carries it out.
//!
//! As with replicas, who gives must still lead at least as much of what it has as who takes: the
//! sum of `leaders² / replicas` falls with every step.

use std::collections::{BTreeMap, BTreeSet};

use curve_types::{CopysetId, DeviceId, PoolId};

use super::balance::is_calm;
use super::orders::may_lead;
use crate::log::{self, WireId, command::Kind};
use crate::state::Copyset;
use crate::view::Scene;

/// What a device has of one pool.
#[derive(Clone, Copy, Default)]
struct Share {
    replicas: u64,
    leaders: u64,
}

/// New first voters; a device gives or takes the lead of one copyset at a time.
pub fn plan_first_voters(scene: Scene<'_>) -> Vec<Kind> {
    let mut busy = BTreeSet::new();
    for (id, copyset) in &scene.state.copysets {
        let leader = scene.view.leader_of(*id, scene.now).map(|(leader, _)| leader);
        let first = copyset.voters.first().copied();
        // A slow one leads nothing, and is not waited for.
        let first = first.filter(|first| scene.is_up(*first) && scene.slow(*first).is_none());
        if first.is_some() && leader != first {
            // Not carried out yet.
            busy.extend(first);
            busy.extend(leader);
        }
    }
    let mut commands = Vec::new();
    for pool in scene.state.pools.keys().filter(|pool| is_calm(scene, **pool)) {
        let mut shares = shares(scene, *pool);
        for (id, copyset) in scene.state.copysets_of(*pool) {
            let Some(to) = choose(scene, copyset, &shares, &busy) else { continue };
            let from = copyset.voters[0];
            shares.entry(from).or_default().leaders -= 1;
            shares.entry(to).or_default().leaders += 1;
            busy.extend([from, to]);
            commands.push(prefer(id, to));
        }
    }
    commands
}

fn prefer(id: CopysetId, device: DeviceId) -> Kind {
    Kind::PreferLeader(log::PreferLeader { copyset: id.0, device: device.to_wire() })
}

fn shares(scene: Scene<'_>, pool: PoolId) -> BTreeMap<DeviceId, Share> {
    let mut shares: BTreeMap<DeviceId, Share> = BTreeMap::new();
    for (_, copyset) in scene.state.copysets_of(pool) {
        for voter in &copyset.voters {
            shares.entry(*voter).or_default().replicas += 1;
        }
        if let Some(first) = copyset.voters.first() {
            shares.entry(*first).or_default().leaders += 1;
        }
    }
    shares
}

/// The voter that leads least, if it should lead this copyset rather than the first one.
fn choose(
    scene: Scene<'_>,
    copyset: &Copyset,
    shares: &BTreeMap<DeviceId, Share>,
    busy: &BTreeSet<DeviceId>,
) -> Option<DeviceId> {
    let (from, others) = copyset.voters.split_first()?;
    if copyset.joining.is_some() || busy.contains(from) {
        return None;
    }
    let giver = shares.get(from).copied().unwrap_or_default();
    let evens_out = |taker: Share| {
        giver.leaders.saturating_sub(1) * taker.replicas >= (taker.leaders + 1) * giver.replicas
    };
    let others = others.iter().filter(|id| !busy.contains(id) && may_lead(scene, **id));
    let takers = others.filter_map(|id| Some((*id, *shares.get(id)?)));
    let takers = takers.filter(|(_, taker)| giver.leaders > 0 && evens_out(*taker));
    takers
        .min_by_key(|(id, taker)| ((taker.leaders << 32) / taker.replicas.max(1), *id))
        .map(|(id, _)| id)
}
