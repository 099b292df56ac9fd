// SPDX-License-Identifier: GPL-2.0
//! A bit for each page of a run of pages, as the calls write them.

use crate::{PageIndex, PageRange};

const BITS: u64 = u64::BITS as u64;

/// A set of pages, all of them in one run of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageBits {
    pages: PageRange,
    /// A bit a page, the lowest first. Bits after the last page are zero.
    words: Vec<u64>,
}

impl PageBits {
    /// None of `pages`.
    pub(crate) fn empty(pages: PageRange) -> Self {
        let words = vec![0; pages.count().div_ceil(BITS) as usize];
        Self { pages, words }
    }

    /// The pages that can be in the set.
    pub(crate) fn pages(&self) -> PageRange {
        self.pages
    }

    /// The words, for a call to write.
    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// The words, the bit of the first page lowest.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Whether `page` is in the set.
    pub(crate) fn contains(&self, page: PageIndex) -> bool {
        let at = page.get().wrapping_sub(self.pages.first().get());
        self.pages.contains(page) && (self.words[(at / BITS) as usize] >> (at % BITS)) & 1 != 0
    }

    /// The pages that are in the set, or those that are not, in order, in the longest runs.
    pub(crate) fn runs(&self, inside: bool) -> impl Iterator<Item = PageRange> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = self.find(next, inside)?;
            next = self.find(first, !inside).unwrap_or(self.pages.count());
            PageRange::new(PageIndex::new(self.pages.first().get() + first)?, next - first)
        })
    }

    /// The first page at or after `from` that is in the set, or not. Pages are counted from the first of the run.
    fn find(&self, from: u64, inside: bool) -> Option<u64> {
        let mut at = from;
        while at < self.pages.count() {
            let word = self.words[(at / BITS) as usize];
            let wanted = if inside { word } else { !word };
            let ahead = wanted >> (at % BITS);
            if ahead != 0 {
                let found = at + u64::from(ahead.trailing_zeros());
                return (found < self.pages.count()).then_some(found);
            }
            at = (at / BITS + 1) * BITS;
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn page(pgoff: u64) -> PageIndex {
        PageIndex::new(pgoff).unwrap()
    }

    fn bits(first: u64, count: u64, set: &[u64]) -> PageBits {
        let mut bits = PageBits::empty(PageRange::new(page(first), count).unwrap());
        for pgoff in set {
            let at = pgoff - first;
            bits.words_mut()[(at / BITS) as usize] |= 1 << (at % BITS);
        }
        bits
    }

    fn runs(bits: &PageBits, inside: bool) -> Vec<(u64, u64)> {
        bits.runs(inside).map(|range| (range.first().get(), range.count())).collect()
    }

    #[test]
    fn pages_come_in_runs() {
        assert_eq!(runs(&bits(0, 8, &[]), false), [(0, 8)]);
        assert_eq!(runs(&bits(0, 8, &[0]), false), [(1, 7)]);
        assert_eq!(runs(&bits(0, 8, &[7]), false), [(0, 7)]);
        assert_eq!(runs(&bits(0, 8, &[2, 3, 5]), false), [(0, 2), (4, 1), (6, 2)]);
        assert_eq!(runs(&bits(0, 8, &[2, 3, 5]), true), [(2, 2), (5, 1)]);
        assert_eq!(runs(&bits(0, 8, &(0..8).collect::<Vec<_>>()), false), []);
    }

    #[test]
    fn runs_go_on_from_word_to_word() {
        assert_eq!(runs(&bits(0, 200, &[0, 199]), false), [(1, 198)]);
        assert_eq!(runs(&bits(0, 128, &(0..64).collect::<Vec<_>>()), false), [(64, 64)]);
        assert_eq!(runs(&bits(0, 65, &(0..64).collect::<Vec<_>>()), false), [(64, 1)]);
        assert_eq!(runs(&bits(0, 130, &[63, 64, 128]), false), [(0, 63), (65, 63), (129, 1)]);
        assert_eq!(runs(&bits(0, 130, &[63, 64, 128]), true), [(63, 2), (128, 1)]);
    }

    #[test]
    fn a_run_that_begins_elsewhere_names_its_own_pages() {
        let bits = bits(640, 65, &[640, 641, 704]);
        assert_eq!(runs(&bits, true), [(640, 2), (704, 1)]);
        assert!(bits.contains(page(704)) && !bits.contains(page(642)));
        assert!(!bits.contains(page(0)) && !bits.contains(page(639)));
    }

    #[test]
    fn pages_outside_are_not_in_the_set() {
        let bits = bits(0, 65, &[64]);
        assert!(bits.contains(page(64)));
        assert!(!bits.contains(page(65)));
        assert!(!bits.contains(page(1 << 40)));
    }
}
