//! Which devices are slow: a disk that is about to fail, or shares its machine with something
//! greedy, often answers for weeks, and each write that it leads waits for it.

use std::time::Duration;

use crate::view::Moment;

/// A commit (a write with its sync) may take so long on any disk.
const FLOOR: Duration = Duration::from_millis(50);
/// Times the median of the other devices.
const FACTOR: u32 = 5;
/// Before a device is called slow: compactions of a disk's own and bursts are shorter.
const SLOW_AFTER: Duration = Duration::from_secs(15);
/// Before it is called sound again.
const SOUND_AFTER: Duration = Duration::from_secs(60);
/// Weight of the last report in the mean, as a divisor.
const SMOOTHING: u32 = 4;
/// One report counts as at most so many times what is too long: a stall of seconds is a burst.
const REPORT_MAX: u32 = 4;
/// Reports of commits that are further apart than this say nothing of the time between them.
const GAP: Duration = Duration::from_secs(5);

/// How fast one device commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pace {
    /// A moving mean; None until the device has committed something.
    mean: Option<Duration>,
    /// Of the last report of a commit.
    heard: Moment,
    /// Since when it has not been what it is called.
    deviates_since: Option<Moment>,
    is_slow: bool,
}

impl Pace {
    /// What the other devices' commits take.
    pub fn median(paces: impl Iterator<Item = Self>) -> Option<Duration> {
        let mut means: Vec<Duration> = paces.filter_map(|pace| pace.mean).collect();
        means.sort_unstable();
        // The lower of two: one slow device is not to make another one look sound.
        means.get(means.len().checked_sub(1)? / 2).copied()
    }

    /// After one more report. `commit` is what a commit took on average, None if there was none;
    /// `others` the median of the others.
    pub fn after(self, commit: Option<Duration>, others: Option<Duration>, now: Moment) -> Self {
        let idle = now.saturating_sub(self.heard);
        let Some(commit) = commit else {
            // Nobody knows how fast it is, and nobody waits for it.
            return if idle >= SOUND_AFTER { Self::default() } else { self };
        };
        let too_long = others.map(|others| FLOOR.max(others.saturating_mul(FACTOR)));
        let commit = too_long.map_or(commit, |limit| commit.min(limit.saturating_mul(REPORT_MAX)));
        let mean = self.mean.map_or(commit, |mean| mean - mean / SMOOTHING + commit / SMOOTHING);
        let is_outlier = too_long.is_some_and(|limit| mean > limit);
        let mut next = Self { mean: Some(mean), heard: now, ..self };
        if is_outlier == self.is_slow {
            next.deviates_since = None;
            return next;
        }
        let since = self.deviates_since.filter(|_| idle <= GAP).unwrap_or(now);
        next.deviates_since = Some(since);
        let patience = if is_outlier { SLOW_AFTER } else { SOUND_AFTER };
        if now.saturating_sub(since) >= patience {
            (next.is_slow, next.deviates_since) = (is_outlier, None);
        }
        next
    }

    /// What a commit takes, if that is too long.
    pub fn slow(self) -> Option<Duration> {
        self.mean.filter(|_| self.is_slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(2);
    const SLOW: Duration = Duration::from_millis(120);

    /// A report each second.
    fn run(mut pace: Pace, from: u64, reports: u64, commit: Duration) -> Pace {
        for second in from..from + reports {
            pace = pace.after(Some(commit), Some(FAST), Duration::from_secs(second));
        }
        pace
    }

    #[test]
    fn a_device_is_slow_after_a_while_and_sound_after_a_longer_one() {
        let pace = run(Pace::default(), 0, 100, FAST);
        assert_eq!(pace.slow(), None);
        let pace = run(pace, 100, 14, SLOW);
        assert_eq!(pace.slow(), None, "a burst");
        let pace = run(pace, 114, 10, SLOW);
        assert!(pace.slow().is_some_and(|mean| mean > SLOW / 2));
        let pace = run(pace, 124, 50, FAST);
        assert!(pace.slow().is_some(), "it may come back");
        assert_eq!(run(pace, 174, 30, FAST).slow(), None);
    }

    #[test]
    fn bursts_do_not_add_up() {
        let mut pace = Pace::default();
        for round in 0..20 {
            pace = run(pace, round * 40, 10, SLOW);
            pace = run(pace, round * 40 + 10, 30, FAST);
        }
        assert_eq!(pace.slow(), None);
    }

    #[test]
    fn a_stall_is_a_burst_and_idle_time_proves_nothing() {
        let mut pace = run(Pace::default(), 0, 10, FAST);
        for second in 10..15 {
            let hanging = Duration::from_secs(second - 9);
            pace = pace.after(Some(hanging), Some(FAST), Duration::from_secs(second));
        }
        assert_eq!(run(pace, 15, 30, FAST).slow(), None);
        let once = Pace::default().after(Some(SLOW * 3), Some(FAST), Duration::from_secs(1));
        assert_eq!(once.after(Some(SLOW), Some(FAST), Duration::from_secs(30)).slow(), None);
    }

    #[test]
    fn slow_is_relative_and_says_nothing_where_nobody_writes() {
        let slow = run(Pace::default(), 0, 30, SLOW);
        let mut pace = Pace::default();
        for second in 0..100 {
            pace = pace.after(Some(SLOW), Some(SLOW / 2), Duration::from_secs(second));
        }
        assert_eq!(pace.slow(), None, "all are");
        assert!(slow.after(None, Some(FAST), Duration::from_secs(40)).slow().is_some());
        let idle = slow.after(None, Some(FAST), Duration::from_secs(100));
        assert_eq!(idle, Pace::default(), "nobody waits for it");
        let alone = Pace::default().after(Some(SLOW), None, Duration::ZERO);
        assert_eq!(alone.deviates_since, None, "there is nothing to compare with");
    }

    #[test]
    fn the_median_is_the_lower_one() {
        let of = |ms: &[u64]| {
            let pace =
                |ms: &u64| Pace { mean: Some(Duration::from_millis(*ms)), ..Pace::default() };
            Pace::median(ms.iter().map(pace).chain([Pace::default()]))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7]), Some(Duration::from_millis(7)));
        assert_eq!(of(&[900, 2]), Some(Duration::from_millis(2)));
        assert_eq!(of(&[900, 2, 3]), Some(Duration::from_millis(3)));
    }
}
