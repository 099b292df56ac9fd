// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that a recorded program writes to, in simulated time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmem_pages::{PageRange, PageSet};

use crate::memory::{DirtyMemory, Logged};
use crate::trace::Trace;

/// The dirty log of a trace that runs from its beginning, and again when it ends. The pages of an interval are written one after the other,
/// evenly over the interval.
#[derive(Clone)]
pub(crate) struct Replay(Arc<Mutex<State>>);

struct State {
    trace: Arc<Trace>,
    log: PageSet,
    begins_with_all: bool,
    /// The interval, and when it began.
    sample: usize,
    began: Duration,
    /// Pages of the interval that are written.
    written: u64,
    /// The range of the interval that is written next, and its pages that are written.
    range: usize,
    offset: u64,
}

impl Replay {
    /// `begins_with_all`: of a log that begins with all pages.
    pub(crate) fn new(trace: Arc<Trace>, begins_with_all: bool) -> Self {
        let log = match begins_with_all {
            true => PageSet::all_of(trace.pages()),
            false => PageSet::none_of(trace.pages()),
        };
        Self(Arc::new(Mutex::new(State {
            log,
            begins_with_all,
            trace,
            sample: 0,
            began: Duration::ZERO,
            written: 0,
            range: 0,
            offset: 0,
        })))
    }

    /// Writes what is written until then.
    pub(crate) fn advance(&self, now: Duration) {
        self.lock().advance(now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn advance(&mut self, now: Duration) {
        let trace = Arc::clone(&self.trace);
        while let Some(sample) = trace.samples().get(self.sample) {
            let total: u64 = sample.dirty.iter().map(|range| range.count()).sum();
            let passed = now.saturating_sub(self.began).min(sample.elapsed).as_nanos();
            // The interval has a length. The quotient is not more than the pages.
            let due = u128::from(total) * passed / sample.elapsed.as_nanos().max(1);
            while u128::from(self.written) < due {
                let Some(range) = sample.dirty.get(self.range) else { break };
                let most = u64::try_from(due).unwrap_or(u64::MAX) - self.written;
                let count = (range.count() - self.offset).min(most);
                if let Some(pages) = PageRange::from_pgoff(range.first().get() + self.offset, count) {
                    self.log.insert(pages);
                }
                self.written += count;
                self.offset += count;
                if self.offset >= range.count() {
                    self.range += 1;
                    self.offset = 0;
                }
            }
            if now < self.began.saturating_add(sample.elapsed) {
                break;
            }
            self.began += sample.elapsed;
            self.sample = (self.sample + 1) % trace.samples().len();
            (self.written, self.range, self.offset) = (0, 0, 0);
        }
    }

    fn logged(&self, pages: PageRange) -> PageSet {
        let first = (pages.first().get() / 64) as usize;
        let mut dirty = PageSet::none_of(pages);
        let words = self.log.words().iter().skip(first);
        dirty.words_mut().iter_mut().zip(words).for_each(|(word, log)| *word = *log);
        dirty
    }
}

impl DirtyMemory for Replay {
    fn pages(&self) -> PageRange {
        self.lock().log.pages()
    }

    fn begins_with_all(&self) -> bool {
        self.lock().begins_with_all
    }

    fn peek(&self, pages: PageRange) -> Logged {
        Logged {
            dirty: self.lock().logged(pages),
            error: None,
        }
    }

    fn clean(&self, pages: PageRange) -> Logged {
        let mut state = self.lock();
        let dirty = state.logged(pages);
        state.log.remove(pages);
        Logged { dirty, error: None }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_written_evenly_over_their_interval_and_again_after_the_last() {
        let mut trace = Trace::new(200).unwrap();
        let range = |first, count| PageRange::from_pgoff(first, count).unwrap();
        trace.push(Duration::from_secs(1), vec![range(100, 5), range(0, 5)]).unwrap();
        trace.push(Duration::from_secs(1), vec![]).unwrap();
        let replay = Replay::new(Arc::new(trace), false);
        let at = |millis| {
            replay.advance(Duration::from_millis(millis));
            let dirty = replay.clean(range(0, 200)).dirty;
            dirty.runs().map(|run| (run.first().get(), run.count())).collect::<Vec<_>>()
        };
        assert_eq!(at(99), []);
        assert_eq!(at(300), [(100, 3)]);
        assert_eq!(at(700), [(0, 2), (103, 2)]);
        assert_eq!(at(1999), [(2, 3)]);
        assert_eq!(at(2400), [(100, 4)]);
        assert_eq!(at(60_000_000), [(0, 5), (100, 5)]);
    }
}
