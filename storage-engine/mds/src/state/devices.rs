//! Commands about chunkservers' devices.

use curve_types::{ClusterId, DeviceId};

use super::apply::{Applied, device_id, done, validate_name};
use super::{Device, Reason, Refusal, State};
use crate::log::{DeviceFacts, RegisterDevice, WireId, answer};

impl State {
    /// Grants an id to a blank device or re-admits a known one. Either way, any other device of
    /// that name is superseded: its process now runs on this one.
    pub(super) fn register_device(&mut self, register: RegisterDevice) -> Applied {
        let facts = register.facts.unwrap_or_default();
        validate_name("name", &facts.name)?;
        validate_name("host", &facts.host)?;
        let id = device_id(&facts.device_id)?;
        let Some(cluster) = &self.cluster else {
            return Err(Refusal::new(Reason::Precondition, "the cluster is not formed yet"));
        };
        if !register.blank {
            let claimed = ClusterId::from_wire(&register.cluster_id);
            if claimed != Some(cluster.id) {
                let claimed = claimed.map_or("none".to_owned(), |id| id.to_string());
                let message = format!(
                    "device {id} ({}) belongs to cluster {claimed}; this is cluster {:?}, {}: \
                     give it back to its cluster, or wipe it to use it here",
                    facts.name, cluster.name, cluster.id
                );
                return Err(Refusal::new(Reason::Precondition, message));
            }
            if !self.devices.contains_key(&id) {
                let message = format!(
                    "device {id} ({}) is no longer part of cluster {:?}, its replicas were \
                     re-created elsewhere: wipe it so that it joins anew",
                    facts.name, cluster.name
                );
                return Err(Refusal::new(Reason::Precondition, message));
            }
        }
        for (other, device) in &mut self.devices {
            if *other != id && device.name == facts.name {
                device.superseded = true;
            }
        }
        let known = self.devices.get(&id);
        let capacity = known.map_or(facts.capacity, |device| device.capacity);
        let device = Device { capacity, ..device_of(facts) };
        if known != Some(&device) {
            self.devices.insert(id, device);
            self.device_map_version += 1;
        }
        Ok(answer::Kind::DeviceId(id.to_wire()))
    }

    /// Takes over what a heartbeat said.
    pub(super) fn observe_device(&mut self, facts: DeviceFacts) -> Applied {
        let id = device_id(&facts.device_id)?;
        let Some(device) = self.devices.get_mut(&id) else {
            return Err(unknown_device(id));
        };
        let zone = zone_of(&facts);
        let (host, address, capacity) = (facts.host, facts.address, facts.capacity);
        *device = Device { host, zone, address, capacity, ..device.clone() };
        self.device_map_version += 1;
        done()
    }

    /// Drops a superseded device that has no replica any more.
    pub(super) fn forget_device(&mut self, id: DeviceId) -> Applied {
        let device = self.devices.get(&id).ok_or_else(|| unknown_device(id))?;
        if !device.superseded || self.copysets_on(id).next().is_some() {
            let message = format!("device {id} ({}) is still in use", device.name);
            return Err(Refusal::new(Reason::Precondition, message));
        }
        self.devices.remove(&id);
        self.device_map_version += 1;
        done()
    }
}

fn device_of(facts: DeviceFacts) -> Device {
    Device {
        zone: zone_of(&facts),
        name: facts.name,
        host: facts.host,
        class: facts.device_class,
        size: facts.size,
        capacity: facts.capacity,
        address: facts.address,
        superseded: false,
    }
}

fn zone_of(facts: &DeviceFacts) -> String {
    let zone = if facts.zone.is_empty() { &facts.host } else { &facts.zone };
    zone.clone()
}

pub(super) fn unknown_device(id: DeviceId) -> Refusal {
    Refusal::new(Reason::NotFound, format!("device {id} is not registered"))
}
