// SPDX-License-Identifier: GPL-2.0-or-later
//! One page: its number and its offset in bytes.

use std::fmt;

/// Size of a page in bytes.
pub const PAGE_SIZE: usize = 4096;

pub(crate) const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// A page, by its offset in the region in units of [`PAGE_SIZE`] (`pgoff`).
///
/// Its offset in bytes, and that of its end, fit in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(u64);

impl PageIndex {
    /// One more than the largest page offset.
    pub(crate) const END: u64 = u64::MAX / PAGE_BYTES;

    /// Page 0.
    pub(crate) const FIRST: Self = Self(0);

    /// The page at the page offset `pgoff`. `None` if the offset in bytes of its end would not fit in 64 bits.
    pub const fn new(pgoff: u64) -> Option<Self> {
        if pgoff < Self::END { Some(Self(pgoff)) } else { None }
    }

    /// The page that holds the byte at `offset`. `None` if there is no such page.
    pub const fn holding(offset: u64) -> Option<Self> {
        Self::new(offset / PAGE_BYTES)
    }

    /// The page offset.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The offset of the first byte of the page.
    pub const fn offset(self) -> u64 {
        self.0 * PAGE_BYTES
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
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
    fn page_whose_end_is_beyond_64_bits_is_none() {
        assert_eq!(page(3).offset(), 3 * PAGE_BYTES);
        let last = page(PageIndex::END - 1);
        assert!(last.offset().checked_add(PAGE_BYTES).is_some());
        assert_eq!(PageIndex::new(PageIndex::END), None);
        assert_eq!(PageIndex::new(u64::MAX), None);
    }

    #[test]
    fn byte_offset_is_rounded_down_to_its_page() {
        assert_eq!(PageIndex::holding(0), Some(page(0)));
        assert_eq!(PageIndex::holding(PAGE_BYTES - 1), Some(page(0)));
        assert_eq!(PageIndex::holding(PAGE_BYTES), Some(page(1)));
        assert_eq!(PageIndex::holding(u64::MAX), None);
    }
}
