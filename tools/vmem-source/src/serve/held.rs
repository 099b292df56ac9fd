// SPDX-License-Identifier: GPL-2.0
//! What destinations have said they have, before anything may be given back here.
//!
//! Until it is sure that the program runs at the destination, it must be able to run here, whatever a destination says. What it says is
//! kept, not refused: it does not know when this side has heard that it is sure, and says everything only once.

use std::mem::take;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmem::{PageIndex, PageRange};

use crate::bits::set;
use crate::page::join;

/// Pages by export, a bit each; none of an export of which nothing was said. `None` if nothing is held back.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<Option<Vec<Vec<u8>>>>);

impl Held {
    /// From now on, pages of these exports are held.
    pub(super) fn begin(&self, exports: usize) {
        *self.lock() = Some(vec![Vec::new(); exports]);
    }

    /// Keeps these pages of `export`, which has `pages`, for later. False if there is no later: they may be given back now.
    pub(super) fn keep(&self, export: usize, pages: u64, ranges: &[PageRange]) -> bool {
        let mut held = self.lock();
        let Some(map) = held.as_mut().map(|maps| maps.get_mut(export)) else {
            return false;
        };
        let Some(map) = map else { return true };
        // A region has 2^32 pages at most.
        map.resize(pages.div_ceil(8) as usize, 0);
        ranges.iter().for_each(|range| set(map, *range));
        true
    }

    /// Nothing is held any more; returns what was, by export.
    pub(super) fn end(&self) -> Vec<Vec<PageRange>> {
        let maps = take(&mut *self.lock()).unwrap_or_default();
        maps.iter().map(|map| runs(map)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Vec<u8>>>> {
        // The maps are whole whatever a thread died of.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn runs(map: &[u8]) -> Vec<PageRange> {
    let mut runs: Vec<PageRange> = Vec::new();
    for (at, byte) in map.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        let of_byte = (0..8).filter(|bit| byte & (1 << bit) != 0);
        for page in of_byte
            .filter_map(|bit| PageIndex::new(at as u64 * 8 + bit))
            .map(PageRange::from)
        {
            match runs.last_mut().and_then(|last| join(*last, page).map(|both| (last, both))) {
                Some((last, both)) => *last = both,
                None => runs.push(page),
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::range;

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
