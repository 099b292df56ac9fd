// SPDX-License-Identifier: GPL-2.0

//! Reads and writes of the file of a region. They wait for pages as touches do.
//!
//! The bytes pass the staging file, and never the page cache of the file's own inode. No lock is
//! held while a call waits for a page, or brings in the memory of its caller.

use super::{
    discard::discard,
    memories,
    named_file::NamedFile,
    touch::{
        request,
        touch_for_call, //
    },
    tracking::Tracking, //
};
use crate::{
    model::range::{
        PageRange,
        BLOCK_PAGES,
        PAGE_SIZE, //
    },
    sys::{
        copies::read_pages,
        errno,
        file_ops::IoWait,
        staging::LockedFolio,
        task::{
            cond_resched_or_killed,
            fault_in_source, //
        },
        wait::{
            WaitMode,
            WaitOutcome, //
        }, //
    }, //
};
use kernel::{
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    sync::Arc, //
};

/// Requests the pages that a call will need, block by block, so that they come together.
struct Ahead {
    /// The first page that was not requested.
    next: u64,
    /// The end of the pages that the call needs.
    end: u64,
}

impl Ahead {
    /// For a call on the bytes before `end`.
    fn new(end: u64) -> Self {
        Self {
            next: 0,
            end: end.div_ceil(PAGE_SIZE),
        }
    }

    /// The call has come to the page `pgoff`.
    fn advance(&mut self, file: &NamedFile, pgoff: u64) -> Result {
        let pages = file.region().pages();
        if pgoff < self.next || pages.is_settled(pgoff) {
            return Ok(());
        }
        self.next = (pgoff | (BLOCK_PAGES - 1)).saturating_add(1).min(self.end);
        let range = pages.range(pgoff, self.next.saturating_sub(pgoff))?;
        request(file.region(), range)
    }
}

impl NamedFile {
    /// Waits until a page is present. `EIO` if it is unreadable or does not come in time, `EAGAIN`
    /// if the call may not wait, `EINTR` if the task is being killed.
    fn await_present(&self, pgoff: u64, wait: IoWait) -> Result {
        let region = self.region();
        loop {
            if touch_for_call(region, pgoff)? {
                return Ok(());
            }
            if wait != IoWait::Forever {
                self.refuse(pgoff);
                // If the page came before that, nobody is woken.
                if region.pages().is_awaited(pgoff) || !touch_for_call(region, pgoff)? {
                    return Err(EAGAIN);
                }
                return Ok(());
            }
            match region.await_page(pgoff, None, WaitMode::Killable) {
                WaitOutcome::Done | WaitOutcome::Mapped => {}
                WaitOutcome::Signal => return Err(EINTR),
                WaitOutcome::Timeout => return Err(EIO),
            }
        }
    }

    /// Reads as much as fits, up to the end of the file.
    pub(super) fn read_from(
        &self,
        pos: u64,
        to: &mut IovIterDest<'_>,
        wait: IoWait,
    ) -> Result<usize> {
        let length = self.region().length();
        let mut ahead = Ahead::new(length.min(pos.saturating_add(to.len() as u64)));
        let read = read_pages(length, pos, to, |pgoff, sink| {
            ahead.advance(self, pgoff)?;
            self.await_present(pgoff, wait)?;
            match wait {
                IoWait::Never => self.memory.read_cached(pgoff, sink),
                IoWait::Forever | IoWait::NotForOthers => self.memory.read(pgoff, sink),
            }
        })?;
        self.forget_refusal();
        Ok(read)
    }

    /// Writes as much as there is, up to the end of the file. `ENOSPC` if that is nothing.
    pub(super) fn write_to(
        &self,
        pos: u64,
        from: &mut IovIterSource<'_>,
        wait: IoWait,
    ) -> Result<usize> {
        if wait == IoWait::Never {
            // As for block devices. io_uring tries again in a thread that may wait.
            return Err(errno::opnotsupp());
        }
        let region = self.region();
        if pos >= region.length() {
            return Err(ENOSPC);
        }
        let end = region.length().min(pos.saturating_add(from.len() as u64));
        let mut ahead = Ahead::new(end);
        let mut at = pos;
        let mut write = || -> Result {
            while at < end {
                let (pgoff, offset) = (at / PAGE_SIZE, at % PAGE_SIZE);
                let len = end.saturating_sub(at).min(PAGE_SIZE.saturating_sub(offset));
                ahead.advance(self, pgoff)?;
                self.await_present(pgoff, wait)?;
                fault_in_source(from, len)?;
                let write = |folio: &LockedFolio| folio.write(pgoff, offset, len, from);
                at = at.saturating_add(self.change_page(pgoff, write)?);
            }
            Ok(())
        };
        let result = write();
        let written = at.saturating_sub(pos);
        if written == 0 {
            return result.map(|()| 0);
        }
        self.forget_refusal();
        self.count_write();
        Ok(written as usize)
    }

    /// Discards bytes, which read as zeros from now on. Whole pages that are absent become present.
    pub(super) fn discard_bytes(&self, offset: u64, len: u64) -> Result {
        let region = self.region();
        let end = region.length().min(offset.saturating_add(len));
        if offset >= end {
            return Ok(());
        }
        // What is left of the last page has no contents.
        let end = if end == region.length() {
            region.size()
        } else {
            end
        };
        let (first, last) = (offset.div_ceil(PAGE_SIZE), end / PAGE_SIZE);
        if first > last {
            return self.zero(offset, end);
        }
        self.zero(offset, first.saturating_mul(PAGE_SIZE))?;
        if first < last {
            let pages = region.pages().range(first, last.saturating_sub(first))?;
            let (offset, len) = (pages.byte_start(), pages.bytes());
            discard(region, offset.ok_or(EINVAL)?, len.ok_or(EINVAL)?)?;
        }
        self.zero(last.saturating_mul(PAGE_SIZE), end)
    }

    /// Zeroes the bytes from `offset` to `end`, which are a part of one page, or none.
    fn zero(&self, offset: u64, end: u64) -> Result {
        if offset >= end {
            return Ok(());
        }
        let pgoff = offset / PAGE_SIZE;
        self.await_present(pgoff, IoWait::Forever)?;
        self.change_page(pgoff, |folio| {
            folio.zero(pgoff, offset % PAGE_SIZE, end.saturating_sub(offset));
        })?;
        self.count_write();
        Ok(())
    }

    /// Changes the contents of a present page with its folio locked. For a dirty log it is a call
    /// that writes to the page.
    fn change_page<R>(&self, pgoff: u64, change: impl FnOnce(&LockedFolio) -> R) -> Result<R> {
        let region = self.region();
        let page = region.pages().range(pgoff, 1)?;
        let charge = region.charge();
        loop {
            let tracking = self.tracking();
            let _admitted = tracking
                .as_deref()
                .map(|log| Admitted::new(log, page))
                .transpose()?;
            let folio = region.staging().lock_to_write(pgoff, charge.as_deref())?;
            // With the folio locked: the start of a log waits until it is unlocked.
            let now = self.tracking();
            let is_same = match (&tracking, &now) {
                (Some(before), Some(now)) => Arc::ptr_eq(before, now),
                (None, None) => true,
                _ => false,
            };
            if !is_same {
                cond_resched_or_killed()?;
                continue;
            }
            let result = change(&folio);
            if let Some(log) = tracking.as_deref() {
                log.mark(page);
            }
            return Ok(result);
        }
    }

    fn tracking(&self) -> Option<Arc<Tracking>> {
        let region = self.region();
        region
            .is_logged()
            .then(|| memories::tracking_of_region(region))
            .flatten()
    }

    /// A system call has written.
    fn count_write(&self) {
        self.region().times.modify();
        if let Some(tracking) = self.tracking() {
            tracking.written.count();
        }
    }

    /// Requests the pages of these bytes without waiting. A length of 0 is up to the end.
    pub(super) fn request_bytes(&self, offset: u64, len: u64) -> Result {
        let pages = self.region().pages();
        let end = match len {
            0 => pages.nr(),
            len => offset
                .saturating_add(len)
                .div_ceil(PAGE_SIZE)
                .min(pages.nr()),
        };
        let first = offset / PAGE_SIZE;
        let Some(range) = PageRange::within(first, end.saturating_sub(first), pages.nr()) else {
            return Ok(());
        };
        for block in range.blocks() {
            cond_resched_or_killed()?;
            request(self.region(), block)?;
        }
        Ok(())
    }

    /// The first position from `pos` on that is data (or, if not `is_data`, a hole). A present page
    /// of which the staging file has nothing is a hole. An absent page is data.
    pub(super) fn find(&self, pos: u64, is_data: bool) -> Result<u64> {
        let region = self.region();
        let first = pos / PAGE_SIZE;
        let found = if is_data {
            self.next_data(first)
        } else {
            self.next_hole(first)?
        };
        match found.map(|page| pos.max(page.saturating_mul(PAGE_SIZE))) {
            Some(at) if at < region.length() => Ok(at),
            // The end of the file is a hole.
            _ if !is_data => Ok(region.length()),
            _ => Err(ENXIO),
        }
    }

    fn next_data(&self, pgoff: u64) -> Option<u64> {
        // Absent pages first: one that comes meanwhile is in the memory by then.
        let absent = self.region().pages().next_absent(pgoff);
        let next = [absent, self.memory.next_page(pgoff)];
        next.into_iter().flatten().min()
    }

    fn next_hole(&self, pgoff: u64) -> Result<Option<u64>> {
        let pages = self.region().pages();
        let mut at = pgoff;
        loop {
            cond_resched_or_killed()?;
            // The memory has nothing of an absent page, which is no hole: the look at the memory
            // counts only if the page was present before.
            let Some(present) = pages.next_present(at) else {
                return Ok(None);
            };
            match self.memory.next_hole(present, pages.nr()) {
                Some(hole) if hole == present => return Ok(Some(hole)),
                Some(hole) => at = hole,
                None => return Ok(None),
            }
        }
    }
}

/// A call that writes to a page inside the gate of a log.
struct Admitted<'a>(&'a Tracking);

impl<'a> Admitted<'a> {
    /// Waits until the page may be written to. `EINTR` if the task is being killed.
    fn new(log: &'a Tracking, page: PageRange) -> Result<Self> {
        log.copy_before_write().enter(Some(page))?;
        Ok(Self(log))
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.copy_before_write().leave();
    }
}
