// SPDX-License-Identifier: GPL-2.0-or-later
//! The user's limit of the bandwidth: a token bucket that all connections of the stream share.
//!
//! Pages that a program waits for do not pass it. A frame is paid for as a whole: it waits until all frames before it are paid, and is sent
//! at once then. So of several connections each gets its turn, and no frame is split.
//!
//! A destination gives up a connection on which it has questions and gets nothing for its `--timeout`. So the lower the limit is, the smaller
//! are the frames ([`Limiter::frame_pages`]): a low limit makes all connections slow, and none of them silent.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmem::PAGE_SIZE;

use crate::answer::Chunk;

/// The lowest limit, in bytes per second: a frame has two pages at most then, and takes a 32nd of a second.
pub const LEAST_BANDWIDTH: u64 = 256 << 10;

/// The time that a frame takes at most at the limit. The longest silence of a connection is this, for each connection that sends: with the 64
/// connections that a server has at most by default, two seconds.
const FRAME_TIME: Duration = Duration::from_micros(31_250);

/// How large a frame may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameLimit {
    /// The most pages with contents, one at least.
    pub(super) pages: usize,
    /// How often the limit had been lowered.
    lowered: u64,
}

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
    /// How often the limit was lowered.
    lowered: u64,
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
                lowered: 0,
                is_open_for_rounds: false,
                is_closed: false,
            }),
            changed: Condvar::new(),
        }
    }
}

impl Limiter {
    /// Sets the limit in bytes per second, [`LEAST_BANDWIDTH`] at least, or ends it. Frames that wait follow it at once. If it is lower than
    /// before, these and all others that are made already do not wait: they are as large as the earlier limit allows, so that the connections
    /// would be silent for long.
    pub fn set(&self, rate: Option<u64>) {
        let mut state = self.lock();
        let now = Instant::now();
        if state.rate.is_none() {
            // What was sent without a limit is no debt, and the time no credit.
            (state.at, state.paid) = (now, u128::from(state.taken) * NANOS);
        }
        state.pay(now);
        let rate = rate.map(|rate| rate.max(LEAST_BANDWIDTH));
        if rate.is_some_and(|rate| state.rate.is_none_or(|earlier| rate < earlier)) {
            state.paid = state.paid.max(u128::from(state.taken) * NANOS);
            state.lowered += 1;
        }
        state.rate = rate;
        drop(state);
        self.changed.notify_all();
    }

    /// The limit in bytes per second.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        self.lock().rate
    }

    /// How large the next frame may be: as many pages as the limit allows in [`FRAME_TIME`].
    pub(super) fn frame_limit(&self, purpose: Purpose) -> FrameLimit {
        let state = self.lock();
        let pages = match state.rate {
            Some(rate) if purpose == Purpose::Stream || !state.is_open_for_rounds => {
                let bytes = u128::from(rate) * FRAME_TIME.as_nanos() / NANOS;
                let pages = usize::try_from(bytes / PAGE_SIZE as u128).unwrap_or(usize::MAX);
                pages.clamp(1, Chunk::MAX_DATA_PAGES)
            }
            _ => Chunk::MAX_DATA_PAGES,
        };
        FrameLimit {
            pages,
            lowered: state.lowered,
        }
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

    /// Waits until a frame of so many bytes, which was made within `limit`, may be sent.
    pub(super) fn wait(&self, bytes: u64, purpose: Purpose, limit: FrameLimit) {
        let mut state = self.lock();
        state.pay(Instant::now());
        let begin = state.taken;
        state.taken = state.taken.saturating_add(bytes);
        if limit.lowered != state.lowered {
            state.forgive(bytes);
            return;
        }
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

    /// A frame that is made now.
    fn send(limiter: &Limiter, bytes: u64, purpose: Purpose) {
        limiter.wait(bytes, purpose, limiter.frame_limit(purpose));
    }

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
        assert!(time(|| (0..1000).for_each(|_| send(&limiter, 1000 * MIB, Purpose::Stream))) < Duration::from_millis(500));
        limiter.set(Some(MIB));
        assert!(time(|| send(&limiter, MIB, Purpose::Stream)) < Duration::from_millis(500));
    }

    #[test]
    fn frames_of_several_threads_take_the_time_of_all_their_bytes() {
        let limiter = limited(10 * MIB);
        let taken = time(|| {
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..10).for_each(|_| send(&limiter, MIB / 8, Purpose::Stream)));
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
        let taken = time(|| (0..5).for_each(|_| send(&limiter, MIB / 8, Purpose::Stream)));
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
            send(&limiter, 20 * LEAST_BANDWIDTH, Purpose::Stream);
            let other = Arc::clone(&limiter);
            let waits = thread::spawn(move || send(&other, 1, Purpose::Stream));
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
        let rounds = || (0..8).for_each(|_| send(&limiter, MIB, Purpose::Rounds));
        assert!(time(rounds) < Duration::from_millis(500));
        limiter.count(8 * MIB);
        // What did not wait is no debt of the stream.
        assert!(time(|| send(&limiter, MIB, Purpose::Stream)) < Duration::from_millis(500));
        assert!(time(|| send(&limiter, 1, Purpose::Stream)) >= Duration::from_millis(500));
        limiter.set(Some(100 * MIB));
        limiter.open_for_rounds(false);
        limiter.count(50 * MIB);
        assert!(time(|| send(&limiter, MIB, Purpose::Rounds)) >= Duration::from_millis(400));
    }

    #[test]
    fn limit_is_not_so_low_that_a_destination_takes_the_source_for_lost() {
        let limiter = limited(1);
        assert_eq!(limiter.get(), Some(LEAST_BANDWIDTH));
        limiter.set(None);
        assert_eq!(limiter.get(), None);
    }

    #[test]
    fn frame_is_as_large_as_the_limit_allows_in_a_moment() {
        let limiter = Limiter::default();
        let pages = || [Purpose::Rounds, Purpose::Stream].map(|purpose| limiter.frame_limit(purpose).pages);
        assert_eq!(pages(), [64; 2]);
        for (rate, most) in [(LEAST_BANDWIDTH, 2), (MIB, 8), (3 * MIB, 24), (8 * MIB, 64), (u64::MAX, 64)] {
            limiter.set(Some(rate));
            assert_eq!(pages(), [most; 2], "{rate}");
        }
        // Frames of rounds do not wait now.
        limiter.set(Some(LEAST_BANDWIDTH));
        limiter.open_for_rounds(true);
        assert_eq!(pages(), [64, 2]);
    }

    #[test]
    fn frames_that_wait_when_the_limit_is_lowered_are_sent_and_later_ones_wait() {
        let limiter = Arc::new(limited(8 * MIB));
        send(&limiter, 4 * MIB, Purpose::Stream);
        let waits: Vec<_> = (0..4)
            .map(|_| {
                let limiter = Arc::clone(&limiter);
                thread::spawn(move || send(&limiter, MIB / 4, Purpose::Stream))
            })
            .collect();
        thread::sleep(Duration::from_millis(100));
        limiter.set(Some(LEAST_BANDWIDTH));
        // With the new limit, they would have waited for 16 to 19 seconds.
        let sent = time(|| waits.into_iter().for_each(|waits| waits.join().expect("no panic")));
        assert!(sent < Duration::from_secs(5), "{sent:?}");
        send(&limiter, LEAST_BANDWIDTH, Purpose::Stream);
        assert!(time(|| send(&limiter, 1, Purpose::Stream)) >= Duration::from_millis(700));
    }
    #[test]
    fn frame_that_was_made_before_the_limit_was_lowered_does_not_wait() {
        for earlier in [None, Some(8 * MIB)] {
            let limiter = Limiter::default();
            limiter.set(earlier);
            let made = limiter.frame_limit(Purpose::Stream);
            limiter.set(Some(LEAST_BANDWIDTH));
            send(&limiter, 4 * LEAST_BANDWIDTH, Purpose::Stream);
            // It would have waited for four seconds.
            let sent = time(|| limiter.wait(MIB / 4, Purpose::Stream, made));
            assert!(sent < Duration::from_secs(2), "{earlier:?}: {sent:?}");
            assert!(time(|| send(&limiter, 1, Purpose::Stream)) >= Duration::from_millis(700));
        }
    }
}
