//! Chunkservers: identity for their devices, heartbeats, orders.

use std::collections::BTreeMap;
use std::time::Duration;

use curve_types::{ClusterId, CopysetId, DeviceId};
use curve_wire::pki::Role;
use curve_wire::proto::mds_device_server::MdsDevice;
use curve_wire::proto::{
    HeartbeatRequest, HeartbeatResponse, RegisterRequest, RegisterResponse, ReplicaReport,
};
use tonic::{Request, Response, Status};

use super::caller::Caller;
use super::{Service, bad_id};
use crate::log::{self, WireId, answer, command::Kind, ids_from_wire};
use crate::node::{cluster_id, not_found};
use crate::plan::heartbeat_response;
use crate::state::Device;
use crate::view::{Heard, Report};

/// Replicas that one heartbeat may report: all copysets of several pools.
const REPLICAS_MAX: usize = 16_384;

#[tonic::async_trait]
impl MdsDevice for Service {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let caller = Caller::require(&request, &[Role::Chunkserver])?;
        let asked = request.into_inner();
        caller.require_name("name", &asked.name)?;
        validate_address(&asked.address)?;
        let blank = asked.device_id.is_empty();
        let id = match DeviceId::from_wire(&asked.device_id) {
            Some(id) => id,
            None if blank => DeviceId::random(),
            None => return Err(bad_id("device_id", &asked.device_id)),
        };
        let known = self.0.state.read().devices.contains_key(&id);
        let facts = log::DeviceFacts {
            device_id: id.to_wire(),
            name: asked.name.clone(),
            host: asked.host,
            zone: asked.zone,
            device_class: asked.device_class,
            size: asked.size,
            capacity: 0,
            address: asked.address,
        };
        let cluster_id = asked.cluster_id;
        let register = log::RegisterDevice { facts: Some(facts), blank, cluster_id };
        let answer = self.0.mutate(&asked.request_id, Kind::RegisterDevice(register)).await?;
        let answer::Kind::DeviceId(granted) = answer else { return Err(unexpected()) };
        if !known {
            let mut view = self.0.view();
            view.devices_changed = self.0.now();
            tracing::info!(name = asked.name, blank, "registered a device");
        }
        let cluster: ClusterId = cluster_id_of(self)?;
        Ok(Response::new(RegisterResponse {
            device_id: granted,
            cluster_id: cluster.to_wire(),
            peer_key: bytes::Bytes::copy_from_slice(&self.0.chunkserver_key.0),
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let caller = Caller::require(&request, &[Role::Chunkserver])?;
        // One that was replaced without noticing would order what its successor does not want, and
        // keep from it what is reported here.
        let term = self.0.leading_now().await?;
        let beat = request.into_inner();
        let raw = &beat.device_id;
        let id = DeviceId::from_wire(raw).ok_or_else(|| bad_id("device_id", raw))?;
        let heard = Heard {
            capacity: beat.capacity,
            used: beat.used,
            commit: (beat.commit_us > 0).then(|| Duration::from_micros(beat.commit_us)),
            replicas: reports_from_wire(beat.replicas)?,
        };
        let known = self.0.state.read().devices.get(&id).cloned();
        let known = known.ok_or_else(|| not_found("device", id))?;
        caller.require_name("name of the device", &known.name)?;
        validate_address(&beat.address)?;
        let zone = if beat.zone.is_empty() { beat.host.clone() } else { beat.zone };
        let facts = Device {
            host: beat.host,
            zone,
            address: beat.address,
            capacity: beat.capacity,
            ..known.clone()
        };
        if facts != known {
            self.0.command(Kind::ObserveDevice(facts_to_wire(id, facts))).await?;
        }
        self.hear(id, heard);
        let response =
            self.0.look(|scene| heartbeat_response(scene, id, beat.known_topology, term));
        Ok(Response::new(response))
    }
}

impl Service {
    /// Puts a heartbeat into the view; wakes the leader's loop if leadership or members moved,
    /// or a scrub came to its end.
    fn hear(&self, id: DeviceId, heard: Heard) {
        let now = self.0.now();
        let state = self.0.state.read();
        let mut view = self.0.view();
        let before = view.devices.get(&id);
        let moved = before.is_none_or(|before| {
            let essence = |report: &Report| {
                let scrub = report.scrub.map(|scrub| (scrub.number, scrub.ended, scrub.digest));
                (report.leader, report.config_index, scrub)
            };
            let essences = |replicas: &BTreeMap<CopysetId, Report>| -> Vec<_> {
                replicas.iter().map(|(id, report)| (*id, essence(report))).collect()
            };
            essences(&before.replicas) != essences(&heard.replicas)
        });
        view.on_heartbeat(&state, id, now, heard);
        drop((view, state));
        if moved {
            self.0.wake.notify_one();
        }
    }
}

fn cluster_id_of(service: &Service) -> Result<ClusterId, Status> {
    cluster_id(&service.0.state.read())
}

fn unexpected() -> Status {
    Status::internal("the state machine answered something else")
}

fn facts_to_wire(id: DeviceId, device: Device) -> log::DeviceFacts {
    log::DeviceFacts {
        device_id: id.to_wire(),
        name: device.name,
        host: device.host,
        zone: device.zone,
        device_class: device.class,
        size: device.size,
        capacity: device.capacity,
        address: device.address,
    }
}

fn reports_from_wire(raw: Vec<ReplicaReport>) -> Result<BTreeMap<CopysetId, Report>, Status> {
    if raw.len() > REPLICAS_MAX {
        let message = format!("{} replicas are reported, at most {REPLICAS_MAX} are", raw.len());
        return Err(Status::invalid_argument(message));
    }
    let ids = |field: &str, raw: &[bytes::Bytes]| {
        ids_from_wire::<DeviceId>(raw).ok_or_else(|| bad_id(field, &[]))
    };
    let mut reports = BTreeMap::new();
    for replica in raw {
        let report = Report {
            leader: replica.leader,
            term: replica.term,
            applied: replica.applied,
            voters: ids("voters", &replica.voters)?,
            learners: ids("learners", &replica.learners)?.into_iter().collect(),
            caught_up: ids("caught_up", &replica.caught_up)?.into_iter().collect(),
            config_index: replica.config_index,
            leader_id: DeviceId::from_wire(&replica.leader_id),
            scrub: replica.scrub,
        };
        reports.insert(CopysetId(replica.copyset), report);
    }
    Ok(reports)
}

/// `HOST:PORT`; an IPv6 host in brackets.
fn validate_address(address: &str) -> Result<(), Status> {
    let valid = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) && address.len() <= 300
    });
    match valid {
        true => Ok(()),
        false => {
            Err(Status::invalid_argument(format!("address is {address:?}: expected HOST:PORT")))
        }
    }
}
