// SPDX-License-Identifier: GPL-2.0

//! The image of a memory: its contents at the instant of a snapshot.

use super::{
    pages::Counter,
    plane::{
        self,
        PageLog,
        Plane, //
    },
    region::Region, //
};
use crate::{
    model::{
        dirty_log::CHUNK_PAGES,
        image::{
            self,
            Location, //
        },
        range::{
            PageRange,
            PAGE_SIZE, //
        }, //
    },
    sys::{
        copies::{
            Copies,
            PageSink, //
        },
        errno,
        shared::SharedMemory,
        staging::{
            LockedFolio,
            Staging, //
        },
        task::{
            cond_resched_or_killed,
            system_dfl_wq,
            ModuleRef, //
        },
        wait::{
            PollQueue,
            WaitMode,
            WaitOutcome, //
        }, //
    }, //
};
use kernel::{
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// A snapshot: the common state of its images.
#[pin_data]
pub(crate) struct Snapshot {
    /// How many pages the copies of one image may take. [`None`] is no limit.
    max_kept: Option<u64>,
    failed: Atomic<bool>,
    #[pin]
    watchers: PollQueue,
}

impl Snapshot {
    /// A snapshot with a limit in bytes; 0 is no limit.
    pub(super) fn new(limit: u64) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                max_kept: (limit != 0).then_some(limit / PAGE_SIZE),
                failed: Atomic::new(false),
                watchers <- PollQueue::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Marks the snapshot as failed, so that it cannot be read. It is called before the first write
    /// whose page is not copied.
    fn fail(&self) {
        if self.failed.cmpxchg(false, true, Full).is_ok() {
            self.watchers.wake_all();
        }
    }

    /// `ESTALE` if it has failed.
    fn check(&self) -> Result {
        if self.failed.load(Relaxed) {
            return Err(ESTALE);
        }
        Ok(())
    }
}

/// The image of a memory: pages in the memory itself, and copies.
#[pin_data]
pub(crate) struct Image {
    snapshot: Arc<Snapshot>,
    memory: SharedMemory,
    /// The region that the memory belongs to, if any.
    region: Option<Arc<Region>>,
    all: PageRange,
    locations: image::Image<Plane>,
    copies: Copies,
    log: PageLog,
    copied: Counter,
    done: Counter,
    /// Whether the copies are being dropped, or have been.
    dropping_copies: Atomic<bool>,
    #[pin]
    work: Work<Self>,
    /// A worker may hold the last reference to the image.
    module_ref: ModuleRef,
}

impl_has_work! {
    impl HasWork<Self> for Image { self.work }
}

impl WorkItem for Image {
    type Pointer = Arc<Self>;

    /// Drops the copies of a failed snapshot, to free their memory. A writer does not do that
    /// itself.
    fn run(this: Arc<Self>) {
        for chunk in this.all.pieces(CHUNK_PAGES) {
            // If this fails, the copies are freed with the image.
            let _ = this.copies.drop_pages(chunk);
        }
    }
}

impl Image {
    /// An image of a memory. `all` is all of its pages, and writers do not copy them yet. `region`
    /// is the region that the memory belongs to.
    pub(super) fn new(
        snapshot: &Arc<Snapshot>,
        memory: &SharedMemory,
        region: Option<&Arc<Region>>,
        all: PageRange,
    ) -> Result<Arc<Self>> {
        plane::check_memory(all.len(), 3)?;
        let locations = image::Image::new(plane::all_set(all.len())?, plane::all_clear(all.len())?);
        let log = plane::log(all.len())?;
        let copies = Copies::new(all.bytes().ok_or(EFBIG)?)?;
        Arc::pin_init(
            pin_init!(Self {
                snapshot: snapshot.clone(),
                memory: memory.duplicate(),
                region: region.cloned(),
                all,
                locations,
                copies,
                log,
                copied: Counter::new(),
                done: Counter::new(),
                dropping_copies: Atomic::new(false),
                work <- new_work!("vmem_drop_copies"),
                module_ref: ModuleRef::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// The pages that were in the dirty log at the instant, and are not done.
    pub(crate) fn log(&self) -> &PageLog {
        &self.log
    }

    /// All pages.
    pub(crate) fn all(&self) -> PageRange {
        self.all
    }

    /// Pages of the image. `EINVAL` if there are no such pages.
    pub(crate) fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange> {
        PageRange::within(pgoff, nr, self.all.end()).ok_or(EINVAL)
    }

    /// The region that the memory belongs to, if any.
    pub(crate) fn region(&self) -> Option<&Arc<Region>> {
        self.region.as_ref()
    }

    /// The region, if the page is absent there and not copied. The page will arrive with its
    /// contents at the instant.
    pub(crate) fn absent_in(&self, pgoff: u64) -> Option<&Arc<Region>> {
        let region = self.region()?;
        let page = region.pages().range(pgoff, 1).ok()?;
        let is_here =
            self.locations.location(pgoff) != Location::Memory || region.pages().all_present(page);
        (!is_here).then_some(region)
    }

    /// Whether a page has to be copied before it is written to. A fill of an absent page is not a
    /// write.
    fn needs_copy(&self, pgoff: u64) -> bool {
        self.locations.is_pending(pgoff) && self.absent_in(pgoff).is_none()
    }

    /// Copies a page of a folio of the memory, unless that has been done. The page may be written
    /// to after this.
    fn preserve_page(self: &Arc<Self>, pgoff: u64, folio: &LockedFolio) {
        if !self.needs_copy(pgoff) {
            return;
        }
        if self.check().is_err() {
            self.fail();
            return;
        }
        let is_full = self
            .snapshot
            .max_kept
            .is_some_and(|max| self.copies.kept() >= max);
        if is_full || self.copies.add(pgoff, folio).is_err() {
            self.fail();
            return;
        }
        self.copied.count();
        self.locations.set_copied(pgoff);
    }

    /// The same for pages of one folio.
    pub(super) fn preserve_locked(self: &Arc<Self>, pages: PageRange, folio: &LockedFolio) {
        for page in pages.pieces(1) {
            self.preserve_page(page.start(), folio);
        }
    }

    /// The same for any pages. Pages beyond the end of the memory are ignored. `EINTR` if the task
    /// is being killed.
    pub(super) fn preserve(self: &Arc<Self>, pages: PageRange) -> Result {
        let end = pages.end().min(self.all.end());
        for pgoff in pages.start()..end {
            if !self.needs_copy(pgoff) {
                continue;
            }
            cond_resched_or_killed()?;
            if self.check().is_err() {
                self.fail();
                return Ok(());
            }
            match self.memory.lock_folio(pgoff) {
                Ok(Some(folio)) => self.preserve_page(pgoff, &folio),
                // The page is a hole. A writer that fills the hole later finds the page pending, or
                // has nothing to copy.
                Ok(None) => self.locations.set_copied(pgoff),
                Err(_) => self.fail(),
            }
        }
        Ok(())
    }

    /// Makes the snapshot fail: none of its images can be read any more.
    pub(super) fn fail(self: &Arc<Self>) {
        self.snapshot.fail();
        self.wake_readers();
        if self.dropping_copies.cmpxchg(false, true, Relaxed).is_ok() {
            let _ = system_dfl_wq().enqueue(self.clone());
        }
    }

    /// Wakes the threads that wait for a page, to check whether their wait is cancelled.
    fn wake_readers(&self) {
        if let Some(region) = &self.region {
            region.pages().wake_waiters();
        }
    }

    /// `ESTALE` if it has failed.
    pub(crate) fn check(&self) -> Result {
        self.snapshot.check()
    }

    /// The queue that is woken when the snapshot fails.
    pub(crate) fn watchers(&self) -> &PollQueue {
        &self.snapshot.watchers
    }

    /// Touches an absent page and waits until it is present. `EIO` if it is not available.
    fn await_present(&self, pgoff: u64, touch: impl Fn(&Arc<Region>) -> Result<bool>) -> Result {
        while let Some(region) = self.absent_in(pgoff) {
            self.check()?;
            if touch(region)? {
                return Ok(());
            }
            let params = region.wait_params(None, WaitMode::Interruptible);
            let cancelled =
                || self.check().is_err() || self.locations.location(pgoff) != Location::Memory;
            match region.await_page_unless(pgoff, params, cancelled) {
                WaitOutcome::Done | WaitOutcome::Mapped => {}
                WaitOutcome::Timeout => return Err(EIO),
                WaitOutcome::Signal => return Err(ERESTARTSYS),
            }
        }
        Ok(())
    }

    /// Copies a part of a page to a reader. Waits for an absent page, which `touch` touches, and says
    /// whether it is present. `ENODATA` if the page is done, `EIO` if it is not available, `ESTALE` if
    /// the snapshot has failed.
    pub(crate) fn read(
        &self,
        pgoff: u64,
        sink: &mut PageSink<'_, '_>,
        touch: impl Fn(&Arc<Region>) -> Result<bool>,
    ) -> Result {
        self.await_present(pgoff, touch)?;
        self.check()?;
        self.locations.read(pgoff, |location| match location {
            Location::Memory => self.memory.read(pgoff, sink),
            Location::Copy => self.copies.read(pgoff, sink),
            Location::Done => Err(errno::nodata()),
        })?;
        // Check after the read: a writer that does not copy makes the snapshot fail before it
        // writes.
        self.check()
    }

    /// Makes sure that a page is in the copies, for a mapping. `ENODATA` and `ESTALE` as above.
    pub(crate) fn ensure_copy(self: &Arc<Self>, pgoff: u64) -> Result<&Staging> {
        let page = self.range(pgoff, 1)?;
        if self.locations.location(pgoff) == Location::Memory {
            self.preserve(page)?;
        }
        self.check()?;
        match self.locations.location(pgoff) {
            Location::Copy => Ok(self.copies.file()),
            Location::Memory | Location::Done => Err(errno::nodata()),
        }
    }

    /// Whether a page is in the copies. While the copy's folio is locked, it stays there.
    pub(crate) fn has_copy(&self, pgoff: u64) -> bool {
        self.locations.location(pgoff) == Location::Copy && self.check().is_ok()
    }

    /// Whether all of these pages are in the copies.
    pub(crate) fn has_copies(&self, range: PageRange) -> bool {
        let mut pages = range.pieces(1);
        pages.all(|page| self.has_copy(page.start()))
    }

    /// The file of the copies.
    pub(crate) fn copies(&self) -> &Staging {
        self.copies.file()
    }

    /// The reader does not need these pages any more.
    pub(crate) fn set_done(&self, range: PageRange) -> Result {
        self.done.add(self.locations.set_done(range));
        self.wake_readers();
        self.copies.drop_pages(range)
    }

    /// The first page from `pgoff` on that has contents (or, if not `is_data`, that has none). A
    /// page that is done has none.
    pub(crate) fn seek(&self, pgoff: u64, is_data: bool) -> Result<Option<u64>> {
        let mut at = pgoff;
        while at < self.all.end() {
            cond_resched_or_killed()?;
            let next = self.locations.read(at, |location| {
                Ok::<_, Error>(match location {
                    Location::Memory if self.absent_in(at).is_some() => Some(at),
                    Location::Memory => self.memory.next_page(at),
                    Location::Copy => self.copies.next_page(at),
                    Location::Done => None,
                })
            })?;
            // Check after the lookup: a writer that does not copy makes the snapshot fail before it
            // makes a hole.
            self.check()?;
            if (next == Some(at)) == is_data {
                return Ok(Some(at));
            }
            at = at.saturating_add(1);
            if is_data {
                // Up to the next page that is absent, of the memory, or of the copies, there is
                // nothing. A page that comes, or is copied, meanwhile is found in the next place.
                let absent = self
                    .region()
                    .and_then(|region| region.pages().next_absent(at));
                let next = [self.memory.next_page(at), self.copies.next_page(at), absent];
                at = next.into_iter().flatten().min().unwrap_or(u64::MAX);
            }
        }
        self.check()?;
        Ok(None)
    }

    /// How many pages are pending, how many were copied, how many the copies take, and how many are
    /// done.
    pub(crate) fn counts(&self) -> (u64, u64, u64, u64) {
        (
            self.locations.count_pending(),
            self.copied.get(),
            self.copies.kept(),
            self.done.get(),
        )
    }
}
