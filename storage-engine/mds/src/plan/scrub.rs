//! Scrubs: which copysets are to be scrubbed next, what their chunkservers are told, and when one
//! has ended. A chunkserver reads the replica of one copyset at a time; the copyset whose last
//! scrub is the longest ago comes first, and what a person asked for before everything else.

use std::collections::BTreeSet;
use std::time::Duration;

use curve_types::{CopysetId, DeviceId};
use curve_wire::proto::{ScrubOrder, ScrubReport};

use crate::log::{self, WireId, command::Kind};
use crate::state::{Copyset, RunningScrub, Scheduler};
use crate::view::{Condition, Scene};

/// A copyset is due so long after its last scrub began: short against the time in which other
/// copies of a block go bad.
const PERIOD: Duration = Duration::from_secs(7 * DAY);
/// Where scrubs may run at any time a chunkserver reads all that it stores in so long: little load
/// (3.4 MiB/s for a TiB), and time left in which it waits for others.
const PACE: Duration = Duration::from_secs(7 * DAY / 2);
const DAY: u64 = 24 * 3600;

/// Scrubs that end, and those that begin.
pub fn plan_scrubs(scene: Scene<'_>) -> Vec<Kind> {
    if is_paused(scene) {
        return Vec::new();
    }
    let running = running(scene);
    let ends =
        running.into_iter().filter_map(|(id, copyset, run)| plan_end(scene, id, copyset, run));
    ends.chain(plan_begins(scene)).collect()
}

pub fn is_paused(scene: Scene<'_>) -> bool {
    scene.state.paused.contains(&Scheduler::Scrub)
}

/// Whether scrubs that nobody asked for may run now.
pub fn is_open(scene: Scene<'_>) -> bool {
    let schedule = scene.state.scrubs.schedule.as_ref();
    schedule.is_none_or(|schedule| schedule.is_open(scene.now_unix_ms / 1000))
}

/// Whether nobody has asked for a scrub of the copyset, but it is time for one.
pub fn is_due(scene: Scene<'_>, id: CopysetId) -> bool {
    let scrubs = &scene.state.scrubs;
    // Where a window opens once a week: what its end cut off last week is not to slip out of it.
    // A window that is longer than a day leaves time to catch up.
    let window = scrubs.schedule.as_ref().map_or(0, |schedule| schedule.window_secs.min(DAY));
    let period = PERIOD.as_secs().saturating_sub(window) * 1000;
    let last = scrubs.copysets.get(&id).and_then(|scrub| scrub.last.as_ref());
    last.is_none_or(|last| scene.now_unix_ms.saturating_sub(last.began_unix_ms) >= period)
}

/// What a voter last said of this scrub.
pub fn report(
    scene: Scene<'_>,
    voter: DeviceId,
    id: CopysetId,
    number: u64,
) -> Option<ScrubReport> {
    let seen = scene.view.devices.get(&voter)?;
    seen.replicas.get(&id)?.scrub.filter(|report| report.number == number)
}

fn running(scene: Scene<'_>) -> Vec<(CopysetId, &Copyset, RunningScrub)> {
    let scrubs = scene.state.scrubs.copysets.iter();
    let running =
        scrubs.filter_map(|(id, scrub)| Some((*id, scene.state.copysets.get(id)?, scrub.running?)));
    running.collect()
}

/// Whether a scrub that has begun is to go on at this moment.
fn goes_on(scene: Scene<'_>, run: RunningScrub) -> bool {
    !is_paused(scene) && (run.requested || is_open(scene))
}

/// Whether a voter has still to read its replica, or to say that it has.
fn owes_walk(scene: Scene<'_>, voter: DeviceId, id: CopysetId, run: RunningScrub) -> bool {
    !report(scene, voter, id, run.number).is_some_and(|report| report.ended)
}

/// The end, once every voter has read its replica and all have digests at one index.
fn plan_end(scene: Scene<'_>, id: CopysetId, copyset: &Copyset, run: RunningScrub) -> Option<Kind> {
    let mut index = None;
    let mut replicas = Vec::new();
    for voter in &copyset.voters {
        let report = report(scene, *voter, id, run.number).filter(|report| report.ended)?;
        let digest = report.digest?;
        if *index.get_or_insert(digest.index) != digest.index {
            return None;
        }
        replicas.push(log::ReplicaFindings {
            device: voter.to_wire(),
            bytes_read: report.bytes_read,
            repaired: report.repaired,
            lost: report.lost,
            unrepaired: report.unrepaired,
            digest: digest.value,
        });
    }
    let (copyset, number) = (id.0, run.number);
    Some(Kind::EndScrub(log::EndScrub { copyset, number, index: index?, replicas }))
}

fn plan_begins(scene: Scene<'_>) -> Vec<Kind> {
    let (requested, due): (Vec<_>, Vec<_>) =
        candidates(scene).into_iter().partition(|(id, _)| is_requested(scene, *id));
    // What a person wants does not wait for what takes its time: that one is put off.
    let mut begins = begin(taken(scene, |run| run.requested), requested);
    if begins.is_empty() {
        begins = begin(taken(scene, |_| true), due);
    }
    begins
}

fn is_requested(scene: Scene<'_>, id: CopysetId) -> bool {
    scene.state.scrubs.copysets.get(&id).is_some_and(|scrub| scrub.requested)
}

/// Chunkservers that read for one of these scrubs.
fn taken(scene: Scene<'_>, counts: impl Fn(RunningScrub) -> bool) -> BTreeSet<DeviceId> {
    let mut taken = BTreeSet::new();
    let counted = running(scene).into_iter().filter(|(.., run)| counts(*run));
    for (id, copyset, run) in counted.filter(|(.., run)| goes_on(scene, *run)) {
        let voters = copyset.voters.iter().copied();
        taken.extend(voters.filter(|voter| owes_walk(scene, *voter, id, run)));
    }
    taken
}

/// Begins what it can without chunkservers that are taken, or that the oldest copyset waits for.
fn begin(mut taken: BTreeSet<DeviceId>, candidates: Vec<(CopysetId, &Copyset)>) -> Vec<Kind> {
    let mut waits = false;
    let mut begins = Vec::new();
    for (id, copyset) in candidates {
        if !copyset.voters.iter().any(|voter| taken.contains(voter)) {
            begins.push(Kind::BeginScrub(id.0));
        } else if std::mem::replace(&mut waits, true) {
            // Only the first one that waits: it begins when those that read have ended, and
            // then another one is the first.
            continue;
        }
        taken.extend(&copyset.voters);
    }
    begins
}

/// Copysets that could begin now, in the order in which they should.
fn candidates(scene: Scene<'_>) -> Vec<(CopysetId, &Copyset)> {
    let (state, open) = (scene.state, is_open(scene));
    let mut found = Vec::new();
    for (id, copyset) in &state.copysets {
        let scrub = state.scrubs.copysets.get(id);
        let wanted = is_requested(scene, *id) || open && is_due(scene, *id);
        let settled = copyset.active
            && copyset.joining.is_none()
            && scene.condition(*id, copyset) == Condition::Whole;
        if wanted && settled && scrub.is_none_or(|scrub| scrub.running.is_none()) {
            let last = scrub.and_then(|scrub| scrub.last.as_ref());
            let began = last.map_or(0, |last| last.began_unix_ms);
            found.push(((began, *id), copyset));
        }
    }
    found.sort_unstable_by_key(|(rank, _)| *rank);
    found.into_iter().map(|((_, id), copyset)| (id, copyset)).collect()
}

/// What a device is told of the scrubs of its replicas.
pub fn scrub_orders(scene: Scene<'_>, device: DeviceId) -> Vec<ScrubOrder> {
    let own = running(scene).into_iter().filter(|(_, copyset, _)| copyset.voters.contains(&device));
    let own: Vec<_> = own.collect();
    let walks = own
        .iter()
        .filter(|(id, _, run)| goes_on(scene, *run) && owes_walk(scene, device, *id, *run));
    // Where a window has opened there may be several.
    let walk = walks.min_by_key(|(.., run)| (!run.requested, run.number)).map(|(id, ..)| *id);
    let unhurried = |run: RunningScrub| !run.requested && scene.state.scrubs.schedule.is_none();
    let order = |(id, copyset, run): (CopysetId, &Copyset, RunningScrub)| ScrubOrder {
        copyset: id.0,
        number: run.number,
        walk: walk == Some(id),
        period_secs: if unhurried(run) { PACE.as_secs() } else { 0 },
        digest: goes_on(scene, run) && wants_digest(scene, device, id, copyset, run),
    };
    own.into_iter().map(order).collect()
}

/// Once all have read their replicas, so that what was damaged is repaired. Not before the end is
/// noted: digests that are there already are then at one index.
fn wants_digest(
    scene: Scene<'_>,
    device: DeviceId,
    id: CopysetId,
    copyset: &Copyset,
    run: RunningScrub,
) -> bool {
    let leads = scene.view.leader_of(id, scene.now).is_some_and(|(leader, _)| leader == device);
    let owed = copyset.voters.iter().any(|voter| owes_walk(scene, *voter, id, run));
    // A digest of which one voter does not hear is of no use.
    let whole = scene.condition(id, copyset) == Condition::Whole;
    leads && whole && !owed && plan_end(scene, id, copyset, run).is_none()
}

#[cfg(test)]
mod tests;
