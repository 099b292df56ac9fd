// SPDX-License-Identifier: GPL-2.0-or-later
//! The contents of pages, in the daemon's memory before anything is measured.

use vmem::PAGE_SIZE;

use crate::failure::{Failure, Outcome};

/// How many pages differ from each other; the pages of a region repeat them. The largest run that is brought at once.
pub(crate) const POOL: usize = 512;

/// Contents for pages.
pub(crate) struct Contents {
    bytes: Vec<u8>,
    /// Where the first page begins: at a page.
    start: usize,
}

impl Contents {
    /// Makes them.
    pub(crate) fn new() -> Self {
        let mut bytes = vec![0; (POOL + 1) * PAGE_SIZE];
        let start = (bytes.as_ptr() as usize).wrapping_neg() % PAGE_SIZE;
        for (page, contents) in bytes[start..].chunks_exact_mut(PAGE_SIZE).take(POOL).enumerate() {
            for (at, word) in contents.chunks_exact_mut(size_of::<u64>()).enumerate() {
                word.copy_from_slice(&stamp(page as u64).wrapping_add(at as u64).to_ne_bytes());
            }
        }
        Self { bytes, start }
    }

    /// The contents of `pages` pages from `page` on, which must not go beyond a multiple of [`POOL`].
    pub(crate) fn of(&self, page: u64, pages: usize) -> &[u8] {
        let first = (page % POOL as u64) as usize;
        &self.bytes[self.start + first * PAGE_SIZE..][..pages * PAGE_SIZE]
    }
}

/// The first word of a page: never zero, so that a page that nobody brought is told apart.
pub(crate) fn stamp(page: u64) -> u64 {
    (page % POOL as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Whether `word` is the first one of `page`, as it was brought by what is called `by`.
pub(crate) fn verify(by: &str, page: u64, word: u64) -> Outcome {
    if word == stamp(page) {
        return Ok(());
    }
    let stamp = stamp(page);
    Err(Failure::Wrong(format!(
        "{by}: page {page} begins with {word:#x} and not with {stamp:#x}"
    )))
}
