// SPDX-License-Identifier: GPL-2.0

//! What a memory held at the instant of a snapshot.

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
        page_map::Touch,
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

/// A snapshot: what all of its images have in common.
#[pin_data]
pub(crate) struct Snapshot {
    /// How many pages the copies of one image may take; [`None`] without limit.
    max_kept: Option<u64>,
    failed: Atomic<bool>,
    #[pin]
    watchers: PollQueue,
}

impl Snapshot {
    /// With a limit in bytes; 0 is none.
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

    /// Writers do not keep its pages any more, so nobody may read them. Before the first such write.
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

/// What a memory held at that instant: in the memory itself, or as copies.
#[pin_data]
pub(crate) struct Image {
    snapshot: Arc<Snapshot>,
    memory: SharedMemory,
    /// The region whose memory it is, if it is one of ours.
    region: Option<Arc<Region>>,
    all: PageRange,
    locations: image::Image<Plane>,
    copies: Copies,
    log: PageLog,
    copied: Counter,
    done: Counter,
    /// Whether its copies go, or have gone.
    dropping_copies: Atomic<bool>,
    #[pin]
    work: Work<Self>,
    /// A worker may have it last.
    module_ref: ModuleRef,
}

impl_has_work! {
    impl HasWork<Self> for Image { self.work }
}

impl WorkItem for Image {
    type Pointer = Arc<Self>;

    /// The snapshot has failed: its memory is needed elsewhere. Whoever does so is no writer.
    fn run(this: Arc<Self>) {
        for chunk in this.all.pieces(CHUNK_PAGES) {
            // Else they go with the image.
            let _ = this.copies.drop_pages(chunk);
        }
    }
}

impl Image {
    /// An image of these pages of a memory, which are all, and which nobody keeps yet. `region` is the one
    /// whose memory it is.
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

    /// The pages that were in the log at the instant, and are not done.
    pub(crate) fn log(&self) -> &PageLog {
        &self.log
    }

    /// All pages.
    pub(crate) fn all(&self) -> PageRange {
        self.all
    }

    /// Pages of it; `EINVAL` if they are not.
    pub(crate) fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange> {
        PageRange::within(pgoff, nr, self.all.end()).ok_or(EINVAL)
    }

    /// The region whose memory it is, if it is one of ours.
    pub(crate) fn region(&self) -> Option<&Region> {
        self.region.as_deref()
    }

    /// The region that the page has yet to come to. It comes with what it has had at the instant.
    pub(crate) fn absent_in(&self, pgoff: u64) -> Option<&Region> {
        let region = self.region()?;
        let page = region.pages().range(pgoff, 1).ok()?;
        let is_here =
            self.locations.location(pgoff) != Location::Memory || region.pages().all_present(page);
        (!is_here).then_some(region)
    }

    /// Whether a page has to be copied before it is written to. What is put into an absent page is no
    /// write.
    fn needs_copy(&self, pgoff: u64) -> bool {
        self.locations.is_pending(pgoff) && self.absent_in(pgoff).is_none()
    }

    /// Copies a page of a folio of the memory, unless that has been done. It may be written to then.
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

    /// The same for any pages; those that the memory does not have are left out. `EINTR` if the task is
    /// being killed.
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
                // Zeros. Whoever makes a page of it finds it pending, or there is nothing to keep.
                Ok(None) => self.locations.set_copied(pgoff),
                Err(_) => self.fail(),
            }
        }
        Ok(())
    }

    /// It cannot be read any more, nor can the other images of the snapshot.
    pub(super) fn fail(self: &Arc<Self>) {
        self.snapshot.fail();
        self.wake_readers();
        if self.dropping_copies.cmpxchg(false, true, Relaxed).is_ok() {
            let _ = system_dfl_wq().enqueue(self.clone());
        }
    }

    /// Who waits for a page looks whether it is in vain.
    fn wake_readers(&self) {
        if let Some(region) = &self.region {
            region.pages().wake_waiters();
        }
    }

    /// `ESTALE` if it has failed.
    pub(crate) fn check(&self) -> Result {
        self.snapshot.check()
    }

    /// Who is woken when it has failed.
    pub(crate) fn watchers(&self) -> &PollQueue {
        &self.snapshot.watchers
    }

    /// Waits until the page is here, which the daemon is asked for. `EIO` if it cannot be had.
    fn await_present(&self, pgoff: u64) -> Result {
        while let Some(region) = self.absent_in(pgoff) {
            self.check()?;
            match region.pages().touch(pgoff) {
                Touch::Present => return Ok(()),
                Touch::Unreadable => return Err(EIO),
                Touch::NewlyRequested | Touch::AlreadyRequested
                    if region.fails_absent_touches() =>
                {
                    return Err(EIO)
                }
                Touch::NewlyRequested | Touch::AlreadyRequested => {}
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

    /// Hands a part of a page to a reader, who waits for it if it is absent. `ENODATA` if it is done, `EIO`
    /// if it cannot be had, `ESTALE` if the snapshot has failed.
    pub(crate) fn read(&self, pgoff: u64, sink: &mut PageSink<'_, '_>) -> Result {
        self.await_present(pgoff)?;
        self.check()?;
        self.locations.read(pgoff, |location| match location {
            Location::Memory => self.memory.read(pgoff, sink),
            Location::Copy => self.copies.read(pgoff, sink),
            Location::Done => Err(errno::nodata()),
        })?;
        // After the page was read: who gives up says so before somebody writes.
        self.check()
    }

    /// Has a page among the copies, for a mapping. `ENODATA` and `ESTALE` as above.
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

    /// Whether a page is among the copies. With the copy locked it stays there.
    pub(crate) fn has_copy(&self, pgoff: u64) -> bool {
        self.locations.location(pgoff) == Location::Copy && self.check().is_ok()
    }

    /// Whether these pages all are.
    pub(crate) fn has_copies(&self, range: PageRange) -> bool {
        let mut pages = range.pieces(1);
        pages.all(|page| self.has_copy(page.start()))
    }

    /// The copies' file.
    pub(crate) fn copies(&self) -> &Staging {
        self.copies.file()
    }

    /// The reader does not want these pages any more.
    pub(crate) fn set_done(&self, range: PageRange) -> Result {
        self.done.add(self.locations.set_done(range));
        self.wake_readers();
        self.copies.drop_pages(range)
    }

    /// The first page from `pgoff` on that has contents (or, if not `is_data`, that has none). A page that
    /// is done has none.
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
            // After the page was looked for: a writer who keeps nothing says so before it makes a hole.
            self.check()?;
            if (next == Some(at)) == is_data {
                return Ok(Some(at));
            }
            at = at.saturating_add(1);
            if is_data {
                // Between here and there nothing is anywhere, and nothing is yet to come.
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

    /// Pages that are pending, that have been copied, that copies take, and that are done.
    pub(crate) fn counts(&self) -> (u64, u64, u64, u64) {
        (
            self.locations.count_pending(),
            self.copied.get(),
            self.copies.kept(),
            self.done.get(),
        )
    }
}
