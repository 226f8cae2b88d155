//! What a device is told in answer to its heartbeat. Computed afresh each time from what is known,
//! so that an order that was lost or refused comes again.

use std::collections::BTreeSet;
use std::time::Duration;

use curve_types::{CopysetId, DeviceId};
use curve_wire::proto;

use super::scrub::scrub_orders;
use crate::log::{WireId, ids_to_wire};
use crate::state::{Copyset, Joining, Scheduler, State};
use crate::view::{Condition, Report, Scene};

/// A device must have been up for so long before leadership is moved to it: one that keeps falling
/// over should not take its copysets along.
const STEADY: Duration = Duration::from_secs(20);

/// A device this full takes no more writes. Pools promise 95 % (`capacity`); the last two are for
/// what is written until its report has reached the leaders of its copysets.
const FULL_PERCENT: u64 = 98;

/// `term` is that of this MDS leader; replicas refuse orders of an older one.
pub fn heartbeat_response(
    scene: Scene<'_>,
    device: DeviceId,
    known_topology: u64,
    term: u64,
) -> proto::HeartbeatResponse {
    let state = scene.state;
    let mut response = proto::HeartbeatResponse {
        devices: (state.device_map_version > known_topology).then(|| device_map(state)),
        scrubs: scrub_orders(scene, device),
        ..Default::default()
    };
    // Their replicas follow leaders that see only how full their own devices are.
    let full = scene.view.devices.iter().filter(|(_, seen)| seen.is_filled(FULL_PERCENT));
    let full: BTreeSet<DeviceId> = full.map(|(id, _)| *id).collect();
    for (id, copyset) in state.copysets_on(device) {
        let forms = !copyset.active && copyset.voters.contains(&device);
        response.host.push(proto::HostCopyset {
            copyset: id.0,
            pool: copyset.pool.0,
            initialize: if forms { ids_to_wire(&copyset.voters) } else { Vec::new() },
            full: copyset.voters.iter().any(|voter| full.contains(voter)),
            split_from: copyset.split_from.unwrap_or_default().0,
        });
    }
    let Some(seen) = scene.view.devices.get(&device) else { return response };
    for (id, report) in &seen.replicas {
        let copyset = state.copysets.get(id).filter(|copyset| copyset.is_on(device));
        let Some(copyset) = copyset else {
            if is_unneeded(scene, device, *id, report) {
                response.drop.push(id.0);
            }
            continue;
        };
        let leads =
            scene.view.leader_of(*id, scene.now).is_some_and(|(leader, _)| leader == device);
        if !leads {
            continue;
        }
        if leaves(scene, *id, copyset, device, report) {
            // A leader does not take itself out: the next one will.
            if response.transfers.is_empty() {
                response.transfers.extend(plan_step_down(scene, *id, copyset, device, report));
            }
        } else if let Some(change) = plan_change(scene, *id, copyset, report, term) {
            response.changes.push(change);
        } else if response.transfers.is_empty() {
            // One at a time: each costs its copyset a moment without a leader.
            response.transfers.extend(plan_transfer(scene, *id, copyset, device, report));
        }
    }
    response
}

/// Whether a replica that the state does not want on the device may be dropped. Unless the copyset
/// is gone its group decides: a move that was given up may have been carried out all the same, so
/// that the replica is a voter whose log the group counts on.
fn is_unneeded(scene: Scene<'_>, device: DeviceId, id: CopysetId, own: &Report) -> bool {
    let Some(copyset) = scene.state.copysets.get(&id) else {
        // One that is just leaving another is not known by itself yet.
        return scene.state.copysets.values().all(|copyset| copyset.splitting != Some(id));
    };
    let Some((_, leads)) = scene.view.leader_of(id, scene.now) else { return false };
    // A leader that was replaced without noticing knows less than the state or the replica.
    let outdated = leads.config_index < copyset.config_index
        || own.leader_id.is_some() && own.term > leads.term;
    !outdated && !leads.voters.contains(&device) && !leads.learners.contains(&device)
}

/// The next step towards the wanted members, given what the leader reports.
fn plan_change(
    scene: Scene<'_>,
    id: CopysetId,
    copyset: &Copyset,
    report: &Report,
    term: u64,
) -> Option<proto::ChangeMembership> {
    if !copyset.has_voters(&report.voters) {
        // A change is on its way or not yet taken over.
        return None;
    }
    let order = |voters: Vec<DeviceId>, learners: Vec<DeviceId>| {
        Some(proto::ChangeMembership {
            copyset: id.0,
            mds_term: term,
            expected_config_index: report.config_index,
            add_learners: ids_to_wire(&learners),
            voters: ids_to_wire(&voters),
        })
    };
    match copyset.joining {
        Some(joining) if !report.learners.contains(&joining.add) => {
            order(Vec::new(), vec![joining.add])
        }
        Some(joining) if may_exchange(scene, id, copyset, joining, report) => {
            let exchange = |voter: &DeviceId| match *voter == joining.remove {
                true => joining.add,
                false => *voter,
            };
            order(copyset.voters.iter().map(exchange).collect(), Vec::new())
        }
        Some(_) => None,
        // A move was given up: its learner must go.
        None if !report.learners.is_empty() => order(copyset.voters.clone(), Vec::new()),
        None => None,
    }
}

/// Whether the new replica may take the old one's place. One that leaves for balance alone stays
/// while another is away: three copies are better than two.
fn may_exchange(
    scene: Scene<'_>,
    id: CopysetId,
    copyset: &Copyset,
    joining: Joining,
    report: &Report,
) -> bool {
    let whole = || scene.condition(id, copyset) == Condition::Whole;
    report.caught_up.contains(&joining.add) && (!scene.is_move(joining) || whole())
}

/// Whether the leader is to be taken out of the group now.
fn leaves(
    scene: Scene<'_>,
    id: CopysetId,
    copyset: &Copyset,
    leader: DeviceId,
    report: &Report,
) -> bool {
    let due = |joining: Joining| {
        joining.remove == leader && may_exchange(scene, id, copyset, joining, report)
    };
    copyset.has_voters(&report.voters) && copyset.joining.is_some_and(due)
}

/// Leadership of a device that is to be taken out goes to a voter that stays.
fn plan_step_down(
    scene: Scene<'_>,
    id: CopysetId,
    copyset: &Copyset,
    leader: DeviceId,
    report: &Report,
) -> Option<proto::TransferLeader> {
    let stays = |voter: &DeviceId| *voter != leader && scene.is_up(*voter) && !scene.is_out(*voter);
    let able = |voter: &&DeviceId| stays(voter) && report.caught_up.contains(*voter);
    let able = copyset.voters.iter().filter(able);
    let to = able.min_by_key(|voter| scene.slow(**voter).is_some())?;
    Some(proto::TransferLeader { copyset: id.0, to: to.to_wire() })
}

/// Leadership goes back to where it was planned once that device is steady, and away from a device
/// that is slow.
fn plan_transfer(
    scene: Scene<'_>,
    id: CopysetId,
    copyset: &Copyset,
    leader: DeviceId,
    report: &Report,
) -> Option<proto::TransferLeader> {
    if scene.state.paused.contains(&Scheduler::Leaders) || copyset.joining.is_some() {
        return None;
    }
    // The first voter is where it was planned; a slow leader hands over to any.
    let asked = if scene.slow(leader).is_some() { copyset.voters.len() } else { 1 };
    let may_take =
        |to: &&DeviceId| **to != leader && report.caught_up.contains(*to) && may_lead(scene, **to);
    let to = copyset.voters.iter().take(asked).find(may_take)?;
    Some(proto::TransferLeader { copyset: id.0, to: to.to_wire() })
}

/// Whether the device may be given leadership.
pub fn may_lead(scene: Scene<'_>, device: DeviceId) -> bool {
    scene.is_steady(device, STEADY) && !scene.is_out(device) && scene.slow(device).is_none()
}

/// Addresses of all devices.
pub fn device_map(state: &State) -> proto::DeviceMap {
    let address = |(id, device): (&DeviceId, &crate::state::Device)| proto::DeviceAddress {
        device_id: id.to_wire(),
        address: device.address.clone(),
        name: device.name.clone(),
    };
    let devices = state.devices.iter().map(address).collect();
    proto::DeviceMap { version: state.device_map_version, devices }
}
