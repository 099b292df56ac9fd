// SPDX-License-Identifier: GPL-2.0

//! Where the pages of an image are.
//!
//! At first all are in the memory itself: they are pending. Whoever is about to write to one copies it
//! and then says so, with the page locked, or while nobody can write. Who reads the image takes no
//! lock: he looks where the page is, reads there, and looks again.

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
    /// In the memory, which nobody has written to since.
    Memory,
    /// Among the copies.
    Copy,
    /// Nowhere: the reader has it.
    Done,
}

/// The places of all pages. `W` is what holds a plane.
pub(crate) struct Image<W> {
    pending: W,
    done: W,
}

impl<A: AtomicBits, W: Deref<Target = [A]>> Image<W> {
    /// An image all of whose pages are pending: `pending` has a bit set for each, and `done` none.
    pub(crate) fn new(pending: W, done: W) -> Self {
        Self { pending, done }
    }

    fn word(plane: &W, page: u64) -> Option<(&A, u64)> {
        let at = usize::try_from(page / WORD).ok()?;
        Some((plane.get(at)?, 1 << (page % WORD)))
    }

    /// Where a page is. One that the memory does not have is done.
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

    /// Whether the page is in the memory, to be asked by who has it locked.
    pub(crate) fn is_pending(&self, page: u64) -> bool {
        Self::word(&self.pending, page).is_some_and(|(word, bit)| word.load() & bit != 0)
    }

    /// The page has been copied, or is zeros of which there is no copy; or somebody has given up. It
    /// may be written to after this.
    pub(crate) fn set_copied(&self, page: u64) {
        if let Some((word, bit)) = Self::word(&self.pending, page) {
            word.clear(bit);
        }
    }

    /// Reads a page: `read` is told where it is, and called again if it has left there meanwhile.
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

    /// What is read before this is not read after it, nor the other way round.
    fn barrier(&self, page: u64) {
        if let Some((word, _)) = Self::word(&self.pending, page) {
            word.set(0);
        }
    }

    /// The reader has these pages. Returns how many he had not before.
    pub(crate) fn set_done(&self, range: PageRange) -> u64 {
        let mut new = 0;
        for (at, mask) in masks(range) {
            if let Some((done, _)) = Self::word(&self.done, at * WORD) {
                new += u64::from((mask & !done.set(mask)).count_ones());
            }
            // After that: who finds a page that is not pending finds it among the copies, or done.
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
