//! A log with damaged entries is rid of them before Raft reads it again.

use curve_store::{Group, LogPosition, Store};

use super::durable;
use crate::HostError;
use crate::blocking::in_thread;

/// Whether there was damage. What is applied is dropped from the log, as it is needed no more;
/// other entries are cut off with all that follow, for the leader to send again.
pub(super) async fn mend(
    store: &Store,
    group: &Group,
    applied: Option<LogPosition>,
) -> Result<bool, HostError> {
    let mut mended = false;
    loop {
        let found = group.clone();
        let Some(damaged) = in_thread(move || found.find_damage()).await? else {
            return Ok(mended);
        };
        let id = group.id();
        match applied.filter(|applied| damaged.index <= applied.index) {
            Some(applied) => {
                tracing::error!(group = %id, %damaged, %applied, "purging a damaged log entry");
                // First: what is purged stays in the log until a checkpoint contains it.
                durable(|done| {
                    store.checkpoint(done);
                    Ok(())
                })
                .await?;
                durable(|done| group.purge(applied, done)).await?;
            }
            None => {
                tracing::error!(
                    group = %id, %damaged, last = ?group.log_state().last,
                    "cutting the log before a damaged entry; until the leader has sent it again \
                     this replica votes only for who has it, and does not lead"
                );
                durable(|done| group.cut_damage(damaged, done)).await?;
            }
        }
        mended = true;
    }
}
