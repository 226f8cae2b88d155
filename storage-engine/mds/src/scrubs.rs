//! What `curve scrub status` and the health of the cluster say about scrubs. Pure.

use curve_types::{CopysetId, DeviceId, PoolId, VolumeId};
use curve_wire::proto;

use crate::log::WireId;
use crate::plan::{is_due, is_open, scrub_report};
use crate::state::{Comparison, Copyset, EndedScrub, Findings, RunningScrub, Scheduler, State};
use crate::view::Scene;

/// Of the copysets that hold a volume, or of all that have formed.
pub fn scrubs(scene: Scene<'_>, volume: Option<(VolumeId, PoolId)>) -> proto::Scrubs {
    let state = scene.state;
    let of_volume = volume.map(|(id, pool)| state.copysets_of_volume(id, pool));
    let wanted = |(id, copyset): &(&CopysetId, &Copyset)| {
        copyset.active && of_volume.as_ref().is_none_or(|of_volume| of_volume.contains(id))
    };
    let copysets = state.copysets.iter().filter(wanted);
    let (schedule, window_secs) = state.scrubs.windows();
    proto::Scrubs {
        schedule,
        window_secs,
        open: is_open(scene),
        paused: state.paused.contains(&Scheduler::Scrub),
        copysets: copysets.map(|(id, copyset)| copyset_scrub(scene, *id, copyset)).collect(),
    }
}

fn copyset_scrub(scene: Scene<'_>, id: CopysetId, copyset: &Copyset) -> proto::CopysetScrub {
    let scrub = scene.state.scrubs.copysets.get(&id);
    let running = |run: RunningScrub| proto::RunningScrub {
        began_unix_ms: run.began_unix_ms,
        requested: run.requested,
        replicas: copyset
            .voters
            .iter()
            .map(|voter| replica(scene.state, *voter, scrub_report(scene, *voter, id, run.number)))
            .collect(),
    };
    proto::CopysetScrub {
        copyset: id.0,
        pool: scene.state.pools[&copyset.pool].name.clone(),
        requested: scrub.is_some_and(|scrub| scrub.requested),
        due: is_due(scene, id),
        running: scrub.and_then(|scrub| scrub.running).map(running),
        last: scrub.and_then(|scrub| scrub.last.as_ref()).map(|last| ended(scene.state, last)),
    }
}

fn ended(state: &State, last: &EndedScrub) -> proto::EndedScrub {
    let report = |findings: &Findings| proto::ScrubReport {
        bytes_read: findings.bytes_read,
        ended: true,
        repaired: findings.repaired,
        lost: findings.lost,
        unrepaired: findings.unrepaired,
        digest: Some(proto::TableDigest { index: last.index, value: findings.digest }),
        ..Default::default()
    };
    let replicas = last.replicas.iter();
    let comparison = match last.comparison() {
        Comparison::Alike => proto::Comparison::Alike,
        Comparison::Differ => proto::Comparison::Differ,
        Comparison::Unknown => proto::Comparison::Unknown,
    };
    proto::EndedScrub {
        began_unix_ms: last.began_unix_ms,
        ended_unix_ms: last.ended_unix_ms,
        comparison: comparison.into(),
        index: last.index,
        replicas: replicas.map(|(id, found)| replica(state, *id, Some(report(found)))).collect(),
    }
}

fn replica(
    state: &State,
    device: DeviceId,
    report: Option<proto::ScrubReport>,
) -> proto::ReplicaScrub {
    let name = state.devices.get(&device).map(|device| device.name.clone());
    proto::ReplicaScrub { device_id: device.to_wire(), name: name.unwrap_or_default(), report }
}

/// What a last scrub found and did not repair; it stands until another one finds nothing.
pub fn finding_messages(state: &State) -> Vec<String> {
    let last = || {
        let all = state.scrubs.copysets.iter();
        all.filter_map(|(id, scrub)| Some((*id, scrub.last.as_ref()?)))
    };
    let mut messages = Vec::new();
    let differ: Vec<_> = last()
        .filter(|(_, last)| last.comparison() == Comparison::Differ)
        .map(|(id, _)| id.to_string())
        .collect();
    if !differ.is_empty() {
        messages.push(format!(
            "replicas of {} copysets ({}) hold valid copies that differ, and nothing was changed: \
             `curve scrub status -o json` shows which; this is a bug, report it",
            differ.len(),
            differ.join(", ")
        ));
    }
    let count = |of: fn(&Findings) -> u64| last().map(|(_, last)| last.total(of)).sum::<u64>();
    let lost = count(|found| found.lost);
    if lost > 0 {
        messages.push(format!(
            "{lost} damaged blocks were found on replicas while no other had their bytes: restore \
             what they held from a backup"
        ));
    }
    let unrepaired = count(|found| found.unrepaired);
    if unrepaired > 0 {
        messages.push(format!(
            "{unrepaired} damaged blocks were found and not repaired in time: `curve scrub start` \
             tries again"
        ));
    }
    messages
}
