//! Pauses between attempts: doubling, bounded, with jitter so that clients do not retry in step.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, max }
    }

    /// The next pause: between half of the bound and the bound.
    pub fn pause(&mut self) -> Duration {
        let bound = self.next;
        self.next = (self.next * 2).min(self.max);
        bound.mul_f64(rand::random_range(0.5..=1.0))
    }
}
