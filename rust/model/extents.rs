// SPDX-License-Identifier: GPL-2.0

//! Which ranges of a region have which backing: a sorted list of ranges that do not overlap.

use super::range::{PageRange, BLOCK_PAGES, PAGE_SIZE};

/// A range with its backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent<T> {
    /// The pages.
    pub(crate) range: PageRange,
    /// Their backing.
    pub(crate) value: T,
}

/// A piece of the list that takes the place of another list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a, T> {
    /// An extent that stays as it is.
    Kept(&'a Extent<T>),
    /// These pages of an extent stay.
    Cut(&'a Extent<T>, PageRange),
    /// The range that is changed.
    Changed,
}

impl<T> Extent<T> {
    /// Its pages from `start` to `end`; [`None`] if that is none.
    fn piece(&self, start: u64, end: u64) -> Option<Piece<'_, T>> {
        let pages = PageRange::within(start, end.checked_sub(start)?, end)?;
        Some(match pages == self.range {
            true => Piece::Kept(self),
            false => Piece::Cut(self, pages),
        })
    }
}

/// The extent that has the page.
pub(crate) fn find<T>(extents: &[Extent<T>], pgoff: u64) -> Option<&Extent<T>> {
    let after = extents.partition_point(|extent| extent.range.end() <= pgoff);
    extents
        .get(after)
        .filter(|extent| extent.range.start() <= pgoff)
}

/// Whether two ranges have pages in common.
pub(crate) fn overlap(one: PageRange, other: PageRange) -> bool {
    one.start() < other.end() && other.start() < one.end()
}

/// Passes the pieces of the list in which `range` is changed to `push`, in their order.
pub(crate) fn change<'a, T, E>(
    extents: &'a [Extent<T>],
    range: PageRange,
    mut push: impl FnMut(Piece<'a, T>) -> Result<(), E>,
) -> Result<(), E> {
    for extent in extents {
        let before = extent.range.end().min(range.start());
        if let Some(piece) = extent.piece(extent.range.start(), before) {
            push(piece)?;
        }
    }
    push(Piece::Changed)?;
    for extent in extents {
        let after = extent.range.start().max(range.end());
        if let Some(piece) = extent.piece(after, extent.range.end()) {
            push(piece)?;
        }
    }
    Ok(())
}

/// The pages that a touch of `pgoff` reads: its aligned group of `around` pages, as far as these lie
/// in `extent`, and in its block. `around` is a power of two.
pub(crate) fn window(extent: PageRange, pgoff: u64, around: u64) -> Option<PageRange> {
    let around = around.clamp(1, BLOCK_PAGES);
    let first = pgoff & !around.wrapping_sub(1);
    let start = first.max(extent.start());
    let end = first.saturating_add(around).min(extent.end());
    (start..end)
        .contains(&pgoff)
        .then(|| PageRange::within(start, end.saturating_sub(start), end))
        .flatten()
}

/// How many bytes of a page have contents, in a region of `length` bytes.
pub(crate) fn contents_of(pgoff: u64, length: u64) -> u64 {
    length
        .saturating_sub(pgoff.saturating_mul(PAGE_SIZE))
        .min(PAGE_SIZE)
}
