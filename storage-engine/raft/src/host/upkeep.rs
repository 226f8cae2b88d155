//! What a host does on its own: the right to stand for election after a start, room in the log,
//! changes of members that were left half done, connections that nobody needs any more, gauges,
//! handing over at the end.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::Host;
use super::children::start_children;
use crate::GroupHandle;
use crate::core::GroupCore;
use crate::group::change::finish_half_done;
use crate::peers::Lane;

/// Between two looks at members and leaders.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Entries kept for members that lag a little, when the log has to be purged.
const KEEP_ENTRIES: u64 = 1024;
/// How long openraft may take to note that a snapshot is possible.
const SNAPSHOT_NOTED: Duration = Duration::from_secs(5);
/// The store calls at most this often for room; calls in between are answered by one purge.
const PURGE_INTERVAL: Duration = Duration::from_millis(200);

pub(super) fn start(host: &Arc<Host>) {
    let pressure = Arc::new(Notify::new());
    let pressed = pressure.clone();
    host.shared.store.on_wal_pressure(Box::new(move || pressed.notify_one()));
    let tasks = [
        tokio::spawn(enable_elections(Arc::downgrade(host))),
        tokio::spawn(look_after(Arc::downgrade(host), pressure.clone())),
        tokio::spawn(relieve(Arc::downgrade(host), pressure)),
        tokio::spawn(start_children(Arc::downgrade(host), host.shared.children.clone())),
    ];
    let handles = tasks.iter().map(tokio::task::JoinHandle::abort_handle);
    host.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(handles);
}

async fn enable_elections(host: Weak<Host>) {
    let Some(left) = host.upgrade().map(|host| {
        let since = host.started.elapsed();
        host.shared.timing.lease_hold.saturating_sub(since)
    }) else {
        return;
    };
    tokio::time::sleep(left).await;
    if let Some(host) = host.upgrade() {
        host.all().iter().for_each(|core| core.let_elect());
    }
}

async fn look_after(host: Weak<Host>, pressure: Arc<Notify>) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(host) = host.upgrade() else { return };
        let groups = host.all();
        let me = host.shared.device;
        let members: BTreeSet<_> =
            groups.iter().flat_map(|core| core.members()).filter(|id| *id != me).collect();
        host.shared.peers.retain(&members);
        // Kept to every member, so that votes and probes need no dial.
        for device in members {
            host.shared.peers.link(device, Lane::Control);
        }
        let leaders = groups.iter().filter(|core| core.leadership.borrow().is_leader).count();
        host.shared.metrics.leaders.set(leaders as i64);
        let incomplete = groups.iter().filter(|core| core.group.owes().is_some()).count();
        host.shared.metrics.incomplete.set(incomplete as i64);
        host.shared.metrics.groups.set(groups.len() as i64);
        // What a laggard held back at the last call may have become free to purge since.
        if host.shared.store.usage().log_sixteenths() >= 8 {
            pressure.notify_one();
        }
        groups.iter().for_each(finish_half_done);
        // One that stood by its leader when it was created, or has been sent what it owed.
        groups.iter().for_each(|core| core.let_elect());
    }
}

/// Purges what is applied from all logs when the store asks for room. Followers need none of it;
/// a leader keeps a little, and openraft what it is just sending.
async fn relieve(host: Weak<Host>, pressure: Arc<Notify>) {
    loop {
        pressure.notified().await;
        let Some(host) = host.upgrade() else { return };
        let keep = if host.shared.room.is_urgent() { 0 } else { KEEP_ENTRIES };
        let groups = host.all();
        let purged = futures::future::join_all(groups.iter().map(|core| purge(core, keep))).await;
        if !purged.contains(&true) {
            continue;
        }
        host.shared.store.checkpoint(Box::new(|result| {
            if let Err(error) = result {
                tracing::error!(%error, "checkpoint for room in the log failed");
            }
        }));
        drop(host);
        tokio::time::sleep(PURGE_INTERVAL).await;
    }
}

/// Whether anything was asked to be purged.
async fn purge(core: &Arc<GroupCore>, keep: u64) -> bool {
    let Some(applied) = core.replica.applied() else { return false };
    let Some(upto) = applied.index.checked_sub(keep) else { return false };
    let purged = core.group.log_state().last_purged;
    if purged.is_some_and(|purged| purged.index >= upto) {
        return false;
    }
    let purged = async {
        core.raft.trigger().snapshot().await?;
        let noted = core.raft.wait(Some(SNAPSHOT_NOTED));
        let at_least = |m: &crate::core::RaftMetrics| {
            m.snapshot.is_some_and(|snapshot| snapshot.index >= upto)
        };
        if noted.metrics(at_least, "snapshot noted").await.is_err() {
            return Ok(());
        }
        core.raft.trigger().purge_log(upto).await
    };
    if let Err(error) = purged.await {
        tracing::warn!(group = %core.id, %error, "log not purged");
        return false;
    }
    true
}

/// Hands leadership to the member that is furthest ahead of those that can take it.
pub(super) async fn hand_over(group: GroupHandle) {
    let report = group.core.report();
    if !report.is_leader {
        return;
    }
    let heir = report
        .voters
        .intersection(&report.caught_up)
        .find(|id| **id != group.core.device() && report.reachable.contains(id));
    if let Some(heir) = heir
        && let Err(error) = group.transfer_leader(*heir).await
    {
        tracing::info!(group = %group.id(), %error, "leadership not handed over");
    }
}
