// SPDX-License-Identifier: GPL-2.0
//! The bandwidth of the connection, smoothed.

use std::time::Duration;

/// Bytes per second, as an average in which what is two seconds old counts little more than a third.
///
/// Only time in which there was something to send counts. Samples of mostly zero pages do not: they say how fast memory is read, and what
/// is left at the switch is data.
#[derive(Debug, Clone, Default)]
pub struct Bandwidth {
    average: Option<f64>,
    bytes: u64,
    data: u64,
    zero: u64,
    busy: Duration,
}

impl Bandwidth {
    /// A shorter sample says more about the buffers of the network than about its bandwidth.
    const SAMPLE: Duration = Duration::from_millis(100);
    const MEMORY: Duration = Duration::from_secs(2);

    /// Adds that `bytes` were sent in the time `busy`, for `data` pages with contents and `zero` without.
    pub fn add(&mut self, bytes: u64, data: u64, zero: u64, busy: Duration) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.data = self.data.saturating_add(data);
        self.zero = self.zero.saturating_add(zero);
        self.busy = self.busy.saturating_add(busy);
        if self.busy < Self::SAMPLE {
            return;
        }
        if let (Some(sample), true) = (self.sample(), self.data >= self.zero || self.average.is_none()) {
            let share = 1.0 - (-self.busy.as_secs_f64() / Self::MEMORY.as_secs_f64()).exp();
            self.average = Some(self.average.map_or(sample, |average| average + share * (sample - average)));
        }
        *self = Self {
            average: self.average,
            ..Self::default()
        };
    }

    /// Bytes per second; `None` if nothing was sent yet.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        self.average.or_else(|| self.sample()).map(|average| average as u64)
    }

    fn sample(&self) -> Option<f64> {
        let seconds = self.busy.as_secs_f64();
        (seconds > 0.0 && self.bytes > 0).then(|| self.bytes as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn drop_of_a_moment_changes_little_and_one_that_stays_is_followed() {
        let mut bandwidth = Bandwidth::default();
        assert_eq!(bandwidth.get(), None);
        bandwidth.add(50_000, 12, 0, 50 * MS);
        assert_eq!(bandwidth.get(), Some(1_000_000));
        (0..10).for_each(|_| bandwidth.add(100_000, 25, 0, 100 * MS));
        bandwidth.add(10_000, 2, 0, 100 * MS);
        assert!(bandwidth.get().is_some_and(|now| now > 950_000), "{bandwidth:?}");
        (0..100).for_each(|_| bandwidth.add(10_000, 2, 0, 100 * MS));
        assert!(bandwidth.get().is_some_and(|now| now < 110_000), "{bandwidth:?}");
    }

    #[test]
    fn zero_pages_do_not_lower_a_known_bandwidth() {
        let mut bandwidth = Bandwidth::default();
        bandwidth.add(100_000, 25, 0, 100 * MS);
        (0..100).for_each(|_| bandwidth.add(1000, 0, 10_000, 100 * MS));
        assert_eq!(bandwidth.get(), Some(1_000_000));
    }
}
