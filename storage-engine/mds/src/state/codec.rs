//! The state as bytes, for checkpoints and snapshots. Equal states give equal bytes.

use bytes::Bytes;
use curve_types::{ClusterId, CopysetId, DeviceId, Epoch, PoolId, SessionId, ShardRange, VolumeId};
use prost::Message;
use thiserror::Error;

use super::limits::{load_limits, store_limits};
use super::pools::load_overcommit;
use super::scrubs::{load_findings, store_findings};
use super::{
    Answered, Cluster, Copyset, Device, EndedScrub, FailureDomain, Joining, Pool, Publication,
    RunningScrub, Schedule, Scheduler, Scrub, Session, Snapshot, State, Volume,
};
use crate::log::{self, StoredState, WireId, ids_from_wire, ids_to_wire};

/// Format 0 promises no compatibility; it is stored plus one, so that it is never absent.
const FORMAT: u32 = 1;

/// Why stored bytes are not a state.
#[derive(Debug, Error)]
pub enum DecodeError {
    #[error("decode the stored state")]
    Message(#[from] prost::DecodeError),
    #[error("the stored state has format {0}, this program reads {FORMAT}")]
    Format(u32),
    #[error("the stored state has a malformed {0}")]
    Field(&'static str),
}

impl State {
    pub fn encode(&self) -> Bytes {
        let stored = StoredState {
            format: FORMAT,
            cluster_id: self.cluster.as_ref().map(|c| c.id.to_wire()).unwrap_or_default(),
            cluster_name: self.cluster.as_ref().map(|c| c.name.clone()).unwrap_or_default(),
            members: self.members.iter().map(store_member).collect(),
            devices: self.devices.iter().map(store_device).collect(),
            device_map_version: self.device_map_version,
            pools: self.pools.iter().map(store_pool).collect(),
            copysets: self.copysets.iter().map(store_copyset).collect(),
            volumes: self.volumes.iter().map(store_volume).collect(),
            next_pool: self.next_pool,
            next_copyset: self.next_copyset,
            next_session: self.next_session,
            answered: self.answered.iter().map(store_answered).collect(),
            paused_schedulers: self.paused.iter().map(ToString::to_string).collect(),
            scrub_schedule: self.scrubs.schedule.as_ref().map(store_schedule),
            next_scrub: self.scrubs.next_number,
            scrubs: self.scrubs.copysets.iter().map(store_scrub).collect(),
        };
        stored.encode_to_vec().into()
    }

    /// Inverse of `encode`; no bytes at all are the state of a group that has applied nothing.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        if raw.is_empty() {
            return Ok(Self::default());
        }
        let stored = StoredState::decode(raw)?;
        if stored.format != FORMAT {
            return Err(DecodeError::Format(stored.format));
        }
        let mut state = Self {
            device_map_version: stored.device_map_version,
            next_pool: stored.next_pool,
            next_copyset: stored.next_copyset,
            next_session: stored.next_session,
            ..Self::default()
        };
        if !stored.cluster_id.is_empty() {
            let id = ClusterId::from_wire(&stored.cluster_id).ok_or(field("cluster_id"))?;
            state.cluster = Some(Cluster { id, name: stored.cluster_name });
        }
        for member in stored.members {
            let id = DeviceId::from_wire(&member.device_id).ok_or(field("members"))?;
            state.members.insert(member.name, id);
        }
        for device in stored.devices {
            let (id, device) = load_device(device)?;
            state.devices.insert(id, device);
        }
        for pool in stored.pools {
            let (id, pool) = load_pool(pool)?;
            state.pools.insert(id, pool);
        }
        for copyset in stored.copysets {
            let (id, copyset) = load_copyset(copyset)?;
            state.copysets.insert(id, copyset);
        }
        for volume in stored.volumes {
            let (id, volume) = load_volume(volume)?;
            if !volume.deleting {
                state.names.insert(volume.name.clone(), id);
            }
            state.volumes.insert(id, volume);
        }
        for name in stored.paused_schedulers {
            state.paused.insert(Scheduler::from_name(&name).ok_or(field("paused scheduler"))?);
        }
        state.scrubs.next_number = stored.next_scrub.max(1);
        if let Some(log::SetScrubSchedule { schedule, window_secs }) = stored.scrub_schedule {
            let schedule = Schedule::new(&schedule, window_secs);
            state.scrubs.schedule = Some(schedule.map_err(|_| field("scrub schedule"))?);
        }
        for scrub in stored.scrubs {
            let (id, scrub) = load_scrub(scrub)?;
            state.scrubs.copysets.insert(id, scrub);
        }
        let mut answered = Answered::default();
        for log::Answered { request_id, kind, answer } in stored.answered {
            answered.insert(request_id, kind, answer.ok_or(field("answered"))?);
        }
        state.answered = answered;
        state.validate_references()?;
        Ok(state)
    }

    /// What `apply` indexes without looking must be there.
    fn validate_references(&self) -> Result<(), DecodeError> {
        let pools = self.copysets.values().map(|copyset| copyset.pool);
        let pools = pools.chain(self.volumes.values().map(|volume| volume.pool));
        match pools.into_iter().all(|pool| self.pools.contains_key(&pool)) {
            true => Ok(()),
            false => Err(field("pool reference")),
        }
    }
}

fn field(name: &'static str) -> DecodeError {
    DecodeError::Field(name)
}

fn store_member((name, id): (&String, &DeviceId)) -> log::MdsMember {
    log::MdsMember { name: name.clone(), device_id: id.to_wire() }
}

fn store_device((id, device): (&DeviceId, &Device)) -> log::StoredDevice {
    let Device { name, host, zone, class, size, capacity, address, superseded } = device.clone();
    let facts = log::DeviceFacts {
        device_id: id.to_wire(),
        name,
        host,
        zone,
        device_class: class,
        size,
        capacity,
        address,
    };
    log::StoredDevice { facts: Some(facts), superseded }
}

fn load_device(stored: log::StoredDevice) -> Result<(DeviceId, Device), DecodeError> {
    let facts = stored.facts.ok_or(field("device"))?;
    let id = DeviceId::from_wire(&facts.device_id).ok_or(field("device id"))?;
    let device = Device {
        name: facts.name,
        host: facts.host,
        zone: facts.zone,
        class: facts.device_class,
        size: facts.size,
        capacity: facts.capacity,
        address: facts.address,
        superseded: stored.superseded,
    };
    Ok((id, device))
}

fn store_pool((id, pool): (&PoolId, &Pool)) -> log::StoredPool {
    let Pool { name, replicas, failure_domain, class, overcommit_percent } = pool.clone();
    let spec = log::CreatePool {
        name,
        replicas,
        failure_domain: failure_domain.code(),
        device_class: class,
        overcommit_percent,
    };
    log::StoredPool { id: id.0, spec: Some(spec) }
}

fn load_pool(stored: log::StoredPool) -> Result<(PoolId, Pool), DecodeError> {
    let spec = stored.spec.ok_or(field("pool"))?;
    let failure_domain =
        FailureDomain::from_code(spec.failure_domain).map_err(|_| field("failure domain"))?;
    let overcommit_percent =
        load_overcommit(spec.overcommit_percent).map_err(|_| field("overcommit"))?;
    let pool = Pool {
        name: spec.name,
        replicas: spec.replicas,
        failure_domain,
        class: spec.device_class,
        overcommit_percent,
    };
    Ok((PoolId(stored.id), pool))
}

fn store_copyset((id, copyset): (&CopysetId, &Copyset)) -> log::StoredCopyset {
    let Copyset { pool, shards, voters, active, config_index, joining, splitting, split_from } =
        copyset;
    log::StoredCopyset {
        id: id.0,
        pool: pool.0,
        shard_first: shards.first,
        shard_end: shards.end,
        voters: ids_to_wire(voters),
        active: *active,
        config_index: *config_index,
        joining_add: joining.map(|joining| joining.add.to_wire()).unwrap_or_default(),
        joining_remove: joining.map(|joining| joining.remove.to_wire()).unwrap_or_default(),
        splitting: splitting.unwrap_or_default().0,
        split_from: split_from.unwrap_or_default().0,
    }
}

fn load_copyset(stored: log::StoredCopyset) -> Result<(CopysetId, Copyset), DecodeError> {
    let joining = if stored.joining_add.is_empty() {
        None
    } else {
        let add = DeviceId::from_wire(&stored.joining_add).ok_or(field("joining"))?;
        let remove = DeviceId::from_wire(&stored.joining_remove).ok_or(field("joining"))?;
        Some(Joining { add, remove })
    };
    let copyset = Copyset {
        pool: PoolId(stored.pool),
        shards: ShardRange { first: stored.shard_first, end: stored.shard_end },
        voters: ids_from_wire(&stored.voters).ok_or(field("voters"))?,
        active: stored.active,
        config_index: stored.config_index,
        joining,
        splitting: some_copyset(stored.splitting),
        split_from: some_copyset(stored.split_from),
    };
    Ok((CopysetId(stored.id), copyset))
}

/// 0 is the MDS's own group.
fn some_copyset(id: u32) -> Option<CopysetId> {
    (id != 0).then_some(CopysetId(id))
}

fn store_volume((id, volume): (&VolumeId, &Volume)) -> log::StoredVolume {
    let session = |(id, session): (&SessionId, &Session)| {
        let Session { epoch, node, read_only, shared } = session.clone();
        log::StoredSession { id: id.0, epoch: epoch.0, node, read_only, shared }
    };
    let publication = |(node, publication): (&String, &Publication)| {
        let Publication { read_only, shared } = *publication;
        log::Publish { volume_id: Bytes::new(), node: node.clone(), read_only, shared }
    };
    log::StoredVolume {
        id: id.to_wire(),
        name: volume.name.clone(),
        pool: volume.pool.0,
        size: volume.size,
        epoch: volume.epoch.0,
        fenced_epoch: volume.fenced_epoch.0,
        deleting: volume.deleting,
        created_unix_ms: volume.created_unix_ms,
        sessions: volume.sessions.iter().map(session).collect(),
        revoking: volume.revoking.iter().map(|session| session.0).collect(),
        revoked: volume.revoked,
        publications: volume.publications.iter().map(publication).collect(),
        limits: store_limits(volume.limits),
        snapshot: volume.snapshot.as_ref().map(store_snapshot),
        restoring: volume.restoring.map(VolumeId::to_wire).unwrap_or_default(),
        source: volume.source.map(VolumeId::to_wire).unwrap_or_default(),
    }
}

fn store_snapshot(snapshot: &Snapshot) -> log::StoredSnapshot {
    let Snapshot { volume, volume_name, name, ready } = snapshot.clone();
    log::StoredSnapshot { volume_id: volume.to_wire(), volume_name, name, ready }
}

fn load_snapshot(stored: log::StoredSnapshot) -> Result<Snapshot, DecodeError> {
    let log::StoredSnapshot { volume_id, volume_name, name, ready } = stored;
    let volume = VolumeId::from_wire(&volume_id).ok_or(field("snapshot"))?;
    Ok(Snapshot { volume, volume_name, name, ready })
}

/// None for no bytes.
fn load_volume_id(name: &'static str, raw: &[u8]) -> Result<Option<VolumeId>, DecodeError> {
    let id = || VolumeId::from_wire(raw).ok_or(field(name));
    (!raw.is_empty()).then(id).transpose()
}

fn load_volume(stored: log::StoredVolume) -> Result<(VolumeId, Volume), DecodeError> {
    let session = |stored: log::StoredSession| {
        let log::StoredSession { id, epoch, node, read_only, shared } = stored;
        (SessionId(id), Session { epoch: Epoch(epoch), node, read_only, shared })
    };
    let publication = |stored: log::Publish| {
        let log::Publish { node, read_only, shared, .. } = stored;
        (node, Publication { read_only, shared })
    };
    let volume = Volume {
        name: stored.name,
        pool: PoolId(stored.pool),
        size: stored.size,
        epoch: Epoch(stored.epoch),
        fenced_epoch: Epoch(stored.fenced_epoch),
        deleting: stored.deleting,
        created_unix_ms: stored.created_unix_ms,
        sessions: stored.sessions.into_iter().map(session).collect(),
        revoking: stored.revoking.into_iter().map(SessionId).collect(),
        revoked: stored.revoked,
        publications: stored.publications.into_iter().map(publication).collect(),
        limits: load_limits(stored.limits),
        snapshot: stored.snapshot.map(load_snapshot).transpose()?,
        restoring: load_volume_id("restoring", &stored.restoring)?,
        source: load_volume_id("source", &stored.source)?,
    };
    Ok((VolumeId::from_wire(&stored.id).ok_or(field("volume id"))?, volume))
}

fn store_schedule(schedule: &Schedule) -> log::SetScrubSchedule {
    let (text, window_secs) = (schedule.text.clone(), schedule.window_secs);
    log::SetScrubSchedule { schedule: text, window_secs }
}

fn store_scrub((id, scrub): (&CopysetId, &Scrub)) -> log::StoredScrub {
    let running = |running: &RunningScrub| {
        let RunningScrub { number, began_unix_ms, requested } = *running;
        log::StoredRunningScrub { number, began_unix_ms, requested }
    };
    let ended = |ended: &EndedScrub| {
        let EndedScrub { began_unix_ms, ended_unix_ms, index, replicas } = ended;
        log::StoredEndedScrub {
            began_unix_ms: *began_unix_ms,
            ended_unix_ms: *ended_unix_ms,
            index: *index,
            replicas: replicas.iter().map(store_findings).collect(),
        }
    };
    log::StoredScrub {
        copyset: id.0,
        requested: scrub.requested,
        running: scrub.running.as_ref().map(running),
        last: scrub.last.as_ref().map(ended),
    }
}

fn load_scrub(stored: log::StoredScrub) -> Result<(CopysetId, Scrub), DecodeError> {
    let running = |stored: log::StoredRunningScrub| {
        let log::StoredRunningScrub { number, began_unix_ms, requested } = stored;
        RunningScrub { number, began_unix_ms, requested }
    };
    let ended = |stored: log::StoredEndedScrub| {
        let log::StoredEndedScrub { began_unix_ms, ended_unix_ms, index, replicas } = stored;
        let replicas = replicas.into_iter().map(load_findings).collect::<Result<_, _>>();
        let replicas = replicas.map_err(|_| field("findings of a scrub"))?;
        Ok::<_, DecodeError>(EndedScrub { began_unix_ms, ended_unix_ms, index, replicas })
    };
    let scrub = Scrub {
        requested: stored.requested,
        running: stored.running.map(running),
        last: stored.last.map(ended).transpose()?,
    };
    Ok((CopysetId(stored.copyset), scrub))
}

fn store_answered((id, kind, answer): (&Bytes, u32, &log::Answer)) -> log::Answered {
    log::Answered { request_id: id.clone(), kind, answer: Some(answer.clone()) }
}
