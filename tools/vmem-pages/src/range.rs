// SPDX-License-Identifier: GPL-2.0-or-later
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
    /// `count` pages from `first` on. `None` if `count` is zero, or if a page would be beyond the last one there can be.
    pub const fn new(first: PageIndex, count: u64) -> Option<Self> {
        if count == 0 || count > PageIndex::END - first.get() {
            return None;
        }
        Some(Self { first, count })
    }

    /// `count` pages from the page offset `first` on. `None` if `count` is zero, or if a page would be beyond the last one there can be.
    pub const fn from_pgoff(first: u64, count: u64) -> Option<Self> {
        match PageIndex::new(first) {
            Some(first) => Self::new(first, count),
            None => None,
        }
    }

    /// All pages of a memory of `count` pages. `None` if `count` is zero, or more than there can be.
    pub const fn of_pages(count: u64) -> Option<Self> {
        Self::new(PageIndex::FIRST, count)
    }

    /// All pages of a memory of `len` bytes; the last page may be a part. `None` if `len` is zero, or if the last page would be beyond the
    /// last one there can be.
    pub const fn of_len(len: u64) -> Option<Self> {
        Self::new(PageIndex::FIRST, len.div_ceil(PAGE_BYTES))
    }

    /// The first page.
    pub const fn first(self) -> PageIndex {
        self.first
    }

    /// Number of pages, at least one.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// The page offset after the last page.
    pub const fn end(self) -> u64 {
        self.first.get() + self.count
    }

    /// The offsets of the range's bytes.
    pub const fn bytes(self) -> Range<u64> {
        self.first.offset()..self.end() * PAGE_BYTES
    }

    /// Whether `page` is in the range.
    pub const fn contains(self, page: PageIndex) -> bool {
        page.get() >= self.first.get() && page.get() - self.first.get() < self.count
    }

    /// The pages, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = PageIndex> + DoubleEndedIterator {
        PageIter(self.first.get()..self.end())
    }

    /// The first `count` pages, and the pages after them; `None` for a half without pages.
    #[must_use]
    pub fn split_at(self, count: u64) -> (Option<Self>, Option<Self>) {
        let front = count.min(self.count);
        let first = self.first.get();
        (
            Self::from_pgoff(first, front),
            Self::from_pgoff(first + front, self.count - front),
        )
    }

    /// Both ranges as one. `None` unless `next` begins where this range ends.
    #[must_use]
    pub fn join(self, next: Self) -> Option<Self> {
        if self.end() == next.first.get() {
            Self::new(self.first, self.count + next.count)
        } else {
            None
        }
    }

    /// Appends the range to `ranges`, joined with the last of them if it begins where that ends.
    pub fn append_to(self, ranges: &mut Vec<Self>) {
        match ranges.last_mut().and_then(|last| last.join(self).map(|both| (last, both))) {
            Some((last, both)) => *last = both,
            None => ranges.push(self),
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn page(pgoff: u64) -> PageIndex {
        PageIndex::new(pgoff).unwrap()
    }

    #[test]
    fn range_of_no_pages_or_beyond_the_last_page_is_none() {
        assert_eq!(PageRange::new(page(5), 0), None);
        assert_eq!(PageRange::new(page(5), u64::MAX), None);
        assert!(PageRange::new(page(5), PageIndex::END - 5).is_some());
        assert_eq!(PageRange::new(page(5), PageIndex::END - 4), None);
    }

    #[test]
    fn length_in_bytes_is_rounded_up_to_whole_pages() {
        assert_eq!(PageRange::of_len(0), None);
        assert_eq!(PageRange::of_len(1), PageRange::new(page(0), 1));
        assert_eq!(PageRange::of_len(PAGE_BYTES), PageRange::new(page(0), 1));
        assert_eq!(PageRange::of_len(PAGE_BYTES + 1), PageRange::new(page(0), 2));
        assert_eq!(PageRange::of_len(u64::MAX), None);
    }

    #[test]
    fn range_iterates_its_pages_and_gives_their_bytes() {
        let range = PageRange::new(page(2), 3).unwrap();
        assert_eq!(range.bytes(), 2 * PAGE_BYTES..5 * PAGE_BYTES);
        assert_eq!(range.iter().map(PageIndex::get).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(range.iter().len(), 3);
        assert!(!range.contains(page(1)) && range.contains(page(2)) && range.contains(page(4)) && !range.contains(page(5)));
        assert_eq!(range.to_string(), "pages 2 to 4");
        assert_eq!(PageRange::from(page(7)).to_string(), "page 7");
    }

    #[test]
    fn split_at_any_count_keeps_every_page() {
        let whole = PageRange::from_pgoff(10, 5).expect("a range");
        assert_eq!(whole.split_at(0), (None, Some(whole)));
        assert_eq!(
            whole.split_at(2),
            (PageRange::from_pgoff(10, 2), PageRange::from_pgoff(12, 3))
        );
        assert_eq!(whole.split_at(5), (Some(whole), None));
        assert_eq!(whole.split_at(9), (Some(whole), None));
    }

    #[test]
    fn append_joins_a_range_that_begins_where_the_last_ends() {
        let run = |first, count| PageRange::from_pgoff(first, count).unwrap();
        let mut runs = Vec::new();
        [run(0, 2), run(2, 3), run(6, 1), run(7, 1)]
            .into_iter()
            .for_each(|run| run.append_to(&mut runs));
        assert_eq!(runs, [run(0, 5), run(6, 2)]);
    }

    #[test]
    fn join_takes_only_the_range_that_follows() {
        let run = |first, count| PageRange::from_pgoff(first, count).expect("a range");
        assert_eq!(run(0, 2).join(run(2, 3)), PageRange::from_pgoff(0, 5));
        assert_eq!(run(0, 2).join(run(3, 3)), None);
        assert_eq!(run(2, 3).join(run(0, 2)), None);
    }
}
