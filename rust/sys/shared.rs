// SPDX-License-Identifier: GPL-2.0

//! Shared memory that programs use already: a memfd, or a file in a tmpfs.
//!
//! Stands in for an abstraction of the page cache of a shmem file (`filemap_get_folios()`,
//! `unmap_mapping_pages()`), which upstream does not have.

use super::{
    bindings,
    file::into_file,
    staging::Staging,
    task::sleep_killable, //
};
use crate::model::{
    dirty_log::{
        ChunkBits,
        CHUNK_PAGES, //
    },
    range::PageRange, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

/// How often a condition is checked that usually becomes true at once, with a tick of the clock
/// between two checks.
const TRIES: usize = 100;

/// The identity of a memory: its inode, however it was opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct InodeId(usize);

impl InodeId {
    /// The inode of a region's memory.
    pub(crate) fn of_region(staging: &Staging) -> Self {
        // SAFETY: The staging file is valid.
        unsafe { Self::of(staging.as_ptr()) }
    }

    /// The inode of the memory behind an open file.
    ///
    /// # Safety
    ///
    /// The file is valid.
    pub(super) unsafe fn of(file: *mut kernel::bindings::file) -> Self {
        // SAFETY: By the safety requirement; an open file has an inode.
        Self(unsafe { (*file).f_inode } as usize)
    }
}

/// Shared memory, through an open file that may write to it.
///
/// # Invariants
///
/// The file is a shmem file.
pub(crate) struct SharedMemory(ARef<File>);

impl SharedMemory {
    /// The memory behind a descriptor of the running process. `tracked` is the operations of
    /// tracked files. The uapi header lists the errors.
    pub(super) fn from_fd(
        fd: i32,
        tracked: *const kernel::bindings::file_operations,
    ) -> Result<Self> {
        // SAFETY: The function accepts any number.
        let file = from_err_ptr(unsafe { bindings::vmem_shared_get(fd, tracked) })?;
        // INVARIANT: The function returns shmem files only.
        // SAFETY: The reference is ours. An ioctl is no `fdget_pos` section, and such a section of
        // another thread concerns only the file's position.
        Ok(Self(unsafe { into_file(file) }))
    }

    /// The memory of a region.
    pub(crate) fn of_region(staging: &Staging) -> Self {
        // INVARIANT: A staging file is a shmem file.
        Self(staging.file().clone())
    }

    /// Another reference to the same memory.
    pub(crate) fn duplicate(&self) -> Self {
        // INVARIANT: The same file.
        Self(self.0.clone())
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: By the type invariants.
        unsafe { bindings::vmem_shared_size(self.as_ptr()) as u64 }
    }

    /// The identity of the memory.
    pub(crate) fn inode_id(&self) -> InodeId {
        // SAFETY: The file is held.
        unsafe { InodeId::of(self.as_ptr()) }
    }

    /// Whether no other open file could write to the memory.
    pub(crate) fn is_sole_writer(&self) -> bool {
        // SAFETY: By the type invariants.
        unsafe { bindings::vmem_shared_is_sole_writer(self.as_ptr()) != 0 }
    }

    /// Waits until all writes through descriptors that began before this call have ended. `EAGAIN`
    /// if they do not end in time, `EINTR` if the task is being killed.
    pub(crate) fn await_writers(&self) -> Result {
        // A task may have read the old operations and not yet entered the write.
        // SAFETY: In process context, with nothing held that such a task could wait for.
        unsafe { bindings::vmem_synchronize_rcu_tasks() };
        // SAFETY: By the type invariants.
        retry_until(|| unsafe { bindings::vmem_shared_no_writer_waits(self.as_ptr()) })
    }

    /// Waits until no mapping of the memory is being made. `EAGAIN` and `EINTR` as above.
    pub(crate) fn await_mmaps(&self) -> Result {
        // SAFETY: By the type invariants.
        retry_until(|| unsafe { bindings::vmem_shared_no_mmap_runs(self.as_ptr()) })
    }

    /// Removes the permission to write to these pages from all page tables, by unmapping the pages.
    /// A thread that is about to get the permission either has it before that, or faults again.
    /// `EINTR` if the task is being killed.
    pub(crate) fn protect(&self, pages: PageRange) -> Result {
        self.await_unlocked(pages)?;
        self.unmap(pages);
        Ok(())
    }

    /// Waits until each of these pages was unlocked once. `EINTR` if the task is being killed.
    pub(crate) fn await_unlocked(&self, pages: PageRange) -> Result {
        let (first, nr) = (pages.start() as usize, pages.len() as usize);
        // SAFETY: By the type invariants.
        to_result(unsafe { bindings::vmem_folios_wait_unlocked(self.as_ptr(), first, nr) })
    }

    /// Unmaps these pages from all page tables, whether or not they are locked.
    pub(crate) fn unmap(&self, pages: PageRange) {
        let (first, nr) = (pages.start() as usize, pages.len() as usize);
        // SAFETY: By the type invariants.
        unsafe { bindings::vmem_folios_unmap(self.as_ptr(), first, nr) };
    }

    /// Adds the held pages among these pages of one chunk: pages with a reference through which
    /// they may be written to without a page table.
    pub(crate) fn add_held(&self, pages: PageRange, bits: &mut ChunkBits) {
        let Some(pages) = pages.pieces(CHUNK_PAGES).next() else {
            return;
        };
        let (first, nr) = (pages.start() as usize, pages.len() as usize);
        let base = first & !(CHUNK_PAGES as usize - 1);
        // SAFETY: By the type invariants; the pages are of one chunk, for which there is room.
        unsafe { bindings::vmem_folios_held(self.as_ptr(), first, nr, base, bits.as_mut_ptr()) };
    }

    pub(super) fn as_ptr(&self) -> *mut kernel::bindings::file {
        self.0.as_ptr()
    }
}

/// Calls `is_over` until it returns 1.
fn retry_until(mut is_over: impl FnMut() -> core::ffi::c_int) -> Result {
    for _ in 0..TRIES {
        match is_over() {
            0 => sleep_killable()?,
            1 => return Ok(()),
            error => return to_result(error),
        }
    }
    Err(EAGAIN)
}
