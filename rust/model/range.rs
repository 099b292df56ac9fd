// SPDX-License-Identifier: GPL-2.0

//! Runs of pages, and the only conversions between pages and bytes.

/// Size of a page in bytes, as a power of two.
pub(crate) const PAGE_SHIFT: u32 = 12;

/// Size of a page in bytes.
pub(crate) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Pages in a block: what one page-table page maps, and the largest folio that shmem makes.
///
/// Folios are naturally aligned, so a folio that touches a block lies within it. A large folio may
/// therefore be mapped as a whole if all pages of its block are present.
pub(crate) const BLOCK_PAGES: u64 = 512;

/// A run of at least one page. Its end does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRange {
    start: u64,
    end: u64,
}

impl PageRange {
    /// The pages `[pgoff, pgoff + nr)` of a region of `limit` pages. [`None`] if there are no such
    /// pages, or if `nr` is 0.
    pub(crate) fn within(pgoff: u64, nr: u64, limit: u64) -> Option<Self> {
        let end = pgoff.checked_add(nr)?;
        (nr > 0 && end <= limit).then_some(Self { start: pgoff, end })
    }

    /// The first page.
    pub(crate) fn start(self) -> u64 {
        self.start
    }

    /// The page after the last.
    pub(crate) fn end(self) -> u64 {
        self.end
    }

    /// How many pages; at least one.
    pub(crate) fn len(self) -> u64 {
        self.end.wrapping_sub(self.start)
    }

    /// Size in bytes; [`None`] if it does not fit.
    pub(crate) fn bytes(self) -> Option<u64> {
        self.len().checked_mul(PAGE_SIZE)
    }

    /// Position of the first byte; [`None`] if it does not fit.
    pub(crate) fn byte_start(self) -> Option<u64> {
        self.start.checked_mul(PAGE_SIZE)
    }

    /// The same pages, cut at the borders of blocks.
    pub(crate) fn blocks(self) -> impl Iterator<Item = PageRange> {
        self.pieces(BLOCK_PAGES)
    }

    /// The same pages, cut at the multiples of `size`, a power of two.
    pub(crate) fn pieces(self, size: u64) -> impl Iterator<Item = PageRange> {
        let mut at = self.start;
        core::iter::from_fn(move || {
            let start = at;
            if start >= self.end {
                return None;
            }
            let border = (start | (size - 1)).saturating_add(1);
            at = border.min(self.end);
            Some(PageRange { start, end: at })
        })
    }
}

/// One bit for each page of a block.
pub(crate) type BlockBits = [u64; (BLOCK_PAGES / 64) as usize];

impl PageRange {
    /// The runs of pages, in this range within one block, whose bit in `bits` is clear.
    pub(crate) fn runs_without(self, bits: BlockBits) -> impl Iterator<Item = PageRange> {
        let is_set = move |pgoff: u64| {
            let at = pgoff % BLOCK_PAGES;
            bits.get((at / 64) as usize)
                .is_some_and(|word| (word >> (at % 64)) & 1 != 0)
        };
        let mut at = self.start;
        core::iter::from_fn(move || {
            let start = (at..self.end).find(|&pgoff| !is_set(pgoff))?;
            at = (start..self.end)
                .find(|&pgoff| is_set(pgoff))
                .unwrap_or(self.end);
            Some(PageRange { start, end: at })
        })
    }
}

/// Bytes as pages, rounded up; [`None`] if that overflows.
pub(crate) fn pages_for(bytes: u64) -> Option<u64> {
    Some(bytes.checked_add(PAGE_SIZE - 1)? >> PAGE_SHIFT)
}
