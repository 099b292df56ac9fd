// SPDX-License-Identifier: GPL-2.0-or-later
//! Releases that arrive before releases are allowed.
//!
//! Until it is sure that the guest runs at the destination, the guest must be able to run here, whatever a destination sends. The server
//! keeps early releases and does not refuse them: a destination sends each release once, and does not know when the source allows releases.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmem::{PageRange, PageSet};

/// Pages by export; `None` for an export without releases. `None` as a whole if releases are not deferred.
#[derive(Debug, Default)]
pub(super) struct DeferredReleases(Mutex<Option<Vec<Option<PageSet>>>>);

impl DeferredReleases {
    /// Defers the releases of this many exports from now on.
    pub(super) fn start(&self, exports: usize) {
        *self.lock() = Some(vec![None; exports]);
    }

    /// Defers the release of `ranges` of `export`, which has `pages`. False if releases are not deferred: the caller executes it now.
    pub(super) fn defer(&self, export: usize, pages: PageRange, ranges: &[PageRange]) -> bool {
        let mut deferred = self.lock();
        let Some(sets) = deferred.as_mut() else { return false };
        if let Some(set) = sets.get_mut(export) {
            let set = set.get_or_insert_with(|| PageSet::none_of(pages));
            ranges.iter().for_each(|range| set.insert(*range));
        }
        true
    }

    /// Ends deferring. Returns the deferred releases by export.
    pub(super) fn take(&self) -> Vec<Vec<PageRange>> {
        let sets = std::mem::take(&mut *self.lock()).unwrap_or_default();
        let runs = |set: &PageSet| set.runs().collect();
        sets.iter().map(|set| set.as_ref().map(runs).unwrap_or_default()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Option<PageSet>>>> {
        // The sets are consistent even if a thread panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_deferred_from_start_until_take() {
        let run = |first, count| PageRange::from_pgoff(first, count).expect("a range");
        let deferred = DeferredReleases::default();
        assert!(!deferred.defer(0, run(0, 100), &[run(0, 1)]), "not started");
        deferred.start(3);
        assert!(deferred.defer(2, run(0, 100), &[run(5, 20), run(99, 1)]));
        assert!(deferred.defer(2, run(0, 100), &[run(20, 10), run(0, 1)]));
        assert!(deferred.defer(0, run(0, 9), &[run(8, 1)]));
        let expected = [vec![run(8, 1)], vec![], vec![run(0, 1), run(5, 25), run(99, 1)]];
        assert_eq!(deferred.take(), expected);
        assert!(!deferred.defer(2, run(0, 100), &[run(0, 1)]));
        assert!(deferred.take().is_empty());
    }
}
