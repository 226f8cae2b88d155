//! What a leader knows of who heard it, and when.
//!
//! openraft has such times too, but they say too much: its answer to one append also counts for
//! appends without entries that were made after it and that the peer may never have received.
//! Reads rest on these, so they are kept here, each by the answer to the very message.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::types::{Membership, NodeId};

#[derive(Default)]
pub(crate) struct Times {
    /// The last term in which this replica led.
    term: u64,
    /// When the latest message that each peer followed was sent, in that term.
    sent: BTreeMap<NodeId, Instant>,
}

#[derive(Default)]
pub(crate) struct Heard(watch::Sender<Times>);

impl Heard {
    /// A message that was sent as the leader of `term`, at `sent` or later, was followed.
    pub fn note(&self, term: u64, peer: NodeId, sent: Instant) {
        self.0.send_modify(|times| {
            if term > times.term {
                *times = Times { term, ..Times::default() };
            }
            if term == times.term {
                let latest = times.sent.entry(peer).or_insert(sent);
                *latest = sent.max(*latest);
            }
        });
    }

    /// Changes with every answer.
    pub fn watch(&self) -> watch::Receiver<Times> {
        self.0.subscribe()
    }

    /// A time after which a majority of every voter set heard this replica, `me`, lead `term`.
    pub fn by_quorum(
        &self,
        (term, me): (u64, NodeId),
        members: &Membership,
        now: Instant,
    ) -> Option<Instant> {
        let times = self.0.borrow();
        let none = BTreeMap::new();
        let sent = if term == times.term { &times.sent } else { &none };
        let heard = |id: &NodeId| if *id == me { Some(now) } else { sent.get(id).copied() };
        let by_majority = |voters: &BTreeSet<NodeId>| {
            let mut sent: Vec<_> = voters.iter().map(heard).collect();
            sent.sort_unstable_by(|a, b| b.cmp(a));
            sent.get(voters.len() / 2).copied().flatten()
        };
        members.get_joint_config().iter().map(by_majority).min().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn members(configs: &[&[u64]]) -> Membership {
        let set = |ids: &&[u64]| ids.iter().map(|id| NodeId::from(*id)).collect();
        Membership::new_with_defaults(configs.iter().map(set).collect::<Vec<BTreeSet<_>>>(), [])
    }

    #[test]
    fn a_majority_of_every_voter_set_counts() {
        let heard = Heard::default();
        let me = (3, NodeId::from(1));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let by = |configs: &[&[u64]]| heard.by_quorum(me, &members(configs), at(100));
        assert_eq!(by(&[&[1]]), Some(at(100)), "alone");
        assert_eq!(by(&[&[1, 2, 3]]), None);
        heard.note(3, NodeId::from(2), at(10));
        assert_eq!(by(&[&[1, 2, 3]]), Some(at(10)));
        assert_eq!(by(&[&[1, 2, 3, 4]]), None, "two of four");
        heard.note(3, NodeId::from(4), at(20));
        assert_eq!(by(&[&[1, 2, 3, 4]]), Some(at(10)));
        assert_eq!(by(&[&[1, 2, 3], &[1, 3, 4]]), Some(at(10)));
        assert_eq!(by(&[&[1, 2, 3], &[1, 5, 6]]), None);
        assert_eq!(by(&[&[2, 4]]), Some(at(10)), "a leader that is to leave");
    }

    #[test]
    fn only_the_latest_of_one_term_counts() {
        let heard = Heard::default();
        let (me, peer) = (NodeId::from(1), NodeId::from(2));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let by = |term| heard.by_quorum((term, me), &members(&[&[1, 2]]), at(100));
        heard.note(3, peer, at(10));
        heard.note(3, peer, at(5));
        assert_eq!((by(2), by(3), by(4)), (None, Some(at(10)), None));
        heard.note(4, peer, at(30));
        heard.note(3, peer, at(40));
        assert_eq!((by(3), by(4)), (None, Some(at(30))));
    }
}
