//! Scrubs: when they may run, which copysets are being scrubbed, and what the last one found.

use std::collections::BTreeMap;

use curve_types::{CopysetId, DeviceId};

use super::apply::{Applied, device_id, done, volume_id};
use super::{Reason, Refusal, Schedule, Scheduler, State};
use crate::log::{self, answer};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scrubs {
    /// None: at any time.
    pub schedule: Option<Schedule>,
    /// Copysets that something is known of.
    pub copysets: BTreeMap<CopysetId, Scrub>,
    pub(super) next_number: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scrub {
    /// A person wants one, and it has not begun.
    pub requested: bool,
    pub running: Option<RunningScrub>,
    pub last: Option<EndedScrub>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunningScrub {
    /// Tells it from all others, of whatever copyset.
    pub number: u64,
    pub began_unix_ms: u64,
    /// By a person: it does not wait for a window.
    pub requested: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndedScrub {
    pub began_unix_ms: u64,
    pub ended_unix_ms: u64,
    /// Log index of the copyset that the digests belong to.
    pub index: u64,
    pub replicas: BTreeMap<DeviceId, Findings>,
}

/// What the scrub of one replica found. Blocks are those that were damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    pub bytes_read: u64,
    pub repaired: u64,
    /// No replica has their bytes.
    pub lost: u64,
    /// A replica may have their bytes, but gave none in time.
    pub unrepaired: u64,
    /// None if a block was lost, so that there is nothing to compare.
    pub digest: Option<u64>,
}

/// What the digests of all replicas at one index say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    Alike,
    /// All copies are valid, and not the same: nobody can say which is right.
    Differ,
    /// A replica could not make its digest.
    Unknown,
}

impl Default for Scrubs {
    fn default() -> Self {
        Self { schedule: None, copysets: BTreeMap::new(), next_number: 1 }
    }
}

impl Scrubs {
    /// The cron expression and the length of windows; empty and 0 without a schedule.
    pub fn windows(&self) -> (String, u64) {
        let windows = |schedule: &Schedule| (schedule.text.clone(), schedule.window_secs);
        self.schedule.as_ref().map(windows).unwrap_or_default()
    }
}

impl EndedScrub {
    pub fn comparison(&self) -> Comparison {
        // Those that have one may differ although another has none.
        let digests = self.replicas.values().filter_map(|findings| findings.digest);
        let known: Vec<u64> = digests.collect();
        if known.windows(2).any(|pair| pair[0] != pair[1]) {
            Comparison::Differ
        } else if known.len() == self.replicas.len() {
            Comparison::Alike
        } else {
            Comparison::Unknown
        }
    }

    /// Sum over all replicas.
    pub fn total(&self, of: impl Fn(&Findings) -> u64) -> u64 {
        self.replicas.values().map(of).sum()
    }
}

impl State {
    pub(super) fn set_scrub_schedule(&mut self, set: log::SetScrubSchedule) -> Applied {
        let log::SetScrubSchedule { schedule, window_secs } = set;
        self.scrubs.schedule = match schedule.is_empty() {
            true => None,
            false => Some(Schedule::new(&schedule, window_secs)?),
        };
        done()
    }

    /// Asks for a scrub of the copysets of a volume, or of all. One that runs because somebody
    /// asked serves this request too; any other begins anew, as it may have passed what matters.
    pub(super) fn request_scrub(&mut self, request: log::RequestScrub) -> Applied {
        if self.paused.contains(&Scheduler::Scrub) {
            let message =
                "scrub is paused by command: resume it with `curve scheduler resume scrub`";
            return Err(Refusal::new(Reason::Precondition, message));
        }
        let mut ids: Vec<CopysetId> = if request.volume_id.is_empty() {
            self.copysets.keys().copied().collect()
        } else {
            let id = volume_id(&request.volume_id)?;
            let pool = self.live_volume(id)?.pool;
            self.copysets_of_volume(id, pool).into_iter().collect()
        };
        ids.retain(|id| self.copysets.get(id).is_some_and(|copyset| copyset.active));
        for id in &ids {
            let scrub = self.scrubs.copysets.entry(*id).or_default();
            if !scrub.running.is_some_and(|running| running.requested) {
                scrub.running = None;
                scrub.requested = true;
            }
        }
        let ids = ids.into_iter().map(|id| id.0).collect();
        Ok(answer::Kind::Copysets(log::CopysetIds { ids }))
    }

    pub(super) fn begin_scrub(&mut self, id: u32, now_unix_ms: u64) -> Applied {
        self.copyset_mut(id)?;
        let scrub = self.scrubs.copysets.entry(CopysetId(id)).or_default();
        if scrub.running.is_some() {
            let message = format!("copyset {id} is being scrubbed");
            return Err(Refusal::new(Reason::Precondition, message));
        }
        let requested = std::mem::take(&mut scrub.requested);
        let number = self.scrubs.next_number;
        scrub.running = Some(RunningScrub { number, began_unix_ms: now_unix_ms, requested });
        self.scrubs.next_number += 1;
        done()
    }

    pub(super) fn end_scrub(&mut self, end: log::EndScrub, now_unix_ms: u64) -> Applied {
        let log::EndScrub { copyset, number, index, replicas } = end;
        let scrub = self.scrubs.copysets.get_mut(&CopysetId(copyset));
        let running = scrub.and_then(|scrub| {
            let running = scrub.running.filter(|running| running.number == number)?;
            Some((scrub, running.began_unix_ms))
        });
        let Some((scrub, began_unix_ms)) = running else {
            let message = format!("copyset {copyset} is not in scrub {number}");
            return Err(Refusal::new(Reason::Precondition, message));
        };
        let replicas = replicas.into_iter().map(load_findings).collect::<Result<_, _>>()?;
        scrub.running = None;
        scrub.last =
            Some(EndedScrub { began_unix_ms, ended_unix_ms: now_unix_ms, index, replicas });
        done()
    }

    /// Drops what is known of copysets that are gone.
    pub(super) fn forget_scrubs(&mut self) {
        let Self { scrubs, copysets, .. } = self;
        scrubs.copysets.retain(|id, _| copysets.contains_key(id));
    }
}

pub(super) fn load_findings(stored: log::ReplicaFindings) -> Result<(DeviceId, Findings), Refusal> {
    let log::ReplicaFindings { device, bytes_read, repaired, lost, unrepaired, digest } = stored;
    Ok((device_id(&device)?, Findings { bytes_read, repaired, lost, unrepaired, digest }))
}

pub(super) fn store_findings((device, findings): (&DeviceId, &Findings)) -> log::ReplicaFindings {
    let Findings { bytes_read, repaired, lost, unrepaired, digest } = *findings;
    let device = log::WireId::to_wire(*device);
    log::ReplicaFindings { device, bytes_read, repaired, lost, unrepaired, digest }
}
