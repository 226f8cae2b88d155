//! Schedulers: pure functions from what is known to what should be done. The leader's loop (`lead`)
//! runs them and carries out what they return; nothing here waits, writes or reads a clock.

mod balance;
mod leaders;
mod orders;
mod placement;
mod repair;

use curve_types::VolumeId;

use crate::log::{self, command::Kind};
use crate::view::Scene;

pub use orders::{device_map, heartbeat_response};
pub use repair::has_spare;

/// What the leader should do now.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// To be written into the log, in order.
    pub commands: Vec<Kind>,
    /// Volumes whose copysets must still be told to refuse older epochs.
    pub fences: Vec<VolumeId>,
    /// Volumes whose chunks must still be dropped.
    pub deletions: Vec<VolumeId>,
}

/// Everything that is due.
pub fn plan(scene: Scene<'_>) -> Plan {
    let mut commands = Vec::new();
    commands.extend(repair::plan_observations(scene));
    commands.extend(placement::plan_new_copysets(scene));
    commands.extend(placement::plan_recreations(scene));
    commands.extend(repair::plan_replacements(scene));
    if commands.is_empty() {
        // What else is due changes what is even.
        commands.extend(balance::plan_moves(scene));
    }
    if commands.is_empty() {
        commands.extend(leaders::plan_first_voters(scene));
    }
    commands.extend(plan_forgotten_devices(scene));
    let volumes = || scene.state.volumes.iter();
    Plan {
        commands,
        fences: volumes()
            .filter(|(_, v)| !v.deleting && v.owes_fence())
            .map(|(id, _)| *id)
            .collect(),
        deletions: volumes().filter(|(_, v)| v.deleting).map(|(id, _)| *id).collect(),
    }
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
