// SPDX-License-Identifier: GPL-2.0-or-later
//! A limit for messages that strangers can cause.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// [`MESSAGES`](Self::MESSAGES) messages in a [`PERIOD`](Self::PERIOD); the others are counted.
#[derive(Debug, Default)]
pub struct MessageLimit(Mutex<Used>);

#[derive(Debug, Default)]
struct Used {
    since: Option<Instant>,
    passed: u64,
    suppressed: u64,
}

impl MessageLimit {
    /// How many messages pass.
    pub const MESSAGES: u64 = 10;
    /// In what time.
    pub const PERIOD: Duration = Duration::from_secs(10);

    /// A limit of which nothing is used.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Used {
            since: None,
            passed: 0,
            suppressed: 0,
        }))
    }

    /// The message, if it is to be said now, with how many have not been since the last that was.
    #[must_use]
    pub fn pass(&self, message: &str) -> Option<String> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(match used.pass(Instant::now())? {
            0 => message.to_owned(),
            others => format!("{message} ({others} messages like this were left out)"),
        })
    }
}

impl Used {
    /// Whether a message of this moment passes, and how many have not since the last that did.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= MessageLimit::PERIOD;
        if self.since.is_none_or(is_over) {
            (self.since, self.passed) = (Some(now), 0);
        }
        if self.passed < MessageLimit::MESSAGES {
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
        let (mut limit, start) = (Used::default(), Instant::now());
        let mut pass = |seconds| limit.pass(start + Duration::from_secs(seconds));
        for _ in 0..MessageLimit::MESSAGES {
            assert_eq!(pass(0), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(pass(9), None);
        }
        assert_eq!(pass(10), Some(1000));
        assert_eq!(pass(11), Some(0));
    }

    #[test]
    fn message_says_how_many_were_left_out() {
        let limit = MessageLimit::new();
        assert_eq!(limit.pass("a").as_deref(), Some("a"));
        limit.0.lock().expect("nobody has it").suppressed = 3;
        assert_eq!(limit.pass("b").as_deref(), Some("b (3 messages like this were left out)"));
    }
}
