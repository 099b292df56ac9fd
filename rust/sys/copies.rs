// SPDX-License-Identifier: GPL-2.0

//! Copies of pages of shared memory, and reads of pages into user memory.
//!
//! The copies are in a shmem file of the size of the memory, so they can be swapped and mapped.
//! `snapshot.c` has the operations on one page.
//!
//! Stands in for an abstraction of the page cache of a shmem file, like [`super::shared`].

use super::{
    bindings,
    memcg::Memcg,
    shared::SharedMemory,
    staging::{
        LockedFolio,
        Staging, //
    },
    task::cond_resched_or_killed, //
};
use crate::model::range::{
    PageRange,
    PAGE_SIZE, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    iov::IovIterDest,
    prelude::*, //
};

/// Copies of pages.
pub(crate) struct Copies {
    file: Staging,
    charge: Option<Memcg>,
}

impl Copies {
    /// An empty set of copies for a memory of `size` bytes. The copies are charged to the memory
    /// cgroup of the running task. If memory is short, a copy fails before the OOM killer would end
    /// a process for it.
    pub(crate) fn new(size: u64) -> Result<Self> {
        let file = Staging::new(c"vmem-snapshot", size, false)?;
        // SAFETY: It is a shmem file, and not in use yet.
        unsafe { bindings::vmem_copies_avoid_oom(file.as_ptr()) };
        Ok(Self {
            file,
            charge: Memcg::of_current(),
        })
    }

    /// The file of the copies, to be mapped.
    pub(crate) fn file(&self) -> &Staging {
        &self.file
    }

    /// How many pages the copies take.
    pub(crate) fn kept(&self) -> u64 {
        // SAFETY: It is a shmem file.
        unsafe { bindings::vmem_copies_kept(self.file.as_ptr()) as u64 }
    }

    /// Copies the page `pgoff` of a folio of the memory.
    pub(crate) fn add(&self, pgoff: u64, folio: &LockedFolio) -> Result {
        let charge = self
            .charge
            .as_ref()
            .map_or(core::ptr::null_mut(), Memcg::as_ptr);
        // SAFETY: The copies are a shmem file; the folio is locked, and the page is in it; `charge` is
        // null or referenced.
        to_result(unsafe {
            let copies = self.file.as_ptr();
            bindings::vmem_copies_add(copies, pgoff as usize, folio.as_ptr(), charge)
        })
    }

    /// Drops the copies of these pages.
    pub(crate) fn drop_pages(&self, range: PageRange) -> Result {
        self.file.drop_pages(range)
    }

    /// The first page from `pgoff` on that has a copy.
    pub(crate) fn next_page(&self, pgoff: u64) -> Option<u64> {
        // SAFETY: It is a shmem file.
        unsafe { next_page(self.file.as_ptr(), pgoff) }
    }

    /// Copies a part of a page to a reader.
    pub(crate) fn read(&self, pgoff: u64, sink: &mut PageSink<'_, '_>) -> Result {
        // SAFETY: It is a shmem file.
        unsafe { sink.fill_from(self.file.as_ptr(), pgoff, bindings::vmem_file_read_page) }
    }
}

impl SharedMemory {
    /// The folio of a page, locked, swapped in if necessary. [`None`] if the page is a hole.
    pub(crate) fn lock_folio(&self, pgoff: u64) -> Result<Option<LockedFolio>> {
        let (file, pgoff) = (self.as_ptr(), pgoff as usize);
        // SAFETY: It is a shmem file.
        let folio = from_err_ptr(unsafe { bindings::vmem_shmem_lock_to_read(file, pgoff) })?;
        Ok(LockedFolio::new(folio).ok())
    }

    /// The first page from `pgoff` on that is not a hole.
    pub(crate) fn next_page(&self, pgoff: u64) -> Option<u64> {
        // SAFETY: It is a shmem file.
        unsafe { next_page(self.as_ptr(), pgoff) }
    }

    /// The first page from `pgoff` on, before `end`, that is a hole.
    pub(crate) fn next_hole(&self, pgoff: u64, end: u64) -> Option<u64> {
        if pgoff >= end {
            return None;
        }
        let (file, first, last) = (self.as_ptr(), pgoff as usize, end as usize);
        // SAFETY: It is a shmem file; the range is not empty.
        let page = unsafe { bindings::vmem_file_next_hole(file, first, last) as u64 };
        (page < end).then_some(page)
    }

    /// Copies a part of a page to a reader.
    pub(crate) fn read(&self, pgoff: u64, sink: &mut PageSink<'_, '_>) -> Result {
        // SAFETY: It is a shmem file.
        unsafe { sink.fill_from(self.as_ptr(), pgoff, bindings::vmem_file_read_page) }
    }

    /// The same without waiting. `EAGAIN` if the page is in swap.
    pub(crate) fn read_cached(&self, pgoff: u64, sink: &mut PageSink<'_, '_>) -> Result {
        // SAFETY: It is a shmem file.
        unsafe { sink.fill_from(self.as_ptr(), pgoff, bindings::vmem_file_read_cached) }
    }
}

/// The first page from `pgoff` on that the file has contents for.
///
/// # Safety
///
/// `file` is a shmem file.
unsafe fn next_page(file: *mut kernel::bindings::file, pgoff: u64) -> Option<u64> {
    // SAFETY: By the safety requirement.
    match unsafe { bindings::vmem_file_next_page(file, pgoff as usize) } {
        usize::MAX => None,
        page => Some(page as u64),
    }
}

/// Reads a file of `size` bytes from `pos` on, as much as fits, page by page. Returns how many bytes
/// were read: fewer if `read` fails for a later page than the first.
pub(crate) fn read_pages(
    size: u64,
    pos: u64,
    to: &mut IovIterDest<'_>,
    mut read: impl FnMut(u64, &mut PageSink<'_, '_>) -> Result,
) -> Result<usize> {
    let mut done = 0usize;
    loop {
        let at = pos.saturating_add(done as u64);
        let left = size.saturating_sub(at).min(to.len() as u64);
        let offset = at % PAGE_SIZE;
        let len = left.min(PAGE_SIZE - offset);
        if len == 0 {
            return Ok(done);
        }
        let mut sink = PageSink::new(to, offset as usize, len as usize);
        let read = cond_resched_or_killed().and_then(|()| read(at / PAGE_SIZE, &mut sink));
        let copied_bytes = sink.copied();
        match read {
            Ok(()) if copied_bytes > 0 => done = done.saturating_add(copied_bytes),
            Ok(()) if done == 0 => return Err(EFAULT),
            Err(e) if done == 0 => return Err(e),
            _ => return Ok(done),
        }
    }
}

/// Copies a part of a page of a file, `offset` and `len` bytes. Returns how many bytes were copied.
type ReadPage = unsafe extern "C" fn(
    file: *mut kernel::bindings::file,
    pgoff: usize,
    offset: usize,
    len: usize,
    to: *mut kernel::bindings::iov_iter,
    error: *mut core::ffi::c_int,
) -> usize;

/// The destination of a part of a page.
pub(crate) struct PageSink<'a, 'data> {
    to: &'a mut IovIterDest<'data>,
    offset: usize,
    len: usize,
    copied: usize,
}

impl<'a, 'data> PageSink<'a, 'data> {
    /// A destination for `len` bytes from `offset` on, within a page.
    fn new(to: &'a mut IovIterDest<'data>, offset: usize, len: usize) -> Self {
        Self {
            to,
            offset,
            len,
            copied: 0,
        }
    }

    /// How many bytes were copied: fewer than requested if the destination cannot be written to.
    fn copied(&self) -> usize {
        self.copied
    }

    /// Copies its part of the page, in place of what was copied before.
    ///
    /// # Safety
    ///
    /// `file` is a shmem file.
    unsafe fn fill_from(
        &mut self,
        file: *mut kernel::bindings::file,
        pgoff: u64,
        read_page: ReadPage,
    ) -> Result {
        // SAFETY: This many bytes have been written to the iterator since the sink was made.
        unsafe { self.to.revert(self.copied) };
        let mut error = 0;
        // SAFETY: By the safety requirement; the part is within a page; the iterator is valid.
        self.copied = unsafe {
            let (pgoff, to) = (pgoff as usize, self.to.as_raw());
            let (offset, len) = (self.offset, self.len);
            read_page(file, pgoff, offset, len, to, &raw mut error)
        };
        to_result(error)
    }
}
