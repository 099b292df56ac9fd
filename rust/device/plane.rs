// SPDX-License-Identifier: GPL-2.0

//! Bits for the pages of a memory, and the words that they are in.

use crate::{
    model::{
        dirty_log::{
            words_for,
            AtomicBits,
            DirtyLog, //
        },
        gate::CompareExchange, //
    },
    sys::task::available_memory,
};
use kernel::{
    alloc::flags::{
        GFP_KERNEL_ACCOUNT,
        __GFP_NOWARN, //
    },
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed, //
    }, //
};

/// One bit for each page.
pub(super) type Plane = KVVec<Atomic<u64>>;

/// A log of pages.
pub(super) type PageLog = DirtyLog<Plane>;

impl CompareExchange for Atomic<u64> {
    fn load(&self) -> u64 {
        Atomic::load(self, Relaxed)
    }

    fn cmpxchg(&self, old: u64, new: u64) -> core::result::Result<(), u64> {
        self.cmpxchg(old, new, Full).map(|_| ())
    }
}

impl AtomicBits for Atomic<u64> {
    /// What is read after it is not read before it.
    fn load(&self) -> u64 {
        Atomic::load(self, Acquire)
    }

    fn set(&self, bits: u64) -> u64 {
        self.fetch_update(|word| word | bits)
    }

    fn clear(&self, bits: u64) -> u64 {
        self.fetch_update(|word| word & !bits)
    }
}

/// `ENOMEM` if `nr` planes for so many pages, and what sums them up, take more than half of the memory that
/// can be had.
pub(super) fn check_memory(pages: u64, nr: u64) -> Result {
    let (words, summary) = words_for(pages);
    let words = words.saturating_mul(nr).saturating_add(summary);
    if words.saturating_mul(8) > available_memory() / 2 {
        return Err(ENOMEM);
    }
    Ok(())
}

/// A plane in which no page is.
pub(super) fn all_clear(pages: u64) -> Result<Plane> {
    let (words, _) = words_for(pages);
    plane(words, 0)
}

/// A plane in which all pages are, and nothing else.
pub(super) fn all_set(pages: u64) -> Result<Plane> {
    let (words, _) = words_for(pages);
    let plane = plane(words, u64::MAX)?;
    if let (Some(last), rest @ 1..) = (plane.last(), pages % 64) {
        last.store((1 << rest) - 1, Relaxed);
    }
    Ok(plane)
}

/// A log in which no page is.
pub(super) fn log(pages: u64) -> Result<PageLog> {
    let (words, summary) = words_for(pages);
    Ok(DirtyLog::new(plane(words, 0)?, plane(summary, 0)?))
}

/// So many words, each of them `word`.
fn plane(words: u64, word: u64) -> Result<Plane> {
    let words = usize::try_from(words).map_err(|_| ENOMEM)?;
    let memory = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
    let mut plane = KVVec::with_capacity(words, memory)?;
    for _ in 0..words {
        plane.push(Atomic::new(word), memory)?;
    }
    Ok(plane)
}
