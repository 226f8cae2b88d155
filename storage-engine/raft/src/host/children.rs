//! Groups that leave others: each is started once the store has it for good.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use curve_store::{Done, LogPosition, RecoveredGroup};
use curve_types::CopysetId;
use tokio::sync::Notify;

use super::Host;
use crate::HostError;
use crate::core::GroupCore;

/// Who led the old group stands for election in the new one at this pace, so often: the other
/// replicas have it as soon as they hear that the division is committed. Then it is left to timers.
const STAND_EVERY: Duration = Duration::from_millis(100);
const STAND_TIMES: u32 = 10;

/// A group that has left another and is not started yet.
struct Child {
    applied: LogPosition,
    state: Bytes,
    /// The store has it.
    formed: bool,
}

/// All of them.
#[derive(Clone, Default)]
pub(crate) struct Children {
    waiting: Arc<Mutex<BTreeMap<CopysetId, Child>>>,
    formed: Arc<Notify>,
}

impl Children {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<CopysetId, Child>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called when the store has the group or never will.
    pub fn expect(&self, id: CopysetId, applied: LogPosition, state: Bytes) -> Done {
        self.lock().insert(id, Child { applied, state, formed: false });
        let children = self.clone();
        Box::new(move |result| {
            match result {
                Ok(()) => {
                    if let Some(child) = children.lock().get_mut(&id) {
                        child.formed = true;
                    }
                }
                Err(error) => {
                    tracing::warn!(group = %id, %error, "a divided group gets no part here");
                    children.lock().remove(&id);
                }
            }
            children.formed.notify_one();
        })
    }

    pub fn is_waiting(&self, id: CopysetId) -> bool {
        self.lock().contains_key(&id)
    }

    /// One that can be started.
    fn next(&self) -> Option<(CopysetId, LogPosition, Bytes)> {
        let waiting = self.lock();
        let (id, child) = waiting.iter().find(|(_, child)| child.formed)?;
        Some((*id, child.applied, child.state.clone()))
    }
}

/// Starts them as they come.
pub(super) async fn start_children(host: Weak<Host>, children: Children) {
    loop {
        children.formed.notified().await;
        let Some(host) = host.upgrade() else { return };
        while let Some((id, applied, state)) = children.next() {
            if let Err(error) = host.start_child(id, applied, state).await {
                host.failed.send_modify(|first| {
                    first.get_or_insert((id, error.to_string()));
                });
            }
            children.lock().remove(&id);
        }
    }
}

impl Host {
    async fn start_child(
        self: &Arc<Self>,
        id: CopysetId,
        applied: LogPosition,
        state: Bytes,
    ) -> Result<(), HostError> {
        let _one_at_a_time = self.changing.lock().await;
        let Some(group) = self.shared.store.group(id) else { return Ok(()) };
        let (vote, log_state) = (group.vote(), group.log_state());
        let found = RecoveredGroup { group, vote, log_state, applied: Some(applied), state };
        let core = self.start_group(found).await?;
        self.insert(core.clone());
        tracing::info!(group = %id, "started a group that left another");
        if applied.node == self.shared.device {
            core.spawn(stand(core.clone()));
        }
        Ok(())
    }
}

/// Nobody can hold a lease on a group that did not exist.
async fn stand(core: Arc<GroupCore>) {
    for _ in 0..STAND_TIMES {
        let stood = core.raft.trigger().elect(true).await;
        tokio::time::sleep(STAND_EVERY).await;
        if stood.is_err() || core.look(|m| m.current_leader.is_some()) {
            return;
        }
    }
}
