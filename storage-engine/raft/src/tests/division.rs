//! A group of which a part becomes another.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, DIVIDE, GROUP, Map, PART, QUICK, moves, pairs};

/// What stays and what goes of `pairs(0..count)`.
fn parts(count: usize) -> (Map, Map) {
    pairs(0..count).into_iter().partition(|(key, _)| !moves(key))
}

/// Puts each of these pairs to the group that its key is of, once that is divided.
async fn put_to_owners(cluster: &Cluster, range: Range<usize>) {
    for n in range {
        let key = format!("key {n}");
        let owner = if moves(key.as_bytes()) { PART } else { GROUP };
        cluster.put_to(owner, &key, &format!("value {n}")).await;
    }
}

async fn check(cluster: &Cluster, count: usize) {
    let (rest, part) = parts(count);
    cluster.agree(&[0, 1, 2], &rest).await;
    cluster.agree_on(PART, &[0, 1, 2], &part).await;
    for n in 0..3 {
        cluster.check_chunks(n, &rest);
        cluster.check_chunks_of(PART, n, &part);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_parts_go_on_at_all_replicas() {
    let mut cluster = Cluster::start(3).await;
    cluster.form(3).await;
    cluster.put_pairs(0..30).await;
    cluster.put(DIVIDE, "").await;
    let began = Instant::now();
    cluster.leader_of(PART).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    put_to_owners(&cluster, 30..60).await;
    check(&cluster, 60).await;
    // And so they are after a loss of power.
    for n in 0..3 {
        cluster.kill(n).await;
    }
    for n in 0..3 {
        cluster.restart(n).await;
    }
    put_to_owners(&cluster, 60..70).await;
    check(&cluster, 70).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_divides_when_it_comes_to_that() {
    let mut cluster = Cluster::start(3).await;
    cluster.form(3).await;
    cluster.put("key 0", "value 0").await;
    let late = (cluster.leader().await + 1) % 3;
    cluster.kill(late).await;
    cluster.put_pairs(1..20).await;
    cluster.put(DIVIDE, "").await;
    put_to_owners(&cluster, 20..40).await;
    cluster.restart(late).await;
    check(&cluster, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_gets_a_snapshot_instead_gets_the_part_from_its_peers() {
    let mut cluster = Cluster::with(3, QUICK, 1 << 20).await;
    cluster.form(3).await;
    cluster.put_pairs(0..10).await;
    let late = (cluster.leader().await + 1) % 3;
    cluster.kill(late).await;
    cluster.put(DIVIDE, "").await;
    // Several times the length of the log: it must have been purged meanwhile.
    let filler = "f".repeat(16 << 10);
    for _ in 0..200 {
        cluster.put("filler", &filler).await;
    }
    cluster.restart(late).await;
    let (mut rest, part) = parts(10);
    rest.insert("filler".into(), filler.into());
    cluster.agree(&[0, 1, 2], &rest).await;
    // Whoever owns the host sees to it.
    cluster.host(late).create_group(PART).await.expect("create");
    cluster.agree_on(PART, &[0, 1, 2], &part).await;
    cluster.check_chunks_of(PART, late, &part);
}
