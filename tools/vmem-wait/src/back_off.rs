// SPDX-License-Identifier: GPL-2.0-or-later
//! The pauses between attempts.

use std::time::Duration;

/// Exponential back-off: each pause is twice as long as the one before, up to a longest one.
#[derive(Clone, Debug)]
pub struct BackOff {
    initial: Duration,
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl BackOff {
    /// The pauses are `first`, twice `first`, and so on, up to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            initial: first,
            first,
            longest,
            next: first,
        }
    }

    /// As [`new`](Self::new), but the first attempt follows at once: the pauses are zero, `first`, twice `first`, and so on.
    #[must_use]
    pub const fn immediate(first: Duration, longest: Duration) -> Self {
        Self {
            initial: Duration::ZERO,
            first,
            longest,
            next: Duration::ZERO,
        }
    }

    /// The pause before the next attempt. The pause after it is longer.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next.min(self.longest);
        self.next = match pause.is_zero() {
            true => self.first,
            false => pause.saturating_mul(2).min(self.longest),
        };
        pause
    }

    /// The pause after an attempt that worked for `ran`. An attempt that worked for longer than the longest pause is a success: the pauses
    /// begin anew.
    pub fn next_pause_after(&mut self, ran: Duration) -> Duration {
        if ran > self.longest {
            self.reset();
        }
        self.next_pause()
    }

    /// Begins anew with the first pause, after a success.
    pub fn reset(&mut self) {
        self.next = self.initial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn seconds(back_off: &mut BackOff, count: usize) -> Vec<u64> {
        (0..count).map(|_| back_off.next_pause().as_secs()).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        assert_eq!(seconds(&mut BackOff::new(SECOND, MINUTE), 8), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(
            seconds(&mut BackOff::immediate(SECOND, MINUTE), 9),
            [0, 1, 2, 4, 8, 16, 32, 60, 60]
        );
        assert_eq!(
            BackOff::new(MINUTE, SECOND).next_pause(),
            SECOND,
            "never longer than the longest"
        );
        let mut forever = BackOff::new(SECOND, Duration::MAX);
        assert_eq!((0..200).map(|_| forever.next_pause()).max(), Some(Duration::MAX));
    }

    #[test]
    fn pauses_begin_anew_after_a_reset_or_a_long_run() {
        for mut back_off in [BackOff::new(SECOND, MINUTE), BackOff::immediate(SECOND, MINUTE)] {
            let first = seconds(&mut back_off.clone(), 5);
            seconds(&mut back_off, 5);
            assert!(
                back_off.next_pause_after(MINUTE) > SECOND * 8,
                "a run no longer than the pause is no success"
            );
            assert_eq!(back_off.next_pause_after(MINUTE + SECOND).as_secs(), first[0]);
            assert_eq!(back_off.next_pause().as_secs(), first[1]);
            back_off.reset();
            assert_eq!(seconds(&mut back_off, 5), first);
        }
    }
}
