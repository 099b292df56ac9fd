// SPDX-License-Identifier: GPL-2.0
//! What destinations have said they have, before anything may be given back here.
//!
//! Until it is sure that the program runs at the destination, it must be able to run here, whatever a destination says. What it says is
//! kept, not refused: it does not know when this side has heard that it is sure, and says everything only once.

use std::mem::take;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmem::{PageRange, PageSet};
use vmem_pages::range;

/// Pages by export; none of an export of which nothing was said. `None` if nothing is held back.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<Option<Vec<Option<PageSet>>>>);

impl Held {
    /// From now on, pages of these exports are held.
    pub(super) fn begin(&self, exports: usize) {
        *self.lock() = Some(vec![None; exports]);
    }

    /// Keeps these pages of `export`, which has `pages`, for later. False if there is no later: they may be given back now.
    pub(super) fn keep(&self, export: usize, pages: u64, ranges: &[PageRange]) -> bool {
        let mut held = self.lock();
        let Some(sets) = held.as_mut() else { return false };
        if let (Some(set), Some(pages)) = (sets.get_mut(export), range(0, pages)) {
            let set = set.get_or_insert_with(|| PageSet::none_of(pages));
            ranges.iter().for_each(|range| set.insert(*range));
        }
        true
    }

    /// Nothing is held any more; returns what was, by export.
    pub(super) fn end(&self) -> Vec<Vec<PageRange>> {
        let sets = take(&mut *self.lock()).unwrap_or_default();
        let runs = |set: &PageSet| set.runs().collect();
        sets.iter().map(|set| set.as_ref().map(runs).unwrap_or_default()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Option<PageSet>>>> {
        // The sets are whole whatever a thread died of.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_is_known_at_the_end_and_not_kept_after() {
        let run = |first, count| range(first, count).expect("a range");
        let held = Held::default();
        assert!(!held.keep(0, 100, &[run(0, 1)]), "nothing is held unless it is begun");
        held.begin(3);
        assert!(held.keep(2, 100, &[run(5, 20), run(99, 1)]));
        assert!(held.keep(2, 100, &[run(20, 10), run(0, 1)]));
        assert!(held.keep(0, 9, &[run(8, 1)]));
        let expected = [vec![run(8, 1)], vec![], vec![run(0, 1), run(5, 25), run(99, 1)]];
        assert_eq!(held.end(), expected);
        assert!(!held.keep(2, 100, &[run(0, 1)]));
        assert!(held.end().is_empty());
    }
}
