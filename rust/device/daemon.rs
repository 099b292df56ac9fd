// SPDX-License-Identifier: GPL-2.0

//! Whether a daemon serves a region.

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

/// What is known of a region's daemon.
#[pin_data]
pub(crate) struct Daemon {
    attached: Atomic<bool>,
    ready: Atomic<bool>,
    /// Who is in WAIT_READY.
    #[pin]
    pub(crate) ready_waiters: PollQueue,
}

impl Daemon {
    /// There is none.
    pub(super) fn none() -> impl PinInit<Self> {
        pin_init!(Self {
            attached: Atomic::new(false),
            ready: Atomic::new(false),
            ready_waiters <- PollQueue::new(),
        })
    }

    /// One attaches; `EBUSY` if there is one.
    pub(super) fn attach(&self) -> Result {
        self.attached
            .cmpxchg(false, true, Full)
            .map_err(|_| EBUSY)?;
        Ok(())
    }

    /// It does not serve any more.
    pub(super) fn clear_ready(&self) {
        self.ready.store(false, Release);
    }

    /// The next one may attach.
    pub(super) fn detach(&self) {
        self.attached.store(false, Release);
    }

    /// Whether one is attached.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Acquire)
    }

    /// Whether it has said READY.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Acquire)
    }

    /// It serves.
    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Release);
        self.ready_waiters.wake_all();
    }
}
