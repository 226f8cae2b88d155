//! What `curve status` and the CurveCluster's conditions say. Pure: sentences with numbers, made
//! from the state and what the leader heard.

use std::collections::BTreeMap;
use std::time::Duration;

use curve_types::{ByteSize, CopysetId, DeviceId, PoolId};
use curve_wire::proto;

use crate::fill::Fill;
use crate::log::WireId;
use crate::plan::has_spare;
use crate::scrubs::finding_messages;
use crate::state::{Copyset, Device, State};
use crate::view::{Condition, DOWN_AFTER, Scene};

/// A device fuller than this is worth a warning: repair needs room.
const NEARLY_FULL_PERCENT: u64 = 85;

/// One MDS as its leader sees it.
pub struct Member {
    pub name: String,
    pub device: DeviceId,
    pub up: bool,
    pub leader: bool,
}

pub fn cluster_status(scene: Scene<'_>, members: &[Member]) -> proto::ClusterStatus {
    let state = scene.state;
    let counts = Counts::of(scene);
    let fills = Fill::of_pools(scene);
    let mut messages = Vec::new();
    messages.extend(mds_message(members));
    messages.extend(down_message(scene));
    messages.extend(counts.messages(scene));
    messages.extend(pool_messages(scene));
    messages.extend(fill_messages(state, &fills));
    messages.extend(full_messages(scene));
    messages.extend(slow_messages(scene));
    messages.extend(finding_messages(state));
    messages.extend(paused_message(state));
    let pools: Vec<_> = fills.iter().map(|(id, fill)| pool_status(state, *id, fill)).collect();
    let nearly_full = pools.iter().any(|pool| pool.fill() == proto::Health::Error);
    let (scrub_schedule, scrub_window_secs) = state.scrubs.windows();
    let attached = state
        .volumes
        .values()
        .filter(|v| v.sessions.keys().any(|session| scene.view.is_live(*session, scene.now)));
    let health = if is_early(scene) {
        messages = vec!["a new MDS leader is waiting for the chunkservers to report".to_owned()];
        proto::Health::Unknown
    } else if counts.unavailable > 0 || nearly_full {
        proto::Health::Error
    } else if !messages.is_empty() {
        proto::Health::Warn
    } else {
        proto::Health::Ok
    };
    proto::ClusterStatus {
        cluster_name: state.cluster.as_ref().map(|c| c.name.clone()).unwrap_or_default(),
        cluster_id: state.cluster.as_ref().map(|c| c.id.to_wire()).unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        health: health.into(),
        messages,
        mds: members.iter().map(mds_status).collect(),
        devices: current(state).map(|(id, device)| device_status(scene, id, device)).collect(),
        pools,
        copysets_whole: counts.whole,
        copysets_degraded: counts.degraded,
        copysets_unavailable: counts.unavailable,
        attached_volumes: attached.count() as u32,
        paused_schedulers: paused(state),
        scrub_schedule,
        scrub_window_secs,
    }
}

fn paused(state: &State) -> Vec<String> {
    state.paused.iter().map(ToString::to_string).collect()
}

/// Whoever paused them may have forgotten it.
fn paused_message(state: &State) -> Option<String> {
    (!state.paused.is_empty()).then(|| format!("{} paused by command", paused(state).join(", ")))
}

/// Devices whose process still runs on them.
fn current(state: &State) -> impl Iterator<Item = (DeviceId, &Device)> {
    let all = state.devices.iter().filter(|(_, device)| !device.superseded);
    all.map(|(id, device)| (*id, device))
}

/// Right after a change of leaders, until every device had the time to report.
fn is_early(scene: Scene<'_>) -> bool {
    let heard = |id: DeviceId| scene.view.devices.contains_key(&id);
    let mut known = current(scene.state);
    scene.now.saturating_sub(scene.view.since) <= DOWN_AFTER && known.any(|(id, _)| !heard(id))
}

#[derive(Default)]
struct Counts {
    whole: u32,
    degraded: u32,
    unavailable: u32,
}

impl Counts {
    fn of(scene: Scene<'_>) -> Self {
        let mut counts = Self::default();
        for (id, copyset) in &scene.state.copysets {
            match scene.condition(*id, copyset) {
                Condition::Whole => counts.whole += 1,
                Condition::Degraded { .. } => counts.degraded += 1,
                Condition::Unavailable => counts.unavailable += 1,
            }
        }
        counts
    }

    fn messages(&self, scene: Scene<'_>) -> Vec<String> {
        let total = self.whole + self.degraded + self.unavailable;
        let mut messages = Vec::new();
        if self.unavailable > 0 {
            messages.push(format!(
                "{} of {total} copysets are unavailable: fewer than a quorum of their replicas \
                 are up, or they are electing a leader",
                self.unavailable
            ));
        }
        if self.degraded > 0 {
            let (have, want) = fewest_replicas(scene);
            let mut message =
                format!("{} of {total} copysets have {have} of {want} replicas", self.degraded);
            let joining = scene.state.copysets.values().filter_map(|copyset| copyset.joining);
            let lost = joining.filter(|joining| !scene.is_move(*joining)).count();
            if lost > 0 {
                message.push_str(&format!("; {lost} replicas are being re-created"));
            }
            messages.push(message);
        }
        messages
    }
}

/// Replicas of the copyset that has lost most, and how many it should have.
fn fewest_replicas(scene: Scene<'_>) -> (usize, usize) {
    let missing = |(id, copyset): (&CopysetId, &Copyset)| match scene.condition(*id, copyset) {
        Condition::Degraded { replicas } => Some((replicas, copyset.voters.len())),
        _ => None,
    };
    let all = scene.state.copysets.iter().filter_map(missing);
    all.max_by_key(|(have, want)| want - have).unwrap_or_default()
}

fn mds_message(members: &[Member]) -> Option<String> {
    let down: Vec<&str> = members.iter().filter(|m| !m.up).map(|m| m.name.as_str()).collect();
    (!down.is_empty())
        .then(|| format!("{} of {} mds down ({})", down.len(), members.len(), down.join(", ")))
}

/// A device that is down matters until everything it held has been re-created elsewhere.
fn down_message(scene: Scene<'_>) -> Option<String> {
    let matters = |id: DeviceId| !scene.is_out(id) || scene.state.copysets_on(id).next().is_some();
    let down: Vec<_> = current(scene.state)
        .filter(|(id, _)| scene.view.is_down(*id, scene.now) && matters(*id))
        .collect();
    if down.is_empty() {
        return None;
    }
    let shown: Vec<String> = down
        .iter()
        .map(|(id, device)| {
            format!("{}, since {}", device.name, clock(scene.view.silence(*id, scene.now)))
        })
        .collect();
    let total = current(scene.state).count();
    let mut message = format!("{} of {total} chunkservers down ({})", down.len(), shown.join("; "));
    let stuck: Vec<&str> = down
        .iter()
        .filter(|(id, _)| !has_spare(scene, *id))
        .map(|(_, device)| device.name.as_str())
        .collect();
    if !stuck.is_empty() {
        message.push_str(&format!(
            "; no other chunkserver can take the replicas of {}, for lack of room or of another \
             failure domain: add one or bring it back",
            stuck.join(", ")
        ));
    }
    Some(message)
}

/// `00:02:13`
fn clock(silence: Duration) -> String {
    let seconds = silence.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn pool_messages(scene: Scene<'_>) -> Vec<String> {
    let unready = |id| scene.state.check_ready(id).err().map(|refusal| refusal.message);
    scene.state.pools.keys().filter_map(|id| unready(*id)).collect()
}

fn fill_messages(state: &State, fills: &BTreeMap<PoolId, Fill>) -> Vec<String> {
    fills.iter().filter_map(|(id, fill)| fill.message(&state.pools.get(id)?.name)).collect()
}

fn full_messages(scene: Scene<'_>) -> Vec<String> {
    let full = |(id, device): (DeviceId, &Device)| {
        let seen = scene.view.devices.get(&id)?;
        seen.is_filled(NEARLY_FULL_PERCENT).then(|| {
            let (name, used) = (&device.name, ByteSize(seen.used));
            format!("chunkserver {name} is nearly full: {used} of {}", ByteSize(seen.capacity))
        })
    };
    current(scene.state).filter_map(full).collect()
}

fn slow_messages(scene: Scene<'_>) -> Vec<String> {
    let slow = |(id, device): (DeviceId, &Device)| {
        let commit = scene.slow(id).filter(|_| scene.is_up(id))?;
        let (name, now) = (&device.name, commit.as_millis());
        Some(format!(
            "chunkserver {name} has a slow disk (a commit takes {now} ms now): it is given no \
             leadership until its commits have been sound for a minute"
        ))
    };
    current(scene.state).filter_map(slow).collect()
}

fn mds_status(member: &Member) -> proto::MdsStatus {
    proto::MdsStatus {
        name: member.name.clone(),
        device_id: member.device.to_wire(),
        up: member.up,
        leader: member.leader,
    }
}

fn device_status(scene: Scene<'_>, id: DeviceId, device: &Device) -> proto::DeviceStatus {
    let seen = scene.view.devices.get(&id);
    let leads = |copyset: &CopysetId| {
        scene.view.leader_of(*copyset, scene.now).is_some_and(|(leader, _)| leader == id)
    };
    proto::DeviceStatus {
        device_id: id.to_wire(),
        name: device.name.clone(),
        host: device.host.clone(),
        zone: device.zone.clone(),
        device_class: device.class.clone(),
        up: scene.is_up(id),
        silent_ms: scene.view.silence(id, scene.now).as_millis() as u64,
        out: scene.is_out(id),
        capacity: device.capacity,
        used: seen.map_or(0, |seen| seen.used),
        replicas: scene.state.copysets_on(id).count() as u32,
        leaders: scene.state.copysets_on(id).filter(|(copyset, _)| leads(copyset)).count() as u32,
        address: device.address.clone(),
    }
}

pub fn pool_message(state: &State, id: PoolId) -> proto::Pool {
    let pool = &state.pools[&id];
    proto::Pool {
        id: id.0,
        name: pool.name.clone(),
        replicas: pool.replicas,
        failure_domain: pool.failure_domain.code() as i32,
        device_class: pool.class.clone(),
        overcommit_percent: pool.overcommit_percent,
    }
}

pub fn pool_statuses(scene: Scene<'_>) -> Vec<proto::PoolStatus> {
    let fills = Fill::of_pools(scene);
    fills.iter().map(|(id, fill)| pool_status(scene.state, *id, fill)).collect()
}

fn pool_status(state: &State, id: PoolId, fill: &Fill) -> proto::PoolStatus {
    proto::PoolStatus {
        pool: Some(pool_message(state, id)),
        logical_capacity: fill.capacity,
        provisioned: fill.provisioned,
        used: fill.used,
        copysets: state.copysets_of(id).count() as u32,
        provisioned_limit: state.provisioned_limit(id),
        fill: fill.health().into(),
    }
}
