// SPDX-License-Identifier: GPL-2.0

//! Where the pages of an image are.
//!
//! At first, all pages are *pending*: they are in the memory itself. A writer copies a page before
//! it writes to it, and then clears the pending bit. It does so with the page locked, or while no
//! write is possible. A reader of the image takes no lock: it looks up where the page is, reads the
//! page there, and looks it up again.

use super::{
    dirty_log::{
        masks,
        AtomicBits, //
    },
    range::PageRange, //
};
use core::ops::Deref;

const WORD: u64 = u64::BITS as u64;

/// Where a page of the image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// In the memory, unchanged since the instant of the snapshot.
    Memory,
    /// In the copies.
    Copy,
    /// Nowhere: the reader does not need it any more.
    Done,
}

/// The locations of all pages. `W` owns the words of a plane.
pub(crate) struct Image<W> {
    pending: W,
    done: W,
}

impl<A: AtomicBits, W: Deref<Target = [A]>> Image<W> {
    /// An image whose pages are all pending: `pending` has a bit set for each page, and `done` has
    /// none.
    pub(crate) fn new(pending: W, done: W) -> Self {
        Self { pending, done }
    }

    fn word(plane: &W, page: u64) -> Option<(&A, u64)> {
        let at = usize::try_from(page / WORD).ok()?;
        Some((plane.get(at)?, 1 << (page % WORD)))
    }

    /// Where a page is. A page beyond the end of the memory is [`Location::Done`].
    pub(crate) fn location(&self, page: u64) -> Location {
        match (
            Self::word(&self.done, page),
            Self::word(&self.pending, page),
        ) {
            (Some((done, bit)), Some((pending, _))) => {
                if done.load() & bit != 0 {
                    Location::Done
                } else if pending.load() & bit != 0 {
                    Location::Memory
                } else {
                    Location::Copy
                }
            }
            _ => Location::Done,
        }
    }

    /// Whether the page is in the memory. The caller has the page locked.
    pub(crate) fn is_pending(&self, page: u64) -> bool {
        Self::word(&self.pending, page).is_some_and(|(word, bit)| word.load() & bit != 0)
    }

    /// Clears the pending bit of a page. The page has been copied, or it is a hole of which no copy
    /// is needed, or the snapshot has failed. It may be written to after this.
    pub(crate) fn set_copied(&self, page: u64) {
        if let Some((word, bit)) = Self::word(&self.pending, page) {
            word.clear(bit);
        }
    }

    /// Reads a page: calls `read` with the page's location, and again if the location has changed
    /// meanwhile.
    pub(crate) fn read<T, E>(
        &self,
        page: u64,
        mut read: impl FnMut(Location) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut location = self.location(page);
        loop {
            self.barrier(page);
            let value = read(location)?;
            self.barrier(page);
            let now = self.location(page);
            if now == location {
                return Ok(value);
            }
            location = now;
        }
    }

    /// A full barrier between reads before and after it.
    fn barrier(&self, page: u64) {
        if let Some((word, _)) = Self::word(&self.pending, page) {
            word.set(0);
        }
    }

    /// The reader does not need these pages any more. Returns how many of them were not done
    /// before.
    pub(crate) fn set_done(&self, range: PageRange) -> u64 {
        let mut new = 0;
        for (at, mask) in masks(range) {
            if let Some((done, _)) = Self::word(&self.done, at * WORD) {
                new += u64::from((mask & !done.set(mask)).count_ones());
            }
            // In this order, so that a page that is not pending is always found in the copies, or
            // done.
            if let Some((pending, _)) = Self::word(&self.pending, at * WORD) {
                pending.clear(mask);
            }
        }
        new
    }

    /// How many pages are pending.
    pub(crate) fn count_pending(&self) -> u64 {
        let words = self.pending.iter();
        words.map(|word| u64::from(word.load().count_ones())).sum()
    }
}
