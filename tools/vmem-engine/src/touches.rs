// SPDX-License-Identifier: GPL-2.0-or-later
//! Which pages programs have asked for, in which order.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmem::{PageIndex, PageRange};

/// Runs that wait to be taken (2 MiB at most): more than the requests of a second.
const MAX_RUNS: usize = 1 << 16;

/// Requests that were taken from regions, until somebody takes them from here. Their memory is bounded.
#[derive(Debug, Default)]
pub struct Touches {
    state: Mutex<Touched>,
}

/// Requests of programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The pages, with the numbers of their regions, in the order of the requests.
    pub runs: Vec<(usize, PageRange)>,
    /// Pages that are left out, because too many requests came since the last call.
    pub missed: u64,
}

impl Touches {
    /// Nothing is touched yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn record(&self, region: usize, pages: &[PageIndex]) {
        let mut state = self.lock();
        for page in pages.iter().copied().map(PageRange::from) {
            let joined = state
                .runs
                .last()
                .and_then(|(of, last)| last.join(page).filter(|_| *of == region));
            if let (Some(joined), Some((_, last))) = (joined, state.runs.last_mut()) {
                *last = joined;
            } else if state.runs.len() < MAX_RUNS {
                state.runs.push((region, page));
            } else {
                state.missed += 1;
            }
        }
    }

    /// The requests since the last call.
    #[must_use]
    pub fn take(&self) -> Touched {
        mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Touched> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn page(pgoff: u64) -> PageIndex {
        PageIndex::new(pgoff).unwrap()
    }

    fn run(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).unwrap()
    }

    #[test]
    fn requests_are_kept_in_their_order_and_taken_once() {
        let touches = Touches::new();
        touches.record(0, &[page(7), page(8), page(3)]);
        touches.record(1, &[page(4)]);
        touches.record(1, &[page(5)]);
        let runs = vec![(0, run(7, 2)), (0, run(3, 1)), (1, run(4, 2))];
        assert_eq!(touches.take(), Touched { runs, missed: 0 });
        assert_eq!(touches.take(), Touched::default());
    }

    #[test]
    fn requests_that_nobody_takes_are_bounded_and_counted() {
        let touches = Touches::new();
        for pgoff in 0..MAX_RUNS as u64 + 5 {
            touches.record(0, &[page(pgoff * 2)]);
        }
        let touched = touches.take();
        assert_eq!((touched.runs.len(), touched.missed), (MAX_RUNS, 5));
    }
}
