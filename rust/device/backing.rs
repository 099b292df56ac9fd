// SPDX-License-Identifier: GPL-2.0

//! The backing of pages: the file that a range of a region lies in.

use crate::{
    model::{
        extents::{
            self,
            Extent,
            Piece, //
        },
        range::{
            PageRange,
            PAGE_SIZE, //
        }, //
    },
    sys::{
        backing_file::BackingFile,
        uapi::VMEM_MAX_BACKINGS,
        wait::{
            WaitMode,
            WaitOutcome,
            WaitQueue, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// A file, and where pages lie in it.
#[pin_data]
pub(super) struct Backing {
    file: BackingFile,
    /// The page whose contents are at `offset`.
    first: u64,
    offset: u64,
    around: u64,
    /// How many workers read the file.
    reads: Atomic<u64>,
    /// The threads that wait until none does.
    #[pin]
    idle_waiters: WaitQueue,
}

impl Backing {
    /// Backing by a file with the contents of the page `first` at `offset`. A touch reads up to
    /// `around` pages, a power of two.
    pub(super) fn new(
        file: BackingFile,
        first: u64,
        offset: u64,
        around: u64,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                file,
                first,
                offset,
                around,
                reads: Atomic::new(0),
                idle_waiters <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// The same backing for other pages, with reads of its own.
    fn duplicate(&self) -> Result<Arc<Self>> {
        Self::new(self.file.duplicate(), self.first, self.offset, self.around)
    }

    /// The file.
    pub(super) fn file(&self) -> &BackingFile {
        &self.file
    }

    /// Position of a page in the file.
    pub(super) fn position(&self, pgoff: u64) -> Option<u64> {
        let skip = pgoff.checked_sub(self.first)?.checked_mul(PAGE_SIZE)?;
        self.offset.checked_add(skip)
    }

    /// A worker begins to read. The caller holds the `fill` of a shard that has this backing.
    pub(super) fn begin_read(self: &Arc<Self>) -> BackingRead {
        // Who waits takes that lock before it looks.
        self.reads.add(1u64, Relaxed);
        BackingRead(self.clone())
    }

    /// Waits until no worker reads. `EINTR` if the task is being killed.
    pub(super) fn await_idle(&self) -> Result {
        let is_idle = || self.reads.load(Acquire) == 0;
        match self
            .idle_waiters
            .wait(0, None, WaitMode::Killable, 0, is_idle)
        {
            WaitOutcome::Done | WaitOutcome::Mapped => Ok(()),
            WaitOutcome::Signal | WaitOutcome::Timeout => Err(EINTR),
        }
    }
}

/// A read of a backing that is under way.
pub(super) struct BackingRead(Arc<Backing>);

impl BackingRead {
    /// The backing.
    pub(super) fn backing(&self) -> &Arc<Backing> {
        &self.0
    }
}

impl Drop for BackingRead {
    fn drop(&mut self) {
        if self.0.reads.fetch_add(u64::MAX, Full) == 1 {
            self.0.idle_waiters.wake_all();
        }
    }
}

/// What backs the pages of a region.
pub(crate) struct Extents(KVec<Extent<Arc<Backing>>>);

impl Extents {
    /// The backing of a page, and the pages that a touch of it reads.
    pub(super) fn find(&self, pgoff: u64) -> Option<(&Arc<Backing>, PageRange)> {
        let extent = extents::find(&self.0, pgoff)?;
        let window = extents::window(extent.range, pgoff, extent.value.around)?;
        Some((&extent.value, window))
    }

    /// The same for all of `old`, but for `range`, which gets the backing `new`. [`None`] if
    /// nothing has backing then. `ENOSPC` if there are too many extents.
    pub(super) fn change(
        old: Option<&Self>,
        range: PageRange,
        new: Option<&Arc<Backing>>,
    ) -> Result<Option<Arc<Self>>> {
        let mut changed = KVec::new();
        let mut push = |range, value| -> Result {
            changed.push(Extent { range, value }, GFP_KERNEL)?;
            Ok(())
        };
        let old = old.map_or(&[][..], |old| &old.0);
        extents::change(old, range, |piece| match (piece, new) {
            (Piece::Kept(extent), _) => push(extent.range, extent.value.clone()),
            // Reads of the pages that have gone can be waited for alone.
            (Piece::Cut(extent, pages), _) => push(pages, extent.value.duplicate()?),
            (Piece::Changed, Some(new)) => push(range, new.clone()),
            (Piece::Changed, None) => Ok(()),
        })?;
        if changed.len() > VMEM_MAX_BACKINGS as usize {
            return Err(ENOSPC);
        }
        match changed.is_empty() {
            true => Ok(None),
            false => Ok(Some(Arc::new(Self(changed), GFP_KERNEL)?)),
        }
    }

    /// Waits until no worker reads a page of `range`. `EINTR` if the task is being killed.
    pub(super) fn await_idle(&self, range: PageRange) -> Result {
        self.0
            .iter()
            .filter(|extent| extents::overlap(extent.range, range))
            .try_for_each(|extent| extent.value.await_idle())
    }
}
