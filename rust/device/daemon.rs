// SPDX-License-Identifier: GPL-2.0

//! The state of a region's daemon.

use crate::sys::wait::PollQueue;
use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Release, //
    }, //
};

/// The state of a region's daemon.
#[pin_data]
pub(crate) struct Daemon {
    attached: Atomic<bool>,
    ready: Atomic<bool>,
    /// The threads in WAIT_READY.
    #[pin]
    pub(crate) ready_waiters: PollQueue,
}

impl Daemon {
    /// No daemon is attached.
    pub(super) fn none() -> impl PinInit<Self> {
        pin_init!(Self {
            attached: Atomic::new(false),
            ready: Atomic::new(false),
            ready_waiters <- PollQueue::new(),
        })
    }

    /// Attaches a daemon. `EBUSY` if another daemon is attached.
    pub(super) fn attach(&self) -> Result {
        self.attached
            .cmpxchg(false, true, Full)
            .map_err(|_| EBUSY)?;
        Ok(())
    }

    /// The daemon does not serve any more.
    pub(super) fn clear_ready(&self) {
        self.ready.store(false, Release);
    }

    /// Lets the next daemon attach.
    pub(super) fn detach(&self) {
        self.attached.store(false, Release);
    }

    /// Whether a daemon is attached.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Acquire)
    }

    /// Whether the daemon has called READY.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Acquire)
    }

    /// The daemon serves.
    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Release);
        self.ready_waiters.wake_all();
    }
}
