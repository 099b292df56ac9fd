// SPDX-License-Identifier: GPL-2.0-or-later
//! The plan of the stream: which pages to fetch, and in which order.

use std::collections::VecDeque;

use vmem::{PageIndex, PageRange, PageSet};

/// The pages of all regions that are still to be fetched, and the position of the next fetch.
pub(crate) struct Plan {
    regions: Vec<PageSet>,
    /// The first page of each region that the source may yet say to be a hole: it and later ones are not fetched now.
    known: Vec<u64>,
    at: (usize, u64),
    /// Pages to fetch before all others, in this order, with the numbers of their regions.
    first: VecDeque<(usize, PageRange)>,
}

impl Plan {
    pub(crate) fn new(regions: Vec<PageSet>) -> Self {
        Self {
            known: vec![u64::MAX; regions.len()],
            regions,
            at: (0, 0),
            first: VecDeque::new(),
        }
    }

    /// Those of `pages` that are in the plan come first, in this order.
    pub(crate) fn prefer(&mut self, pages: VecDeque<(usize, PageRange)>) {
        self.first = pages;
    }

    /// The pages of a region that are still to be fetched.
    pub(crate) fn wanted(&self, region: usize) -> Option<&PageSet> {
        self.regions.get(region)
    }

    /// Fetches only pages of a region before this one, from now on.
    pub(crate) fn know_up_to(&mut self, region: usize, end: u64) {
        if let Some(known) = self.known.get_mut(region) {
            *known = end;
        }
    }

    /// Fetches all pages from now on.
    pub(crate) fn know_all(&mut self) {
        self.known.fill(u64::MAX);
    }

    /// These pages are not to be fetched: they are holes.
    pub(crate) fn drop_holes(&mut self, region: usize, holes: &[PageRange]) {
        if let Some(wanted) = self.regions.get_mut(region) {
            holes.iter().for_each(|hole| wanted.remove(*hole));
        }
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

    /// Whether no pages are left to be fetched.
    pub(crate) fn is_empty(&self) -> bool {
        self.regions.iter().all(PageSet::is_empty)
    }

    /// Takes the next pages to fetch: up to `max_pages` in up to `max_runs` runs of one region that `may` be fetched from. `None` if no pages of
    /// such regions are left.
    pub(crate) fn next(
        &mut self,
        max_pages: u64,
        max_runs: usize,
        may: impl Fn(usize) -> bool,
    ) -> Option<(usize, Vec<PageRange>)> {
        if let Some(preferred) = self.next_preferred(max_pages, max_runs, &may) {
            return Some(preferred);
        }
        let count = self.regions.len();
        // From here to the end of this region, then all others from their beginning, then this one from its beginning.
        for step in 0..=count {
            let region = (self.at.0 + step) % count;
            if !may(region) {
                continue;
            }
            let cursor = if step == 0 { self.at.1 } else { 0 };
            let end = self.known[region];
            let Some(known) = PageRange::from_pgoff(cursor, end.min(self.regions[region].pages().end()).saturating_sub(cursor))
            else {
                continue;
            };
            let runs = self.regions[region].take_of(known, max_pages, max_runs);
            if let Some(last) = runs.last() {
                self.at = (region, last.end());
                return Some((region, runs));
            }
        }
        None
    }

    /// Takes the next pages of those that come first: of the region of the first one, as long as there are others of it.
    fn next_preferred(
        &mut self,
        max_pages: u64,
        max_runs: usize,
        may: impl Fn(usize) -> bool,
    ) -> Option<(usize, Vec<PageRange>)> {
        let (mut of, mut taken, mut room) = (None, Vec::new(), max_pages);
        while let Some((region, pages)) = self.first.front().copied() {
            if room == 0 || taken.len() == max_runs || !may(region) || of.is_some_and(|of| of != region) {
                break;
            }
            self.first.pop_front();
            let wanted = self.regions.get_mut(region)?;
            // A page that another lane has fetched is not in the plan any more.
            let runs = wanted.take_of(pages, room, max_runs - taken.len());
            if runs.is_empty() {
                continue;
            }
            of = Some(region);
            let end = runs.last().map_or(pages.end(), |last| last.end());
            room -= runs.iter().map(|run| run.count()).sum::<u64>();
            taken.extend(runs);
            if let (Some(rest), true) = (
                pages.split_at(end - pages.first().get()).1,
                room == 0 || taken.len() == max_runs,
            ) {
                self.first.push_front((region, rest));
            }
        }
        of.map(|region| (region, taken))
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
    fn preferred_pages_come_first_in_their_order() {
        let mut plan = Plan::new(vec![wanted(100, &[(0, 100)]), wanted(4, &[(1, 2)])]);
        let run = |first, count| PageRange::from_pgoff(first, count).unwrap();
        plan.follow(0, PageIndex::new(51).unwrap());
        plan.prefer(
            [
                (0, run(90, 2)),
                (0, run(50, 3)),
                (1, run(0, 4)),
                (0, run(90, 1)),
                (0, run(7, 1)),
            ]
            .into(),
        );
        let mut next =
            |pages, runs, may: &dyn Fn(usize) -> bool| plan.next(pages, runs, may).map(|(region, runs)| (region, plain(&runs)));
        assert_eq!(
            next(3, 9, &|_| true),
            Some((0, vec![(90, 2), (50, 1)])),
            "no more pages than asked for"
        );
        assert_eq!(
            next(9, 1, &|_| true),
            Some((0, vec![(52, 1)])),
            "not what the urgent lane fetches"
        );
        assert_eq!(
            next(9, 9, &|region| region == 0),
            Some((0, vec![(53, 9)])),
            "a deferred region does not stop others"
        );
        assert_eq!(next(9, 9, &|_| true), Some((1, vec![(1, 2)])));
        assert_eq!(next(9, 9, &|_| true), Some((0, vec![(7, 1)])), "nothing is fetched twice");
        assert_eq!(next(200, 9, &|_| true), Some((0, vec![(62, 28), (92, 8),])), "then the rest");
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
