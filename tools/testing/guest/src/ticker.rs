// SPDX-License-Identifier: GPL-2.0
//! The ticker: the longest time in which the guest did not run, as the guest itself sees it.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::clock::{Clocks, Reading};

/// From tick to tick.
const INTERVAL: Duration = Duration::from_millis(10);

/// The ticker.
pub(crate) struct Ticker {
    seen: Arc<Mutex<Seen>>,
    /// Whether the host tells its time.
    pub(crate) host_clock: bool,
}

/// What it has seen since the last mark.
#[derive(Clone, Copy, Default, Serialize)]
pub(crate) struct Seen {
    /// Ticks.
    ticks: u64,
    /// The longest time from one tick to the next by the guest's own clock, which stands still while the machine is stopped. Seconds.
    own_gap: f64,
    /// The same by the host's clock.
    host_gap: Option<f64>,
    /// What all late ticks were late, together, by the host's clock or, where there is none, the guest's. Seconds.
    late: f64,
}

impl Ticker {
    /// Starts it.
    pub(crate) fn start() -> Self {
        let clocks = Clocks::new();
        let first = clocks.read();
        let seen = Arc::new(Mutex::default());
        let ticker = Self {
            seen: Arc::clone(&seen),
            host_clock: first.host.is_some(),
        };
        thread::spawn(move || run(&clocks, first, &seen));
        ticker
    }

    /// What has been seen since the last mark.
    pub(crate) fn seen(&self) -> Seen {
        *lock(&self.seen)
    }

    /// Forgets what has been seen.
    pub(crate) fn mark(&self) {
        *lock(&self.seen) = Seen::default();
    }
}

impl Seen {
    fn tick(&mut self, last: Reading, now: Reading) {
        let own = now.own.saturating_sub(last.own);
        let host = now.host.zip(last.host).map(|(now, last)| now.saturating_sub(last));
        self.ticks += 1;
        self.own_gap = self.own_gap.max(own.as_secs_f64());
        if let Some(host) = host {
            self.host_gap = Some(self.host_gap.unwrap_or_default().max(host.as_secs_f64()));
        }
        let gap = host.unwrap_or(own);
        if gap > 2 * INTERVAL {
            self.late += (gap - INTERVAL).as_secs_f64();
        }
    }
}

fn run(clocks: &Clocks, mut last: Reading, seen: &Mutex<Seen>) {
    loop {
        thread::sleep(INTERVAL);
        let now = clocks.read();
        lock(seen).tick(last, now);
        last = now;
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_and_each_late_tick() {
        let at = |own, host| Reading {
            own: Duration::from_millis(own),
            host: Some(Duration::from_millis(host)),
        };
        let mut seen = Seen::default();
        for (last, now) in [(at(0, 0), at(10, 10)), (at(10, 10), at(30, 530)), (at(30, 530), at(40, 640))] {
            seen.tick(last, now);
        }
        assert_eq!((seen.ticks, seen.own_gap, seen.host_gap), (3, 0.02, Some(0.52)));
        assert!((seen.late - 0.61).abs() < 1e-9, "{}", seen.late);
    }
}
