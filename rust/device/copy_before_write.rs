// SPDX-License-Identifier: GPL-2.0

//! Copy before write: writers of a tracked memory pass its gate, and copy pages for its image.

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

/// How long a fault waits at the gate, in milliseconds, before it is raised again. It holds the
/// lock of its mapping, which other threads need.
const FAULT_WAIT_MS: u32 = 10;

/// The image that writers copy pages for.
enum ImageSlot {
    Empty,
    Image(Arc<Image>),
    /// Tracking ends, so there can be no image any more.
    Ended,
}

/// The gate of a memory, and its image.
#[pin_data]
pub(crate) struct CopyBeforeWrite {
    gate: Gate<Atomic<u64>>,
    #[pin]
    waiters: WaitQueue,
    #[pin]
    image_slot: Mutex<ImageSlot>,
}

impl CopyBeforeWrite {
    /// An open gate, and no image.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            gate: Gate::new(Atomic::new(0)),
            waiters <- WaitQueue::new(),
            image_slot <- new_mutex!(ImageSlot::Empty),
        })
    }

    fn image(&self) -> Option<Arc<Image>> {
        match &*self.image_slot.lock() {
            ImageSlot::Image(image) => Some(image.clone()),
            ImageSlot::Empty | ImageSlot::Ended => None,
        }
    }

    /// Whether the pages of a fault may become writable. The pages are in the log, and locked.
    pub(super) fn admit_fault(&self, fault: &WriteFault<'_>) -> bool {
        match self.gate.check() {
            GateState::Closed => return false,
            GateState::Open => {}
            GateState::CopyFirst => {
                if let Some(image) = self.image() {
                    image.preserve_locked(fault.pages(), fault.folio());
                }
            }
        }
        true
    }

    /// Waits at the gate for as long as a fault may wait.
    pub(super) fn await_open(&self) {
        let _ = self.await_for(FAULT_WAIT_MS);
    }

    fn await_for(&self, ms: u32) -> WaitOutcome {
        self.waiters
            .wait(0, None, WaitMode::KillableLocked, ms, || {
                self.gate.check() != GateState::Closed
            })
    }

    /// A system call is about to write to these pages. `EINTR` if the task is being killed; else
    /// the call must end with [`CopyBeforeWrite::leave`].
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
            image.preserve(pages).inspect_err(|_| self.leave())?;
        }
        Ok(())
    }

    /// A system call inside the gate is about to change absent pages, whose contents will not
    /// arrive any more. The image is without them.
    pub(super) fn exclude(&self, pages: PageRange) -> Result {
        self.image().map_or(Ok(()), |image| image.set_done(pages))
    }

    /// The system call has written, and its pages are in the log.
    pub(super) fn leave(&self) {
        self.gate.leave();
    }

    /// Blocks new writes until [`CopyBeforeWrite::open`].
    pub(super) fn close(&self) {
        self.gate.close();
    }

    /// Whether the gate is closed, and no system call is writing.
    pub(super) fn is_quiet(&self) -> bool {
        self.gate.is_quiet()
    }

    /// Lets writers continue.
    pub(super) fn open(&self) {
        self.gate.open();
        self.waiters.wake_all();
    }

    /// Whether there is an image. `ENODATA` if tracking has ended.
    pub(super) fn has_image(&self) -> Result<bool> {
        match *self.image_slot.lock() {
            ImageSlot::Empty => Ok(false),
            ImageSlot::Image(_) => Ok(true),
            ImageSlot::Ended => Err(errno::nodata()),
        }
    }

    /// Makes writers copy pages for `image`. `EBUSY` if there is another image, `ENODATA` if
    /// tracking has ended.
    pub(super) fn set_image(&self, image: &Arc<Image>) -> Result {
        let mut image_slot = self.image_slot.lock();
        match *image_slot {
            ImageSlot::Empty => *image_slot = ImageSlot::Image(image.clone()),
            ImageSlot::Image(_) => return Err(EBUSY),
            ImageSlot::Ended => return Err(errno::nodata()),
        }
        self.gate.set_image();
        Ok(())
    }

    /// Makes writers stop copying pages for `image`.
    pub(super) fn clear_image(&self, image: &Arc<Image>) {
        let _before = {
            let mut image_slot = self.image_slot.lock();
            match &*image_slot {
                ImageSlot::Image(now) if Arc::ptr_eq(now, image) => {
                    self.gate.clear_image();
                    core::mem::replace(&mut *image_slot, ImageSlot::Empty)
                }
                _ => return,
            }
        };
    }

    /// Ends this with tracking. An existing image fails.
    pub(super) fn end(&self) {
        let _before = {
            let mut image_slot = self.image_slot.lock();
            // First of all: a writer that finds no image copies nothing.
            if let ImageSlot::Image(image) = &*image_slot {
                image.fail();
            }
            core::mem::replace(&mut *image_slot, ImageSlot::Ended)
        };
    }
}
