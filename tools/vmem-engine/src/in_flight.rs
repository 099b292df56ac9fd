// SPDX-License-Identifier: GPL-2.0
//! Pages that a program waits for and that have been asked for urgently.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmem::{PageIndex, PageRange};
use vmem_pages::end;

/// Since when pages are waited for. Bounded by who inserts: the urgent lane has a window.
#[derive(Default)]
pub(crate) struct InFlight {
    pages: Mutex<BTreeMap<(usize, PageIndex), Instant>>,
}

impl InFlight {
    pub(crate) fn insert(&self, region: usize, pages: &[PageIndex]) {
        let now = Instant::now();
        self.lock().extend(pages.iter().map(|page| ((region, *page), now)));
    }

    /// Pages have been filled, on whichever lane they came: how long each of those in flight took.
    pub(crate) fn complete(&self, region: usize, pages: PageRange) -> Vec<Duration> {
        let mut in_flight = self.lock();
        let landed: Vec<_> = in_flight
            .range((region, pages.first())..)
            .take_while(|((of, page), _)| *of == region && page.get() < end(pages))
            .map(|(key, since)| (*key, since.elapsed()))
            .collect();
        for (key, _) in &landed {
            in_flight.remove(key);
        }
        landed.into_iter().map(|(_, time)| time).collect()
    }

    /// All pages in flight, in order.
    pub(crate) fn pages(&self) -> Vec<(usize, PageIndex)> {
        self.lock().keys().copied().collect()
    }

    /// The pages of one region in flight, in order.
    pub(crate) fn of(&self, region: usize) -> Vec<PageIndex> {
        let in_flight = self.lock();
        let of_region = in_flight.keys().filter(|(of, _)| *of == region);
        of_region.map(|(_, page)| *page).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(usize, PageIndex), Instant>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use vmem_pages::range;

    #[test]
    fn what_lands_is_what_was_in_flight() {
        let page = |pgoff| PageIndex::new(pgoff).unwrap();
        let in_flight = InFlight::default();
        in_flight.insert(0, &[page(3), page(9)]);
        in_flight.insert(1, &[page(3)]);
        assert_eq!(in_flight.complete(0, range(4, 5).unwrap()).len(), 0);
        assert_eq!(in_flight.complete(0, range(0, 100).unwrap()).len(), 2);
        assert_eq!(in_flight.complete(0, range(0, 100).unwrap()).len(), 0, "once");
        assert_eq!(in_flight.pages(), [(1, page(3))]);
    }
}
