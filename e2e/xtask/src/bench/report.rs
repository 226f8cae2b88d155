//! Medians and their table.

use serde::Serialize;

use super::fio::{Figures, Work};

/// One round: the raw file and the volume, measured one right after the other.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    pub raw: Figures,
    pub curve: Figures,
    /// CPU of all our processes per IO.
    pub cpu_us_per_io: f64,
}

/// All rounds of one kind of work, and their medians.
#[derive(Debug, Serialize)]
pub struct Row {
    pub work: Work,
    pub rounds: Vec<Round>,
    pub median_ratio: f64,
}

impl Row {
    pub fn new(work: Work, rounds: Vec<Round>) -> Self {
        let median_ratio = median(rounds.iter().map(|r| r.curve.iops / r.raw.iops));
        Self { work, rounds, median_ratio }
    }

    fn median_of(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure))
    }

    /// One line of the table.
    pub fn line(&self) -> String {
        format!(
            "{:<18} {:>9.0} {:>9.1} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>10.0} {:>8.0} {:>8.0} {:>7.3}",
            self.work.name,
            self.median_of(|r| r.curve.iops),
            self.median_of(|r| r.curve.mib_per_s),
            self.median_of(|r| r.curve.p50_us),
            self.median_of(|r| r.curve.p99_us),
            self.median_of(|r| r.curve.p999_us),
            self.median_of(|r| r.cpu_us_per_io),
            self.median_of(|r| r.raw.iops),
            self.median_of(|r| r.raw.p50_us),
            self.median_of(|r| r.raw.p99_us),
            self.median_ratio,
        )
    }
}

/// The table's head.
pub fn head() -> String {
    format!(
        "{:<18} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8} {:>10} {:>8} {:>8} {:>7}",
        "work",
        "IOPS",
        "MiB/s",
        "p50 us",
        "p99 us",
        "p99.9",
        "CPU us",
        "raw IOPS",
        "raw p50",
        "raw p99",
        "ratio"
    )
}

/// Middle value; the mean of the middle two for an even count, 0 for none.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ignore_order() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
