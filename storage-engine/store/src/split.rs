//! Dividing a group: chunks that are to be another group's leave it with one entry. The next
//! checkpoint makes both durable at once; a crash before that leaves the old group whole, and the
//! replay of the entry divides it again.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use curve_types::{ChunkKey, CopysetId};

use crate::core::Core;
use crate::group::GroupInner;
use crate::log::index::LogIndex;
use crate::wal::queue::{Job, Queued};
use crate::wal::writer::WalGroup;
use crate::{Apply, Done, LogPosition, LogState, StoreError, Vote};

/// What a group begins with that leaves another.
#[derive(Clone, Debug)]
pub struct NewGroup {
    pub id: CopysetId,
    pub vote: Vote,
    /// The entry that divides: its log begins after that.
    pub applied: LogPosition,
    /// Its own state blob.
    pub state: Bytes,
}

/// A group that has left another and that no durable checkpoint has yet. It is nobody's to use.
pub(crate) struct Child {
    pub group: Arc<GroupInner>,
    done: Done,
}

impl Apply<'_> {
    /// Moves the chunks of which `moves` is true to a new group. That can be used once `done` was
    /// called with Ok, and is there after a crash from then on. If the device has a group of that
    /// id, which then gets the data from its peers, the chunks are only forgotten; so they are by
    /// the removal of this group before the new one is durable.
    pub fn split(&self, new: NewGroup, moves: impl Fn(&ChunkKey) -> bool, done: Done) {
        let core = self.group().core();
        let Some(space) = self.space().divide(moves) else {
            return done(Err(StoreError::NoGroup(self.group().id())));
        };
        core.upkeep.request_checkpoint();
        let NewGroup { id, vote, applied, state } = new;
        let mut groups = core.groups.write().unwrap_or_else(PoisonError::into_inner);
        if groups.contains_key(&id) {
            drop(groups);
            core.retire(space);
            return done(Err(StoreError::invalid(format!("copyset {id} exists already"))));
        }
        let mut log = LogIndex::recovered(Some(vote), None, None, None);
        log.installed(applied);
        // Nothing in the WAL is its own yet.
        let group = GroupInner::new(id, u64::MAX, log, space, (Some(applied), state));
        groups.insert(id, group.clone());
        drop(groups);
        self.group().inner.children().push(Child { group, done });
    }
}

impl GroupInner {
    /// With the group itself.
    pub fn abandon_children(&self) -> Vec<(CopysetId, Done)> {
        let children = std::mem::take(&mut *self.children());
        children.into_iter().map(|child| (child.group.id, child.done)).collect()
    }

    /// Forgets the children that a durable checkpoint has, which begins at `lsn`: from now on they
    /// are groups like others.
    pub fn release_children(&self, core: &Core, lsn: u64) {
        let formed: Vec<Child> =
            self.children().extract_if(.., |child| child.group.first_lsn_is(lsn)).collect();
        for Child { group, done } in formed {
            let (vote, LogState { last_purged, .. }) = group.log().vote_and_state();
            let known = WalGroup { vote, last_purged, lost: None, first_lsn: lsn };
            let job = Job::Adopt { group: group.id, known };
            // After that, in the queue's order, comes whatever it writes.
            core.queue.push([Queued { done: Some(done), ..Queued::new(job, 0) }], ());
        }
    }
}
