// SPDX-License-Identifier: GPL-2.0
//! Runs of pages.

use std::fmt;
use std::ops::Range;

use crate::page::{PAGE_BYTES, PageIndex};

/// A run of one page or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    first: PageIndex,
    /// Not zero; `first + count` is at most `PageIndex::END`.
    count: u64,
}

impl PageRange {
    /// `count` pages from `first` on. `None` if that is no page, or more than there can be.
    pub const fn new(first: PageIndex, count: u64) -> Option<Self> {
        if count == 0 || count > PageIndex::END - first.get() {
            return None;
        }
        Some(Self { first, count })
    }

    /// The pages of `len` bytes from byte 0 on; the last one may be a part. `None` for no bytes, or more than pages can name.
    pub const fn of_len(len: u64) -> Option<Self> {
        Self::new(PageIndex::FIRST, len.div_ceil(PAGE_BYTES))
    }

    /// The first page.
    pub const fn first(self) -> PageIndex {
        self.first
    }

    /// How many pages there are; never zero.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// The offsets of its bytes.
    pub const fn bytes(self) -> Range<u64> {
        self.first.offset()..(self.first.get() + self.count) * PAGE_BYTES
    }

    /// Whether `page` is one of them.
    pub const fn contains(self, page: PageIndex) -> bool {
        page.get() >= self.first.get() && page.get() - self.first.get() < self.count
    }

    /// The pages, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = PageIndex> + DoubleEndedIterator {
        PageIter(self.first.get()..self.first.get() + self.count)
    }
}

impl From<PageIndex> for PageRange {
    fn from(page: PageIndex) -> Self {
        Self { first: page, count: 1 }
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "{}", self.first),
            count => write!(f, "pages {} to {}", self.first.get(), self.first.get() + count - 1),
        }
    }
}

struct PageIter(Range<u64>);

impl Iterator for PageIter {
    type Item = PageIndex;

    fn next(&mut self) -> Option<PageIndex> {
        self.0.next().and_then(PageIndex::new)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = usize::try_from(self.0.end - self.0.start).unwrap_or(usize::MAX);
        (len, Some(len))
    }
}

impl DoubleEndedIterator for PageIter {
    fn next_back(&mut self) -> Option<PageIndex> {
        self.0.next_back().and_then(PageIndex::new)
    }
}

impl ExactSizeIterator for PageIter {}

/// `count` pages from the page offset `first` on; `None` if that is no page, or more than there can be.
#[must_use]
pub fn range(first: u64, count: u64) -> Option<PageRange> {
    PageRange::new(PageIndex::new(first)?, count)
}

/// The page offset after the last page.
#[must_use]
pub fn end(range: PageRange) -> u64 {
    range.first().get() + range.count()
}

/// The first `count` pages, if that is any, and the rest, if there is any.
#[must_use]
pub fn split(of: PageRange, count: u64) -> (Option<PageRange>, Option<PageRange>) {
    let front = count.min(of.count());
    let first = of.first().get();
    (range(first, front), range(first + front, of.count() - front))
}

/// The two as one run, if `next` begins where `before` ends.
#[must_use]
pub fn join(before: PageRange, next: PageRange) -> Option<PageRange> {
    if end(before) == next.first().get() {
        PageRange::new(before.first(), before.count() + next.count())
    } else {
        None
    }
}

/// Adds a run behind the others; it becomes one with the last of them if it begins where that ends.
pub fn push(runs: &mut Vec<PageRange>, run: PageRange) {
    match runs.last_mut().and_then(|last| join(*last, run).map(|both| (last, both))) {
        Some((last, both)) => *last = both,
        None => runs.push(run),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn page(pgoff: u64) -> PageIndex {
        PageIndex::new(pgoff).unwrap()
    }

    #[test]
    fn ranges_are_not_empty_and_do_not_wrap() {
        assert_eq!(PageRange::new(page(5), 0), None);
        assert_eq!(PageRange::new(page(5), u64::MAX), None);
        assert!(PageRange::new(page(5), PageIndex::END - 5).is_some());
        assert_eq!(PageRange::new(page(5), PageIndex::END - 4), None);
    }

    #[test]
    fn a_length_in_bytes_is_rounded_up_to_pages() {
        assert_eq!(PageRange::of_len(0), None);
        assert_eq!(PageRange::of_len(1), PageRange::new(page(0), 1));
        assert_eq!(PageRange::of_len(PAGE_BYTES), PageRange::new(page(0), 1));
        assert_eq!(PageRange::of_len(PAGE_BYTES + 1), PageRange::new(page(0), 2));
        assert_eq!(PageRange::of_len(u64::MAX), None);
    }

    #[test]
    fn a_range_has_its_pages_and_bytes() {
        let range = PageRange::new(page(2), 3).unwrap();
        assert_eq!(range.bytes(), 2 * PAGE_BYTES..5 * PAGE_BYTES);
        assert_eq!(range.iter().map(PageIndex::get).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(range.iter().len(), 3);
        assert!(!range.contains(page(1)) && range.contains(page(2)) && range.contains(page(4)) && !range.contains(page(5)));
        assert_eq!(range.to_string(), "pages 2 to 4");
        assert_eq!(PageRange::from(page(7)).to_string(), "page 7");
    }

    #[test]
    fn split_keeps_every_page() {
        let whole = range(10, 5).expect("a range");
        assert_eq!(split(whole, 0), (None, Some(whole)));
        assert_eq!(split(whole, 2), (range(10, 2), range(12, 3)));
        assert_eq!(split(whole, 5), (Some(whole), None));
        assert_eq!(split(whole, 9), (Some(whole), None));
    }

    #[test]
    fn a_run_behind_its_neighbour_becomes_one_with_it() {
        let run = |first, count| range(first, count).unwrap();
        let mut runs = Vec::new();
        [run(0, 2), run(2, 3), run(6, 1), run(7, 1)]
            .into_iter()
            .for_each(|run| push(&mut runs, run));
        assert_eq!(runs, [run(0, 5), run(6, 2)]);
    }

    #[test]
    fn only_neighbours_join() {
        let run = |first, count| range(first, count).expect("a range");
        assert_eq!(join(run(0, 2), run(2, 3)), range(0, 5));
        assert_eq!(join(run(0, 2), run(3, 3)), None);
        assert_eq!(join(run(2, 3), run(0, 2)), None);
    }
}
