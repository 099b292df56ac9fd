// SPDX-License-Identifier: GPL-2.0

//! Bit maps of the pages of a memory.

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

/// A dirty log of pages.
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
    /// Later reads are not moved before it.
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

/// `ENOMEM` if `nr` planes for this number of pages, and a summary, take more than half of the
/// available memory.
pub(super) fn check_memory(pages: u64, nr: u64) -> Result {
    let (words, summary) = words_for(pages);
    let words = words.saturating_mul(nr).saturating_add(summary);
    if words.saturating_mul(8) > available_memory() / 2 {
        return Err(ENOMEM);
    }
    Ok(())
}

/// A plane with no bit set.
pub(super) fn all_clear(pages: u64) -> Result<Plane> {
    let (words, _) = words_for(pages);
    plane(words, 0)
}

/// A plane with the bits of all pages set, and no other.
pub(super) fn all_set(pages: u64) -> Result<Plane> {
    let (words, _) = words_for(pages);
    let plane = plane(words, u64::MAX)?;
    if let (Some(last), rest @ 1..) = (plane.last(), pages % 64) {
        last.store((1 << rest) - 1, Relaxed);
    }
    Ok(plane)
}

/// An empty log.
pub(super) fn log(pages: u64) -> Result<PageLog> {
    let (words, summary) = words_for(pages);
    Ok(DirtyLog::new(plane(words, 0)?, plane(summary, 0)?))
}

/// A plane of `words` words, each of them `word`.
fn plane(words: u64, word: u64) -> Result<Plane> {
    let words = usize::try_from(words).map_err(|_| ENOMEM)?;
    let memory = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
    let mut plane = KVVec::with_capacity(words, memory)?;
    for _ in 0..words {
        plane.push(Atomic::new(word), memory)?;
    }
    Ok(plane)
}
