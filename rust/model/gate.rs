// SPDX-License-Identifier: GPL-2.0

//! The gate between writers and the instant of a snapshot.
//!
//! While it is closed nobody begins to write. Whoever is about to make a page writable looks at the
//! gate after its bit is in the log, and whoever closes the gate takes the bits after that: so either
//! the writer finds the gate closed, or its page is among those that are protected. A system call
//! passes the gate before it writes and leaves it after; an instant is where none is inside.
//!
//! It is one word, so that whoever passes it sees at once whether there is an image to be kept.

/// A word that is changed if it has not been changed by another. Each access is ordered after and before
/// all else.
pub(crate) trait CompareExchange {
    /// Its value.
    fn load(&self) -> u64;
    /// Puts `new` in place of `old`; the value that is there, if it is another.
    fn cmpxchg(&self, old: u64, new: u64) -> Result<(), u64>;

    /// Changes it; returns its value before.
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
/// One system call that is inside.
const CALL: u64 = 4;

/// What a writer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateState {
    /// It may write.
    Open,
    /// It may when the image has the old contents.
    CopyFirst,
    /// Not now.
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
    /// An open gate, of a word that is zero.
    pub(crate) fn new(word: W) -> Self {
        Self(word)
    }

    /// For who has put its page into the log, and has it locked.
    pub(crate) fn check(&self) -> GateState {
        state(self.0.load())
    }

    /// A system call goes in, unless the gate is closed.
    pub(crate) fn enter(&self) -> GateState {
        state(self.0.fetch_update(|word| {
            if word & CLOSED != 0 {
                word
            } else {
                word.saturating_add(CALL)
            }
        }))
    }

    /// It has written, and the log has heard of it.
    pub(crate) fn leave(&self) {
        self.0.fetch_update(|word| word.saturating_sub(CALL));
    }

    /// Nobody passes from now on.
    pub(crate) fn close(&self) {
        self.0.fetch_update(|word| word | CLOSED);
    }

    /// Whether it is closed, and no system call is inside.
    pub(crate) fn is_quiet(&self) -> bool {
        let word = self.0.load();
        word & CLOSED != 0 && word < CALL
    }

    /// From now on there is an image to be kept, for all who pass.
    pub(crate) fn set_image(&self) {
        self.0.fetch_update(|word| word | IMAGE);
    }

    /// There is none any more.
    pub(crate) fn clear_image(&self) {
        self.0.fetch_update(|word| word & !IMAGE);
    }

    /// Writers pass again.
    pub(crate) fn open(&self) {
        self.0.fetch_update(|word| word & !CLOSED);
    }
}
