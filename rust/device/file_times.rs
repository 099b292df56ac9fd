// SPDX-License-Identifier: GPL-2.0

//! The times of the file of a region.

use crate::sys::file_system::now_ns;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// Times of a file, in nanoseconds since 1970.
pub(crate) struct FileTimes {
    accessed: Atomic<i64>,
    modified: Atomic<i64>,
    changed: Atomic<i64>,
}

impl FileTimes {
    /// Those of a new file.
    pub(super) fn now() -> Self {
        let now = now_ns();
        Self {
            accessed: Atomic::new(now),
            modified: Atomic::new(now),
            changed: Atomic::new(now),
        }
    }

    /// A system call has changed the contents. A write through a mapping is not seen.
    pub(super) fn modify(&self) {
        let now = now_ns();
        self.modified.store(now, Relaxed);
        self.changed.store(now, Relaxed);
    }

    /// A system call sets times, or has changed the owner or the mode.
    pub(super) fn set(&self, accessed: Option<i64>, modified: Option<i64>) {
        for (time, value) in [(&self.accessed, accessed), (&self.modified, modified)] {
            if let Some(value) = value {
                time.store(value, Relaxed);
            }
        }
        self.changed.store(now_ns(), Relaxed);
    }

    /// When it was accessed, modified and changed.
    pub(super) fn get(&self) -> (i64, i64, i64) {
        (
            self.accessed.load(Relaxed),
            self.modified.load(Relaxed),
            self.changed.load(Relaxed),
        )
    }
}
