// SPDX-License-Identifier: GPL-2.0
//! The user's limit of the bandwidth: a token bucket that all connections of the stream share.
//!
//! Pages that a program waits for do not pass it. A frame is paid for as a whole: it waits until all frames before it are paid, and is sent
//! at once then. So of several connections each gets its turn, and no frame is split.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The lowest limit, in bytes per second. The largest frame takes a second then. A destination takes a source that sends nothing for its
/// `--timeout` for lost.
pub const LEAST_BANDWIDTH: u64 = 256 << 10;

/// The bucket.
#[derive(Debug)]
pub struct Limiter {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Bytes per second; `None`: without a limit.
    rate: Option<u64>,
    /// Bytes that may have been sent until `at`, since the limit was set, in billionths.
    paid: u128,
    /// Bytes that were sent, or wait to be.
    taken: u64,
    at: Instant,
    /// The program has stopped: frames of rounds do not wait, because the program does.
    is_open_for_rounds: bool,
    /// The server ends.
    is_closed: bool,
}

/// What a frame is sent for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// A round of a program that runs.
    Rounds,
    /// The stream.
    Stream,
}

const NANOS: u128 = 1_000_000_000;

impl State {
    /// What may be sent at once after a pause: as much as in this time.
    const BURST: Duration = Duration::from_millis(50);

    /// Pays what is due now.
    fn pay(&mut self, now: Instant) {
        let Some(rate) = self.rate else { return };
        let rate = u128::from(rate);
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        let most = u128::from(self.taken) * NANOS + rate * Self::BURST.as_nanos();
        self.paid = self.paid.saturating_add(rate.saturating_mul(passed.as_nanos())).min(most);
    }

    /// So many bytes that were taken are no debt: the program waits for them, and the stream that follows is not to pay for them.
    fn forgive(&mut self, bytes: u64) {
        self.paid = self.paid.saturating_add(u128::from(bytes) * NANOS);
    }

    /// How long the frame has to wait that begins after so many bytes; `None` if it need not.
    fn wait(&self, begin: u64, purpose: Purpose) -> Option<Duration> {
        let rate = self.rate?;
        if self.is_closed || (purpose == Purpose::Rounds && self.is_open_for_rounds) {
            return None;
        }
        let missing = (u128::from(begin) * NANOS)
            .checked_sub(self.paid)
            .filter(|missing| *missing > 0)?;
        let nanos = missing.div_ceil(u128::from(rate));
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

impl Default for Limiter {
    /// Without a limit.
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                rate: None,
                paid: 0,
                taken: 0,
                at: Instant::now(),
                is_open_for_rounds: false,
                is_closed: false,
            }),
            changed: Condvar::new(),
        }
    }
}

impl Limiter {
    /// Sets the limit in bytes per second, [`LEAST_BANDWIDTH`] at least, or ends it. Frames that wait follow it at once.
    pub fn set(&self, rate: Option<u64>) {
        let mut state = self.lock();
        let now = Instant::now();
        if state.rate.is_none() {
            // What was sent without a limit is no debt, and the time no credit.
            (state.at, state.paid) = (now, u128::from(state.taken) * NANOS);
        }
        state.pay(now);
        state.rate = rate.map(|rate| rate.max(LEAST_BANDWIDTH));
        drop(state);
        self.changed.notify_all();
    }

    /// The limit in bytes per second.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        self.lock().rate
    }

    /// The program has stopped, or continues: whether frames of rounds are sent without waiting. The last of them delay its switch.
    pub fn open_for_rounds(&self, open: bool) {
        self.lock().is_open_for_rounds = open;
        self.changed.notify_all();
    }

    /// Ends all waits for good.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Waits until a frame of so many bytes may be sent.
    pub(super) fn wait(&self, bytes: u64, purpose: Purpose) {
        let mut state = self.lock();
        state.pay(Instant::now());
        let begin = state.taken;
        state.taken = state.taken.saturating_add(bytes);
        loop {
            state.pay(Instant::now());
            let Some(wait) = state.wait(begin, purpose) else {
                if purpose == Purpose::Rounds && state.is_open_for_rounds {
                    state.forgive(bytes);
                }
                return;
            };
            state = self
                .changed
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Counts a frame that does not wait. Those after it do, unless the program has stopped.
    pub(super) fn count(&self, bytes: u64) {
        let mut state = self.lock();
        state.pay(Instant::now());
        state.taken = state.taken.saturating_add(bytes);
        if state.is_open_for_rounds {
            state.forgive(bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The numbers are consistent even if a thread panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn limited(rate: u64) -> Limiter {
        let limiter = Limiter::default();
        limiter.set(Some(rate));
        limiter
    }

    fn time(work: impl FnOnce()) -> Duration {
        let began = Instant::now();
        work();
        began.elapsed()
    }

    #[test]
    fn without_a_limit_nothing_waits_and_what_was_sent_is_no_debt() {
        let limiter = Limiter::default();
        assert!(time(|| (0..1000).for_each(|_| limiter.wait(1000 * MIB, Purpose::Stream))) < Duration::from_millis(500));
        limiter.set(Some(MIB));
        assert!(time(|| limiter.wait(MIB, Purpose::Stream)) < Duration::from_millis(500));
    }

    #[test]
    fn frames_of_several_threads_take_the_time_of_all_their_bytes() {
        let limiter = limited(10 * MIB);
        let taken = time(|| {
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..10).for_each(|_| limiter.wait(MIB / 8, Purpose::Stream)));
                }
            });
        });
        // 5 MiB; the last frame does not wait for its own bytes.
        assert!(
            taken >= Duration::from_millis(420) && taken < Duration::from_secs(2),
            "{taken:?}"
        );
    }

    #[test]
    fn pause_is_no_credit() {
        let limiter = limited(MIB);
        thread::sleep(Duration::from_millis(600));
        let taken = time(|| (0..5).for_each(|_| limiter.wait(MIB / 8, Purpose::Stream)));
        assert!(taken >= Duration::from_millis(400), "{taken:?}");
    }

    #[test]
    fn change_and_end_of_the_limit_reach_a_frame_that_waits() {
        let end: [fn(&Limiter); 3] = [
            |limiter| limiter.set(None),
            |limiter| limiter.set(Some(1000 * MIB)),
            Limiter::close,
        ];
        for end in end {
            let limiter = Arc::new(limited(LEAST_BANDWIDTH));
            limiter.wait(20 * LEAST_BANDWIDTH, Purpose::Stream);
            let other = Arc::clone(&limiter);
            let waits = thread::spawn(move || other.wait(1, Purpose::Stream));
            thread::sleep(Duration::from_millis(100));
            assert!(!waits.is_finished());
            end(&limiter);
            let ended = time(|| waits.join().expect("no panic"));
            assert!(ended < Duration::from_secs(5), "{ended:?}");
        }
    }

    #[test]
    fn rounds_of_a_program_that_has_stopped_do_not_wait_and_the_stream_does() {
        let limiter = limited(MIB);
        limiter.open_for_rounds(true);
        let rounds = || (0..8).for_each(|_| limiter.wait(MIB, Purpose::Rounds));
        assert!(time(rounds) < Duration::from_millis(500));
        limiter.count(8 * MIB);
        // What did not wait is no debt of the stream.
        assert!(time(|| limiter.wait(MIB, Purpose::Stream)) < Duration::from_millis(500));
        assert!(time(|| limiter.wait(1, Purpose::Stream)) >= Duration::from_millis(500));
        limiter.set(Some(100 * MIB));
        limiter.open_for_rounds(false);
        limiter.count(50 * MIB);
        assert!(time(|| limiter.wait(MIB, Purpose::Rounds)) >= Duration::from_millis(400));
    }

    #[test]
    fn limit_is_not_so_low_that_a_destination_takes_the_source_for_lost() {
        let limiter = limited(1);
        assert_eq!(limiter.get(), Some(LEAST_BANDWIDTH));
        limiter.set(None);
        assert_eq!(limiter.get(), None);
    }
}
