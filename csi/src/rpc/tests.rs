//! Idempotency under way: joining, order, and callers that go away.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use csi_proto::csi::v1::{NodeStageVolumeRequest, NodeStageVolumeResponse};
use tokio::sync::Semaphore;

use super::*;

fn rpcs() -> Rpcs {
    Rpcs::new(RpcMetrics::register(&mut Default::default()))
}

fn request(path: &str) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest { staging_target_path: path.to_owned(), ..Default::default() }
}

/// Work that counts how often it ran and ends when the gate opens.
fn gated(
    runs: &Arc<AtomicUsize>,
    gate: &Arc<Semaphore>,
) -> impl Future<Output = Result<NodeStageVolumeResponse, CsiError>> + Send + use<> {
    let (runs, gate) = (runs.clone(), gate.clone());
    async move {
        runs.fetch_add(1, Ordering::SeqCst);
        gate.acquire().await.expect("open").forget();
        Ok(NodeStageVolumeResponse {})
    }
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_second_identical_call_joins_the_first() {
    let (rpcs, runs, gate) = (rpcs(), Arc::default(), Arc::new(Semaphore::new(0)));
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let (rpcs, work) = (rpcs.clone(), gated(&runs, &gate));
            tokio::spawn(async move { rpcs.change("Stage", "v", &request("a"), work).await })
        })
        .collect();
    settle().await;
    gate.add_permits(1);
    for call in calls {
        call.await.expect("no panic").expect("joined");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_operation_outlives_its_caller_and_the_next_call_gets_its_result() {
    let (rpcs, runs, gate) = (rpcs(), Arc::default(), Arc::new(Semaphore::new(0)));
    let request_a = request("a");
    let first = rpcs.change("Stage", "v", &request_a, gated(&runs, &gate));
    assert!(tokio::time::timeout(Duration::from_millis(20), first).await.is_err());
    let again = tokio::spawn({
        let (rpcs, work) = (rpcs.clone(), gated(&runs, &gate));
        async move { rpcs.change("Stage", "v", &request("a"), work).await }
    });
    settle().await;
    gate.add_permits(1);
    again.await.expect("no panic").expect("joined");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn different_operations_on_a_volume_run_one_after_the_other() {
    let (rpcs, runs, gate) = (rpcs(), Arc::default(), Arc::new(Semaphore::new(0)));
    let spawn = |volume: &'static str, path: &'static str| {
        let (rpcs, work) = (rpcs.clone(), gated(&runs, &gate));
        tokio::spawn(async move { rpcs.change("Stage", volume, &request(path), work).await })
    };
    let calls = [spawn("v", "a"), spawn("v", "b"), spawn("other", "a")];
    settle().await;
    assert_eq!(runs.load(Ordering::SeqCst), 2, "one per volume");
    gate.add_permits(3);
    for call in calls {
        call.await.expect("no panic").expect("done");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_operation_is_run_anew_once_the_earlier_one_has_ended() {
    let (rpcs, runs, gate) = (rpcs(), Arc::default(), Arc::new(Semaphore::new(2)));
    for _ in 0..2 {
        rpcs.change("Stage", "v", &request("a"), gated(&runs, &gate)).await.expect("done");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert!(rpcs.state.lock().expect("not poisoned").running.is_empty());
}

#[tokio::test]
async fn a_crowd_of_different_operations_is_turned_away() {
    let (rpcs, runs, gate) = (rpcs(), Arc::default(), Arc::new(Semaphore::new(0)));
    let mut calls = Vec::new();
    for index in 0..20 {
        let (rpcs, work) = (rpcs.clone(), gated(&runs, &gate));
        calls.push(tokio::spawn(async move {
            rpcs.change("Stage", "v", &request(&index.to_string()), work).await
        }));
    }
    settle().await;
    gate.add_permits(20);
    let mut turned_away = 0;
    for call in calls {
        if let Err(status) = call.await.expect("no panic") {
            assert_eq!(status.code(), Code::Aborted);
            turned_away += 1;
        }
    }
    assert_eq!(turned_away, 20 - WAITING_MAX - 1);
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_blocks_nothing() {
    let rpcs = rpcs();
    let work = async { panic!("bug") };
    let result: Result<Response<NodeStageVolumeResponse>, Status> =
        rpcs.change("Stage", "v", &request("a"), work).await;
    assert_eq!(result.expect_err("panicked").code(), Code::Internal);
    let (runs, gate) = (Arc::default(), Arc::new(Semaphore::new(1)));
    rpcs.change("Stage", "v", &request("a"), gated(&runs, &gate)).await.expect("works again");
}
