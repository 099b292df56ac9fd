// SPDX-License-Identifier: GPL-2.0-or-later
//! A limit for messages that strangers can cause.

use std::time::{Duration, Instant};

/// So many messages in a period; the others are counted.
#[derive(Debug)]
pub(super) struct Limit {
    since: Option<Instant>,
    passed: u64,
    suppressed: u64,
}

impl Limit {
    pub(super) const MESSAGES: u64 = 10;
    pub(super) const PERIOD: Duration = Duration::from_secs(10);

    pub(super) const fn new() -> Self {
        Self {
            since: None,
            passed: 0,
            suppressed: 0,
        }
    }

    /// Whether a message of this moment is to be said, and how many have not been since the last that was.
    pub(super) fn pass(&mut self, now: Instant) -> Option<u64> {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= Self::PERIOD;
        if self.since.is_none_or(is_over) {
            (self.since, self.passed) = (Some(now), 0);
        }
        if self.passed < Self::MESSAGES {
            self.passed += 1;
            Some(std::mem::take(&mut self.suppressed))
        } else {
            self.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_beyond_the_limit_are_counted_and_said_later() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        let mut pass = |seconds| limit.pass(start + Duration::from_secs(seconds));
        for _ in 0..Limit::MESSAGES {
            assert_eq!(pass(0), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(pass(9), None);
        }
        assert_eq!(pass(10), Some(1000));
        assert_eq!(pass(11), Some(0));
    }
}
