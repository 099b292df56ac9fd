// SPDX-License-Identifier: GPL-2.0
//! Pages, runs of pages, and how they relate to bytes. All conversions are here.

use std::fmt;
use std::ops::Range;

use vmem_sys::vmem_range;

/// Size of a page in bytes.
pub const PAGE_SIZE: usize = vmem_sys::PAGE_SIZE;

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

const _: () = assert!(PAGE_SIZE == vmem_mapping::PAGE_SIZE);

/// A page, by its offset in the region in units of [`PAGE_SIZE`] (`pgoff`).
///
/// Its offset in bytes, and that of its end, fit in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(u64);

impl PageIndex {
    /// One more than the greatest page offset there can be.
    const END: u64 = u64::MAX / PAGE_BYTES;

    /// The page at `pgoff`. `None` if its offset in bytes would not fit in 64 bits.
    pub const fn new(pgoff: u64) -> Option<Self> {
        if pgoff < Self::END { Some(Self(pgoff)) } else { None }
    }

    /// The page that holds the byte `offset`.
    pub const fn holding(offset: u64) -> Option<Self> {
        Self::new(offset / PAGE_BYTES)
    }

    /// The page offset.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Where the page begins, in bytes.
    pub const fn offset(self) -> u64 {
        self.0 * PAGE_BYTES
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

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
        if count == 0 || count > PageIndex::END - first.0 {
            return None;
        }
        Some(Self { first, count })
    }

    /// The pages of `len` bytes from byte 0 on; the last one may be a part. `None` for no bytes, or more than pages can name.
    pub const fn of_len(len: u64) -> Option<Self> {
        Self::new(PageIndex(0), len.div_ceil(PAGE_BYTES))
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
        self.first.offset()..(self.first.0 + self.count) * PAGE_BYTES
    }

    /// Whether `page` is one of them.
    pub const fn contains(self, page: PageIndex) -> bool {
        page.0 >= self.first.0 && page.0 - self.first.0 < self.count
    }

    /// The pages, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = PageIndex> + DoubleEndedIterator {
        PageIter(self.first.0..self.first.0 + self.count)
    }

    /// The run of pages that a call has written. `None` if it is none.
    pub(crate) fn from_sys(range: &vmem_range) -> Option<Self> {
        Self::new(PageIndex::new(range.pgoff)?, range.nr_pages)
    }

    pub(crate) const fn to_sys(self) -> vmem_range {
        vmem_range {
            pgoff: self.first.0,
            nr_pages: self.count,
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
            count => write!(f, "pages {} to {}", self.first.0, self.first.0 + count - 1),
        }
    }
}

struct PageIter(Range<u64>);

impl Iterator for PageIter {
    type Item = PageIndex;

    fn next(&mut self) -> Option<PageIndex> {
        self.0.next().map(PageIndex)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = usize::try_from(self.0.end - self.0.start).unwrap_or(usize::MAX);
        (len, Some(len))
    }
}

impl DoubleEndedIterator for PageIter {
    fn next_back(&mut self) -> Option<PageIndex> {
        self.0.next_back().map(PageIndex)
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
    fn a_page_has_an_offset_that_fits() {
        assert_eq!(page(3).offset(), 3 * PAGE_BYTES);
        let last = page(PageIndex::END - 1);
        assert!(last.offset().checked_add(PAGE_BYTES).is_some());
        assert_eq!(PageIndex::new(PageIndex::END), None);
        assert_eq!(PageIndex::new(u64::MAX), None);
    }

    #[test]
    fn a_byte_is_held_by_its_page() {
        assert_eq!(PageIndex::holding(0), Some(page(0)));
        assert_eq!(PageIndex::holding(PAGE_BYTES - 1), Some(page(0)));
        assert_eq!(PageIndex::holding(PAGE_BYTES), Some(page(1)));
        assert_eq!(PageIndex::holding(u64::MAX), None);
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
}
