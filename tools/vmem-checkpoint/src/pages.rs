// SPDX-License-Identifier: GPL-2.0-or-later
//! Numbers of pages.

use vmem::{PAGE_SIZE, PageSet};

/// The bytes of so many pages.
pub(crate) fn bytes_of(pages: u64) -> u64 {
    pages * PAGE_SIZE as u64
}

/// The number of pages of a set.
pub(crate) fn count(set: &PageSet) -> u64 {
    set.words().iter().map(|word| u64::from(word.count_ones())).sum()
}
