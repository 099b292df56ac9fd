// SPDX-License-Identifier: GPL-2.0-or-later
//! How much is done, how fast, and how long the rest takes.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use indicatif::BinaryBytes;

/// An amount of bytes for users, such as "2.00 GiB".
pub fn bytes(amount: u64) -> String {
    BinaryBytes(amount).to_string()
}

/// How many bytes of a whole are done. It is shown as " 50.0 % of 2.00 GiB".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// The bytes that are done.
    pub done: u64,
    /// All bytes.
    pub size: u64,
}

impl Progress {
    /// The bytes that are left.
    pub fn left(&self) -> u64 {
        self.size.saturating_sub(self.done)
    }

    /// How long the rest takes at this rate, in bytes a second.
    pub fn time_left(&self, rate: f64) -> String {
        match rate {
            rate if rate > 0.0 => format!("{:.0} s left", self.left() as f64 / rate),
            _ => "standing still".to_owned(),
        }
    }
}

impl Display for Progress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.done as f64 / self.size.max(1) as f64;
        write!(f, "{percent:5.1} % of {}", BinaryBytes(self.size))
    }
}

/// How fast a count grows, from sample to sample. The first sample begins at a count of 0 at time 0.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Rate {
    time: Duration,
    count: u64,
}

impl Rate {
    /// Whether a second has passed since the last sample.
    pub fn is_due(&self, time: Duration) -> bool {
        time.saturating_sub(self.time) >= Duration::from_secs(1)
    }

    /// The growth a second since the last sample.
    pub fn sample(&mut self, time: Duration, count: u64) -> f64 {
        let passed = time.saturating_sub(self.time).as_secs_f64().max(0.001);
        let grown = count.saturating_sub(self.count);
        *self = Self { time, count };
        grown as f64 / passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_covers_the_time_since_the_last_sample() {
        let mut rate = Rate::default();
        assert_eq!(rate.sample(Duration::from_secs(1), 100), 100.0);
        assert_eq!(rate.sample(Duration::from_secs(3), 500), 200.0);
        assert!(!rate.is_due(Duration::from_millis(3999)) && rate.is_due(Duration::from_secs(4)));
        assert_eq!(rate.sample(Duration::from_secs(4), 500), 0.0);
    }

    #[test]
    fn time_and_count_that_go_back_are_no_growth() {
        let mut rate = Rate::default();
        rate.sample(Duration::from_secs(5), 500);
        assert_eq!(rate.sample(Duration::from_secs(4), 400), 0.0);
    }

    #[test]
    fn time_left_follows_from_the_rate_unless_nothing_moves() {
        let progress = Progress {
            done: 1 << 20,
            size: 4 << 20,
        };
        assert_eq!(progress.to_string(), " 25.0 % of 4.00 MiB");
        assert_eq!(progress.time_left(f64::from(1 << 20)), "3 s left");
        assert_eq!(progress.time_left(0.0), "standing still");
        assert_eq!(Progress { done: 2, size: 1 }.left(), 0);
        assert_eq!(Progress { done: 0, size: 0 }.to_string(), "  0.0 % of 0 B");
    }
}
