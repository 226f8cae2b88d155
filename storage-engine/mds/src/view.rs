//! What the leader hears and nobody stores: heartbeats and renewals. A new leader starts with an
//! empty view and holds nothing against anyone who has not had the time to report.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use curve_types::{CopysetId, DeviceId, SessionId, VolumeId};
use curve_wire::proto::ScrubReport;

use crate::pace::Pace;
use crate::state::{Copyset, Device, Joining, Pool, State};

/// Silence after which a device counts as down: devices report every second, so three reports are
/// missing and a fourth is late.
pub const DOWN_AFTER: Duration = Duration::from_secs(5);
/// A session that was not renewed for so long no longer stands in the way of others. Agents renew
/// at a third of it.
pub const SESSION_LEASE: Duration = Duration::from_secs(30);

/// What left another copyset so recently need not have a leader yet, nor have been reported.
const FORMS_WITHIN: Duration = Duration::from_secs(5);

/// A moment, as the time since the process started.
pub type Moment = Duration;

/// One replica, as its device last reported it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    pub leader: bool,
    pub term: u64,
    pub applied: u64,
    /// Of a leader only, as are the next three.
    pub voters: Vec<DeviceId>,
    pub learners: BTreeSet<DeviceId>,
    pub caught_up: BTreeSet<DeviceId>,
    pub config_index: u64,
    /// Whom the replica believes to lead.
    pub leader_id: Option<DeviceId>,
    /// Of the last order to scrub that it knows.
    pub scrub: Option<ScrubReport>,
}

/// A device, as it last reported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub at: Moment,
    /// Since when it has been heard without a gap.
    pub up_since: Moment,
    pub capacity: u64,
    pub used: u64,
    pub pace: Pace,
    pub replicas: BTreeMap<CopysetId, Report>,
}

impl Seen {
    /// Whoever looks may have looked at the clock before a heartbeat that it sees.
    fn is_fresh(&self, now: Moment) -> bool {
        now.saturating_sub(self.at) <= DOWN_AFTER
    }

    /// Whether so many percent of its capacity are used. One without any is not full but unknown.
    pub fn is_filled(&self, percent: u64) -> bool {
        self.capacity > 0 && self.used >= self.share_of_capacity(percent)
    }

    pub fn share_of_capacity(&self, percent: u64) -> u64 {
        self.capacity / 100 * percent
    }
}

#[derive(Clone, Debug, Default)]
pub struct View {
    /// When this process became the leader.
    pub since: Moment,
    pub devices: BTreeMap<DeviceId, Seen>,
    /// Last renewal.
    pub sessions: BTreeMap<SessionId, Moment>,
    /// When a device was last registered that had not been there.
    pub devices_changed: Moment,
    /// Snapshots that this leader is taking; others that are not ready were left behind.
    pub taking: BTreeSet<VolumeId>,
    /// When copysets left others.
    pub split: BTreeMap<CopysetId, Moment>,
}

impl View {
    /// The view of a leader that has just begun.
    pub fn begin(now: Moment) -> Self {
        Self { since: now, devices_changed: now, ..Self::default() }
    }

    pub fn on_heartbeat(&mut self, state: &State, id: DeviceId, now: Moment, heard: Heard) {
        let Heard { capacity, used, commit, replicas } = heard;
        // A disk is compared with others of its kind.
        let class = |id: &DeviceId| state.devices.get(id).map(|device| &device.class);
        let alike = |other: &DeviceId| *other != id && class(other) == class(&id);
        let others = self.devices.iter();
        let others = others.filter(|(other, seen)| alike(other) && seen.is_fresh(now));
        let others = Pace::median(others.map(|(_, seen)| seen.pace));
        let before = self.devices.get(&id).filter(|seen| seen.is_fresh(now));
        let up_since = before.map_or(now, |seen| seen.up_since);
        let pace = before.map(|seen| seen.pace).unwrap_or_default().after(commit, others, now);
        self.devices.insert(id, Seen { at: now, up_since, capacity, used, pace, replicas });
    }

    pub fn silence(&self, device: DeviceId, now: Moment) -> Duration {
        now.saturating_sub(self.devices.get(&device).map_or(self.since, |seen| seen.at))
    }

    /// Heard of recently, by this leader.
    pub fn is_up(&self, device: DeviceId, now: Moment) -> bool {
        self.devices.get(&device).is_some_and(|seen| seen.is_fresh(now))
    }

    /// Not heard of for long enough to say so. Right after a change of leaders a device is for a
    /// while neither up nor down.
    pub fn is_down(&self, device: DeviceId, now: Moment) -> bool {
        self.silence(device, now) > DOWN_AFTER
    }

    pub fn session_age(&self, session: SessionId, now: Moment) -> Duration {
        now.saturating_sub(self.sessions.get(&session).copied().unwrap_or(self.since))
    }

    pub fn is_live(&self, session: SessionId, now: Moment) -> bool {
        self.session_age(session, now) <= SESSION_LEASE
    }

    /// The report of whoever leads the copyset: of those that say so, the one of the highest term.
    pub fn leader_of(&self, id: CopysetId, now: Moment) -> Option<(DeviceId, &Report)> {
        self.devices
            .iter()
            .filter(|(_, seen)| seen.is_fresh(now))
            .filter_map(|(device, seen)| Some((*device, seen.replicas.get(&id)?)))
            .filter(|(_, report)| report.leader)
            .max_by_key(|(_, report)| report.term)
    }

    /// Drops what belongs to nothing any more.
    pub fn retain_known(&mut self, state: &State) {
        self.devices.retain(|id, _| state.devices.contains_key(id));
        let open: BTreeSet<SessionId> =
            state.volumes.values().flat_map(|volume| volume.sessions.keys().copied()).collect();
        self.sessions.retain(|id, _| open.contains(id));
        self.split.retain(|id, _| state.copysets.contains_key(id));
    }
}

/// What a heartbeat carries for the view.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub capacity: u64,
    pub used: u64,
    /// What a commit of the device took since the last report, on average.
    pub commit: Option<Duration>,
    pub replicas: BTreeMap<CopysetId, Report>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    Whole,
    /// A quorum, but fewer replicas than wanted.
    Degraded {
        replicas: usize,
    },
    Unavailable,
}

/// State and view at one moment, with the setting that planners need: all that they may look at.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub state: &'a State,
    pub view: &'a View,
    pub now: Moment,
    /// The same by the calendar.
    pub now_unix_ms: u64,
    /// Silence after which a device's replicas are re-created elsewhere.
    pub out_after: Duration,
}

impl<'a> Scene<'a> {
    pub fn is_up(&self, device: DeviceId) -> bool {
        self.view.is_up(device, self.now)
    }

    /// Whether it has been up for so long.
    pub fn is_steady(&self, device: DeviceId, time: Duration) -> bool {
        let seen = self.view.devices.get(&device);
        self.is_up(device)
            && seen.is_some_and(|seen| self.now.saturating_sub(seen.up_since) >= time)
    }

    /// What a commit takes on a device that is called slow, see `pace`.
    pub fn slow(&self, device: DeviceId) -> Option<Duration> {
        self.view.devices.get(&device)?.pace.slow()
    }

    /// Its replicas are to be re-created elsewhere: it was wiped, or silent for too long.
    pub fn is_out(&self, id: DeviceId) -> bool {
        self.is_wiped(id) || self.view.silence(id, self.now) > self.out_after.max(DOWN_AFTER)
    }

    /// Whether a replica is leaving a device that is there, for the sake of balance; otherwise it
    /// is lost and being re-created.
    pub fn is_move(&self, joining: Joining) -> bool {
        self.is_up(joining.remove) && !self.is_out(joining.remove)
    }

    /// How a copyset fares. A replica on its way to another device is still where it was.
    pub fn condition(&self, id: CopysetId, copyset: &Copyset) -> Condition {
        let split = self.view.split.get(&id);
        let forms = split.is_some_and(|at| self.now.saturating_sub(*at) <= FORMS_WITHIN);
        let hosts = |voter: DeviceId| self.hosts(voter, id) || forms && self.is_up(voter);
        let whole = copyset.voters.iter().filter(|voter| hosts(**voter)).count();
        let led = forms || self.view.leader_of(id, self.now).is_some();
        if whole == copyset.voters.len() && led {
            Condition::Whole
        } else if whole >= copyset.quorum() && led {
            Condition::Degraded { replicas: whole }
        } else {
            Condition::Unavailable
        }
    }

    /// A wiped device has nothing, however short ago it reported under its old identity.
    fn hosts(&self, id: DeviceId, copyset: CopysetId) -> bool {
        let reported = || self.view.devices[&id].replicas.contains_key(&copyset);
        !self.is_wiped(id) && self.is_up(id) && reported()
    }

    fn is_wiped(&self, id: DeviceId) -> bool {
        self.state.devices.get(&id).is_none_or(|device| device.superseded)
    }

    /// Devices that may take replicas of the pool now.
    pub fn candidates(&self, pool: &'a Pool) -> impl Iterator<Item = (DeviceId, &'a Device)> {
        let scene = *self;
        let state: &'a State = scene.state;
        let ready = move |(id, device): &(&DeviceId, &Device)| {
            device.suits(pool) && device.capacity > 0 && scene.is_up(**id)
        };
        state.devices.iter().filter(ready).map(|(id, device)| (*id, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_that_is_overtaken_by_another_is_as_good() {
        let (early, late) = (Duration::from_secs(1), Duration::from_millis(1001));
        let device = |n| DeviceId::from_bytes([n; 16]);
        let (mut view, state) = (View::begin(Duration::ZERO), State::default());
        let report = Report { leader: true, ..Report::default() };
        let heard = Heard { replicas: [(CopysetId(1), report)].into(), ..Heard::default() };
        view.on_heartbeat(&state, device(1), late, heard.clone());
        view.on_heartbeat(&state, device(1), early, heard);
        view.on_heartbeat(&state, device(2), late, Heard::default());
        view.on_heartbeat(&state, device(3), early, Heard::default());
        assert!((1..=3).all(|n| view.is_up(device(n), early)));
        assert_eq!(view.leader_of(CopysetId(1), early).map(|(leader, _)| leader), Some(device(1)));
        let out_after = DOWN_AFTER;
        let scene = Scene { state: &state, view: &view, now: early, now_unix_ms: 0, out_after };
        assert!(scene.is_steady(device(2), Duration::ZERO));
    }
}
