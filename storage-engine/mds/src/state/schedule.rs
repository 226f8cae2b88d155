//! When scrubs may run: a cron expression for the beginnings of windows, in UTC, and their length.
//! Our own, since every replica of the log must judge an expression alike, whatever its version.

use std::fmt;

use super::{Reason, Refusal};

/// Accepted lengths of a window: what is shorter than a minute would be missed, what is longer than
/// a week never closes.
const WINDOW_SECS: std::ops::RangeInclusive<u64> = 60..=7 * 24 * 3600;
const DAY_MINUTES: u64 = 24 * 60;

/// Windows in which scrubs run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// As a person wrote it.
    pub text: String,
    pub window_secs: u64,
    cron: Cron,
}

/// Minutes of the calendar: a bit for every value of a field that matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both fields of days are given: either suffices.
    either_day: bool,
}

impl Schedule {
    pub fn new(text: &str, window_secs: u64) -> Result<Self, Refusal> {
        let cron = Cron::parse(text).ok_or_else(|| {
            let message = format!(
                "schedule is {text:?}: expected the five fields MINUTE HOUR DAY MONTH WEEKDAY of \
                 numbers, lists, ranges and steps, such as \"0 1 * * *\" or \"30 22 * * 5-6\""
            );
            Refusal::new(Reason::Invalid, message)
        })?;
        if !WINDOW_SECS.contains(&window_secs) {
            let (min, max) = (WINDOW_SECS.start(), WINDOW_SECS.end());
            let message = format!("window is {window_secs} s: expected {min} to {max} s");
            return Err(Refusal::new(Reason::Invalid, message));
        }
        Ok(Self { text: text.to_owned(), window_secs, cron })
    }

    /// Whether a window is open.
    pub fn is_open(&self, unix_secs: u64) -> bool {
        let last = self.cron.last_match(unix_secs / 60, self.window_secs.div_ceil(60));
        last.is_some_and(|minute| unix_secs - minute * 60 < self.window_secs)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} for {} s", self.text, self.window_secs)
    }
}

impl Cron {
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else { return None };
        // 7 is Sunday, as 0 is.
        let week = field(weekdays, 0, 7)?;
        Some(Self {
            minutes: field(minutes, 0, 59)?,
            hours: field(hours, 0, 23)?,
            days: field(days, 1, 31)?,
            months: field(months, 1, 12)?,
            weekdays: (week | week >> 7) & 0x7f,
            either_day: !days.starts_with('*') && !weekdays.starts_with('*'),
        })
    }

    /// The latest minute of the epoch that matches, `now` and no more than `back` minutes before.
    fn last_match(&self, now: u64, back: u64) -> Option<u64> {
        let first = now.saturating_sub(back);
        for day in (first / DAY_MINUTES..=now / DAY_MINUTES).rev() {
            if !self.matches_day(day) {
                continue;
            }
            let until = (now - day * DAY_MINUTES).min(DAY_MINUTES - 1);
            for hour in (0..=until / 60).rev().filter(|hour| has(self.hours, *hour)) {
                let last = if hour == until / 60 { until % 60 } else { 59 };
                if let Some(minute) = (0..=last).rev().find(|minute| has(self.minutes, *minute)) {
                    let found = day * DAY_MINUTES + hour * 60 + minute;
                    return (found >= first).then_some(found);
                }
            }
        }
        None
    }

    fn matches_day(&self, day: u64) -> bool {
        let (month, day_of_month) = month_and_day(day);
        // The epoch began on a Thursday.
        let by_week = has(self.weekdays, (day + 4) % 7);
        let by_month = has(self.days, day_of_month);
        let matches = if self.either_day { by_week || by_month } else { by_week && by_month };
        matches && has(self.months, month)
    }
}

fn has(bits: u64, value: u64) -> bool {
    bits >> value & 1 == 1
}

/// `*`, `4`, `1-5`, each with an optional `/STEP`, or several of them with commas between.
fn field(text: &str, min: u64, max: u64) -> Option<u64> {
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
        let step = step.map_or(Some(1), number).filter(|step| *step > 0)?;
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (min, max),
            Some((first, last)) => (number(first)?, number(last)?),
            // As cron has it: a step goes on to the end.
            None if part.contains('/') => (number(range)?, max),
            None => (number(range)?, number(range)?),
        };
        if first < min || last > max || first > last {
            return None;
        }
        let step = usize::try_from(step).ok()?;
        (first..=last).step_by(step).for_each(|value| bits |= 1 << value);
    }
    Some(bits)
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Of the proleptic Gregorian calendar, both from 1 on. The algorithm is Howard Hinnant's
/// `civil_from_days`.
fn month_and_day(days_since_epoch: u64) -> (u64, u64) {
    let of_era = (days_since_epoch + 719_468) % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    /// 2024-02-29T00:00:00Z, a Thursday.
    const LEAP: u64 = 1_709_164_800;

    fn is_open(text: &str, window: u64, at: u64) -> bool {
        Schedule::new(text, window).expect("valid").is_open(at)
    }

    #[test]
    fn days_have_the_months_that_the_calendar_says() {
        assert_eq!(month_and_day(0), (1, 1));
        assert_eq!(month_and_day(LEAP / 86_400), (2, 29));
        assert_eq!(month_and_day(LEAP / 86_400 + 1), (3, 1));
        assert_eq!(month_and_day(LEAP / 86_400 + 306), (12, 31));
        // 2100 is no leap year.
        assert_eq!(month_and_day(4_102_444_800 / 86_400 + 31 + 28), (3, 1));
    }

    #[test]
    fn a_window_opens_at_its_minute_and_closes_after_its_length() {
        for (at, open) in [(0, false), (HOUR - 1, false), (HOUR, true), (6 * HOUR - 1, true)] {
            assert_eq!(is_open("0 1 * * *", 5 * HOUR, LEAP + at), open, "{at}");
        }
        assert!(!is_open("0 1 * * *", 5 * HOUR, LEAP + 6 * HOUR));
        // Across midnight, and across a month's end.
        assert!(is_open("30 23 29 2 *", 2 * HOUR, LEAP + 25 * HOUR));
        assert!(!is_open("30 23 29 2 *", 2 * HOUR, LEAP + 26 * HOUR));
        // A week long, from Friday on; the day before its end, and the one before its beginning.
        assert!(is_open("0 0 * * 5", 7 * 24 * HOUR - 60, LEAP + 3 * HOUR));
        assert!(!is_open("0 0 * * 5", 24 * HOUR, LEAP + 3 * HOUR));
        assert!(is_open("0 0 * * 5", 24 * HOUR, LEAP + 27 * HOUR));
    }

    #[test]
    fn fields_are_lists_of_ranges_with_steps() {
        let open = |text: &str, at: u64| is_open(text, 60, LEAP + at);
        assert!(open("*/15 0-3,22 * * *", 45 * 60));
        assert!(!open("*/15 0-3,22 * * *", 44 * 60));
        assert!(open("5/20 * * * *", 45 * 60) && !open("5/20 * * * *", 20 * 60));
        assert!(open("0 22 * * 4", 22 * HOUR));
        // Sunday has two numbers.
        let sunday = 3 * 24 * HOUR;
        assert!(open("0 0 * * 0", sunday) && open("0 0 * * 7", sunday));
        // Two kinds of days: either.
        assert!(open("0 0 1 * 4", 0) && open("0 0 1 * 4", 24 * HOUR));
        assert!(!open("0 0 1 * 4", 2 * 24 * HOUR));
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_what_is() {
        let bad =
            ["", "0 1 * *", "0 1 * * * *", "60 1 * * *", "0 24 * * *", "0 1 0 * *", "0 1 * 13 *"];
        let more =
            ["0 1 * * 8", "a 1 * * *", "*/0 1 * * *", "5-1 1 * * *", "+1 1 * * *", "1,, 1 * * *"];
        for text in bad.into_iter().chain(more) {
            let refusal = Schedule::new(text, 3600).expect_err(text);
            assert!(refusal.message.contains("MINUTE HOUR DAY MONTH WEEKDAY"), "{text}");
        }
        for window in [0, 59, 7 * 24 * HOUR + 1] {
            let refusal = Schedule::new("0 1 * * *", window).expect_err("window");
            assert!(refusal.message.contains("expected 60 to 604800 s"), "{}", refusal.message);
        }
    }
}
