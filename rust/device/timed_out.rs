// SPDX-License-Identifier: GPL-2.0

//! Which threads have waited for a page too long, and have not been told.
//!
//! A fault that has given up its lock can only be answered with "again", and so finds out here, when it is
//! there again, that its time is over. For a mapping that can write the page itself says so: it is
//! unreadable then, for everybody.

use kernel::{
    current,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

const SLOTS: usize = 64;

/// A set of threads and pages, each of which is there between two tries of one fault. One that has no room
/// pushes another one out, which then waits once more.
pub(crate) struct TimedOutFaults([Atomic<u64>; SLOTS]);

impl TimedOutFaults {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self([const { Atomic::new(0) }; SLOTS])
    }

    /// The running thread has waited for the page.
    pub(crate) fn add(&self, pgoff: u64) {
        let (slot, entry) = self.entry(pgoff);
        slot.store(entry, Relaxed);
    }

    /// Takes the running thread's entry for the page out, if there is one.
    pub(crate) fn take(&self, pgoff: u64) -> bool {
        let (slot, entry) = self.entry(pgoff);
        slot.load(Relaxed) == entry && slot.cmpxchg(entry, 0, Relaxed).is_ok()
    }

    /// Only the thread itself writes and looks for its entry, so that no order is needed. It is never 0: no
    /// thread has that number.
    fn entry(&self, pgoff: u64) -> (&Atomic<u64>, u64) {
        let thread = current!().pid() as u32;
        let slot = (u64::from(thread) ^ pgoff) as usize % SLOTS;
        // A page's offset has 32 bits (`VMEM_MAX_SIZE`).
        (
            &self.0[slot],
            (u64::from(thread) << 32) | (pgoff & u64::from(u32::MAX)),
        )
    }
}
