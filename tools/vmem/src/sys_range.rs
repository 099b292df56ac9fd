// SPDX-License-Identifier: GPL-2.0-or-later
//! Runs of pages as the calls have them.

use vmem_sys::vmem_range;

use crate::{PageIndex, PageRange};

/// The run of pages that a call has written. `None` if it is none.
pub(crate) fn from_sys(range: &vmem_range) -> Option<PageRange> {
    PageRange::new(PageIndex::new(range.pgoff)?, range.nr_pages)
}

/// What a call reads.
pub(crate) fn to_sys(ranges: &[PageRange]) -> Vec<vmem_range> {
    ranges.iter().map(|range| to_sys_range(*range)).collect()
}

/// The same of one range.
pub(crate) fn to_sys_range(range: PageRange) -> vmem_range {
    vmem_range {
        pgoff: range.first().get(),
        nr_pages: range.count(),
    }
}
