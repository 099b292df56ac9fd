// SPDX-License-Identifier: GPL-2.0-or-later
//! The present map.

use std::os::fd::BorrowedFd;

use crate::error::call;
use crate::{Error, PageIndex, PageRange, PageSet};

/// The pages of a region that were present at one moment; they stay present. All pages of memory that is not a region are present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentMap {
    set: PageSet,
    present: u64,
}

impl PresentMap {
    /// Reads the map of `pages`, which begin at a multiple of 64.
    pub(crate) fn get(fd: BorrowedFd<'_>, pages: PageRange) -> Result<Self, Error> {
        let mut set = PageSet::none_of(pages);
        let present = vmem_sys::calls::get_present(fd, pages.first().get(), pages.count(), set.words_mut())
            .map_err(|errno| Error::from_errno(call::GET_PRESENT, errno))?;
        Ok(Self { set, present })
    }

    /// Number of present pages.
    pub fn present(&self) -> u64 {
        self.present
    }

    /// Whether `page` is present; false for a page outside of the region.
    pub fn contains(&self, page: PageIndex) -> bool {
        self.set.contains(page)
    }

    /// The pages that are present, in order, in the longest runs.
    pub fn runs(&self) -> impl Iterator<Item = PageRange> {
        self.set.runs()
    }

    /// The pages that are absent, in order, in the longest runs.
    pub fn absent(&self) -> impl Iterator<Item = PageRange> {
        self.set.gaps()
    }

    /// Those of `pages` that are absent, in order, in the longest runs.
    pub fn absent_of(&self, pages: PageRange) -> impl Iterator<Item = PageRange> {
        self.set.gaps_of(pages)
    }
}
