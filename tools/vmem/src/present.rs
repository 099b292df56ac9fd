// SPDX-License-Identifier: GPL-2.0
//! The present map: which pages need no filling.

use std::os::fd::BorrowedFd;

use crate::error::call;
use crate::{Error, PageIndex, PageRange};

const BITS: u64 = u64::BITS as u64;

/// Which pages of a region were present at one moment. Present pages stay so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentMap {
    pages: PageRange,
    /// A bit a page, the lowest first.
    words: Vec<u64>,
    present: u64,
}

impl PresentMap {
    /// Reads the map of all `pages`, which begin at page 0.
    pub(crate) fn get(fd: BorrowedFd<'_>, pages: PageRange) -> Result<Self, Error> {
        let error = |errno| Error::from_errno(call::GET_PRESENT, errno);
        let words = usize::try_from(pages.count().div_ceil(BITS)).map_err(|_| error(vmem_sys::Errno::NOMEM))?;
        let mut words = vec![0; words];
        let present = vmem_sys::calls::get_present(fd, pages.first().get(), pages.count(), &mut words).map_err(error)?;
        Ok(Self { pages, words, present })
    }

    /// How many pages are present.
    pub fn present(&self) -> u64 {
        self.present
    }

    /// Whether `page` is present. A page that the region does not have is not.
    pub fn contains(&self, page: PageIndex) -> bool {
        self.pages.contains(page) && (self.words[(page.get() / BITS) as usize] >> (page.get() % BITS)) & 1 != 0
    }

    /// The pages that are absent, in order, in the longest runs.
    pub fn absent(&self) -> impl Iterator<Item = PageRange> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = self.find(next, false)?;
            next = self.find(first, true).unwrap_or(self.pages.count());
            PageRange::new(PageIndex::new(first)?, next - first)
        })
    }

    /// The first page from `from` on that is present, or absent.
    fn find(&self, from: u64, present: bool) -> Option<u64> {
        let mut at = from;
        while at < self.pages.count() {
            let word = self.words[(at / BITS) as usize];
            let wanted = if present { word } else { !word };
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

    fn map(count: u64, present: &[u64]) -> PresentMap {
        let mut words = vec![0; count.div_ceil(BITS) as usize];
        for pgoff in present {
            words[(pgoff / BITS) as usize] |= 1 << (pgoff % BITS);
        }
        PresentMap {
            pages: PageRange::new(PageIndex::new(0).unwrap(), count).unwrap(),
            words,
            present: present.len() as u64,
        }
    }

    fn absent(map: &PresentMap) -> Vec<(u64, u64)> {
        map.absent().map(|range| (range.first().get(), range.count())).collect()
    }

    #[test]
    fn absent_pages_come_in_runs() {
        assert_eq!(absent(&map(8, &[])), [(0, 8)]);
        assert_eq!(absent(&map(8, &[0])), [(1, 7)]);
        assert_eq!(absent(&map(8, &[7])), [(0, 7)]);
        assert_eq!(absent(&map(8, &[2, 3, 5])), [(0, 2), (4, 1), (6, 2)]);
        assert_eq!(absent(&map(8, &(0..8).collect::<Vec<_>>())), []);
    }

    #[test]
    fn runs_go_on_from_word_to_word() {
        assert_eq!(absent(&map(200, &[0, 199])), [(1, 198)]);
        assert_eq!(absent(&map(128, &(0..64).collect::<Vec<_>>())), [(64, 64)]);
        assert_eq!(absent(&map(65, &(0..64).collect::<Vec<_>>())), [(64, 1)]);
        assert_eq!(absent(&map(130, &[63, 64, 128])), [(0, 63), (65, 63), (129, 1)]);
    }

    #[test]
    fn pages_beyond_the_region_are_not_present() {
        let map = map(65, &[64]);
        assert!(map.contains(PageIndex::new(64).unwrap()));
        assert!(!map.contains(PageIndex::new(65).unwrap()));
        assert!(!map.contains(PageIndex::new(1 << 40).unwrap()));
    }
}
