// SPDX-License-Identifier: GPL-2.0-or-later
//! Whether all holes of the source are staged.
//!
//! A hole that is written later comes as a page, over any connection. So no other connection asks for pages before the first one has staged the
//! holes, which would overtake the page otherwise.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use vmem_wait::StopEvent;

/// How often a connection that waits looks whether it is stopped.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Set once, by the first connection.
#[derive(Default)]
pub(super) struct Mapped {
    is_complete: Mutex<bool>,
    changed: Condvar,
}

impl Mapped {
    /// All holes are staged, or there is no map.
    pub(super) fn complete(&self) {
        *self.is_complete.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for that. False if it was stopped before: also if the first connection has failed, because staging ends with it.
    pub(super) fn wait(&self, stop: &StopEvent) -> bool {
        let mut is_complete = self.is_complete.lock().unwrap_or_else(PoisonError::into_inner);
        while !*is_complete {
            if stop.is_set() {
                return false;
            }
            is_complete = self
                .changed
                .wait_timeout(is_complete, POLL_INTERVAL)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}
