//! Whether time measured by the monotonic clock can be trusted for a lease.
//!
//! CLOCK_MONOTONIC stands still while the machine sleeps, CLOCK_BOOTTIME does not. When their
//! distance has grown, the machine slept, and no lease that began before is worth anything. What
//! remains is drift between running clocks: `Timing::lease_hold` tolerates a twentieth.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Less than this is the time between reading the two clocks.
const SLEEP_MIN: Duration = Duration::from_millis(5);

struct Seen {
    /// Boot time minus monotonic time.
    distance: Duration,
    /// No sleep is known after this.
    awake_since: Option<Instant>,
}

pub(crate) struct LeaseClock(Mutex<Seen>);

fn distance() -> Option<Duration> {
    let monotonic: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?.into();
    let boot: Duration = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?.into();
    Some(boot.saturating_sub(monotonic))
}

impl LeaseClock {
    pub fn new() -> Self {
        Self(Mutex::new(Seen { distance: distance().unwrap_or_default(), awake_since: None }))
    }

    /// Whether `age`, measured by the monotonic clock up to now, is the true one.
    pub fn trusts(&self, age: Duration) -> bool {
        distance().is_some_and(|distance| self.trusts_at(age, distance, Instant::now()))
    }

    fn trusts_at(&self, age: Duration, distance: Duration, now: Instant) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if distance > seen.distance + SLEEP_MIN {
            *seen = Seen { distance, awake_since: Some(now) };
        }
        seen.awake_since.is_none_or(|since| now.saturating_duration_since(since) > age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_from_before_a_sleep_is_worth_nothing() {
        let clock = LeaseClock::new();
        let before = clock.0.lock().expect("lock").distance;
        let (now, age) = (Instant::now(), Duration::from_millis(100));
        assert!(clock.trusts_at(age, before, now));
        let slept = before + Duration::from_secs(3);
        assert!(!clock.trusts_at(age, slept, now));
        assert!(!clock.trusts_at(age, slept, now + Duration::from_millis(50)));
        assert!(clock.trusts_at(age, slept, now + Duration::from_millis(101)));
    }
}
