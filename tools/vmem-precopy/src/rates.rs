// SPDX-License-Identifier: GPL-2.0-or-later
//! How fast memory is written to.

use std::time::Duration;

/// Pages written per second, over intervals in each of which a page counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Over the whole time.
    pub mean: f64,
    /// Half of the intervals have a rate that is not higher.
    pub median: f64,
    /// The highest rate of an interval.
    pub highest: f64,
}

impl Rates {
    /// The rates of intervals with so many pages. All are 0 without intervals.
    pub(crate) fn of(intervals: &[(u64, Duration)]) -> Self {
        let mut rates: Vec<f64> = intervals.iter().map(|(pages, elapsed)| rate(*pages, *elapsed)).collect();
        rates.sort_by(f64::total_cmp);
        let pages = intervals.iter().fold(0u64, |sum, (pages, _)| sum.saturating_add(*pages));
        let elapsed = intervals
            .iter()
            .fold(Duration::ZERO, |sum, (_, elapsed)| sum.saturating_add(*elapsed));
        Self {
            mean: rate(pages, elapsed),
            median: rates.get(rates.len().saturating_sub(1) / 2).copied().unwrap_or_default(),
            highest: rates.last().copied().unwrap_or_default(),
        }
    }
}

fn rate(pages: u64, elapsed: Duration) -> f64 {
    match elapsed.as_secs_f64() {
        seconds if seconds > 0.0 => pages as f64 / seconds,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_an_interval_and_mean_goes_by_time() {
        let seconds = Duration::from_secs;
        let rates = Rates::of(&[(0, seconds(1)), (90, seconds(1)), (10, seconds(1)), (20, seconds(2))]);
        assert_eq!((rates.mean, rates.median, rates.highest), (24.0, 10.0, 90.0));
        assert_eq!(Rates::of(&[]), Rates::default());
        assert_eq!(Rates::of(&[(7, Duration::ZERO)]), Rates::default());
    }
}
