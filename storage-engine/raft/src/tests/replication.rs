//! The ordinary course: replicate, read, restart, catch up.

use bytes::Bytes;

use super::cluster::{Cluster, GROUP, pairs, wait_for};
use crate::{ProposeError, ReadError, ReadPolicy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_comes_to_the_same_state() {
    let cluster = Cluster::start(3).await;
    cluster.form(3).await;
    let expected = pairs(0..50);
    cluster.put_pairs(0..50).await;
    cluster.agree(&[0, 1, 2], &expected).await;
    (0..3).for_each(|n| cluster.check_chunks(n, &expected));
    let leader = cluster.leader().await;
    let answer = cluster.group(leader).propose("key 3".into(), "again".into()).await;
    assert_eq!(answer, Ok(Bytes::from("value 3")), "the answer is the state machine's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_refuse_and_name_the_leader() {
    let cluster = Cluster::start(3).await;
    cluster.form(3).await;
    let leader = cluster.leader().await;
    let named = Some(cluster.nodes[leader].device);
    for n in (0..3).filter(|n| *n != leader) {
        let group = cluster.group(n);
        wait_for("the follower to know its leader", || (group.leader() == named).then_some(()))
            .await;
        let proposed = group.propose("k".into(), "v".into()).await;
        assert_eq!(proposed, Err(ProposeError::NotLeader { leader: named }));
        assert_eq!(group.read_barrier().await, Err(ReadError::NotLeader { leader: named }));
    }
}

async fn read_by(policy: ReadPolicy) {
    let mut cluster = Cluster::start(0).await;
    cluster.read_policy = policy;
    for _ in 0..3 {
        cluster.add().await;
    }
    cluster.form(3).await;
    for n in 0..20 {
        cluster.put("key", &n.to_string()).await;
        let leader = cluster.leader().await;
        cluster.group(leader).read_barrier().await.expect("read");
        assert_eq!(cluster.map(leader)[&b"key"[..]], n.to_string());
    }
    let leader = cluster.leader().await;
    let metrics = &cluster.group(leader).core.shared.metrics;
    let (lease, index) = (metrics.lease_reads.get(), metrics.index_reads.get());
    match policy {
        ReadPolicy::Lease => assert!(lease > 0, "no read was served by lease"),
        ReadPolicy::ReadIndex => assert_eq!((lease, index), (0, 20)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_reads_by_lease() {
    read_by(ReadPolicy::Lease).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_reads_by_asking_a_quorum() {
    read_by(ReadPolicy::ReadIndex).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_power_loss_of_all() {
    let mut cluster = Cluster::start(3).await;
    cluster.form(3).await;
    cluster.put_pairs(0..30).await;
    for n in 0..3 {
        cluster.kill(n).await;
    }
    for n in 0..3 {
        cluster.restart(n).await;
    }
    cluster.put("key 30", "value 30").await;
    let expected = pairs(0..31);
    cluster.agree(&[0, 1, 2], &expected).await;
    (0..3).for_each(|n| cluster.check_chunks(n, &expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_missed_purged_entries_gets_a_snapshot() {
    let mut cluster = Cluster::with(3, super::cluster::QUICK, 1 << 20).await;
    cluster.form(3).await;
    cluster.put("key 0", "value 0").await;
    let leader = cluster.leader().await;
    let late = (leader + 1) % 3;
    cluster.kill(late).await;
    // Several times the length of the log: it must have been purged meanwhile.
    let filler = "f".repeat(16 << 10);
    for _ in 0..200 {
        cluster.put("filler", &filler).await;
    }
    cluster.put_pairs(1..20).await;
    let mut expected = pairs(0..20);
    expected.insert("filler".into(), filler.clone().into());
    cluster.restart(late).await;
    cluster.agree(&[0, 1, 2], &expected).await;
    cluster.check_chunks(late, &expected);
    // Counted a moment after its state can be seen.
    let group = cluster.group(late);
    let installed = || group.core.shared.metrics.snapshots_installed.get();
    wait_for("a snapshot to be installed", || (installed() > 0).then_some(())).await;

    // The installed state is durable, and the log goes on from it.
    cluster.put("key 20", "value 20").await;
    expected.extend(pairs(20..21));
    cluster.agree(&[late], &expected).await;
    cluster.kill(late).await;
    cluster.restart(late).await;
    cluster.put("key 21", "value 21").await;
    expected.extend(pairs(21..22));
    cluster.agree(&[0, 1, 2], &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_say_what_the_mds_needs() {
    let cluster = Cluster::start(3).await;
    cluster.form(3).await;
    cluster.put("key", "value").await;
    let leader = cluster.leader().await;
    let all = cluster.devices(&[0, 1, 2]);
    let report = wait_for("all members caught up", || {
        let report = cluster.host(leader).reports().pop()?;
        (report.caught_up == all && report.reachable == all).then_some(report)
    })
    .await;
    assert_eq!((report.id, report.voters, report.changing), (GROUP, all, false));
    assert!(report.is_leader && report.failure.is_none() && report.config_index.is_some());
    let follower = cluster.host((leader + 1) % 3).reports().pop().expect("report");
    assert!(!follower.is_leader && follower.caught_up.is_empty());
}
