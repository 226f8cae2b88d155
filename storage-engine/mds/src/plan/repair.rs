//! Keeps every copyset at its number of replicas: takes over what leaders report, moves replicas
//! off devices that are gone, one replica of a copyset at a time.

use std::collections::{BTreeMap, BTreeSet};

use curve_types::{CopysetId, DeviceId};

use super::balance;
use super::placement::Load;
use crate::log::{self, WireId, command::Kind, ids_to_wire};
use crate::state::{Copyset, Joining};
use crate::view::Scene;

/// Replicas that one device receives at a time. Repair must leave room for clients.
const INCOMING_MAX: usize = 2;
/// Repair fills a device no further: above what status warns of, below what volumes may be given
/// (`capacity`), so that a device that took in replicas goes on taking writes.
const REPAIR_FULL_PERCENT: u64 = 90;

/// What one device is receiving.
#[derive(Clone, Copy, Default)]
struct Incoming {
    replicas: usize,
    /// When they are whole. What has arrived already is also among the used bytes of the device:
    /// near its limit that makes one replica wait for another, no more.
    bytes: u64,
}

impl Incoming {
    fn add(&mut self, bytes: u64) {
        self.replicas += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What leaders report and the state does not know yet.
pub fn plan_observations(scene: Scene<'_>) -> Vec<Kind> {
    let mut formed = Vec::new();
    let mut commands = Vec::new();
    for (id, copyset) in &scene.state.copysets {
        let Some((_, report)) = scene.view.leader_of(*id, scene.now) else { continue };
        if !copyset.active {
            formed.push(id.0);
        }
        // Between the two steps of a change the old and the new voters are needed: one too many,
        // and soon over.
        let replicas = scene.state.pools[&copyset.pool].replicas as usize;
        if report.voters.len() != replicas || copyset.splitting.is_some() {
            continue;
        }
        if !copyset.has_voters(&report.voters) && report.config_index > copyset.config_index {
            commands.push(Kind::ObserveMembership(log::ObservedMembership {
                copyset: id.0,
                config_index: report.config_index,
                voters: ids_to_wire(&report.voters),
            }));
        }
    }
    if !formed.is_empty() {
        commands.push(Kind::ActivateCopysets(log::CopysetIds { ids: formed }));
    }
    commands
}

/// Begins moving replicas off devices that are out, and gives up moves that have no point any more.
pub fn plan_replacements(scene: Scene<'_>) -> Vec<Kind> {
    let mut commands = Vec::new();
    let mut incoming: BTreeMap<DeviceId, Incoming> = BTreeMap::new();
    let mut load = Load::of(scene);
    for (id, copyset) in &scene.state.copysets {
        let Some(joining) = copyset.joining else { continue };
        if is_pointless(scene, &load, copyset, joining) {
            commands.push(Kind::AbandonReplacement(replacement(*id, joining)));
        } else {
            incoming.entry(joining.add).or_default().add(replica_bytes(scene, copyset));
        }
    }
    for (id, copyset) in scene.state.copysets.iter().filter(|(_, copyset)| copyset.is_at_rest()) {
        // Without a leader nothing can be moved; planning it would only hold up other copysets.
        let Some((_, report)) = scene.view.leader_of(*id, scene.now) else { continue };
        // A change is on its way or not yet taken over: who is to be replaced is not known.
        if !copyset.has_voters(&report.voters) {
            continue;
        }
        let Some(remove) = copyset.voters.iter().find(|voter| scene.is_out(**voter)) else {
            continue;
        };
        let bytes = replica_bytes(scene, copyset);
        let has_room = |device: DeviceId| can_take_in(scene, device, bytes);
        let busy = |device: DeviceId| {
            let now = incoming.get(&device).copied().unwrap_or_default();
            let all = now.bytes.saturating_add(bytes);
            now.replicas >= INCOMING_MAX || !can_take_in(scene, device, all)
        };
        let Some(add) = choose(scene, &load, (*id, copyset), *remove, has_room, busy) else {
            continue;
        };
        incoming.entry(add).or_default().add(bytes);
        load.add_replica(add);
        let joining = Joining { add, remove: *remove };
        commands.push(Kind::BeginReplacement(replacement(*id, joining)));
    }
    commands
}

/// The new replica's device is gone as well; or the old one is there, be it back or never gone,
/// and the move does not even out the load or is in the way of a repair.
fn is_pointless(scene: Scene<'_>, load: &Load, copyset: &Copyset, joining: Joining) -> bool {
    let gone = scene.view.is_down(joining.add, scene.now) || scene.is_out(joining.add);
    let in_the_way = || copyset.voters.iter().any(|voter| scene.is_out(*voter));
    gone || scene.is_move(joining)
        && (in_the_way() || !balance::still_evens_out(scene, load, joining))
}

pub fn replacement(id: CopysetId, joining: Joining) -> log::Replacement {
    let (remove, add) = (joining.remove.to_wire(), joining.add.to_wire());
    log::Replacement { copyset: id.0, remove, add }
}

/// Bytes of one replica of the copyset. Nobody counts them; taken is what a replica has on average
/// on a device that is up and holds one, on the fullest such device, to be on the safe side.
pub fn replica_bytes(scene: Scene<'_>, copyset: &Copyset) -> u64 {
    let average = |voter: &DeviceId| {
        let seen = scene.view.devices.get(voter)?;
        let all = scene.state.copysets.values().filter(|other| other.voters.contains(voter));
        Some(seen.used / all.count() as u64)
    };
    let up = copyset.voters.iter().filter(|voter| scene.is_up(**voter));
    up.filter_map(average).max().unwrap_or(0)
}

/// Whether the device has room for so many bytes more.
pub fn can_take_in(scene: Scene<'_>, device: DeviceId, bytes: u64) -> bool {
    scene.view.devices.get(&device).is_some_and(|seen| {
        seen.used.saturating_add(bytes) <= seen.share_of_capacity(REPAIR_FULL_PERCENT)
    })
}

/// The device that takes over the replica: the successor of a wiped device if it can, else the
/// emptiest one whose failure domain has no other replica of the copyset. `busy` devices can take
/// it later.
fn choose(
    scene: Scene<'_>,
    load: &Load,
    (id, copyset): (CopysetId, &Copyset),
    remove: DeviceId,
    has_room: impl Fn(DeviceId) -> bool,
    busy: impl Fn(DeviceId) -> bool,
) -> Option<DeviceId> {
    let pool = &scene.state.pools[&copyset.pool];
    let taken: BTreeSet<&str> = copyset
        .voters
        .iter()
        .filter(|voter| **voter != remove)
        .filter_map(|voter| scene.state.devices.get(voter))
        .map(|device| device.domain(pool.failure_domain))
        .collect();
    let fits: Vec<_> = scene
        .candidates(pool)
        .filter(|(device, facts)| {
            !copyset.voters.contains(device)
                && !taken.contains(facts.domain(pool.failure_domain))
                && has_room(*device)
        })
        .collect();
    let removed = scene.state.devices.get(&remove);
    let successor =
        removed.filter(|device| device.superseded).and_then(|d| scene.state.successor(d));
    if let Some(successor) = successor.filter(|id| fits.iter().any(|(device, _)| device == id)) {
        // Wait for it rather than copy everything to somewhere else as well.
        return (!busy(successor)).then_some(successor);
    }
    let free = fits.into_iter().filter(|(device, _)| !busy(*device));
    free.min_by_key(|(device, facts)| (load.rank(*device, facts, u64::from(id.0)), *device))
        .map(|(device, _)| device)
}

/// For status: whether other devices could take over all that this one holds and that is not on
/// its way to them.
pub fn has_spare(scene: Scene<'_>, remove: DeviceId) -> bool {
    let mut load = Load::of(scene);
    let mut given: BTreeMap<DeviceId, u64> = BTreeMap::new();
    let stays = |copyset: &Copyset| {
        let leaves = copyset.joining.is_some_and(|joining| joining.remove == remove);
        copyset.voters.contains(&remove) && !leaves
    };
    for (id, copyset) in scene.state.copysets.iter().filter(|(_, copyset)| stays(copyset)) {
        let bytes = replica_bytes(scene, copyset);
        let has_room = |device: DeviceId| {
            let given = given.get(&device).copied().unwrap_or(0);
            can_take_in(scene, device, given.saturating_add(bytes))
        };
        let Some(add) = choose(scene, &load, (*id, copyset), remove, has_room, |_| false) else {
            return false;
        };
        load.add_replica(add);
        *given.entry(add).or_default() += bytes;
    }
    true
}
