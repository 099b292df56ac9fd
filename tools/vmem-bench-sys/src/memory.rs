// SPDX-License-Identifier: GPL-2.0-or-later
//! Mapped memory.

use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap};

use crate::PAGE_SIZE;

const WORD: usize = size_of::<u64>();

/// Who sees what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All who map the same (`MAP_SHARED`).
    Shared,
    /// This mapping alone (`MAP_PRIVATE`).
    Private,
}

/// Readable and writable memory of the program that is measured, unmapped when dropped. Others write it: no reference to it exists, and
/// its words are read and written one by one.
///
/// # Invariants
///
/// `address` is the begin of `len` bytes, whole pages, that this value alone unmaps.
#[derive(Debug)]
pub struct Memory {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is the process's, and all access to it is volatile, of whole words.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the first `pages` pages of a file.
    ///
    /// # Errors
    ///
    /// What `mmap(2)` gives.
    pub fn of_file(file: impl AsFd, pages: usize, sharing: Sharing) -> Result<Self, Errno> {
        let len = pages * PAGE_SIZE;
        // SAFETY: without an address to map at, the kernel takes one where nothing is.
        Self::own(len, unsafe {
            mmap(std::ptr::null_mut(), len, READ_WRITE, sharing.flags(), file.as_fd(), 0)
        })
    }

    /// Maps `pages` pages of memory without a file, never to be huge pages.
    ///
    /// # Errors
    ///
    /// What `mmap(2)`, `madvise(MADV_NOHUGEPAGE)` and `mprotect(2)` give.
    pub fn anonymous(pages: usize, sharing: Sharing) -> Result<Self, Errno> {
        let len = pages * PAGE_SIZE;
        // Not usable before it is told apart from its neighbours: else khugepaged may make a huge page of a neighbour and a part of
        // this, before userfaultfd takes its faults.
        // SAFETY: as above.
        let memory = Self::own(len, unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), sharing.flags())
        })?;
        memory.advise(Advice::LinuxNoHugepage)?;
        let flags = MprotectFlags::READ.union(MprotectFlags::WRITE);
        // SAFETY: the whole of a mapping to which no reference exists.
        unsafe { mprotect(memory.address.as_ptr().cast(), len, flags) }?;
        Ok(memory)
    }

    fn own(len: usize, address: Result<*mut std::ffi::c_void, Errno>) -> Result<Self, Errno> {
        let address = NonNull::new(address?.cast()).ok_or(Errno::NOMEM)?;
        // INVARIANT: mapped just now.
        Ok(Self { address, len })
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.address.as_ptr() as usize
    }

    /// Length in pages.
    pub fn pages(&self) -> usize {
        self.len / PAGE_SIZE
    }

    /// The first word of a page.
    ///
    /// # Panics
    ///
    /// If it has no such page.
    pub fn read(&self, page: usize) -> u64 {
        // SAFETY: the page is in the mapping, by `word`, and readable.
        unsafe { self.word(page).read_volatile() }
    }

    /// Writes the first word of a page.
    ///
    /// # Panics
    ///
    /// If it has no such page.
    pub fn write(&self, page: usize, word: u64) {
        // SAFETY: the page is in the mapping, by `word`, and writable.
        unsafe { self.word(page).write_volatile(word) }
    }

    /// Writes whole pages from `page` on, word by word.
    ///
    /// # Panics
    ///
    /// If it has no such pages.
    pub fn write_pages(&self, page: usize, contents: &[u8]) {
        for (page, contents) in (page..).zip(contents.chunks_exact(PAGE_SIZE)) {
            let first = self.word(page);
            for (at, word) in contents.chunks_exact(WORD).enumerate() {
                let mut value = [0; WORD];
                value.copy_from_slice(word);
                // SAFETY: the page is in the mapping, by `word`, and has so many words.
                unsafe { first.wrapping_add(at).write_volatile(u64::from_ne_bytes(value)) };
            }
        }
    }

    /// Copies whole pages from `page` on, at once. Nobody writes to them meanwhile: they are protected, or their only writer is the caller.
    ///
    /// # Panics
    ///
    /// If it has no such pages.
    pub fn read_pages(&self, page: usize, to: &mut [u8]) {
        for (page, to) in (page..).zip(to.chunks_exact_mut(PAGE_SIZE)) {
            // SAFETY: the page is in the mapping, by `word`, and `to` is one, borrowed mutably, elsewhere.
            unsafe {
                self.word(page)
                    .cast::<u8>()
                    .copy_to_nonoverlapping(to.as_mut_ptr(), PAGE_SIZE)
            }
        }
    }

    fn word(&self, page: usize) -> *mut u64 {
        assert!(page < self.pages(), "page {page} of {}", self.pages());
        self.address.as_ptr().wrapping_add(page * PAGE_SIZE).cast()
    }

    /// Empties the page tables of shared memory: the next touch of each page is a fault again, on the same contents. (Of private memory
    /// it drops what was written.)
    ///
    /// # Errors
    ///
    /// What `madvise(MADV_DONTNEED)` gives.
    pub fn forget(&self) -> Result<(), Errno> {
        self.advise(Advice::LinuxDontNeed)
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: the whole of a mapping to which no reference exists.
        unsafe { madvise(self.address.as_ptr().cast(), self.len, advice) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: by the type's invariants, the range is this value's to unmap, and no reference to it exists.
        let result = unsafe { munmap(self.address.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "munmap of a whole mapping: {result:?}");
    }
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

impl Sharing {
    fn flags(self) -> MapFlags {
        match self {
            Self::Shared => MapFlags::SHARED,
            Self::Private => MapFlags::PRIVATE,
        }
    }
}
