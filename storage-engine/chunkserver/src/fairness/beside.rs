//! What a greedy volume may have under way beside a modest one, learned from what it costs: how much
//! longer the modest one's requests take than they do undisturbed. Additive increase,
//! multiplicative decrease, as TCP does it (Chiu and Jain, "Analysis of the increase and decrease
//! algorithms for congestion avoidance in computer networks", 1989).
//!
//! A disk that takes much at a time without getting slower is so made use of; where each request
//! delays the others, a greedy volume is down to one at a time.

use std::time::Duration;

use super::REQUEST_COST;

/// A request of up to 4 KiB: those compared with each other.
pub(super) const SMALL_COST: u64 = REQUEST_COST + (4 << 10);
/// The least that a greedy volume may have under way, and how much more after each look that finds
/// the modest ones well served.
const STEP: u64 = SMALL_COST;
/// As deep as makes a difference to any disk, and to the log's group commit.
const LIMIT_MAX: u64 = 1 << 20;
/// Requests that must have been seen to say anything of their median.
const SEEN_MIN: usize = 4;
/// More say nothing new.
const SEEN_MAX: usize = 256;
/// Looks in which a disk that became slower is half forgiven: an hour of them.
const FORGET_LOOKS: u32 = 36_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write,
}

pub(super) struct Beside {
    limit: u64,
    reads: Latency,
    writes: Latency,
}

/// Of small requests of modest volumes.
#[derive(Default)]
struct Latency {
    seen: Vec<Duration>,
    /// The shortest median so far, which is that of requests that nothing disturbed. Rises slowly.
    undisturbed: Option<Duration>,
}

impl Default for Beside {
    /// The least, until it is known that more does no harm.
    fn default() -> Self {
        Self { limit: STEP, reads: Latency::default(), writes: Latency::default() }
    }
}

impl Beside {
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// A request of a modest volume took so long.
    pub fn on_end(&mut self, kind: Kind, cost: u64, took: Duration) {
        let latency = match kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
        };
        if cost <= SMALL_COST && latency.seen.len() < SEEN_MAX {
            latency.seen.push(took);
        }
    }

    /// Draws the conclusion from what was seen since the last look, in which there were greedy
    /// volumes or none.
    pub fn adjust(&mut self, greedy: bool) {
        let judged = [self.reads.judge(), self.writes.judge()];
        if !greedy || judged == [None, None] {
            return;
        }
        self.limit = match judged.contains(&Some(false)) {
            true => (self.limit / 2).max(STEP),
            false => (self.limit + STEP).min(LIMIT_MAX),
        };
    }
}

impl Latency {
    /// Whether the requests seen took at most half as long again as undisturbed ones. The bound of
    /// their slowest hundredth is twice: that varies too much to be a guide itself.
    fn judge(&mut self) -> Option<bool> {
        let mut seen = std::mem::take(&mut self.seen);
        if seen.len() < SEEN_MIN {
            // Rare requests are collected over several looks.
            self.seen = seen;
            return None;
        }
        let middle = seen.len() / 2;
        let median = *seen.select_nth_unstable(middle).1;
        let undisturbed = self.undisturbed.map_or(median, |before| before + before / FORGET_LOOKS);
        let undisturbed = undisturbed.min(median);
        self.undisturbed = Some(undisturbed);
        Some(median <= undisturbed * 3 / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at requests of which each took so many microseconds, or `many` at most.
    fn look(beside: &mut Beside, kind: Kind, micros: u64, greedy: bool) -> u64 {
        for _ in 0..SEEN_MIN {
            beside.on_end(kind, SMALL_COST, Duration::from_micros(micros));
        }
        beside.adjust(greedy);
        beside.limit()
    }

    #[test]
    fn a_disk_that_does_not_get_slower_is_made_use_of() {
        let mut beside = Beside::default();
        assert_eq!(look(&mut beside, Kind::Write, 1000, false), STEP, "nobody is held back");
        for looks in 1..200 {
            let limit = look(&mut beside, Kind::Write, 1400, true);
            assert_eq!(limit, (STEP + looks * STEP).min(LIMIT_MAX));
        }
    }

    #[test]
    fn what_makes_requests_slow_is_halved_until_they_are_not() {
        let mut beside = Beside::default();
        look(&mut beside, Kind::Read, 200, false);
        // Each step of the limit costs the modest one 20 us.
        let cost = |limit: u64| 200 + limit / STEP * 20;
        let mut limits: Vec<u64> = Vec::new();
        for _ in 0..100 {
            let took = cost(beside.limit());
            limits.push(look(&mut beside, Kind::Read, took, true));
        }
        let settled = &limits[20..];
        assert!(settled.iter().all(|limit| cost(*limit) <= 320), "{settled:?}");
        assert!(settled.iter().all(|limit| *limit >= 3 * STEP), "{settled:?}");
    }

    #[test]
    fn reads_and_writes_are_each_compared_with_their_own_kind() {
        let mut beside = Beside::default();
        look(&mut beside, Kind::Read, 200, false);
        look(&mut beside, Kind::Write, 1000, false);
        let grown = look(&mut beside, Kind::Write, 1100, true);
        assert_eq!(grown, 2 * STEP);
        look(&mut beside, Kind::Write, 1000, true);
        assert_eq!(look(&mut beside, Kind::Read, 400, true), 3 * STEP / 2);
    }

    #[test]
    fn large_requests_and_too_few_say_nothing() {
        let mut beside = Beside::default();
        beside.on_end(Kind::Read, SMALL_COST + 1, Duration::from_secs(1));
        (1..SEEN_MIN).for_each(|_| beside.on_end(Kind::Read, SMALL_COST, Duration::ZERO));
        beside.adjust(true);
        assert_eq!(beside.limit(), STEP);
        beside.on_end(Kind::Read, SMALL_COST, Duration::ZERO);
        beside.adjust(true);
        assert_eq!(beside.limit(), 2 * STEP);
    }

    #[test]
    fn a_disk_that_became_slower_for_good_is_forgiven_in_hours() {
        let mut beside = Beside::default();
        look(&mut beside, Kind::Write, 1000, false);
        assert_eq!(look(&mut beside, Kind::Write, 2000, true), STEP);
        (0..2 * FORGET_LOOKS).for_each(|_| {
            look(&mut beside, Kind::Write, 2000, true);
        });
        assert_eq!(beside.limit(), LIMIT_MAX);
    }
}
