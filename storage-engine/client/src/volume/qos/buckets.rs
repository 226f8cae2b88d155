//! The arithmetic of limits: token buckets, and which request may pass. Time is passed in.

use std::time::Duration;

use curve_types::VolumeLimits;

/// What a bucket keeps at least: enough that a timer that fires late costs no throughput.
const KEPT_MIN: Duration = Duration::from_millis(100);
/// Levels are kept in billionths, so that a rate times nanoseconds is a whole number of them.
const NANO: i128 = 1_000_000_000;

/// Reads, or all that changes the volume. Each has its line of waiting requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Read = 0,
    Write = 1,
}

impl Direction {
    pub fn other(self) -> Self {
        match self {
            Self::Read => Self::Write,
            Self::Write => Self::Read,
        }
    }
}

/// Fills at a rate up to its depth. A request that costs more than the depth passes when the
/// bucket is full and leaves a debt, so that in any time `t` at most `max(depth, largest cost) +
/// rate * t` passes, and nothing is refused for its size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Per second, at least 1.
    rate: u64,
    depth: i128,
    /// As of `at`.
    level: i128,
    at: Duration,
}

impl Bucket {
    /// A full one.
    fn new(rate: u64, kept: Duration, now: Duration) -> Self {
        let depth = i128::from(rate) * kept.as_nanos() as i128;
        Self { rate, depth, level: depth, at: now }
    }

    /// What has collected stays, as far as it has room; so does a debt.
    fn change(&mut self, rate: u64, kept: Duration, now: Duration) {
        self.fill(now);
        let Self { depth, .. } = Self::new(rate, kept, now);
        (self.rate, self.depth, self.level) = (rate, depth, self.level.min(depth));
    }

    fn fill(&mut self, now: Duration) {
        let gained = now.saturating_sub(self.at).as_nanos() as i128 * i128::from(self.rate);
        self.level = self.depth.min(self.level + gained);
        self.at = self.at.max(now);
    }

    /// How long until `cost` may be taken, if nobody else takes anything.
    fn wait(&mut self, cost: u64, now: Duration) -> Duration {
        self.fill(now);
        let needed = (i128::from(cost) * NANO).min(self.depth);
        let missing = needed - self.level;
        if cost == 0 || missing <= 0 {
            return Duration::ZERO;
        }
        let rate = i128::from(self.rate);
        Duration::from_nanos(((missing + rate - 1) / rate) as u64)
    }

    /// Whether `next` need not wait although `first` is taken.
    fn suffices(&mut self, first: u64, next: u64, now: Duration) -> bool {
        self.fill(now);
        let (first, next) = (i128::from(first) * NANO, i128::from(next) * NANO);
        first == 0 || next == 0 || self.level - first >= next.min(self.depth)
    }

    fn take(&mut self, cost: u64) {
        self.level -= i128::from(cost) * NANO;
    }
}

/// A pair of limits: operations and bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Pair {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Pair {
    fn wait(&mut self, bytes: u64, now: Duration) -> Duration {
        let operations = self.operations.as_mut().map(|bucket| bucket.wait(1, now));
        let bytes = self.bytes.as_mut().map(|bucket| bucket.wait(bytes, now));
        operations.max(bytes).unwrap_or_default()
    }

    fn suffices(&mut self, first: u64, next: u64, now: Duration) -> bool {
        let operations = self.operations.as_mut().is_none_or(|bucket| bucket.suffices(1, 1, now));
        operations && self.bytes.as_mut().is_none_or(|bucket| bucket.suffices(first, next, now))
    }

    fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
    }

    fn change(&mut self, operations: u64, bytes: u64, kept: Duration, now: Duration) {
        for (bucket, rate) in [(&mut self.operations, operations), (&mut self.bytes, bytes)] {
            match bucket {
                _ if rate == 0 => *bucket = None,
                Some(bucket) => bucket.change(rate, kept, now),
                None => *bucket = Some(Bucket::new(rate, kept, now)),
            }
        }
    }
}

/// The request at the head of a direction's line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    /// Lower: it came to the head of its line earlier.
    turn: u64,
    bytes: u64,
    /// Told to let the other direction go first.
    behind: bool,
}

/// What becomes of the request at the head of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Passes,
    /// Worth asking again after this time.
    Wait(Duration),
    /// The other direction's head has waited longer for the common limits, and goes first.
    Behind,
}

/// All limits of one volume, and the two requests that are next. The heads of the lines take turns
/// where both wait for a common limit; one that waits for its own direction's holds up nobody.
#[derive(Debug, Default)]
pub struct Buckets {
    limits: VolumeLimits,
    common: Pair,
    own: [Pair; 2],
    heads: [Option<Head>; 2],
    turns: u64,
}

impl Buckets {
    /// False if these were the limits already.
    pub fn set(&mut self, limits: VolumeLimits, now: Duration) -> bool {
        if limits == self.limits {
            return false;
        }
        self.limits = limits;
        let kept = Duration::from_secs(limits.burst_seconds).max(KEPT_MIN);
        self.common.change(limits.iops, limits.bytes_per_second, kept, now);
        let [read, write] = &mut self.own;
        read.change(limits.read_iops, limits.read_bytes_per_second, kept, now);
        write.change(limits.write_iops, limits.write_bytes_per_second, kept, now);
        true
    }

    pub fn is_unlimited(&self) -> bool {
        self.limits.is_unlimited()
    }

    /// A request comes to the head of its line. `bytes` is what it transfers.
    pub fn step_up(&mut self, direction: Direction, bytes: u64) {
        self.turns += 1;
        self.heads[direction as usize] = Some(Head { turn: self.turns, bytes, behind: false });
    }

    /// The head leaves without having passed.
    pub fn step_down(&mut self, direction: Direction) {
        self.heads[direction as usize] = None;
    }

    /// Lets the head of a line pass, or says what it waits for.
    pub fn ask(&mut self, direction: Direction, now: Duration) -> Verdict {
        let Some(head) = self.heads[direction as usize] else { return Verdict::Passes };
        let own = self.own[direction as usize].wait(head.bytes, now);
        let wait = own.max(self.common.wait(head.bytes, now));
        let behind = own.is_zero() && self.goes_first(direction.other(), head, now);
        self.heads[direction as usize] = Some(Head { behind, ..head });
        if behind {
            return Verdict::Behind;
        }
        if !wait.is_zero() {
            return Verdict::Wait(wait);
        }
        self.common.take(head.bytes);
        self.own[direction as usize].take(head.bytes);
        self.heads[direction as usize] = None;
        Verdict::Passes
    }

    /// Whether the head of a line waits for the other's to go.
    pub fn is_behind(&self, direction: Direction) -> bool {
        self.heads[direction as usize].is_some_and(|head| head.behind)
    }

    /// Whether the other line's head is older, held up by nothing of its own, and would have to wait
    /// longer if this one passed now. It need not have noticed yet that its time has come.
    fn goes_first(&mut self, other: Direction, head: Head, now: Duration) -> bool {
        let Some(older) = self.heads[other as usize].filter(|older| older.turn < head.turn) else {
            return false;
        };
        let held_up = !self.own[other as usize].wait(older.bytes, now).is_zero();
        !held_up && !self.common.suffices(head.bytes, older.bytes, now)
    }
}

#[cfg(test)]
mod tests;
