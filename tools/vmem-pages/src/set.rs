// SPDX-License-Identifier: GPL-2.0-or-later
//! Sets of pages.

use std::ops::Range;

use crate::page::PageIndex;
use crate::range::PageRange;

const BITS: u64 = u64::BITS as u64;

/// Any pages of one range, with a bit for each page of the range: 32 KiB for 1 GiB of memory.
///
/// Pages outside of the range are never in the set: [`insert`](Self::insert) ignores them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    pages: PageRange,
    /// The lowest bit of the first word is the first page's.
    words: Vec<u64>,
}

impl PageSet {
    /// The empty set of `pages`.
    #[must_use]
    pub fn none_of(pages: PageRange) -> Self {
        let words = vec![0; pages.count().div_ceil(BITS) as usize];
        Self { pages, words }
    }

    /// The set of all of `pages`.
    #[must_use]
    pub fn all_of(pages: PageRange) -> Self {
        let mut set = Self::none_of(pages);
        set.insert(pages);
        set
    }

    /// The set of those of `pages` whose bits are set in `bytes`. The lowest bit of the first byte is the first page's. `None` if `bytes` is
    /// not as long as `pages` need, or if a bit after the last page is set.
    #[must_use]
    pub fn from_bytes(pages: PageRange, bytes: &[u8]) -> Option<Self> {
        if bytes.len() as u64 != pages.count().div_ceil(8) {
            return None;
        }
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
        let words: Vec<u64> = bytes.chunks(size_of::<u64>()).map(word).collect();
        let after = pages.count() % BITS;
        let is_clean = after == 0 || words.last().is_none_or(|last| last >> after == 0);
        is_clean.then_some(Self { pages, words })
    }

    /// The set as bytes, which [`PageSet::from_bytes`] reads.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.pages.count().div_ceil(8) as usize);
        bytes
    }

    /// The range whose pages can be in the set.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// The bits; the lowest bit of the first word is the first page's.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The bits, for a system call to write. It should leave the bits after the last page zero; all methods ignore those that it sets.
    #[must_use]
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Whether `page` is in the set.
    #[must_use]
    pub fn contains(&self, page: PageIndex) -> bool {
        let at = page.get().wrapping_sub(self.start());
        self.pages.contains(page) && (self.words[(at / BITS) as usize] >> (at % BITS)) & 1 != 0
    }

    /// Whether no page is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.find(0..self.pages.count(), true).is_none()
    }

    /// Adds these pages.
    pub fn insert(&mut self, pages: PageRange) {
        self.change(pages, |word, mask| *word |= mask);
    }

    /// Removes these pages.
    pub fn remove(&mut self, pages: PageRange) {
        self.change(pages, |word, mask| *word &= !mask);
    }

    /// Removes all pages of `other`.
    pub fn subtract(&mut self, other: &Self) {
        if self.pages == other.pages {
            self.words
                .iter_mut()
                .zip(&other.words)
                .for_each(|(word, other)| *word &= !other);
        } else {
            other.runs().for_each(|run| self.remove(run));
        }
    }

    /// Removes up to `max_pages` pages in up to `max_runs` runs, from the page offset `cursor` on, and returns them in order.
    pub fn take(&mut self, cursor: u64, max_pages: u64, max_runs: usize) -> Vec<PageRange> {
        self.take_between(cursor, self.pages.end(), max_pages, max_runs)
    }

    /// As [`take`](Self::take), but only pages of `within`.
    pub fn take_of(&mut self, within: PageRange, max_pages: u64, max_runs: usize) -> Vec<PageRange> {
        self.take_between(within.first().get(), within.end(), max_pages, max_runs)
    }

    fn take_between(&mut self, cursor: u64, end: u64, max_pages: u64, max_runs: usize) -> Vec<PageRange> {
        let mut taken = Vec::new();
        let (mut room, mut next) = (max_pages, cursor.saturating_sub(self.start()));
        let last = end.saturating_sub(self.start()).min(self.pages.count());
        while room > 0 && taken.len() < max_runs {
            let Some(first) = self.find(next..last, true) else { break };
            next = first.saturating_add(room).min(last);
            next = self.find(first..next, false).unwrap_or(next);
            let Some(run) = PageRange::from_pgoff(self.start() + first, next - first) else {
                break;
            };
            self.remove(run);
            room -= run.count();
            taken.push(run);
        }
        taken
    }

    /// The pages that are in the set, in order, in the longest runs.
    pub fn runs(&self) -> impl Iterator<Item = PageRange> {
        self.all_runs(self.pages, true)
    }

    /// The pages that are not in the set, in order, in the longest runs.
    pub fn gaps(&self) -> impl Iterator<Item = PageRange> {
        self.all_runs(self.pages, false)
    }

    /// The pages of `within` that are in the set, in order, in the longest runs.
    pub fn runs_of(&self, within: PageRange) -> impl Iterator<Item = PageRange> {
        self.all_runs(within, true)
    }

    /// The pages of `within` that can be in the set and are not, in order, in the longest runs.
    pub fn gaps_of(&self, within: PageRange) -> impl Iterator<Item = PageRange> {
        self.all_runs(within, false)
    }

    /// Reads the bits of `within` only: a set can be as large as the memory, and callers often ask about few pages.
    fn all_runs(&self, within: PageRange, inside: bool) -> impl Iterator<Item = PageRange> {
        let mut next = within.first().get().saturating_sub(self.start());
        let last = within.end().saturating_sub(self.start()).min(self.pages.count());
        std::iter::from_fn(move || {
            let first = self.find(next..last, inside)?;
            next = self.find(first..last, !inside).unwrap_or(last);
            PageRange::from_pgoff(self.start() + first, next - first)
        })
    }

    /// The first page of `within` that is in the set, if `inside`, or is not in the set. Pages are counted from the first page of the range.
    fn find(&self, within: Range<u64>, inside: bool) -> Option<u64> {
        let mut at = within.start;
        while at < within.end {
            let word = self.words[(at / BITS) as usize];
            let ahead = if inside { word } else { !word } >> (at % BITS);
            if ahead != 0 {
                let found = at + u64::from(ahead.trailing_zeros());
                return (found < within.end).then_some(found);
            }
            at = (at / BITS + 1) * BITS;
        }
        None
    }

    /// Calls `change` with each word that has a bit of `pages`, and a mask of these bits.
    fn change(&mut self, pages: PageRange, change: impl Fn(&mut u64, u64)) {
        let mut at = pages.first().get().saturating_sub(self.start());
        let last = pages.end().saturating_sub(self.start()).min(self.pages.count());
        while at < last {
            let bits = (BITS - at % BITS).min(last - at);
            let mask = (u64::MAX >> (BITS - bits)) << (at % BITS);
            change(&mut self.words[(at / BITS) as usize], mask);
            at += bits;
        }
    }

    fn start(&self) -> u64 {
        self.pages.first().get()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).unwrap()
    }

    fn page(pgoff: u64) -> PageIndex {
        PageIndex::new(pgoff).unwrap()
    }

    fn set(pages: PageRange, members: &[u64]) -> PageSet {
        let mut set = PageSet::none_of(pages);
        members.iter().for_each(|member| set.insert(page(*member).into()));
        set
    }

    fn pairs(runs: impl IntoIterator<Item = PageRange>) -> Vec<(u64, u64)> {
        runs.into_iter().map(|run| (run.first().get(), run.count())).collect()
    }

    fn members(runs: impl Iterator<Item = PageRange>) -> Vec<u64> {
        runs.flat_map(PageRange::iter).map(PageIndex::get).collect()
    }

    #[test]
    fn runs_and_gaps_are_the_longest_possible() {
        let some = set(run(0, 200), &[0, 63, 64, 65, 199]);
        assert_eq!(pairs(some.runs()), [(0, 1), (63, 3), (199, 1)]);
        assert_eq!(pairs(some.gaps()), [(1, 62), (66, 133)]);
        assert_eq!(pairs(PageSet::none_of(run(0, 8)).gaps()), [(0, 8)]);
        assert_eq!(pairs(PageSet::all_of(run(0, 8)).gaps()), []);
    }

    #[test]
    fn set_that_does_not_begin_at_page_0_gives_its_own_page_offsets() {
        let set = set(run(640, 65), &[640, 641, 704]);
        assert_eq!(pairs(set.runs()), [(640, 2), (704, 1)]);
        assert!(set.contains(page(704)) && !set.contains(page(642)));
        assert!(!set.contains(page(0)) && !set.contains(page(639)));
    }

    #[test]
    fn pages_outside_of_the_range_are_never_in_the_set() {
        let mut set = PageSet::none_of(run(10, 60));
        set.insert(run(0, 1000));
        assert_eq!(pairs(set.runs()), [(10, 60)]);
        set.insert(run(70, 5));
        set.insert(run(0, 10));
        assert!(!set.contains(page(70)) && !set.contains(page(9)) && !set.contains(page(1 << 40)));
        set.words_mut()[0] = u64::MAX;
        assert_eq!(pairs(set.runs()), [(10, 60)], "a call has set bits that stand for nothing");
    }

    #[test]
    fn take_keeps_in_the_set_what_its_limits_cut_off() {
        let mut set = PageSet::none_of(run(0, 300));
        for (first, count) in [(10, 100), (120, 5), (130, 5)] {
            set.insert(run(first, count));
        }
        assert_eq!(pairs(set.take(0, 64, 10)), [(10, 64)]);
        assert_eq!(pairs(set.take(0, 64, 2)), [(74, 36), (120, 5)]);
        assert_eq!(pairs(set.take(131, 64, 2)), [(131, 4)]);
        assert_eq!(pairs(set.take(0, 64, 2)), [(130, 1)]);
        assert!(set.is_empty());
    }

    #[test]
    fn from_bytes_refuses_a_wrong_length_and_bits_after_the_last_page() {
        assert!(PageSet::from_bytes(run(0, 9), &[1, 1]).is_some());
        assert!(PageSet::from_bytes(run(0, 9), &[1]).is_none());
        assert!(PageSet::from_bytes(run(0, 9), &[1, 2]).is_none(), "a page that there is not");
    }

    proptest! {
        #[test]
        fn set_agrees_with_a_naive_model(
            (start, len) in (0_u64..100, 1_u64..200),
            changes in prop::collection::vec((0_u64..300, 1_u64..90, 0_u8..3), 1..20)
        ) {
            let pages = run(start, len);
            let (mut set, mut naive) = (PageSet::none_of(pages), BTreeSet::new());
            for (first, count, what) in changes {
                let (these, all) = (run(first, count), first..first + count);
                let of_these = |naive: &BTreeSet<u64>| naive.iter().copied().filter(|page| all.contains(page)).collect::<Vec<_>>();
                match what {
                    0 => {
                        set.insert(these);
                        naive.extend(all.clone().filter(|pgoff| pages.contains(page(*pgoff))));
                    }
                    1 => {
                        set.remove(these);
                        naive.retain(|page| !all.contains(page));
                    }
                    _ => {
                        let mut other = PageSet::all_of(these);
                        other.remove(page(first).into());
                        set.subtract(&other);
                        naive.retain(|page| *page == first || !all.contains(page));
                    }
                }
                prop_assert_eq!(members(set.runs()), naive.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(members(set.runs_of(these)), of_these(&naive));
                let mut taken_from = set.clone();
                let taken = taken_from.take(first, 7, 3);
                prop_assert!(taken.len() <= 3 && taken.iter().map(|run| run.count()).sum::<u64>() <= 7);
                let mut expected: Vec<u64> = naive.iter().copied().filter(|page| *page >= first).collect();
                expected.truncate(members(taken.iter().copied()).len());
                prop_assert_eq!(members(taken.iter().copied()), expected);
                taken.into_iter().for_each(|run| taken_from.insert(run));
                prop_assert_eq!(&taken_from, &set);
                let absent = all.filter(|pgoff| pages.contains(page(*pgoff)) && !naive.contains(pgoff));
                prop_assert_eq!(members(set.gaps_of(these)), absent.collect::<Vec<_>>());
                prop_assert_eq!(PageSet::from_bytes(pages, &set.to_bytes()), Some(set.clone()));
            }
        }
    }
}
