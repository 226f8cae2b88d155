//! What the metadata service says, reduced to the questions that the controllers ask. Pure.

use std::collections::{BTreeMap, BTreeSet};

use curve_wire::proto::{ClusterStatus, DeviceStatus};

use super::build::Disruptions;
use crate::crd::CopysetCounts;

/// The answer of the metadata service, or why there is none.
pub type Engine = Result<ClusterStatus, String>;

/// Chunkservers by process name. A device that was wiped leaves an entry of the same name behind;
/// the one that is up speaks for both.
fn by_name(status: &ClusterStatus) -> BTreeMap<&str, &DeviceStatus> {
    let mut devices = BTreeMap::new();
    for device in &status.devices {
        let known = devices.entry(device.name.as_str()).or_insert(device);
        if device.up {
            *known = device;
        }
    }
    devices
}

/// Whether a chunkserver's absence harms nothing any more: its replicas were all made anew.
fn is_replaced(device: &DeviceStatus) -> bool {
    device.out && device.replicas == 0
}

/// Names of all chunkservers that ever registered.
pub fn registered(status: &ClusterStatus) -> BTreeSet<String> {
    status.devices.iter().map(|device| device.name.clone()).collect()
}

/// Names of chunkservers that serve.
pub fn up(status: &ClusterStatus) -> BTreeSet<String> {
    let devices = by_name(status);
    devices.iter().filter(|(_, device)| device.up).map(|(name, _)| (*name).to_owned()).collect()
}

/// Names and silence in milliseconds of chunkservers that do not serve.
pub fn down(status: &ClusterStatus) -> BTreeMap<String, u64> {
    let devices = by_name(status);
    let down = devices.iter().filter(|(_, device)| !device.up);
    down.map(|(name, device)| ((*name).to_owned(), device.silent_ms)).collect()
}

/// Chunkservers that are down and whose data has been rebuilt elsewhere.
pub fn replaced(status: &ClusterStatus) -> BTreeSet<String> {
    let devices = by_name(status);
    let gone = devices.iter().filter(|(_, device)| !device.up && is_replaced(device));
    gone.map(|(name, _)| (*name).to_owned()).collect()
}

pub fn copysets(status: &ClusterStatus) -> CopysetCounts {
    CopysetCounts {
        whole: status.copysets_whole,
        degraded: status.copysets_degraded,
        unavailable: status.copysets_unavailable,
    }
}

/// Why no further process may be stopped now, or nothing if the cluster can bear it.
pub fn reason_not_to_stop(status: &ClusterStatus) -> Option<String> {
    let mds_down: Vec<&str> =
        status.mds.iter().filter(|mds| !mds.up).map(|mds| mds.name.as_str()).collect();
    if !mds_down.is_empty() {
        return Some(format!("mds {} is down", mds_down.join(", ")));
    }
    let CopysetCounts { whole, degraded, unavailable } = copysets(status);
    if degraded + unavailable > 0 {
        let all = whole + degraded + unavailable;
        return Some(format!("{} of {all} copysets are not whole", degraded + unavailable));
    }
    let replaced = replaced(status);
    let missing: Vec<String> =
        down(status).into_keys().filter(|name| !replaced.contains(name)).collect();
    if missing.is_empty() {
        return None;
    }
    Some(format!("chunkserver {} is down", missing.join(", ")))
}

/// How many pods a drain may take. `known` says whether the cluster has ever served.
pub fn plan_disruptions(engine: &Engine, known: bool) -> Disruptions {
    let chunkservers = match engine {
        Err(_) if known => 0,
        Err(_) => 1,
        Ok(status) if reason_not_to_stop(status).is_some() => 0,
        // The budget counts a pod that is gone for good as unavailable: allow for it.
        Ok(status) => 1 + replaced(status).len() as u32,
    };
    Disruptions { mds: 1, chunkservers }
}
