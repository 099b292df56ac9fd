// SPDX-License-Identifier: GPL-2.0-or-later
//! The ticker: the longest time in which the guest did not run, as the guest itself sees it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::clock::{Clocks, Reading};

/// From tick to tick.
const INTERVAL: Duration = Duration::from_millis(10);
/// From one sample of the worker's work to the next, at least.
const SAMPLE: Duration = Duration::from_millis(20);
/// Samples that are kept: two minutes of them.
const SAMPLES: usize = 6000;

/// The ticker.
pub(crate) struct Ticker {
    seen: Arc<Mutex<Seen>>,
    samples: Arc<Mutex<Vec<Sample>>>,
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

/// A time, in seconds, and the pages that the worker had written then. The time is the host's real time or, where the host does not tell it, the guest's
/// own.
pub(crate) type Sample = (f64, u64);

impl Ticker {
    /// Starts it. `work` counts the pages that the worker has written.
    pub(crate) fn start(work: Arc<AtomicU64>) -> Self {
        let clocks = Clocks::new();
        let first = clocks.read();
        let (seen, samples) = (Arc::new(Mutex::default()), Arc::new(Mutex::default()));
        let ticker = Self {
            seen: Arc::clone(&seen),
            samples: Arc::clone(&samples),
            host_clock: first.host.is_some(),
        };
        thread::spawn(move || run(&clocks, first, &seen, &samples, &work));
        ticker
    }

    /// What has been seen since the last mark.
    pub(crate) fn seen(&self) -> Seen {
        *lock(&self.seen)
    }

    /// Forgets what has been seen.
    pub(crate) fn mark(&self) {
        *lock(&self.seen) = Seen::default();
        lock(&self.samples).clear();
    }

    /// The work over time since the last mark.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        lock(&self.samples).clone()
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

fn run(clocks: &Clocks, mut last: Reading, seen: &Mutex<Seen>, samples: &Mutex<Vec<Sample>>, work: &AtomicU64) {
    loop {
        thread::sleep(INTERVAL);
        let now = clocks.read();
        lock(seen).tick(last, now);
        sample(&mut lock(samples), now, work.load(Ordering::Relaxed));
        last = now;
    }
}

fn sample(samples: &mut Vec<Sample>, now: Reading, work: u64) {
    let time = now.host.unwrap_or(now.own).as_secs_f64();
    let is_due = samples.last().is_none_or(|last| time - last.0 >= SAMPLE.as_secs_f64());
    if is_due && samples.len() < SAMPLES {
        samples.push((time, work));
    }
}

fn lock<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
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
