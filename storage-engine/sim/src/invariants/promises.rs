//! Replicas keep to what they told each other, whatever happens to them in between: a replica votes
//! for nobody after it voted for a later term, and what it voted, and what it acknowledged to the
//! leader that it still follows, is there when it starts again. A term has one leader at most then:
//! it belongs to one candidate, whom a quorum voted for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use curve_raft::witness::{ReplicaId, Term, Witness};
use curve_store::{LogPosition, Vote};
use curve_types::DeviceId;

/// What one replica told last.
#[derive(Default)]
struct Told {
    vote: Option<Term>,
    /// To the leader of which term, and the last entry.
    acknowledged: Option<(Term, LogPosition)>,
}

#[derive(Default)]
struct State {
    told: BTreeMap<ReplicaId, Told>,
    rotten: BTreeSet<DeviceId>,
    /// Who voted last, until somebody asks.
    voter: Option<DeviceId>,
    violations: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Promises(Arc<Mutex<State>>);

impl Promises {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Blocks of the device rot. If that meets a payload of the last batch of its log while the
    /// process is down, nothing tells it from a write that was torn: the batch is cut.
    pub fn excuse(&self, device: DeviceId) {
        self.lock().rotten.insert(device);
    }

    /// A device that has voted since the last call.
    pub fn take_voter(&self) -> Option<DeviceId> {
        self.lock().voter.take()
    }
}

impl Witness for Promises {
    fn started(&self, replica: ReplicaId, vote: Option<Vote>, last: Option<LogPosition>) {
        tracing::debug!(?replica, ?vote, ?last, "started");
        let mut state = self.lock();
        let State { told, rotten, violations, .. } = &mut *state;
        let Some(told) = told.get(&replica) else { return };
        let found = vote.and_then(|vote| Some(Term { number: vote.term, candidate: vote.node? }));
        if told.vote > found {
            let why = format!("it voted for {:?} and starts with {vote:?}", told.vote);
            violations.push(format!("promises: {replica:?}: {why}"));
        }
        // A later leader may have cut the log, but not before it was voted for.
        if let Some((term, upto)) = told.acknowledged
            && (found < Some(term) || found == Some(term) && last < Some(upto))
            && !rotten.contains(&replica.device)
        {
            let why = format!("it acknowledged {upto} to {term:?} and starts with {last:?}");
            violations.push(format!("promises: {replica:?}: {why}, {vote:?}"));
        }
    }

    fn voted(&self, replica: ReplicaId, term: Term) {
        let mut state = self.lock();
        state.voter = Some(replica.device);
        let before = state.told.entry(replica).or_default().vote.replace(term);
        if before > Some(term) {
            let why = format!("it voted for {before:?} and then for {term:?}");
            state.violations.push(format!("promises: {replica:?}: {why}"));
        }
    }

    fn acknowledged(&self, replica: ReplicaId, term: Term, last: LogPosition) {
        tracing::debug!(?replica, ?term, %last, "acknowledged");
        let mut state = self.lock();
        let acknowledged = &mut state.told.entry(replica).or_default().acknowledged;
        // Answers overtake each other.
        *acknowledged = (*acknowledged).max(Some((term, last)));
    }

    fn dropped(&self, replica: ReplicaId) {
        self.lock().told.remove(&replica);
    }
}

#[cfg(test)]
mod tests {
    use curve_types::CopysetId;

    use super::*;

    fn position(term: u64, index: u64) -> LogPosition {
        LogPosition { term, node: DeviceId::from_bytes([2; 16]), index }
    }

    fn vote(term: Term) -> Option<Vote> {
        Some(Vote { term: term.number, node: Some(term.candidate), committed: false })
    }

    #[test]
    fn a_promise_that_is_not_kept_is_found_and_one_that_is_kept_is_not() {
        let [device, a, b] = [1, 2, 3].map(|n| DeviceId::from_bytes([n; 16]));
        let term = |number, candidate| Term { number, candidate };
        let replica = ReplicaId { device, group: CopysetId(1) };
        let promises = Promises::default();
        promises.voted(replica, term(3, a));
        promises.acknowledged(replica, term(3, a), position(3, 9));
        promises.acknowledged(replica, term(3, a), position(3, 8));
        let mut broken = 0;
        let mut finds = |what: &dyn Fn(), found: usize| {
            what();
            broken += found;
            assert_eq!(promises.violations().len(), broken, "{:?}", promises.violations());
        };
        finds(&|| promises.started(replica, vote(term(3, a)), Some(position(3, 9))), 0);
        finds(&|| promises.started(replica, vote(term(3, b)), Some(position(2, 7))), 0);
        finds(&|| promises.started(replica, vote(term(4, a)), Some(position(2, 7))), 0);
        finds(&|| promises.started(replica, vote(term(2, b)), Some(position(3, 9))), 2);
        finds(&|| promises.started(replica, vote(term(3, a)), Some(position(3, 8))), 1);
        finds(&|| promises.voted(replica, term(3, b)), 0);
        finds(&|| promises.voted(replica, term(3, a)), 1);
        promises.excuse(device);
        finds(&|| promises.started(replica, vote(term(3, b)), Some(position(3, 8))), 0);
        finds(&|| promises.dropped(replica), 0);
        finds(&|| promises.started(replica, None, None), 0);
    }
}
