// SPDX-License-Identifier: GPL-2.0
//! What the stream has still to ask for: a bit for each page.

use vmem::{PageIndex, PageRange};
use vmem_source::page::{end, range};

const BITS: u64 = u64::BITS as u64;

/// A set of pages of one region.
pub(crate) struct Wanted {
    words: Vec<u64>,
}

impl Wanted {
    /// None of `pages` pages.
    pub(crate) fn none_of(pages: u64) -> Self {
        Self {
            // A region has 2^32 pages at most.
            words: vec![0; pages.div_ceil(BITS) as usize],
        }
    }

    pub(crate) fn insert(&mut self, pages: PageRange) {
        self.each_word(pages, |word, mask| *word |= mask);
    }

    pub(crate) fn remove(&mut self, pages: PageRange) {
        self.each_word(pages, |word, mask| *word &= !mask);
    }

    /// Takes those of `other` out of the set.
    pub(crate) fn subtract(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
    }

    /// Takes up to `max_pages` pages in up to `max_runs` runs out of the set: those from `cursor` on, and none before it.
    pub(crate) fn take(&mut self, cursor: u64, max_pages: u64, max_runs: usize) -> Vec<PageRange> {
        let mut runs = Vec::new();
        let mut room = max_pages;
        let mut at = cursor;
        while room > 0 && runs.len() < max_runs {
            let Some(first) = self.find(at, true) else { break };
            let after = self.find(first, false).unwrap_or(self.words.len() as u64 * BITS);
            let Some(run) = range(first, room.min(after - first)) else {
                break;
            };
            self.remove(run);
            room -= run.count();
            at = end(run);
            runs.push(run);
        }
        runs
    }

    /// The first page from `from` on that is in the set, or not.
    fn find(&self, from: u64, wanted: bool) -> Option<u64> {
        let start = (from / BITS) as usize;
        let mut skip = from % BITS;
        for (index, word) in self.words.iter().enumerate().skip(start) {
            let found = (if wanted { *word } else { !word }) >> skip << skip;
            if found != 0 {
                return Some(index as u64 * BITS + u64::from(found.trailing_zeros()));
            }
            skip = 0;
        }
        None
    }

    /// Calls `change` with each word that holds a bit of `pages`, and a mask of those bits.
    fn each_word(&mut self, pages: PageRange, change: impl Fn(&mut u64, u64)) {
        let mut at = pages.first().get();
        let end = end(pages);
        while at < end {
            let bits = (BITS - at % BITS).min(end - at);
            let mask = (u64::MAX >> (BITS - bits)) << (at % BITS);
            if let Some(word) = self.words.get_mut((at / BITS) as usize) {
                change(word, mask);
            }
            at += bits;
        }
    }
}

/// What is still to be asked for of all regions, and where to go on.
pub(crate) struct Plan {
    regions: Vec<Wanted>,
    at: (usize, u64),
}

impl Plan {
    pub(crate) fn new(regions: Vec<Wanted>) -> Self {
        Self { regions, at: (0, 0) }
    }

    /// Somebody wants this page and asks for it elsewhere: the plan does not, and goes on behind it, because what a program touches
    /// next is more often there than anywhere else.
    pub(crate) fn follow(&mut self, region: usize, page: PageIndex) {
        if let Some(wanted) = self.regions.get_mut(region) {
            wanted.remove(page.into());
            self.at = (region, page.get() + 1);
        }
    }

    /// These pages are to be asked for after all.
    pub(crate) fn put_back(&mut self, region: usize, pages: &[PageRange]) {
        if let Some(wanted) = self.regions.get_mut(region) {
            pages.iter().for_each(|range| wanted.insert(*range));
        }
    }

    /// Whether there is anything of this region to ask for.
    pub(crate) fn wants(&self, region: usize) -> bool {
        self.regions.get(region).is_some_and(|wanted| wanted.find(0, true).is_some())
    }

    /// The next question: pages of a region that `may` be asked for, up to `max_pages` in up to `max_runs` runs. `None` when nothing is left
    /// to ask for.
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
                self.at = (region, end(*last));
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

    fn wanted(pages: u64, runs: &[(u64, u64)]) -> Wanted {
        let mut wanted = Wanted::none_of(pages);
        runs.iter()
            .for_each(|(first, count)| wanted.insert(range(*first, *count).unwrap()));
        wanted
    }

    fn plain(runs: &[PageRange]) -> Vec<(u64, u64)> {
        runs.iter().map(|run| (run.first().get(), run.count())).collect()
    }

    #[test]
    fn runs_over_words_are_taken_whole_once() {
        let mut set = wanted(300, &[(0, 1), (60, 140), (299, 1)]);
        assert_eq!(plain(&set.take(0, 1000, 10)), [(0, 1), (60, 140), (299, 1)]);
        assert_eq!(plain(&set.take(0, 1000, 10)), []);
    }

    #[test]
    fn limits_cut_and_lose_nothing() {
        let mut set = wanted(300, &[(10, 100), (120, 5), (130, 5)]);
        assert_eq!(plain(&set.take(0, 64, 10)), [(10, 64)]);
        assert_eq!(plain(&set.take(0, 64, 2)), [(74, 36), (120, 5)]);
        assert_eq!(plain(&set.take(131, 64, 2)), [(131, 4)]);
        assert_eq!(plain(&set.take(0, 64, 2)), [(130, 1)]);
    }

    #[test]
    fn removed_pages_are_not_asked_for() {
        let mut set = wanted(128, &[(0, 128)]);
        set.remove(range(63, 2).unwrap());
        assert_eq!(plain(&set.take(0, 128, 10)), [(0, 63), (65, 63)]);
    }

    #[test]
    fn plan_goes_round_and_ends() {
        let mut plan = Plan::new(vec![wanted(4, &[(0, 4)]), wanted(4, &[(1, 2)])]);
        plan.follow(0, PageIndex::new(1).unwrap());
        let mut next = || plan.next(10, 10, |_| true).map(|(region, runs)| (region, plain(&runs)));
        assert_eq!(next(), Some((0, vec![(2, 2)])), "what follows the fault comes first");
        assert_eq!(next(), Some((1, vec![(1, 2)])));
        assert_eq!(next(), Some((0, vec![(0, 1)])), "and not the page of the fault itself");
        assert_eq!(next(), None);
    }

    #[test]
    fn plan_passes_over_regions_that_may_not_be_asked_for() {
        let mut plan = Plan::new(vec![wanted(4, &[(0, 4)]), wanted(4, &[(1, 2)])]);
        let first = plan.next(10, 10, |region| region == 1);
        assert_eq!(first.map(|(region, runs)| (region, plain(&runs))), Some((1, vec![(1, 2)])));
        assert_eq!(plan.next(10, 10, |region| region == 1), None);
        assert!(plan.wants(0) && !plan.wants(1));
        plan.put_back(1, &[range(1, 1).unwrap()]);
        assert!(plan.wants(1));
    }
}
