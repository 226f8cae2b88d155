//! The throttle on a paused clock: nothing here takes time.

use std::sync::Arc;
use std::time::Duration;

use curve_types::VolumeLimits;
use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Direction, Throttle, ThrottleMetrics};

fn throttle(limits: VolumeLimits) -> Arc<Throttle> {
    Arc::new(Throttle::new(limits, ThrottleMetrics::default()))
}

fn write_iops(write_iops: u64) -> VolumeLimits {
    VolumeLimits { write_iops, ..Default::default() }
}

/// Sends requests one after the other; each answers with its number once it is admitted.
async fn line_up(throttle: &Arc<Throttle>, numbers: std::ops::Range<u32>) -> mpsc::Receiver<u32> {
    let (admitted, receiver) = mpsc::channel(1000);
    for number in numbers {
        let (throttle, admitted) = (throttle.clone(), admitted.clone());
        tokio::spawn(async move {
            drop(throttle.admit(Direction::Write, 4096).await);
            admitted.try_send(number).expect("room");
        });
        tokio::task::yield_now().await;
    }
    receiver
}

async fn all(mut receiver: mpsc::Receiver<u32>) -> Vec<u32> {
    let mut numbers = Vec::new();
    while let Some(number) = receiver.recv().await {
        numbers.push(number);
    }
    numbers
}

#[tokio::test(start_paused = true)]
async fn an_unlimited_volume_never_waits_and_takes_no_lock() {
    let throttle = throttle(VolumeLimits { burst_seconds: 9, ..Default::default() });
    let locked = throttle.state();
    for _ in 0..10_000 {
        let admission = throttle.admit(Direction::Read, 1 << 20).now_or_never();
        assert!(admission.expect("at once")._held.is_none());
    }
    drop(locked);
}

#[tokio::test(start_paused = true)]
async fn waiting_requests_pass_in_order_at_the_rate() {
    let throttle = throttle(write_iops(100));
    let began = Instant::now();
    let admitted = all(line_up(&throttle, 0..210).await).await;
    assert!(admitted.is_sorted());
    // Ten are in the bucket.
    let (took, expected) = (began.elapsed(), Duration::from_secs(2));
    assert!(took.abs_diff(expected) < Duration::from_millis(250), "{took:?}");
    assert!(throttle.metrics.operations.get() >= 199);
    assert!(throttle.metrics.seconds.get() > 100.0);
}

#[tokio::test(start_paused = true)]
async fn a_change_reaches_those_who_wait_already() {
    let throttle = throttle(VolumeLimits { bytes_per_second: 1 << 18, ..Default::default() });
    drop(throttle.admit(Direction::Write, 32 << 20).await);
    let began = Instant::now();
    let waiting = line_up(&throttle, 0..5).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(waiting.len(), 0, "two minutes of debt");
    throttle.set(VolumeLimits { bytes_per_second: 32 << 20, ..Default::default() });
    assert_eq!(all(waiting).await, [0, 1, 2, 3, 4]);
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn nobody_passes_those_who_wait_when_the_limits_are_lifted() {
    let throttle = throttle(write_iops(1));
    let waiting = line_up(&throttle, 0..20).await;
    throttle.set(VolumeLimits::default());
    drop(throttle.admit(Direction::Write, 4096).await);
    assert_eq!(waiting.len(), 20, "all of them came first");
    assert!(all(waiting).await.is_sorted());
    let admission = throttle.admit(Direction::Write, 4096).now_or_never().expect("at once");
    assert!(admission._held.is_none(), "and now a request costs nothing again");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_gives_up_leaves_its_place_to_the_next() {
    let throttle = throttle(write_iops(1));
    drop(throttle.admit(Direction::Write, 1).await);
    let mut first = Box::pin(throttle.admit(Direction::Write, 1));
    assert!(first.as_mut().now_or_never().is_none());
    let mut second = Box::pin(throttle.admit(Direction::Write, 1));
    assert!(second.as_mut().now_or_never().is_none());
    drop(first);
    let began = Instant::now();
    drop(second.await);
    assert!(began.elapsed() <= Duration::from_millis(1002), "{:?}", began.elapsed());
    assert_eq!(throttle.state().inside, 0);
}

#[tokio::test(start_paused = true)]
async fn limited_writes_do_not_hold_up_reads() {
    let limits = VolumeLimits { write_iops: 1, iops: 1000, ..Default::default() };
    let throttle = throttle(limits);
    let writes = line_up(&throttle, 0..10).await;
    let began = Instant::now();
    for _ in 0..1000 {
        drop(throttle.admit(Direction::Read, 4096).await);
    }
    assert!(began.elapsed() < Duration::from_millis(1100), "{:?}", began.elapsed());
    assert!(writes.len() <= 2);
}

#[tokio::test(start_paused = true)]
async fn reads_and_writes_take_turns_at_a_common_limit() {
    let throttle = throttle(VolumeLimits { bytes_per_second: 1 << 20, ..Default::default() });
    // What the bucket holds, so that from here on both have to wait.
    drop(throttle.admit(Direction::Write, 104_857).await);
    let other = throttle.clone();
    let reader = tokio::spawn(async move {
        for _ in 0..10_000 {
            drop(other.admit(Direction::Read, 4096).await);
        }
    });
    let began = Instant::now();
    for _ in 0..100 {
        drop(throttle.admit(Direction::Write, 4096).await);
    }
    let (took, fair) = (began.elapsed(), Duration::from_millis(800));
    assert!(took.abs_diff(fair) < Duration::from_millis(150), "{took:?}");
    reader.abort();
}
