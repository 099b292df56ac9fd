// SPDX-License-Identifier: GPL-2.0
//! The plan of the stream: which pages to fetch, and in which order.

use vmem::{PageIndex, PageRange, PageSet};

/// The pages of all regions that are still to be fetched, and the position of the next fetch.
pub(crate) struct Plan {
    regions: Vec<PageSet>,
    at: (usize, u64),
}

impl Plan {
    pub(crate) fn new(regions: Vec<PageSet>) -> Self {
        Self { regions, at: (0, 0) }
    }

    /// The urgent lane fetches this page: removes it from the plan, and continues behind it. A program most often touches the pages behind the
    /// latest one next.
    pub(crate) fn follow(&mut self, region: usize, page: PageIndex) {
        if let Some(wanted) = self.regions.get_mut(region) {
            wanted.remove(page.into());
            self.at = (region, page.get() + 1);
        }
    }

    /// Adds pages that must be fetched again.
    pub(crate) fn requeue(&mut self, region: usize, pages: &[PageRange]) {
        if let Some(wanted) = self.regions.get_mut(region) {
            pages.iter().for_each(|range| wanted.insert(*range));
        }
    }

    /// Whether pages of this region are still to be fetched.
    pub(crate) fn wants(&self, region: usize) -> bool {
        self.regions.get(region).is_some_and(|wanted| !wanted.is_empty())
    }

    /// Takes the next pages to fetch: up to `max_pages` in up to `max_runs` runs of one region that `may` be fetched from. `None` if no pages of
    /// such regions are left.
    pub(crate) fn next(
        &mut self,
        max_pages: u64,
        max_runs: usize,
        may: impl Fn(usize) -> bool,
    ) -> Option<(usize, Vec<PageRange>)> {
        let count = self.regions.len();
        // From here to the end of this region, then all others from their beginning, then this one from its beginning.
        for step in 0..=count {
            let region = (self.at.0 + step) % count;
            if !may(region) {
                continue;
            }
            let cursor = if step == 0 { self.at.1 } else { 0 };
            let runs = self.regions[region].take(cursor, max_pages, max_runs);
            if let Some(last) = runs.last() {
                self.at = (region, last.end());
                return Some((region, runs));
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {

    use super::*;

    fn wanted(pages: u64, runs: &[(u64, u64)]) -> PageSet {
        let mut wanted = PageSet::none_of(PageRange::from_pgoff(0, pages).unwrap());
        runs.iter()
            .for_each(|(first, count)| wanted.insert(PageRange::from_pgoff(*first, *count).unwrap()));
        wanted
    }

    fn plain(runs: &[PageRange]) -> Vec<(u64, u64)> {
        runs.iter().map(|run| (run.first().get(), run.count())).collect()
    }

    #[test]
    fn plan_continues_behind_the_fault_then_wraps_and_ends() {
        let mut plan = Plan::new(vec![wanted(4, &[(0, 4)]), wanted(4, &[(1, 2)])]);
        plan.follow(0, PageIndex::new(1).unwrap());
        let mut next = || plan.next(10, 10, |_| true).map(|(region, runs)| (region, plain(&runs)));
        assert_eq!(next(), Some((0, vec![(2, 2)])), "what follows the fault comes first");
        assert_eq!(next(), Some((1, vec![(1, 2)])));
        assert_eq!(next(), Some((0, vec![(0, 1)])), "and not the page of the fault itself");
        assert_eq!(next(), None);
    }

    #[test]
    fn plan_skips_deferred_regions() {
        let mut plan = Plan::new(vec![wanted(4, &[(0, 4)]), wanted(4, &[(1, 2)])]);
        let first = plan.next(10, 10, |region| region == 1);
        assert_eq!(first.map(|(region, runs)| (region, plain(&runs))), Some((1, vec![(1, 2)])));
        assert_eq!(plan.next(10, 10, |region| region == 1), None);
        assert!(plan.wants(0) && !plan.wants(1));
        plan.requeue(1, &[PageRange::from_pgoff(1, 1).unwrap()]);
        assert!(plan.wants(1));
    }
}
