// SPDX-License-Identifier: GPL-2.0-or-later
//! Maps of memory: which pages have never been written, so that nobody needs to ask for them.

use vmem::PageRange;

/// The most pages of one [`PageSource::map`](crate::PageSource::map) (1 GiB). It bounds for how long a source looks for holes, and a destination
/// marks them, at a time.
pub const MAX_MAP_PAGES: u64 = 1 << 18;

/// The most holes in one answer.
pub const MAX_HOLES: usize = 1024;

/// What a source knows of holes in some pages. A hole is zero, and stays so for as long as the contents of a page that is read do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holes {
    /// The pages that this is about.
    pub pages: PageRange,
    /// Those of them that are holes, in ascending order. Others can be zero, too.
    pub ranges: Vec<PageRange>,
}

impl Holes {
    /// Nothing is known of these pages.
    #[must_use]
    pub fn none(pages: PageRange) -> Self {
        let ranges = Vec::new();
        Self { pages, ranges }
    }

    /// Number of pages that are holes.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|range| range.count()).sum()
    }
}

/// Holes in an export of a source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportHoles {
    /// Number of the export.
    pub export: usize,
    /// The holes.
    pub holes: Holes,
}
