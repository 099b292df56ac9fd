// SPDX-License-Identifier: GPL-2.0

//! What writers of a tracked memory pass: the gate, and the image whose pages they keep.

use super::image::Image;
use crate::{
    model::{
        gate::{
            Gate,
            GateState, //
        },
        range::PageRange, //
    },
    sys::{
        errno,
        wait::{
            WaitMode,
            WaitOutcome,
            WaitQueue, //
        },
        write_fault::WriteFault, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc,
        Mutex, //
    }, //
};

/// How long a fault waits at the gate, in milliseconds, before it comes again: it holds the lock of its
/// mapping, which others need.
const FAULT_WAITS_MS: u32 = 10;

/// Whose pages are kept.
enum Kept {
    Nothing,
    Image(Arc<Image>),
    /// Tracking ends, so nothing can be any more.
    Over,
}

/// The gate of a memory, and its image.
#[pin_data]
pub(crate) struct Keeper {
    gate: Gate<Atomic<u64>>,
    #[pin]
    waiters: WaitQueue,
    #[pin]
    kept: Mutex<Kept>,
}

impl Keeper {
    /// An open gate, and no image.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            gate: Gate::new(Atomic::new(0)),
            waiters <- WaitQueue::new(),
            kept <- new_mutex!(Kept::Nothing),
        })
    }

    fn image(&self) -> Option<Arc<Image>> {
        match &*self.kept.lock() {
            Kept::Image(image) => Some(image.clone()),
            Kept::Nothing | Kept::Over => None,
        }
    }

    /// Whether the pages of a fault may become writable. They are in the log, and locked.
    pub(super) fn let_fault_pass(&self, fault: &WriteFault<'_>) -> bool {
        match self.gate.check() {
            GateState::Closed => return false,
            GateState::Open => {}
            GateState::CopyFirst => {
                if let Some(image) = self.image() {
                    image.keep_locked(fault.pages(), fault.folio());
                }
            }
        }
        true
    }

    /// Waits at the gate for as long as a fault may.
    pub(super) fn await_open(&self) {
        let _ = self.await_for(FAULT_WAITS_MS);
    }

    fn await_for(&self, ms: u32) -> WaitOutcome {
        self.waiters
            .wait(0, None, WaitMode::KillableLocked, ms, || {
                self.gate.check() != GateState::Closed
            })
    }

    /// A system call is about to write to these pages. `EINTR` if the task is being killed; else
    /// [`Keeper::leave`] is called when it has.
    pub(super) fn enter(&self, pages: Option<PageRange>) -> Result {
        loop {
            match self.gate.enter() {
                GateState::Closed => {
                    if self.await_for(0) == WaitOutcome::Signal {
                        return Err(EINTR);
                    }
                }
                GateState::Open => return Ok(()),
                GateState::CopyFirst => break,
            }
        }
        if let (Some(image), Some(pages)) = (self.image(), pages) {
            image.keep(pages).inspect_err(|_| self.leave())?;
        }
        Ok(())
    }

    /// Who has come in is about to change pages whose contents nobody has: the image is without them.
    pub(super) fn give_up(&self, pages: PageRange) -> Result {
        self.image().map_or(Ok(()), |image| image.done(pages))
    }

    /// It has written, and the log has heard of it.
    pub(super) fn leave(&self) {
        self.gate.leave();
    }

    /// Nobody begins to write until [`Keeper::open`].
    pub(super) fn close(&self) {
        self.gate.close();
    }

    /// Whether it is closed, and no system call is writing.
    pub(super) fn is_quiet(&self) -> bool {
        self.gate.is_quiet()
    }

    /// Writers go on.
    pub(super) fn open(&self) {
        self.gate.open();
        self.waiters.wake_all();
    }

    /// Whether there is an image. `ENODATA` if tracking is over.
    pub(super) fn has_image(&self) -> Result<bool> {
        match *self.kept.lock() {
            Kept::Nothing => Ok(false),
            Kept::Image(_) => Ok(true),
            Kept::Over => Err(errno::nodata()),
        }
    }

    /// From now on writers keep the pages of `image`. `EBUSY` if there is one, `ENODATA` if tracking is
    /// over.
    pub(super) fn keep(&self, image: &Arc<Image>) -> Result {
        let mut kept = self.kept.lock();
        match *kept {
            Kept::Nothing => *kept = Kept::Image(image.clone()),
            Kept::Image(_) => return Err(EBUSY),
            Kept::Over => return Err(errno::nodata()),
        }
        self.gate.set_image();
        Ok(())
    }

    /// They do not keep the pages of `image` any more.
    pub(super) fn let_go(&self, image: &Arc<Image>) {
        let _before = {
            let mut kept = self.kept.lock();
            match &*kept {
                Kept::Image(now) if Arc::ptr_eq(now, image) => {
                    self.gate.clear_image();
                    core::mem::replace(&mut *kept, Kept::Nothing)
                }
                _ => return,
            }
        };
    }

    /// Tracking ends. An image that there is fails.
    pub(super) fn end(&self) {
        let _before = {
            let mut kept = self.kept.lock();
            // First of all: a writer that finds no image keeps nothing.
            if let Kept::Image(image) = &*kept {
                image.fail();
            }
            core::mem::replace(&mut *kept, Kept::Over)
        };
    }
}
