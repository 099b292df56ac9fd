// SPDX-License-Identifier: GPL-2.0-or-later
//! Mapped memory, with all that a program can do to it.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use crate::{PAGE, checked, errno};

/// How an [`Area`] shall be mapped: readable, writable and shared unless told.
#[derive(Debug, Clone, Copy)]
pub struct AreaBuilder {
    protection: i32,
    flags: i32,
    alignment: usize,
    hint: usize,
}

impl Default for AreaBuilder {
    fn default() -> Self {
        Self {
            protection: libc::PROT_READ | libc::PROT_WRITE,
            flags: libc::MAP_SHARED,
            alignment: 1,
            hint: 0,
        }
    }
}

impl AreaBuilder {
    /// `MAP_PRIVATE` instead of `MAP_SHARED`.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.flags = self.flags & !libc::MAP_SHARED | libc::MAP_PRIVATE;
        self
    }

    /// `PROT_READ` alone.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.protection = libc::PROT_READ;
        self
    }

    /// `MAP_POPULATE`.
    #[must_use]
    pub fn populate(mut self) -> Self {
        self.flags |= libc::MAP_POPULATE;
        self
    }

    /// At a multiple of so many pages.
    #[must_use]
    pub fn aligned(mut self, pages: usize) -> Self {
        self.alignment = pages;
        self
    }

    /// At this address, and nowhere else.
    #[must_use]
    pub fn at(mut self, address: usize) -> Self {
        self.hint = address;
        self.flags |= libc::MAP_FIXED_NOREPLACE;
        self
    }

    /// Maps `pages` pages of `file` from page `pgoff` on.
    pub fn map(self, file: impl AsFd, pgoff: usize, pages: usize) -> io::Result<Area> {
        self.place(file.as_fd().as_raw_fd(), pgoff, pages)
    }

    /// Maps memory without a file.
    pub fn anonymous(mut self, pages: usize) -> io::Result<Area> {
        self.flags |= libc::MAP_ANONYMOUS;
        self.place(-1, 0, pages)
    }

    /// Attaches shared memory of System V, which is gone with the area.
    pub fn system_v(pages: usize) -> io::Result<Area> {
        let len = pages * PAGE;
        // SAFETY: it has no addresses.
        let id = checked(unsafe { libc::shmget(libc::IPC_PRIVATE, len, libc::IPC_CREAT | 0o600) })?;
        // SAFETY: the kernel maps nothing over what is there: it chooses the address.
        let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        let error = errno();
        // SAFETY: this command has no argument. The memory is there as long as it is attached.
        checked(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) })?;
        if address == libc::MAP_FAILED {
            return Err(error);
        }
        Ok(Area {
            address: address.cast(),
            len,
        })
    }

    fn place(self, fd: i32, pgoff: usize, pages: usize) -> io::Result<Area> {
        let offset = pgoff.wrapping_mul(PAGE) as libc::off_t;
        let len = pages.wrapping_mul(PAGE);
        let hint = if self.alignment > 1 {
            self.free_place(pages)?
        } else {
            self.hint
        };
        // SAFETY: the kernel maps nothing over what is there: the address is a wish only, or with `MAP_FIXED_NOREPLACE`.
        let address = unsafe { libc::mmap(hint as *mut libc::c_void, len, self.protection, self.flags, fd, offset) };
        if address == libc::MAP_FAILED {
            return Err(errno());
        }
        Ok(Area {
            address: address.cast(),
            len,
        })
    }
}

impl AreaBuilder {
    /// Where an aligned mapping of so many pages has room now.
    fn free_place(self, pages: usize) -> io::Result<usize> {
        let room = AreaBuilder::default().private().anonymous(pages + self.alignment)?;
        Ok(room.address().next_multiple_of(self.alignment * PAGE))
    }
}

/// A mapping, unmapped when dropped. All offsets are in bytes from its begin.
///
/// # Invariants
///
/// `address` is the begin of `len` bytes that this value alone unmaps, or parts of. No reference to them exists.
#[derive(Debug)]
pub struct Area {
    address: *mut u8,
    len: usize,
}

// SAFETY: the memory is the process's, and all access to it is volatile.
unsafe impl Send for Area {}
// SAFETY: as for `Send`.
unsafe impl Sync for Area {}

impl Area {
    /// Where it begins.
    pub fn address(&self) -> usize {
        self.address as usize
    }

    /// Length in bytes.
    pub fn size(&self) -> usize {
        self.len
    }

    /// Length in pages.
    pub fn pages(&self) -> usize {
        self.len / PAGE
    }

    /// The address of `offset`.
    ///
    /// # Panics
    ///
    /// Unless `len` bytes from there on are inside.
    pub(crate) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "{len} bytes at {offset} of {}",
            self.len
        );
        self.address.wrapping_add(offset)
    }

    /// Reads a byte. A part that was unmapped or protected is SIGSEGV, an unreadable page SIGBUS: that is for child processes.
    pub fn peek(&self, offset: usize) -> u8 {
        // SAFETY: inside the area, by `at`; if it is not mapped any more, the signal ends the process before anything is read.
        unsafe { self.at(offset, 1).read_volatile() }
    }

    /// Writes a byte. Signals as for [`Area::peek`].
    pub fn poke(&self, offset: usize, byte: u8) {
        // SAFETY: inside the area, by `at`; if it is not writable any more, the signal ends the process before anything is written.
        unsafe { self.at(offset, 1).write_volatile(byte) }
    }

    /// Reads a word, at a multiple of its size. Signals as for [`Area::peek`].
    ///
    /// # Panics
    ///
    /// Unless it is inside and aligned.
    pub fn load(&self, offset: usize) -> u64 {
        assert!(offset % 8 == 0, "a word at {offset}");
        // SAFETY: inside the area, by `at`, and aligned, as the area's begin is; signals as in `peek`.
        unsafe { self.at(offset, 8).cast::<u64>().read_volatile() }
    }

    /// Writes a word, at a multiple of its size. Signals as for [`Area::peek`].
    ///
    /// # Panics
    ///
    /// Unless it is inside and aligned.
    pub fn store(&self, offset: usize, word: u64) {
        assert!(offset % 8 == 0, "a word at {offset}");
        // SAFETY: inside the area, by `at`, and aligned, as the area's begin is; signals as in `poke`.
        unsafe { self.at(offset, 8).cast::<u64>().write_volatile(word) }
    }

    /// Copies a page out, word by word.
    pub fn page(&self, page: usize) -> Vec<u64> {
        let begin = self.at(page * PAGE, PAGE).cast::<u64>();
        (0..PAGE / 8)
            // SAFETY: inside the area, by `at`, and aligned, as a page's begin is; signals as in `peek`.
            .map(|word| unsafe { begin.wrapping_add(word).read_volatile() })
            .collect()
    }

    /// Writes a page, word by word.
    pub fn write_page(&self, page: usize, words: &[u64]) {
        let begin = self.at(page * PAGE, PAGE).cast::<u64>();
        for (word, value) in words.iter().take(PAGE / 8).enumerate() {
            // SAFETY: inside the area, by `at`, and aligned, as a page's begin is; signals as in `poke`.
            unsafe { begin.wrapping_add(word).write_volatile(*value) };
        }
    }

    pub(crate) fn range(&self, pages: &Range<usize>) -> (*mut libc::c_void, usize) {
        let len = (pages.end - pages.start) * PAGE;
        (self.at(pages.start * PAGE, len).cast(), len)
    }

    /// `madvise` of these pages.
    pub fn advise(&self, pages: Range<usize>, advice: i32) -> io::Result<()> {
        let (address, len) = self.range(&pages);
        // SAFETY: inside the area, to which no reference exists; advice changes contents at most.
        checked(unsafe { libc::madvise(address, len, advice) }).map(drop)
    }

    /// `mprotect` of these pages.
    pub fn protect(&self, pages: Range<usize>, protection: i32) -> io::Result<()> {
        let (address, len) = self.range(&pages);
        // SAFETY: inside the area, to which no reference exists.
        checked(unsafe { libc::mprotect(address, len, protection) }).map(drop)
    }

    /// `mlock` of these pages.
    pub fn lock(&self, pages: Range<usize>) -> io::Result<()> {
        let (address, len) = self.range(&pages);
        // SAFETY: inside the area; it changes no contents.
        checked(unsafe { libc::mlock(address, len) }).map(drop)
    }

    /// `mlock2(MLOCK_ONFAULT)` of these pages.
    pub fn lock_on_fault(&self, pages: Range<usize>) -> io::Result<()> {
        let (address, len) = self.range(&pages);
        // SAFETY: inside the area; it changes no contents.
        checked(unsafe { libc::mlock2(address, len, libc::MLOCK_ONFAULT as libc::c_uint) }).map(drop)
    }

    /// `msync` of these pages, with these flags.
    pub fn sync(&self, pages: Range<usize>, flags: i32) -> io::Result<()> {
        let (address, len) = self.range(&pages);
        // SAFETY: inside the area; it changes no contents.
        checked(unsafe { libc::msync(address, len, flags) }).map(drop)
    }

    /// `munmap` of these pages. The rest stays.
    pub fn unmap(&self, pages: Range<usize>) -> io::Result<()> {
        let (address, len) = self.range(&pages);
        // SAFETY: inside the area, which is this value's to unmap, and no reference to it exists. Nothing else is ever mapped into the
        // hole before the area is dropped: the tests that do this map nothing after it in the same process.
        checked(unsafe { libc::munmap(address, len) }).map(drop)
    }

    /// `mremap` of the whole to another length, in place or not.
    pub fn remap(&mut self, pages: usize, may_move: bool) -> io::Result<()> {
        let flags = if may_move { libc::MREMAP_MAYMOVE } else { 0 };
        // SAFETY: the whole area, to which no reference exists.
        let address = unsafe { libc::mremap(self.address.cast(), self.len, pages * PAGE, flags) };
        self.moved(address, pages * PAGE)
    }

    /// `mremap` of the whole to a new place that another mapping of the same length held.
    pub fn replace(&mut self, other: Area) -> io::Result<()> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: two whole areas, to which no references exist; the other one is forgotten if its place is taken.
        let address = unsafe { libc::mremap(self.address.cast(), self.len, self.len, flags, other.address) };
        self.moved(address, self.len)?;
        std::mem::forget(other);
        Ok(())
    }

    /// `mremap` of the whole that leaves the old place mapped (`MREMAP_DONTUNMAP`).
    pub fn remap_and_keep(&mut self) -> io::Result<()> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        // SAFETY: the whole area, to which no reference exists. If it works, the old place is leaked, which harms nobody.
        let address = unsafe { libc::mremap(self.address.cast(), self.len, self.len, flags) };
        self.moved(address, self.len)
    }

    /// `mremap` of no length: a second mapping of the same pages, at another place.
    pub fn duplicate(&self) -> io::Result<Area> {
        // SAFETY: the area is left as it is, and the kernel maps nothing over what is there.
        let address = unsafe { libc::mremap(self.address.cast(), 0, self.len, libc::MREMAP_MAYMOVE) };
        if address == libc::MAP_FAILED {
            return Err(errno());
        }
        Ok(Area {
            address: address.cast(),
            len: self.len,
        })
    }

    /// `remap_file_pages`: these pages shall show the file's from `pgoff` on.
    pub fn rearrange(&self, pages: Range<usize>, pgoff: usize) -> io::Result<()> {
        let (address, len) = self.range(&pages);
        // SAFETY: inside the area, to which no reference exists.
        checked(unsafe { libc::remap_file_pages(address, len, 0, pgoff, 0) }).map(drop)
    }

    /// `mmap` with `MAP_FIXED`: these pages become a shared mapping of `file` from page `pgoff` on.
    pub fn cover(&self, pages: Range<usize>, file: impl AsFd, pgoff: usize) -> io::Result<()> {
        let (address, len) = self.range(&pages);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let offset = pgoff.wrapping_mul(PAGE) as libc::off_t;
        // SAFETY: inside the area, which is this value's to unmap, and no reference to it exists.
        let covered = unsafe { libc::mmap(address, len, protection, flags, file.as_fd().as_raw_fd(), offset) };
        if covered == libc::MAP_FAILED { Err(errno()) } else { Ok(()) }
    }

    fn moved(&mut self, address: *mut libc::c_void, len: usize) -> io::Result<()> {
        if address == libc::MAP_FAILED {
            return Err(errno());
        }
        // INVARIANT: the kernel has moved the area there.
        self.address = address.cast();
        self.len = len;
        Ok(())
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: by the type's invariants, the range is this value's to unmap, and no reference to it exists.
        let result = unsafe { libc::munmap(self.address.cast(), self.len) };
        debug_assert_eq!(result, 0);
    }
}
