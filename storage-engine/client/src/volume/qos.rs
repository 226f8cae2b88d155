//! Keeps a volume's requests to its limits: they wait here, in the order in which they came, before
//! they take memory, a range or a number that others wait for.
//!
//! Not `governor`, which refuses what costs more than a bucket holds and keeps no order, nor
//! `leaky-bucket`, whose rate is fixed; neither takes from several buckets at once.

mod buckets;

pub(super) use buckets::Direction;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use curve_types::VolumeLimits;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::buckets::{Buckets, Verdict};

/// How often requests had to wait for limits, and how long in all.
#[derive(Clone, Default)]
pub(super) struct ThrottleMetrics {
    pub operations: Counter,
    pub seconds: Counter<f64, AtomicU64>,
}

/// Who waits is bounded by what front ends accept: nothing is stored here but their places.
pub(super) struct Throttle {
    /// False while there are no limits and nobody is inside: then a request costs one load.
    engaged: AtomicBool,
    began: Instant,
    state: Mutex<State>,
    /// By direction.
    lines: [Line; 2],
    metrics: ThrottleMetrics,
}

#[derive(Default)]
struct State {
    buckets: Buckets,
    /// Requests that have come and not yet gone on.
    inside: usize,
}

#[derive(Default)]
struct Line {
    /// First come, first served; held by the request at the head.
    head: tokio::sync::Mutex<()>,
    /// Something changed that the head may wait for.
    changed: Notify,
}

/// A request that may go on. While it is held no later one of its direction passes, so that who
/// holds it can keep the order.
pub(super) struct Admission<'a> {
    _held: Option<(tokio::sync::MutexGuard<'a, ()>, Inside<'a>)>,
}

impl Throttle {
    pub fn new(limits: VolumeLimits, metrics: ThrottleMetrics) -> Self {
        let throttle = Self {
            engaged: AtomicBool::new(false),
            began: Instant::now(),
            state: Mutex::default(),
            lines: Default::default(),
            metrics,
        };
        throttle.set(limits);
        throttle
    }

    /// Takes effect at once, for those who wait too.
    pub fn set(&self, limits: VolumeLimits) {
        let mut state = self.state();
        if !state.buckets.set(limits, self.began.elapsed()) {
            return;
        }
        match state.buckets.is_unlimited() {
            true => self.disengage_if_empty(&state),
            false => self.engaged.store(true, Ordering::Release),
        }
        self.lines.iter().for_each(|line| line.changed.notify_one());
    }

    /// Waits until a request that transfers `bytes` may go on. Its place is taken at the first
    /// poll.
    pub async fn admit(&self, direction: Direction, bytes: u64) -> Admission<'_> {
        if !self.engaged.load(Ordering::Acquire) {
            return Admission { _held: None };
        }
        let inside = Inside::enter(self);
        let (line, came) = (&self.lines[direction as usize], Instant::now());
        let mut waited = false;
        let head = match line.head.try_lock() {
            Ok(head) => head,
            Err(_) => {
                waited = true;
                line.head.lock().await
            }
        };
        let place = Place::step_up(self, direction, bytes);
        loop {
            let verdict = self.state().buckets.ask(direction, self.began.elapsed());
            waited |= verdict != Verdict::Passes;
            match verdict {
                Verdict::Passes => break,
                Verdict::Behind => line.changed.notified().await,
                Verdict::Wait(time) => {
                    let _ = tokio::time::timeout(time, line.changed.notified()).await;
                }
            }
        }
        drop(place);
        if waited {
            self.metrics.operations.inc();
            self.metrics.seconds.inc_by(came.elapsed().as_secs_f64());
        }
        Admission { _held: Some((head, inside)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Not while someone waits: a later request must not pass by.
    fn disengage_if_empty(&self, state: &State) {
        if state.inside == 0 && state.buckets.is_unlimited() {
            self.engaged.store(false, Ordering::Release);
        }
    }
}

/// Counts a request, from when it comes until it goes on or is given up.
struct Inside<'a>(&'a Throttle);

impl<'a> Inside<'a> {
    fn enter(throttle: &'a Throttle) -> Self {
        throttle.state().inside += 1;
        Self(throttle)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.inside -= 1;
        self.0.disengage_if_empty(&state);
    }
}

/// The head of a line, until it has passed or is given up.
struct Place<'a> {
    throttle: &'a Throttle,
    direction: Direction,
}

impl<'a> Place<'a> {
    fn step_up(throttle: &'a Throttle, direction: Direction, bytes: u64) -> Self {
        throttle.state().buckets.step_up(direction, bytes);
        Self { throttle, direction }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.throttle.state();
        state.buckets.step_down(self.direction);
        let other = self.direction.other();
        if state.buckets.is_behind(other) {
            self.throttle.lines[other as usize].changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
