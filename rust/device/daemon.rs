// SPDX-License-Identifier: GPL-2.0

//! Whether a daemon serves a region.

use super::region::Region;
use crate::sys::wait::WaitQueue;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        Arc, //
    }, //
};

/// What is known of a region's daemon.
#[pin_data]
pub(crate) struct Daemon {
    attached: Atomic<bool>,
    ready: Atomic<bool>,
    /// Who is in WAIT_READY.
    #[pin]
    pub(crate) starters: WaitQueue,
}

impl Daemon {
    /// There is none.
    pub(super) fn none() -> impl PinInit<Self> {
        pin_init!(Self {
            attached: Atomic::new(false),
            ready: Atomic::new(false),
            starters <- WaitQueue::new(),
        })
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
        self.starters.wake_all();
    }
}

/// That a daemon is attached. With it, the daemon goes.
pub(crate) struct Attachment(Arc<Region>);

impl Attachment {
    /// Attaches a daemon; `EBUSY` if there is one.
    pub(crate) fn new(region: &Arc<Region>) -> Result<Self> {
        region
            .daemon()
            .attached
            .cmpxchg(false, true, Full)
            .map_err(|_| EBUSY)?;
        Ok(Self(region.clone()))
    }
}

impl Drop for Attachment {
    /// What the daemon had taken and not answered is requested again, before the next one can come.
    fn drop(&mut self) {
        let region = &self.0;
        region.daemon().ready.store(false, Release);
        region.pages().put_all_back();
        region.daemon().attached.store(false, Release);
        region.pages().wake_all();
    }
}
