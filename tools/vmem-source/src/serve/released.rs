// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of a server's hold on its memory.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    is_released: Mutex<bool>,
    changed: Condvar,
}

/// Waits until a server and the threads of its connections have let go of the memory: closed its files and removed its mappings.
#[derive(Clone, Debug)]
pub struct Released(Arc<State>);

/// Dropped after the memory.
#[derive(Debug, Default)]
pub(super) struct Guard(Arc<State>);

impl Guard {
    pub(super) fn released(&self) -> Released {
        Released(Arc::clone(&self.0))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        *self.0.is_released.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

impl Released {
    /// Waits for `limit` at most. Returns whether nothing holds the memory any more.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        let is_released = self.0.is_released.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.changed.wait_timeout_while(is_released, limit, |released| !*released);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
