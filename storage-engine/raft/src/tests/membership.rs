//! Changes of members.

use std::collections::BTreeSet;
use std::time::Duration;

use curve_types::DeviceId;
use openraft::EntryPayload;

use super::cluster::{Cluster, GROUP, pairs, wait_for};
use crate::types::{Membership, NodeId};
use crate::{ChangeError, GroupReport};

fn report(cluster: &Cluster, number: usize) -> GroupReport {
    cluster.group(number).core.report()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_replaced_by_a_learner_that_caught_up() {
    let mut cluster = Cluster::start(4).await;
    cluster.form(3).await;
    cluster.put_pairs(0..20).await;
    let dead = (cluster.leader().await + 1) % 3;
    cluster.kill(dead).await;
    let leader = cluster.leader().await;
    cluster.host(3).create_group(GROUP).await.expect("create");
    let old = cluster.devices(&[0, 1, 2]);
    let newcomer = cluster.nodes[3].device;
    let index = report(&cluster, leader).config_index.expect("configuration");
    let group = cluster.group(leader);
    let index = group
        .change_membership(index, old.clone(), BTreeSet::from([newcomer]))
        .await
        .expect("add a learner");
    wait_for("the learner to catch up", || {
        report(&cluster, leader).caught_up.contains(&newcomer).then_some(())
    })
    .await;
    let mut voters = old;
    voters.remove(&cluster.nodes[dead].device);
    voters.insert(newcomer);
    let index =
        group.change_membership(index, voters.clone(), BTreeSet::new()).await.expect("replace");
    let now = report(&cluster, leader);
    assert_eq!(
        (now.voters, now.learners, now.config_index),
        (voters, BTreeSet::new(), Some(index))
    );
    assert!(!now.changing);

    // The newcomer counts: with it, one more may go.
    let other = (0..3).find(|n| *n != dead && *n != leader).expect("three");
    cluster.kill(other).await;
    cluster.put("key 20", "value 20").await;
    cluster.agree(&[leader, 3], &pairs(0..21)).await;
    cluster.check_chunks(3, &pairs(0..21));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_for_another_configuration_is_refused() {
    let cluster = Cluster::start(4).await;
    cluster.form(3).await;
    cluster.put("key", "value").await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    let index = report(&cluster, leader).config_index.expect("configuration");
    let voters = cluster.devices(&[0, 1, 2]);
    let newcomer = BTreeSet::from([cluster.nodes[3].device]);
    let refused = group.change_membership(index + 1, voters.clone(), newcomer.clone()).await;
    assert_eq!(refused, Err(ChangeError::Unexpected { expected: index + 1, found: Some(index) }));
    group.change_membership(index, voters.clone(), newcomer.clone()).await.expect("add");
    let refused = group.change_membership(index, voters.clone(), BTreeSet::new()).await;
    assert!(matches!(refused, Err(ChangeError::Unexpected { .. })), "{refused:?}");
    // Not caught up: node 3 has no replica at all.
    let index = report(&cluster, leader).config_index.expect("configuration");
    let mut wanted = voters;
    wanted.extend(&newcomer);
    let refused = group.change_membership(index, wanted, BTreeSet::new()).await;
    assert_eq!(refused, Err(ChangeError::NotCaughtUp(cluster.nodes[3].device)));
    assert_eq!(report(&cluster, leader).learners, newcomer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_replica_leaves_nothing_and_can_be_made_anew() {
    let cluster = Cluster::start(4).await;
    cluster.form(3).await;
    cluster.put("key 0", "value 0").await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    let newcomer = BTreeSet::from([cluster.nodes[3].device]);
    let voters = cluster.devices(&[0, 1, 2]);
    // The leader's upkeep may still look whether the last change has to be finished.
    let change = async |learners: BTreeSet<_>| loop {
        let index = report(&cluster, leader).config_index.expect("configuration");
        match group.change_membership(index, voters.clone(), learners.clone()).await {
            Err(ChangeError::InProgress) => tokio::time::sleep(Duration::from_millis(20)).await,
            changed => break changed,
        }
    };
    for round in 0..2 {
        cluster.host(3).create_group(GROUP).await.expect("create");
        change(newcomer.clone()).await.expect("add");
        cluster.agree(&[3], &pairs(0..1)).await;
        change(BTreeSet::new()).await.expect("remove");
        cluster.host(3).drop_group(GROUP).await.expect("drop");
        assert!(cluster.host(3).group(GROUP).is_none(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_a_leader_left_half_done_is_finished_by_the_next() {
    let mut cluster = Cluster::start(4).await;
    cluster.form(3).await;
    cluster.put("key 0", "value 0").await;
    let leader = cluster.leader().await;
    let (old, newcomer) = (cluster.devices(&[0, 1, 2]), cluster.devices(&[3]));
    cluster.host(3).create_group(GROUP).await.expect("create");
    let index = report(&cluster, leader).config_index.expect("configuration");
    let group = cluster.group(leader);
    group.change_membership(index, old.clone(), newcomer).await.expect("add a learner");
    cluster.agree(&[3], &pairs(0..1)).await;

    let stays = (leader + 1) % 3;
    let wanted = cluster.devices(&[leader, stays, 3]);
    let ids = |set: &BTreeSet<DeviceId>| set.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
    let joint = Membership::new_with_defaults(vec![ids(&old), ids(&wanted)], []);
    // As a change that is under way does, so that this leader does not finish it.
    let under_way = group.core.changing.lock().await;
    group.core.raft.append_membership(joint, EntryPayload::Blank, []).await.expect("first step");
    assert!(report(&cluster, leader).changing);
    cluster.kill(leader).await;
    drop(under_way);

    let next = wait_for("the change to be finished", || {
        [stays, 3].into_iter().find(|number| {
            let now = report(&cluster, *number);
            now.is_leader && !now.changing && now.voters == wanted
        })
    });
    let next = next.await;
    let index = report(&cluster, next).config_index.expect("configuration");
    let left = cluster.devices(&[stays, 3]);
    let changed = cluster.group(next).change_membership(index, left, BTreeSet::new()).await;
    changed.expect("remove the dead leader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_drop_was_cut_short_is_made_anew_without_its_past() {
    let cluster = Cluster::start(1).await;
    cluster.form(1).await;
    cluster.put("key", "value").await;
    // Polled once: gone from the host, still in the store.
    let cut_short = cluster.host(0).drop_group(GROUP);
    let _ = tokio::time::timeout(Duration::ZERO, cut_short).await;
    let group = cluster.host(0).create_group(GROUP).await.expect("create");
    assert!(group.core.is_blank(), "{:?}", group.core.report());
    assert!(cluster.map(0).is_empty());
}
