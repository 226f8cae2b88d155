//! What a leader may read without asking.

use std::time::Duration;

use super::cluster::{Cluster, pairs, wait_for};
use crate::Timing;
use crate::types::NodeId;

/// No election comes by itself.
const QUIET: Timing = Timing {
    heartbeat: Duration::from_millis(150),
    election_min: Duration::from_secs(31),
    election_max: Duration::from_secs(60),
    lease: Duration::from_millis(700),
    lease_hold: Duration::from_millis(735),
};

/// The peers answer an append late, because of their disks; by then it is committed, and what
/// tells them so is lost on its way. Their answers must not count for that message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_answer_does_not_renew_the_lease() {
    let cluster = Cluster::with(3, QUIET, 8 << 20).await;
    let first = cluster.first_leader();
    let [quick, slow] = [(first + 1) % 3, (first + 2) % 3];
    let detours = [cluster.detour(first, quick).await, cluster.detour(first, slow).await];
    cluster.form(3).await;
    cluster.elect_first_leader().await;
    cluster.put("key 0", "value 0").await;
    cluster.agree(&[0, 1, 2], &pairs(0..1)).await;

    let cut = |on| detours.iter().for_each(|detour| detour.cut.send_modify(|cut| *cut = on));
    let late = QUIET.lease * 2;
    cluster.nodes[quick].disk.set_sync_time(late);
    cluster.nodes[slow].disk.set_sync_time(late + Duration::from_millis(100));
    let leader = cluster.group(first);
    let written = leader.propose("key 1".into(), "value 1".into());
    let loss = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cut(true);
    };
    tokio::join!(written, loss).0.expect("a quorum has it");
    let slow = NodeId(cluster.nodes[slow].device);
    wait_for("the last answer", || {
        let matched = leader.core.look(|m| m.replication.as_ref()?.get(&slow)?.map(|id| id.index));
        (matched.is_some() && matched == leader.core.look(|m| m.last_log_index)).then_some(())
    })
    .await;

    let read = tokio::time::timeout(QUIET.lease, leader.read_barrier()).await;
    assert!(!matches!(read, Ok(Ok(()))), "read by a lease that nobody gave");
    cut(false);
    leader.read_barrier().await.expect("the peers hear it again");
}
