// SPDX-License-Identifier: GPL-2.0-or-later
//! Fetches of one connection that are not answered in full.

use std::collections::VecDeque;

use vmem::PageRange;

/// Fetches, the oldest first. They are answered in order.
#[derive(Default)]
pub(super) struct Outstanding {
    fetches: VecDeque<Fetch>,
    pages: u64,
    runs: usize,
}

struct Fetch {
    region: usize,
    /// What has not arrived.
    ranges: VecDeque<PageRange>,
    /// Runs of the whole fetch.
    runs: usize,
}

impl Outstanding {
    /// Number of pages.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Number of runs of the fetches.
    pub(super) fn runs(&self) -> usize {
        self.runs
    }

    /// Adds a fetch.
    pub(super) fn add(&mut self, region: usize, runs: &[PageRange]) {
        self.pages += runs.iter().map(|run| run.count()).sum::<u64>();
        self.runs += runs.len();
        self.fetches.push_back(Fetch {
            region,
            ranges: runs.iter().copied().collect(),
            runs: runs.len(),
        });
    }

    /// The next `pages` have arrived.
    pub(super) fn received(&mut self, mut pages: u64) {
        while let Some(fetch) = self.fetches.front_mut().filter(|_| pages > 0) {
            if let Some(range) = fetch.ranges.pop_front() {
                let (arrived, rest) = range.split_at(pages);
                let count = arrived.map_or(0, |arrived| arrived.count());
                pages -= count;
                self.pages -= count;
                if let Some(rest) = rest {
                    fetch.ranges.push_front(rest);
                }
            }
            if fetch.ranges.is_empty() {
                self.runs -= fetch.runs;
                self.fetches.pop_front();
            }
        }
    }

    /// Takes all pages that have not arrived, with the numbers of their regions.
    pub(super) fn take(&mut self) -> Vec<(usize, PageRange)> {
        let fetches = std::mem::take(self).fetches;
        let pages = fetches
            .into_iter()
            .flat_map(|fetch| fetch.ranges.into_iter().map(move |range| (fetch.region, range)));
        pages.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).expect("a range")
    }

    #[test]
    fn what_has_not_arrived_is_known_to_the_page() {
        let mut outstanding = Outstanding::default();
        outstanding.add(0, &[run(10, 3), run(20, 2)]);
        outstanding.add(1, &[run(5, 4)]);
        assert_eq!((outstanding.pages(), outstanding.runs()), (9, 3));
        outstanding.received(2);
        assert_eq!((outstanding.pages(), outstanding.runs()), (7, 3));
        outstanding.received(4);
        assert_eq!((outstanding.pages(), outstanding.runs()), (3, 1));
        assert_eq!(outstanding.take(), [(1, run(6, 3))]);
        assert_eq!((outstanding.pages(), outstanding.runs()), (0, 0));
        outstanding.add(2, &[run(0, 1), run(3, 1)]);
        outstanding.received(1);
        assert_eq!(outstanding.take(), [(2, run(3, 1))]);
    }
}
