//! Random schedules on a clock that is a number.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const SCHEDULES: u64 = 3000;
const MS: u64 = 1_000_000;

/// What passed: when, and at which cost.
type Passed = Vec<(Duration, u64)>;

/// In no window did more pass than the bucket holds, or the largest cost, and what came in since.
fn assert_within(passed: &Passed, rate: u64, kept: Duration, what: &str) {
    let largest = passed.iter().map(|(_, cost)| *cost).max().unwrap_or(0);
    let depth = (f64::from(u32::try_from(kept.as_millis()).expect("short")) / 1e3) * rate as f64;
    for (first, (from, _)) in passed.iter().enumerate() {
        let mut sum = 0;
        for (until, cost) in &passed[first..] {
            sum += cost;
            let window = (*until - *from).as_secs_f64();
            let most = depth.max(largest as f64) + rate as f64 * window + 1.0;
            assert!(sum as f64 <= most, "{what}: {sum} of {most} in {window} s");
        }
    }
}

#[test]
fn over_any_window_no_more_passes_than_the_burst_and_the_rate() {
    for seed in 0..SCHEDULES {
        let mut random = StdRng::seed_from_u64(seed);
        let rate = random.random_range(1..1_000_000u64);
        let kept = Duration::from_millis(random.random_range(100..20_000));
        let cost_max = random.random_range(1..=rate.saturating_mul(4));
        let mut bucket = Bucket::new(rate, kept, Duration::ZERO);
        let (mut now, mut passed, mut idle, mut sum) = (Duration::ZERO, Vec::new(), 0.0, 0);
        for _ in 0..60 {
            let pause = Duration::from_nanos(random.random_range(0..2000 * MS));
            if random.random_bool(0.3) {
                now += pause;
                idle += pause.as_secs_f64();
            }
            let cost = random.random_range(1..=cost_max);
            now += bucket.wait(cost, now);
            assert_eq!(bucket.wait(cost, now), Duration::ZERO, "seed {seed}: it never starves");
            bucket.take(cost);
            sum += cost;
            passed.push((now, cost));
        }
        assert_within(&passed, rate, kept, &format!("seed {seed}"));
        let most = idle + (sum + cost_max) as f64 / rate as f64 + 1e-3;
        assert!(now.as_secs_f64() <= most, "seed {seed}: nothing waits without need");
    }
}

#[test]
fn a_cost_above_the_burst_passes_late_and_is_paid_off() {
    let mut bucket = Bucket::new(1 << 20, KEPT_MIN, Duration::ZERO);
    assert_eq!(bucket.wait(32 << 20, Duration::ZERO), Duration::ZERO, "it is full");
    bucket.take(32 << 20);
    let next = bucket.wait(1, Duration::ZERO);
    assert!(next > Duration::from_secs(31) && next < Duration::from_secs(32), "{next:?}");
    assert_eq!(bucket.wait(32 << 20, Duration::from_secs(32)), Duration::ZERO);
    // A higher rate pays the debt off faster.
    bucket.change(32 << 20, KEPT_MIN, Duration::ZERO);
    assert!(bucket.wait(1, Duration::ZERO) < Duration::from_secs(1));
}

#[test]
fn what_was_not_used_is_kept_for_the_burst_and_no_longer() {
    let kept = Duration::from_secs(10);
    let mut bucket = Bucket::new(100, kept, Duration::ZERO);
    (0..1000).for_each(|_| bucket.take(1));
    assert!(!bucket.wait(1, Duration::ZERO).is_zero());
    let hour = Duration::from_secs(3600);
    assert!(bucket.wait(1000, hour).is_zero());
    (0..1000).for_each(|_| bucket.take(1));
    assert_eq!(bucket.wait(1, hour), Duration::from_millis(10));
    // A shallower bucket forgets what it has no room for.
    bucket.change(100, KEPT_MIN, hour * 2);
    (0..10).for_each(|_| bucket.take(1));
    assert!(!bucket.wait(1, hour * 2).is_zero());
}

#[test]
fn the_greatest_numbers_do_not_overflow() {
    let mut bucket = Bucket::new(1 << 40, Duration::from_secs(3600), Duration::ZERO);
    let century = Duration::from_secs(100 * 365 * 86_400);
    assert!(bucket.wait(u64::MAX, century).is_zero());
    bucket.take(u64::MAX);
    assert!(!bucket.wait(1, century).is_zero());
}

struct Simulated {
    direction: Direction,
    bytes: u64,
    at: Duration,
}

/// Drives both lines until all of them have passed; answers with what passed and when.
fn run(buckets: &mut Buckets, requests: &[Simulated], what: &str) -> Vec<(usize, Duration)> {
    let line = |direction| {
        let of = move |(_, request): &(usize, &Simulated)| request.direction == direction;
        requests.iter().enumerate().filter(of).map(|(at, _)| at).collect::<Vec<_>>()
    };
    let lines = [line(Direction::Read), line(Direction::Write)];
    let (mut next, mut standing) = ([0; 2], [false; 2]);
    let (mut now, mut passed) = (Duration::ZERO, Vec::new());
    for _ in 0..100 * requests.len() {
        let mut due: Option<Duration> = None;
        let mut moved = false;
        for direction in [Direction::Write, Direction::Read] {
            let side = direction as usize;
            let Some(at) = lines[side].get(next[side]) else { continue };
            let request = &requests[*at];
            if request.at > now {
                due = Some(due.map_or(request.at, |due| due.min(request.at)));
                continue;
            }
            if !standing[side] {
                buckets.step_up(direction, request.bytes);
                standing[side] = true;
            }
            match buckets.ask(direction, now) {
                Verdict::Passes => {
                    passed.push((*at, now));
                    (next[side], standing[side], moved) = (next[side] + 1, false, true);
                }
                Verdict::Wait(time) => {
                    due = Some(due.map_or(now + time, |due| due.min(now + time)))
                }
                Verdict::Behind => {}
            }
        }
        if passed.len() == requests.len() {
            return passed;
        }
        if !moved {
            now = due.unwrap_or_else(|| panic!("{what}: both lines wait for each other"));
        }
    }
    panic!("{what}: not all of them pass");
}

#[test]
fn every_limit_holds_and_every_request_passes() {
    for seed in 0..SCHEDULES {
        let mut random = StdRng::seed_from_u64(seed);
        let mut maybe = |range: std::ops::Range<u64>| match random.random_bool(0.5) {
            true => random.random_range(range),
            false => 0,
        };
        let limits = VolumeLimits {
            iops: maybe(1..1000),
            read_iops: maybe(1..1000),
            write_iops: maybe(1..1000),
            bytes_per_second: maybe(1 << 18..1 << 24),
            read_bytes_per_second: maybe(1 << 18..1 << 24),
            write_bytes_per_second: maybe(1 << 18..1 << 24),
            burst_seconds: maybe(1..20),
        };
        let mut at = Duration::ZERO;
        let requests: Vec<Simulated> = (0..60)
            .map(|_| {
                at += Duration::from_nanos(random.random_range(0..40 * MS));
                let read = random.random_bool(0.5);
                let direction = if read { Direction::Read } else { Direction::Write };
                let bytes = match random.random_range(0..10) {
                    0 => 32 << 20,
                    1 => 0,
                    _ => random.random_range(512..1 << 20),
                };
                Simulated { direction, bytes, at }
            })
            .collect();
        let mut buckets = Buckets::default();
        buckets.set(limits, Duration::ZERO);
        let what = format!("seed {seed}, {limits}");
        let passed = run(&mut buckets, &requests, &what);
        let kept = Duration::from_secs(limits.burst_seconds).max(KEPT_MIN);
        for (name, kind, rate) in limits.named() {
            if rate == 0 || kind == curve_types::LimitKind::BurstSeconds {
                continue;
            }
            let counts = |direction: Direction| match name.split('_').next() {
                Some("read") => direction == Direction::Read,
                Some("write") => direction == Direction::Write,
                _ => true,
            };
            let cost = |bytes| if kind == curve_types::LimitKind::Iops { 1 } else { bytes };
            let counted = passed.iter().filter(|(at, _)| counts(requests[*at].direction));
            let counted = counted.map(|(at, when)| (*when, cost(requests[*at].bytes))).collect();
            assert_within(&counted, rate, kept, &format!("{what}: {name}"));
        }
    }
}

#[test]
fn a_small_request_does_not_pass_an_older_large_one_at_a_common_limit() {
    let limits = VolumeLimits { bytes_per_second: 1 << 20, ..Default::default() };
    let mut buckets = Buckets::default();
    buckets.set(limits, Duration::ZERO);
    buckets.step_up(Direction::Read, 64 << 10);
    assert_eq!(buckets.ask(Direction::Read, Duration::ZERO), Verdict::Passes);
    buckets.step_up(Direction::Write, 32 << 20);
    assert!(matches!(buckets.ask(Direction::Write, Duration::ZERO), Verdict::Wait(_)));
    buckets.step_up(Direction::Read, 512);
    assert_eq!(buckets.ask(Direction::Read, Duration::ZERO), Verdict::Behind);
    buckets.step_down(Direction::Write);
    assert_eq!(buckets.ask(Direction::Read, Duration::ZERO), Verdict::Passes);
}

#[test]
fn a_late_timer_costs_nobody_its_turn() {
    let limits = VolumeLimits { bytes_per_second: 1 << 20, ..Default::default() };
    let mut buckets = Buckets::default();
    buckets.set(limits, Duration::ZERO);
    let mut now = Duration::ZERO;
    buckets.step_up(Direction::Read, 512);
    assert_eq!(buckets.ask(Direction::Read, now), Verdict::Passes);
    buckets.step_up(Direction::Write, 32 << 20);
    let Verdict::Wait(wait) = buckets.ask(Direction::Write, now) else { panic!("full already") };
    // The bucket is full, and reads come just before the write asks again, and again.
    for _ in 0..10 {
        now += wait;
        buckets.step_up(Direction::Read, 512);
        assert_eq!(buckets.ask(Direction::Read, now), Verdict::Behind);
    }
    assert_eq!(buckets.ask(Direction::Write, now), Verdict::Passes);
}
