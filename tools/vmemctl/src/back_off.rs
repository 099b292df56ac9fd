// SPDX-License-Identifier: GPL-2.0
//! How long to wait before a vmemd that ends again and again is started again.

use std::time::Duration;

/// The longest pause. A vmemd that has lived longer than this starts the count anew.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The ends in a row.
#[derive(Debug, Default)]
pub(crate) struct BackOff {
    ends: u32,
}

impl BackOff {
    /// The pause after the end of one that has `lived` so long: none at first, then 1 s, 2 s, 4 s, ...
    pub(crate) fn pause(&mut self, lived: Duration) -> Duration {
        if lived > LONGEST_PAUSE {
            self.ends = 0;
        }
        self.ends = self.ends.saturating_add(1);
        match self.ends.checked_sub(2) {
            None => Duration::ZERO,
            Some(more) => Duration::from_secs(1 << more.min(6)).min(LONGEST_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_always_ends_is_started_less_and_less_often() {
        let mut back_off = BackOff::default();
        let pauses: Vec<_> = (0..9).map(|_| back_off.pause(Duration::ZERO).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        back_off.ends = u32::MAX;
        assert_eq!(back_off.pause(Duration::ZERO), LONGEST_PAUSE);
    }

    #[test]
    fn one_that_has_lived_long_is_started_at_once() {
        let mut back_off = BackOff::default();
        assert!((0..5).any(|_| back_off.pause(Duration::ZERO) > Duration::ZERO));
        assert_eq!(back_off.pause(LONGEST_PAUSE * 2), Duration::ZERO);
        assert_eq!(back_off.pause(Duration::ZERO), Duration::from_secs(1));
    }
}
