// SPDX-License-Identifier: GPL-2.0

//! Faults whose wait for a page has timed out, and that have not returned the error yet.
//!
//! A fault that has dropped its lock can only return "retry". When it is retried, it finds its
//! time-out here. For a mapping that can write to the region, the page itself becomes unreadable,
//! for all processes.

use kernel::{
    current,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

const SLOTS: usize = 64;

/// A set of pairs of thread and page. A pair is in it between two tries of one fault. If two pairs
/// need the same slot, the later one replaces the earlier one, whose fault then waits once more.
pub(crate) struct TimedOutFaults([Atomic<u64>; SLOTS]);

impl TimedOutFaults {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self([const { Atomic::new(0) }; SLOTS])
    }

    /// Records that the running thread has waited too long for the page.
    pub(crate) fn add(&self, pgoff: u64) {
        let (slot, entry) = self.entry(pgoff);
        slot.store(entry, Relaxed);
    }

    /// Removes the running thread's entry for the page. Returns whether there was one.
    pub(crate) fn take(&self, pgoff: u64) -> bool {
        let (slot, entry) = self.entry(pgoff);
        slot.load(Relaxed) == entry && slot.cmpxchg(entry, 0, Relaxed).is_ok()
    }

    /// Only the thread itself writes and reads its entry, so no ordering is needed. An entry is
    /// never 0: no thread has that id.
    fn entry(&self, pgoff: u64) -> (&Atomic<u64>, u64) {
        let thread = current!().pid() as u32;
        let slot = (u64::from(thread) ^ pgoff) as usize % SLOTS;
        // A page offset has 32 bits (`VMEM_MAX_SIZE`).
        (
            &self.0[slot],
            (u64::from(thread) << 32) | (pgoff & u64::from(u32::MAX)),
        )
    }
}
