//! Logs whose entries are damaged on the device.

use std::time::Duration;

use curve_store::LogPosition;

use super::cluster::{Cluster, GROUP, Map, QUICK, wait_for};

/// Of one block, so that it lies apart from its record, and like no other.
fn value(n: usize) -> String {
    format!("{n:8}").repeat(512)
}

/// A leader and a follower that have acknowledged entries which `behind` has not seen.
struct Scene {
    cluster: Cluster,
    leader: usize,
    follower: usize,
    behind: usize,
    expected: Map,
}

async fn scene() -> Scene {
    let mut cluster = Cluster::start(3).await;
    cluster.form(3).await;
    cluster.put("first", "value").await;
    let leader = cluster.leader().await;
    let [follower, behind] = [(leader + 1) % 3, (leader + 2) % 3];
    let mut expected = Map::from([("first".into(), "value".into())]);
    cluster.agree(&[0, 1, 2], &expected).await;
    cluster.kill(behind).await;
    for n in 0..6 {
        cluster.put(&format!("key {n}"), &value(n)).await;
        expected.insert(format!("key {n}").into(), value(n).into());
    }
    cluster.agree(&[leader, follower], &expected).await;
    // Until the idle logs are marked: before, damage cannot be told from a torn write.
    tokio::time::sleep(Duration::from_millis(400)).await;
    Scene { cluster, leader, follower, behind, expected }
}

fn log_end(cluster: &Cluster, node: usize) -> (Option<LogPosition>, Option<LogPosition>) {
    let store = &cluster.nodes[node].running.as_ref().expect("running").store;
    let group = store.group(GROUP).expect("group");
    (group.log_state().last, group.owes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lost_what_it_acknowledged_votes_again_only_once_it_has_it() {
    let Scene { mut cluster, leader, follower, behind, expected } = scene().await;
    let (full, _) = log_end(&cluster, follower);
    cluster.kill(follower).await;
    cluster.kill(leader).await;
    let disk = &cluster.nodes[follower].disk;
    let copies = disk.find(value(3).as_bytes());
    assert!(!copies.is_empty());
    copies.iter().for_each(|at| disk.flip_bit(at + 100, 1));

    // The entries that it lost may be committed, and neither of these has them.
    cluster.restart(follower).await;
    cluster.restart(behind).await;
    let (last, owed) = log_end(&cluster, follower);
    assert!(last < full && owed == full, "{last:?}, {owed:?}, {full:?}");
    tokio::time::sleep(QUICK.election_max * 3).await;
    for node in [follower, behind] {
        assert!(!cluster.group(node).is_leader(), "node {node}");
    }

    cluster.restart(leader).await;
    cluster.agree(&[0, 1, 2], &expected).await;
    assert_eq!(log_end(&cluster, follower).1, None);
    cluster.kill(leader).await;
    cluster.put("last", "value").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_everything_is_elected_by_who_lost_some_of_it() {
    let Scene { mut cluster, leader, follower, behind, expected } = scene().await;
    cluster.restart(behind).await;
    cluster.agree(&[behind], &expected).await;
    cluster.kill(follower).await;
    cluster.kill(leader).await;
    let disk = &cluster.nodes[follower].disk;
    disk.find(value(3).as_bytes()).iter().for_each(|at| disk.flip_bit(at + 100, 1));
    cluster.restart(follower).await;
    assert_eq!(cluster.leader().await, behind);
    cluster.agree(&[follower], &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_to_what_is_applied_costs_the_log_only() {
    let Scene { mut cluster, leader, follower, behind, expected } = scene().await;
    for node in [leader, follower] {
        let store = &cluster.nodes[node].running.as_ref().expect("running").store;
        let (done, durable) = tokio::sync::oneshot::channel();
        store.checkpoint(Box::new(|result| drop(done.send(result))));
        durable.await.expect("an answer").expect("checkpoint");
        cluster.kill(node).await;
        let disk = &cluster.nodes[node].disk;
        // The entry's payload was placed before the chunk's copy of it.
        let at = *disk.find(value(3).as_bytes()).first().expect("the payload");
        disk.flip_bit(at + 100, 1);
    }
    for node in 0..3 {
        cluster.restart(node).await;
    }
    // Who leads cannot send what `behind` lacks, and ends for its supervisor to start it again.
    let purged = |cluster: &Cluster, node: usize| {
        let store = &cluster.nodes[node].running.as_ref().expect("running").store;
        store.group(GROUP).expect("group").log_state().last_purged.is_some()
    };
    let caught_up = async |cluster: &mut Cluster| loop {
        for node in [leader, follower] {
            let failure = cluster.host(node).failure();
            if tokio::time::timeout(Duration::from_millis(50), failure).await.is_ok() {
                assert!(purged(cluster, node));
                cluster.kill(node).await;
                cluster.restart(node).await;
            }
        }
        if cluster.map(behind) == expected {
            return;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), caught_up(&mut cluster)).await.expect("in time");
    assert!(purged(&cluster, leader) || purged(&cluster, follower));
    cluster.put("last", "value").await;
    wait_for("the last value", || cluster.map(behind).contains_key(&b"last"[..]).then_some(()))
        .await;
}
