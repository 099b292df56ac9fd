// SPDX-License-Identifier: GPL-2.0

//! A read of pages from their backing that may wait for I/O. A worker does it, so that touches wait
//! for the pages as they wait for a daemon.

use super::{
    backing::{
        Backing,
        BackingRead, //
    },
    filled::settle_filled,
    region::Region, //
};
use crate::{
    model::{
        extents::contents_of,
        page_map::Verdict,
        range::{
            PageRange,
            PAGE_SIZE, //
        }, //
    },
    sys::{
        backing_file::Readers,
        memcg::Memcg,
        staging::PageSource,
        task::ModuleRef, //
    }, //
};
use kernel::{
    impl_has_work,
    new_work,
    prelude::*,
    sync::Arc,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// The read of a page that a touch has claimed.
#[pin_data]
pub(super) struct ReadWork {
    region: Arc<Region>,
    pgoff: u64,
    /// The memory cgroup of the program that has touched the page.
    charge: Option<Memcg>,
    #[pin]
    work: Work<Self>,
    /// The region may have no other user any more.
    module_ref: ModuleRef,
}

impl_has_work! {
    impl HasWork<Self> for ReadWork { self.work }
}

impl WorkItem for ReadWork {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        // The region is valid, so there is such a page.
        let _ = this.read();
    }
}

impl ReadWork {
    /// Has a worker read a page, and the absent ones beside it. `charge` is the cgroup to charge
    /// them to, if that is not the running task's.
    pub(super) fn start(region: &Arc<Region>, pgoff: u64, charge: Option<Memcg>) -> Result {
        let charge = charge.or_else(Memcg::of_current);
        let work = KBox::pin_init(
            pin_init!(Self {
                region: region.clone(),
                pgoff,
                charge,
                work <- new_work!("vmem_backing_read"),
                module_ref: ModuleRef::new(),
            }),
            GFP_KERNEL,
        )?;
        Readers::queue().enqueue(work);
        Ok(())
    }

    fn read(&self) -> Result {
        let pages = self.region.pages();
        let Some((read, claimed)) = self.begin()? else {
            return Ok(());
        };
        let contents = read_contents(read.backing(), claimed, self.charge.as_ref());
        let (shard, _) = pages.locate(claimed)?;
        let fill = shard.fill.lock();
        let now = fill.as_deref().and_then(|fill| fill.find(self.pgoff));
        let settled = match now.is_some_and(|(now, _)| Arc::ptr_eq(now, read.backing())) {
            true => self.settle_claimed(claimed, contents.as_deref()),
            false => Ok(()),
        };
        // The file is not the pages' backing any more, or there is no memory: they are touched
        // again.
        pages.release(claimed, false)?;
        settled
    }

    /// Settles the pages that are still claimed: verdicts, discards and fills that came meanwhile
    /// have ended the claims. The shard's `fill` is held.
    fn settle_claimed(&self, claimed: PageRange, contents: Result<&[u8], &Error>) -> Result {
        for run in self.region.pages().claimed_runs(claimed)? {
            for page in run.pieces(1) {
                let at = page.start().saturating_sub(claimed.start());
                self.settle(page, contents.map(|all| page_at(all, at)))?;
            }
        }
        Ok(())
    }

    /// Claims the pages beside the claimed one. [`None`] if nothing is to be read.
    fn begin(&self) -> Result<Option<(BackingRead, PageRange)>> {
        let pages = self.region.pages();
        let page = pages.range(self.pgoff, 1)?;
        let (shard, _) = pages.locate(page)?;
        let fill = shard.fill.lock();
        if !pages.is_claimed(self.pgoff) {
            return Ok(None);
        }
        let Some((backing, window)) = fill.as_deref().and_then(|fill| fill.find(self.pgoff)) else {
            // With the lock held: a call that sets backing takes the request back.
            pages.release(page, true)?;
            return Ok(None);
        };
        let claimed = pages.claim_around(window, self.pgoff)?;
        Ok(Some((backing.begin_read(), claimed)))
    }

    /// Makes a page present with these contents, or decides what becomes of it without. The shard's
    /// `fill` is held.
    fn settle(&self, page: PageRange, contents: Result<&[u8], &Error>) -> Result {
        let region = &self.region;
        let pages = region.pages();
        let needed = contents_of(page.start(), region.length());
        let whole = contents.ok().filter(|bytes| bytes.len() as u64 >= needed);
        let filled = whole.map_or(Err(EIO), |bytes| {
            let from = PageSource::Memory(bytes);
            let charge = self.charge.as_ref();
            region.staging().fill_page(page.start(), from, charge)
        });
        match filled {
            Ok(_) => {
                let settle = || pages.settle(page, Verdict::Present);
                pages.backed.add(settle_filled(region, page, settle)?);
            }
            // Threads that wait for a page beside the touched one touch it again.
            Err(_) if page.start() != self.pgoff => {}
            Err(error) if error == ENOMEM || contents.is_err_and(|error| *error == ENOMEM) => {}
            Err(_) if region.daemon().is_attached() => pages.release(page, true)?,
            Err(_) => {
                pages.settle(page, Verdict::Unreadable)?;
            }
        }
        Ok(())
    }
}

/// The contents of pages, as far as the file goes.
fn read_contents(backing: &Backing, pages: PageRange, charge: Option<&Memcg>) -> Result<KVVec<u8>> {
    let bytes = usize::try_from(pages.bytes().ok_or(EINVAL)?).map_err(|_| EINVAL)?;
    let position = backing.position(pages.start()).ok_or(EINVAL)?;
    let mut contents = KVVec::with_capacity(bytes, GFP_KERNEL)?;
    backing.file().read(position, &mut contents, charge)?;
    Ok(contents)
}

/// What of the contents belongs to the page `at`.
fn page_at(contents: &[u8], at: u64) -> &[u8] {
    let bytes = |pages: u64| usize::try_from(pages.saturating_mul(PAGE_SIZE)).unwrap_or(usize::MAX);
    let end = contents.len().min(bytes(at.saturating_add(1)));
    contents.get(bytes(at)..end).unwrap_or(&[])
}
