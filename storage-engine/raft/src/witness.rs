//! What replicas promise each other, told to a simulation that checks that they keep it.

use std::sync::OnceLock;

use curve_store::{LogPosition, Vote};
use curve_types::{CopysetId, DeviceId};

use crate::types::LeaderId;

/// One replica of one group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReplicaId {
    pub device: DeviceId,
    pub group: CopysetId,
}

/// In openraft a term belongs to one candidate: within a number, a higher id wins over a lower one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Term {
    pub number: u64,
    pub candidate: DeviceId,
}

impl From<LeaderId> for Term {
    fn from(id: LeaderId) -> Self {
        Self { number: id.term, candidate: id.node_id.0 }
    }
}

pub trait Witness: Send + Sync + 'static {
    /// The replica starts with this vote, at the end of this log.
    fn started(&self, replica: ReplicaId, vote: Option<Vote>, last: Option<LogPosition>);
    /// It has a vote on its device, of which it tells others next.
    fn voted(&self, replica: ReplicaId, term: Term);
    /// It has acknowledged to the leader of `term` all entries up to `last`.
    fn acknowledged(&self, replica: ReplicaId, term: Term, last: LogPosition);
    /// It is gone, and with it all that it promised.
    fn dropped(&self, replica: ReplicaId);
}

static WITNESS: OnceLock<Box<dyn Witness>> = OnceLock::new();

/// Tells `witness` of all replicas of this process, from now on and for good; false if another one
/// is told already.
pub fn observe(witness: Box<dyn Witness>) -> bool {
    WITNESS.set(witness).is_ok()
}

pub(crate) fn tell(what: impl FnOnce(&dyn Witness)) {
    if let Some(witness) = WITNESS.get() {
        what(&**witness);
    }
}
