//! How fast it is, on simulated disks: the cost of everything but the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use curve_types::CopysetId;

use super::cluster::Cluster;
use crate::{ProposeError, Timing};

async fn measure(cluster: &Cluster, groups: &[CopysetId], depth: usize) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    for worker in 0..depth {
        let id = groups[worker % groups.len()];
        let leader = cluster.leader_of(id).await;
        let group = cluster.host(leader).group(id).expect("group");
        let stop = stop.clone();
        workers.push(tokio::spawn(async move {
            let (key, value) = (Bytes::from(format!("key {worker}")), Bytes::from(vec![7; 4096]));
            let mut latencies = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                match group.propose(key.clone(), value.clone()).await {
                    Ok(_) => latencies.push(started.elapsed()),
                    Err(ProposeError::Busy { .. }) => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            latencies
        }));
    }
    let started = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.expect("worker"));
    }
    let elapsed = started.elapsed();
    all.sort_unstable();
    let at = |part: f64| all[((all.len() as f64 * part) as usize).min(all.len() - 1)];
    println!(
        "{} groups QD{depth}: {:.0} per second, p50 {:?}, p99 {:?}",
        groups.len(),
        all.len() as f64 / elapsed.as_secs_f64(),
        at(0.5),
        at(0.99),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a test"]
async fn proposals_of_4_kib() {
    let cluster = Cluster::with(3, Timing::default(), 16 << 20).await;
    let groups: Vec<CopysetId> = (1..=8).map(CopysetId).collect();
    for id in &groups {
        cluster.form_group(*id, 3).await;
    }
    for count in [1, 8] {
        for depth in [1, 32] {
            measure(&cluster, &groups[..count], depth).await;
        }
    }
}
