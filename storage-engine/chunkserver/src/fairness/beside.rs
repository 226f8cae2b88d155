//! What a greedy volume may have under way beside a modest one. Learned by trying: for a while the
//! least, which is as well as the modest one can be served beside it, then for a while more. If that
//! makes its requests slower it is too much, else still more is tried the next time.
//!
//! So a disk that takes much at a time without getting slower is made use of, and where each
//! request delays the others a greedy volume is down to one at a time. Each try is compared with
//! what was seen just before it: what else makes requests slow does so to both.

use std::time::Duration;

use tokio::time::Instant;

use super::SMALL_COST;

/// What a greedy volume may have at least.
pub(super) const LEAST: u64 = SMALL_COST;
/// And at most, of which several of the largest requests are a part.
const MOST: u64 = 16 << 20;
/// Requests that say something of their median.
const SEEN_MIN: usize = 32;
/// More say nothing new.
const SEEN_MAX: usize = 512;
/// How long the least is given if too few requests are seen, and how long each try lasts, at least
/// and at most.
const LEAST_MAX: Duration = Duration::from_secs(1);
const TRY_MIN: Duration = Duration::from_secs(1);
const TRY_MAX: Duration = Duration::from_secs(4);
/// How long after a try of little more than the least failed the next one is made.
const REST: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write,
}

pub(super) struct Beside {
    /// What is tried next, or now.
    more: u64,
    phase: Phase,
    began: Instant,
    rest_until: Instant,
    /// What requests of modest volumes took in this phase, by kind.
    seen: [Vec<Duration>; 2],
    /// Their medians when greedy volumes had the least, as far as they were known.
    at_least: [Option<Duration>; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Least,
    Try,
}

impl Beside {
    pub fn new(now: Instant) -> Self {
        Self {
            more: 2 * LEAST,
            phase: Phase::Least,
            began: now,
            rest_until: now,
            seen: Default::default(),
            at_least: [None; 2],
        }
    }

    pub fn limit(&self) -> u64 {
        match self.phase {
            Phase::Least => LEAST,
            Phase::Try => self.more,
        }
    }

    /// A request of a modest volume took so long.
    pub fn on_end(&mut self, kind: Kind, took: Duration) {
        let seen = &mut self.seen[kind as usize];
        if seen.len() < SEEN_MAX {
            seen.push(took);
        }
    }

    #[cfg(test)]
    pub fn has_seen_nothing(&self) -> bool {
        self.seen.iter().all(Vec::is_empty)
    }

    fn begin(&mut self, phase: Phase, now: Instant) {
        (self.phase, self.began) = (phase, now);
        self.seen.iter_mut().for_each(Vec::clear);
    }

    /// There are no greedy volumes beside modest ones: what was seen says nothing of them.
    pub fn pause(&mut self, now: Instant) {
        self.begin(Phase::Least, now);
    }

    /// Looks at what was seen so far.
    pub fn look(&mut self, now: Instant) {
        let lasted = now.saturating_duration_since(self.began);
        let has_seen = self.seen.iter().any(|seen| seen.len() >= SEEN_MIN);
        match self.phase {
            Phase::Least => {
                if has_seen || lasted >= LEAST_MAX {
                    self.at_least = [0, 1].map(|kind| median(&mut self.seen[kind]));
                    let rests = now < self.rest_until;
                    self.begin(if rests { Phase::Least } else { Phase::Try }, now);
                }
            }
            Phase::Try => {
                let is_over = lasted >= TRY_MAX || has_seen && lasted >= TRY_MIN;
                if self.is_slower(5, 4) {
                    self.fail(4, now);
                } else if is_over && self.is_slower(11, 10) {
                    self.fail(2, now);
                } else if is_over {
                    self.more = (self.more * 2).min(MOST);
                    self.begin(Phase::Least, now);
                }
            }
        }
    }

    fn fail(&mut self, divisor: u64, now: Instant) {
        if self.more <= 2 * LEAST {
            self.rest_until = now + REST;
        }
        self.more = (self.more / divisor).max(2 * LEAST);
        self.begin(Phase::Least, now);
    }

    /// Whether requests take more than `times / parts` of what they took at the least. A little is too
    /// much: a volume is on several devices, of which each tries for itself, so that a try on this one
    /// changes only a part of what delays its requests.
    fn is_slower(&mut self, times: u32, parts: u32) -> bool {
        let of_kind = |(seen, least): (&mut Vec<Duration>, Option<Duration>)| {
            Some(median(seen)? * parts > least? * times)
        };
        self.seen.iter_mut().zip(self.at_least).filter_map(of_kind).any(|slower| slower)
    }
}

/// None of too few.
fn median(seen: &mut [Duration]) -> Option<Duration> {
    let middle = seen.len() / 2;
    (seen.len() >= SEEN_MIN).then(|| *seen.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(100);

    /// A modest volume with so many requests in each look, of which each takes what `cost` says for
    /// the limit at that moment.
    struct Rig {
        beside: Beside,
        now: Instant,
        requests: usize,
    }

    impl Rig {
        fn new(requests: usize) -> Self {
            let now = Instant::now();
            Self { beside: Beside::new(now), now, requests }
        }

        /// The limit in each look.
        fn run(&mut self, time: Duration, cost: impl Fn(u64) -> u64) -> Vec<u64> {
            let looks = time.as_millis() / LOOK.as_millis();
            let mut limits = Vec::new();
            for _ in 0..looks {
                let limit = self.beside.limit();
                for n in 0..self.requests {
                    // Every fourth is slow: the median does not mind.
                    let micros = cost(limit) * if n % 4 == 0 { 5 } else { 1 };
                    self.beside.on_end(Kind::Write, Duration::from_micros(micros));
                }
                self.now += LOOK;
                self.beside.look(self.now);
                limits.push(limit);
            }
            limits
        }
    }

    #[test]
    fn a_disk_that_does_not_get_slower_is_made_use_of() {
        let mut rig = Rig::new(10);
        let limits = rig.run(Duration::from_secs(60), |_| 700);
        let full = limits[300..].iter().filter(|limit| **limit == MOST).count();
        assert!(full * 10 >= limits[300..].len() * 6, "{full} of {}", limits[300..].len());
    }

    #[test]
    fn what_makes_requests_slow_is_hardly_ever_tried() {
        let mut rig = Rig::new(10);
        let limits = rig.run(Duration::from_secs(60), |limit| 700 + limit / LEAST * 400);
        let more = limits.iter().filter(|limit| **limit > LEAST).count();
        assert!(more > 0 && more * 8 <= limits.len(), "{more} of {}", limits.len());
    }

    #[test]
    fn a_limit_is_found_again_when_it_changes() {
        let mut rig = Rig::new(30);
        let knee = |at: u64| move |limit: u64| if limit > at { 2000 } else { 700 };
        let minute = Duration::from_secs(60);
        let settled = |limits: &[u64]| *limits[300..].iter().max().expect("some");
        assert_eq!(settled(&rig.run(minute, knee(64 * LEAST))), 128 * LEAST);
        assert_eq!(settled(&rig.run(minute, knee(4 * LEAST))), 8 * LEAST);
        let widest = rig.run(minute, |_| 700);
        assert_eq!(settled(&widest), MOST);
    }

    #[test]
    fn whoever_asks_too_seldom_to_be_judged_by_holds_nobody_back_for_long() {
        let mut rig = Rig::new(0);
        let limits = rig.run(Duration::from_secs(60), |_| 0);
        assert!(limits[450..].contains(&MOST), "{limits:?}");
    }

    #[test]
    fn reads_and_writes_are_each_compared_with_their_own_kind() {
        let now = Instant::now();
        let mut beside = Beside::new(now);
        let saw = |beside: &mut Beside, kind, micros, at: u64| {
            (0..SEEN_MIN).for_each(|_| beside.on_end(kind, Duration::from_micros(micros)));
            beside.look(now + Duration::from_millis(at));
        };
        saw(&mut beside, Kind::Write, 1000, 100);
        assert_eq!(beside.phase, Phase::Try);
        saw(&mut beside, Kind::Read, 9000, 200);
        assert_eq!(beside.phase, Phase::Try, "reads were not seen before");
        saw(&mut beside, Kind::Write, 1600, 300);
        assert_eq!(beside.phase, Phase::Least);
    }
}
