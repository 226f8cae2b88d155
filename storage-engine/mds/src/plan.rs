//! Schedulers: pure functions from what is known to what should be done. The leader's loop (`lead`)
//! runs them and carries out what they return; nothing here waits, writes or reads a clock.

mod balance;
mod leaders;
mod orders;
mod placement;
mod repair;
mod scrub;
mod split;

use curve_types::{CopysetId, VolumeId};

use crate::log::{self, command::Kind};
use crate::state::{Scheduler, Volume};
use crate::view::Scene;

pub use orders::{device_map, heartbeat_response};
pub use repair::has_spare;
pub use scrub::{is_due, is_open, report as scrub_report};

/// What the leader should do now.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// To be written into the log, in order.
    pub commands: Vec<Kind>,
    /// Copysets that must still be split.
    pub splits: Vec<CopysetId>,
    /// Volumes whose copysets must still be told to refuse older epochs.
    pub fences: Vec<VolumeId>,
    /// Volumes whose copysets must still take over the data of a snapshot.
    pub restorations: Vec<VolumeId>,
    /// Volumes whose chunks must still be dropped.
    pub deletions: Vec<VolumeId>,
}

/// Everything that is due.
pub fn plan(scene: Scene<'_>) -> Plan {
    let mut commands = Vec::new();
    commands.extend(repair::plan_observations(scene));
    commands.extend(placement::plan_new_copysets(scene));
    commands.extend(placement::plan_recreations(scene));
    let paused = |scheduler| scene.state.paused.contains(&scheduler);
    let replacements = repair::plan_replacements(scene);
    let begins = |command: &Kind| matches!(command, Kind::BeginReplacement(_));
    let held = |command: &Kind| paused(Scheduler::Repair) && begins(command);
    commands.extend(replacements.into_iter().filter(|command| !held(command)));
    // What else is due changes what is even.
    let mut even = commands.is_empty();
    let splitting = scene.state.copysets.iter().filter(|(_, copyset)| copyset.splitting.is_some());
    let splits: Vec<CopysetId> = splitting.map(|(id, _)| *id).collect();
    even &= splits.is_empty();
    if even && !paused(Scheduler::Balance) {
        commands.extend(split::plan_splits(scene));
        even = commands.is_empty();
    }
    if even && !paused(Scheduler::Balance) {
        let moves = balance::plan_moves(scene);
        even = moves.is_empty();
        commands.extend(moves);
    }
    if even && !paused(Scheduler::Leaders) {
        commands.extend(leaders::plan_first_voters(scene));
    }
    commands.extend(scrub::plan_scrubs(scene));
    commands.extend(plan_forgotten_devices(scene));
    commands.extend(plan_abandoned_snapshots(scene));
    let wanted = |wanted: fn(&Volume) -> bool| {
        let volumes = scene.state.volumes.iter().filter(|(_, volume)| wanted(volume));
        // See `State::may_split`.
        let volumes = volumes.filter(|(_, volume)| !scene.state.is_splitting(volume.pool));
        volumes.map(|(id, _)| *id).collect()
    };
    Plan {
        commands,
        splits,
        fences: wanted(|volume| !volume.deleting && volume.owes_fence()),
        restorations: wanted(|volume| !volume.deleting && volume.restoring.is_some()),
        deletions: wanted(|volume| volume.deleting),
    }
}

/// A snapshot that an earlier leader was taking, or whose caller has gone, will never be whole.
fn plan_abandoned_snapshots(scene: Scene<'_>) -> Option<Kind> {
    let left = |(id, volume): &(&VolumeId, &Volume)| {
        let unready = volume.snapshot.as_ref().is_some_and(|snapshot| !snapshot.ready);
        unready && !volume.deleting && !scene.view.taking.contains(id)
    };
    let left: Vec<VolumeId> = scene.state.volumes.iter().filter(left).map(|(id, _)| *id).collect();
    let ids = log::ids_to_wire(&left);
    (!ids.is_empty()).then_some(Kind::AbandonSnapshots(log::VolumeIds { ids }))
}

/// A wiped device's old identity has served its purpose once no copyset names it.
fn plan_forgotten_devices(scene: Scene<'_>) -> impl Iterator<Item = Kind> {
    let idle = move |(id, device): &(&curve_types::DeviceId, &crate::state::Device)| {
        device.superseded
            && scene.state.copysets_on(**id).next().is_none()
            && scene.view.is_down(**id, scene.now)
    };
    let forget =
        |(id, _): (&curve_types::DeviceId, _)| Kind::ForgetDevice(log::WireId::to_wire(*id));
    scene.state.devices.iter().filter(idle).map(forget)
}

#[cfg(test)]
mod tests;
