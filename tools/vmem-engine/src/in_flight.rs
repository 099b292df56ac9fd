// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages that programs wait for, and that the urgent lane has fetched.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmem::{PageIndex, PageRange};

/// When the fetch of each page began. The window of the urgent lane bounds the number of pages.
#[derive(Default)]
pub(crate) struct InFlight {
    pages: Mutex<BTreeMap<(usize, PageIndex), Instant>>,
}

impl InFlight {
    pub(crate) fn insert(&self, region: usize, pages: &[PageIndex]) {
        let now = Instant::now();
        self.lock().extend(pages.iter().map(|page| ((region, *page), now)));
    }

    /// Removes pages that have been filled, by either lane. Returns the time that each of those in flight took.
    pub(crate) fn complete(&self, region: usize, pages: PageRange) -> Vec<Duration> {
        let mut in_flight = self.lock();
        let completed: Vec<_> = in_flight
            .range((region, pages.first())..)
            .take_while(|((of, page), _)| *of == region && page.get() < pages.end())
            .map(|(key, since)| (*key, since.elapsed()))
            .collect();
        for (key, _) in &completed {
            in_flight.remove(key);
        }
        completed.into_iter().map(|(_, time)| time).collect()
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

    #[test]
    fn complete_returns_only_pages_in_flight_and_once() {
        let page = |pgoff| PageIndex::new(pgoff).unwrap();
        let in_flight = InFlight::default();
        in_flight.insert(0, &[page(3), page(9)]);
        in_flight.insert(1, &[page(3)]);
        assert_eq!(in_flight.complete(0, PageRange::from_pgoff(4, 5).unwrap()).len(), 0);
        assert_eq!(in_flight.complete(0, PageRange::from_pgoff(0, 100).unwrap()).len(), 2);
        assert_eq!(in_flight.complete(0, PageRange::from_pgoff(0, 100).unwrap()).len(), 0, "once");
        assert_eq!(in_flight.pages(), [(1, page(3))]);
    }
}
