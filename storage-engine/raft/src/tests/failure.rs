//! Loss of leaders, and who may vote.

use std::time::Duration;

use bytes::Bytes;
use curve_types::CopysetId;
use curve_wire::auth::{Credentials, Principal};
use curve_wire::rpc::Connection;
use tokio::time::Instant;

use super::cluster::{Cluster, GROUP, Map, PATIENCE, POISON, QUICK, pairs, wait_for};
use crate::Timing;
use crate::codec::message::{self, decode_vote_reply, encode_vote, read_reply};
use crate::types::{NodeId, Vote, VoteRequest};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_with_the_leader() {
    let mut cluster = Cluster::start(3).await;
    cluster.form(3).await;
    let mut expected = Map::new();
    for round in 0..3 {
        for n in round * 10..round * 10 + 10 {
            cluster.put(&format!("key {n}"), &format!("value {n}")).await;
        }
        expected.extend(pairs(round * 10..round * 10 + 10));
        let leader = cluster.leader().await;
        cluster.kill(leader).await;
        let next = cluster.leader().await;
        assert_ne!(leader, next);
        cluster.group(next).read_barrier().await.expect("read");
        assert_eq!(cluster.map(next), expected);
        cluster.restart(leader).await;
    }
    cluster.agree(&[0, 1, 2], &expected).await;
}

/// Silence alone would be noticed after half a minute.
const PATIENT: Timing = Timing {
    election_min: Duration::from_secs(31),
    election_max: Duration::from_secs(60),
    ..QUICK
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_connection_replaces_the_leader_at_once() {
    let mut cluster = Cluster::with(3, PATIENT, 8 << 20).await;
    cluster.form(3).await;
    // The first election has nobody to lose.
    cluster.elect_first_leader().await;
    let first = cluster.first_leader();
    cluster.put("key 0", "value 0").await;
    cluster.agree(&[0, 1, 2], &pairs(0..1)).await;
    // Followers must have a connection whose loss they can notice.
    for n in (0..3).filter(|n| *n != first) {
        let core = cluster.group(n).core;
        let link = core.shared.peers.link(cluster.nodes[first].device, crate::peers::Lane::Control);
        assert!(link.connection(Duration::from_secs(5)).await.is_some());
    }
    let killed = Instant::now();
    cluster.kill(first).await;
    cluster.leader().await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(10), "took {took:?}");
    println!("new leader after {took:?}");
    cluster.put("key 1", "value 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request_and_before_a_shutdown() {
    let mut cluster = Cluster::start(3).await;
    cluster.form(3).await;
    cluster.put("key 0", "value 0").await;
    let leader = cluster.leader().await;
    let heir = (leader + 1) % 3;
    let to = cluster.nodes[heir].device;
    let group = cluster.group(leader);
    wait_for("the heir to catch up", || group.core.report().caught_up.contains(&to).then_some(()))
        .await;
    group.transfer_leader(to).await.expect("transfer");
    wait_for("the heir to lead", || cluster.group(heir).is_leader().then_some(())).await;
    cluster.put("key 1", "value 1").await;

    let next = cluster.leader().await;
    let before = cluster.group((next + 1) % 3);
    cluster.host(next).shutdown().await;
    cluster.nodes[next].running = None;
    assert_ne!(before.leader(), Some(cluster.nodes[next].device));
    cluster.put("key 2", "value 2").await;
}

async fn ask_for_vote(cluster: &Cluster, voter: usize, group: CopysetId) -> bool {
    let candidate = cluster.nodes[0].device;
    let principal = Principal::Peer { device: candidate };
    let credentials = Credentials::peer(principal, &cluster.key);
    let device = cluster.nodes[voter].device;
    let address = cluster.addresses.0.lock().expect("lock")[&device].clone();
    let connection = Connection::open(&address, &credentials, device).await.expect("open");
    let request = VoteRequest::new(Vote::new(99, NodeId(candidate)), None);
    let mut granted = false;
    for kind in [message::PRE_VOTE, message::VOTE] {
        let body = encode_vote(&request);
        let reply = connection.call(kind, group.0, body, Bytes::new()).await.expect("answer");
        let reader = read_reply(reply.body).expect("reply").expect("accepted");
        granted |= decode_vote_reply(reader).expect("vote").vote_granted;
    }
    granted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blank_replica_does_not_vote() {
    let cluster = Cluster::start(2).await;
    cluster.host(1).create_group(GROUP).await.expect("create");
    // Past the time in which no replica votes.
    tokio::time::sleep(QUICK.lease_hold * 2).await;
    assert!(!ask_for_vote(&cluster, 1, GROUP).await);
    assert_eq!(cluster.group(1).term(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_just_started_does_not_vote() {
    let slow = Timing {
        lease: Duration::from_secs(20),
        lease_hold: Duration::from_secs(21),
        election_min: Duration::from_secs(31),
        election_max: Duration::from_secs(60),
        ..QUICK
    };
    let cluster = Cluster::with(2, slow, 8 << 20).await;
    let voters = cluster.devices(&[0, 1]);
    cluster.host(1).initialize(GROUP, voters).await.expect("initialize");
    assert!(!ask_for_vote(&cluster, 1, GROUP).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_cannot_go_on_is_told_of_and_a_dropped_one_is_not() {
    let cluster = Cluster::start(1).await;
    let dropped = CopysetId(GROUP.0 + 1);
    cluster.form_group(dropped, 1).await;
    cluster.form(1).await;
    cluster.leader_of(dropped).await;
    cluster.leader().await;
    cluster.host(0).drop_group(dropped).await.expect("drop");
    let group = cluster.group(0);
    let poisoned = group.propose("key".into(), POISON.into());
    let told = tokio::time::timeout(PATIENCE, cluster.host(0).failure());
    let (answer, told) = tokio::join!(poisoned, told);
    answer.expect_err("it cannot be applied");
    let (id, why) = told.expect("told in time");
    assert_eq!(id, GROUP);
    assert!(why.contains("the value is poisoned"), "{why}");
}
