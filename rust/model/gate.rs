// SPDX-License-Identifier: GPL-2.0

//! The gate between writers and the instant of a snapshot.
//!
//! While the gate is closed, no write begins. A fault that is about to make a page writable sets
//! the page's bit in the log, and then checks the gate. The task that takes the snapshot closes the
//! gate, and then takes the bits. So either the fault finds the gate closed, or its page is among
//! those that are protected. A system call enters the gate before it writes and leaves it
//! afterwards. The instant of the snapshot is a time at which the gate is closed and no system call
//! is inside.
//!
//! The gate is one word, so that a writer learns with one access whether it has to copy pages for
//! an image.

/// A word that is changed by compare-and-exchange. Each access is fully ordered.
pub(crate) trait CompareExchange {
    /// Returns the value.
    fn load(&self) -> u64;
    /// Replaces `old` by `new`. Returns the current value as an error if it is not `old`.
    fn cmpxchg(&self, old: u64, new: u64) -> Result<(), u64>;

    /// Replaces the value by `to` of it. Returns the value before.
    fn fetch_update(&self, to: impl Fn(u64) -> u64) -> u64 {
        let mut old = self.load();
        loop {
            match self.cmpxchg(old, to(old)) {
                Ok(()) => return old,
                Err(now) => old = now,
            }
        }
    }
}

const CLOSED: u64 = 1;
const IMAGE: u64 = 2;
/// One system call inside the gate.
const CALL: u64 = 4;

/// The gate, as a writer finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateState {
    /// The writer may write.
    Open,
    /// The writer may write when the image has the old contents.
    CopyFirst,
    /// The writer has to wait.
    Closed,
}

/// The gate.
pub(crate) struct Gate<W>(W);

fn state(word: u64) -> GateState {
    if word & CLOSED != 0 {
        GateState::Closed
    } else if word & IMAGE != 0 {
        GateState::CopyFirst
    } else {
        GateState::Open
    }
}

impl<W: CompareExchange> Gate<W> {
    /// An open gate. The word is zero.
    pub(crate) fn new(word: W) -> Self {
        Self(word)
    }

    /// For a fault, whose page is in the log and locked.
    pub(crate) fn check(&self) -> GateState {
        state(self.0.load())
    }

    /// For a system call: enters the gate, unless it is closed.
    pub(crate) fn enter(&self) -> GateState {
        state(self.0.fetch_update(|word| {
            if word & CLOSED != 0 {
                word
            } else {
                word.saturating_add(CALL)
            }
        }))
    }

    /// For a system call: leaves the gate. Its pages are in the log.
    pub(crate) fn leave(&self) {
        self.0.fetch_update(|word| word.saturating_sub(CALL));
    }

    /// Closes the gate.
    pub(crate) fn close(&self) {
        self.0.fetch_update(|word| word | CLOSED);
    }

    /// Whether the gate is closed and no system call is inside.
    pub(crate) fn is_quiet(&self) -> bool {
        let word = self.0.load();
        word & CLOSED != 0 && word < CALL
    }

    /// From now on, writers copy pages for an image.
    pub(crate) fn set_image(&self) {
        self.0.fetch_update(|word| word | IMAGE);
    }

    /// Writers no longer copy pages for an image.
    pub(crate) fn clear_image(&self) {
        self.0.fetch_update(|word| word & !IMAGE);
    }

    /// Opens the gate.
    pub(crate) fn open(&self) {
        self.0.fetch_update(|word| word & !CLOSED);
    }
}
