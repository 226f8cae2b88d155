//! Who may lead and who may vote, beyond what openraft decides: the rules that make lease reads
//! and early elections safe together.
//!
//! A leader reads alone for `lease` after it sent what a quorum answered. So a replica that heard
//! a leader within `lease_hold` (longer, by the tolerated drift) must not help to replace it,
//! unless that leader itself asked for it; and a replica that just started cannot know what it
//! heard before, so it helps nobody for as long.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::types::LeaderId;

#[derive(Default)]
struct State {
    /// When any leader was last heard.
    heard: Option<Instant>,
    /// A leader that this replica is helping to replace, and how many votes under way do so. It
    /// is not listened to meanwhile, so that it cannot renew its lease behind the vote.
    deposed: Option<(LeaderId, usize)>,
}

pub(crate) struct Gate {
    hold: Duration,
    /// The process started at most this long ago.
    started: Instant,
    state: Mutex<State>,
}

impl Gate {
    pub fn new(hold: Duration, started: Instant) -> Self {
        Self { hold, started, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called for every message of a leader before Raft sees it; false means that Raft must not.
    pub fn admit_leader(&self, leader: &LeaderId, now: Instant) -> bool {
        let mut state = self.lock();
        if state.deposed.is_some_and(|(deposed, _)| deposed == *leader) {
            return false;
        }
        state.heard = Some(now);
        true
    }

    /// How long this replica must still stand by whatever leader it has.
    pub fn hold_left(&self, now: Instant) -> Duration {
        self.left(&self.lock(), now)
    }

    fn left(&self, state: &State, now: Instant) -> Duration {
        let since = state.heard.map_or(self.started, |heard| heard.max(self.started));
        self.hold.saturating_sub(now.saturating_duration_since(since))
    }

    /// Whether this replica may help to replace its leader.
    pub fn may_replace(&self, now: Instant) -> bool {
        self.hold_left(now).is_zero()
    }

    /// Stops listening to `leader` in order to vote against it; refused within the hold. To be
    /// followed by `reinstate` once the vote is decided.
    pub fn depose(&self, leader: LeaderId, now: Instant) -> bool {
        let mut state = self.lock();
        if !self.left(&state, now).is_zero() {
            return false;
        }
        match &mut state.deposed {
            Some((deposed, votes)) if *deposed == leader => *votes += 1,
            other => *other = Some((leader, 1)),
        }
        true
    }

    /// A vote against `leader` is decided. If it was granted, Raft itself no longer listens to it.
    pub fn reinstate(&self, leader: LeaderId) {
        let mut state = self.lock();
        if let Some((deposed, votes)) = &mut state.deposed
            && *deposed == leader
        {
            *votes -= 1;
            if *votes == 0 {
                state.deposed = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    const HOLD: Duration = Duration::from_millis(800);

    fn leader(term: u64) -> LeaderId {
        LeaderId { term, node_id: NodeId::from(1) }
    }

    #[test]
    fn a_fresh_process_helps_nobody_for_a_whole_lease() {
        let start = Instant::now();
        let gate = Gate::new(HOLD, start);
        assert!(!gate.may_replace(start) && !gate.depose(leader(1), start));
        assert!(gate.may_replace(start + HOLD));
    }

    #[test]
    fn a_leader_that_was_just_heard_is_not_replaced() {
        let start = Instant::now();
        let gate = Gate::new(HOLD, start);
        let heard = start + HOLD * 2;
        assert!(gate.admit_leader(&leader(1), heard));
        assert!(!gate.depose(leader(1), heard + HOLD / 2));
        assert_eq!(gate.hold_left(heard + HOLD / 2), HOLD / 2);
        assert!(gate.depose(leader(1), heard + HOLD));
    }

    #[test]
    fn a_leader_under_replacement_is_not_heard_until_the_vote_is_decided() {
        let start = Instant::now();
        let gate = Gate::new(HOLD, start);
        let now = start + HOLD;
        assert!(gate.depose(leader(1), now) && gate.depose(leader(1), now));
        assert!(!gate.admit_leader(&leader(1), now));
        gate.reinstate(leader(1));
        assert!(!gate.admit_leader(&leader(1), now), "another vote is still under way");
        assert!(gate.admit_leader(&leader(2), now));
        gate.reinstate(leader(1));
        assert!(gate.admit_leader(&leader(1), now));
    }
}
