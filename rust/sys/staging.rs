// SPDX-License-Identifier: GPL-2.0

//! The staging file: the shmem file that is a region's memory.
//!
//! Stands in for an abstraction of `include/linux/shmem_fs.h`, which upstream has for DRM only.

use super::{
    bindings,
    cached_page::CachedPage,
    file::into_file,
    memcg::Memcg, //
};
use crate::model::range::{
    pages_for,
    PageRange,
    PAGE_SIZE, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    iov::IovIterSource,
    prelude::*,
    sync::aref::ARef, //
};

/// The operations of shmem, and the mount for huge staging files. The module has it as long as it
/// is loaded.
pub(crate) struct Shmem(());

impl Shmem {
    /// Looks up the operations and makes the mount. Only the module's initialization has the
    /// reference to the module, so this is called once.
    pub(crate) fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: The module is initialized once.
        to_result(unsafe { bindings::vmem_shmem_init() })?;
        Ok(Self(()))
    }
}

impl Drop for Shmem {
    fn drop(&mut self) {
        // SAFETY: It was initialized, and goes with the module: no staging file will be made any
        // more.
        unsafe { bindings::vmem_shmem_exit() };
    }
}

/// A staging file.
///
/// # Invariants
///
/// The file is a shmem file; its size never changes.
pub(crate) struct Staging {
    file: ARef<File>,
    /// The last page, and how many of its bytes have contents, if those are not all.
    tail: Option<(u64, u64)>,
}

impl Staging {
    /// A new, empty staging file for `length` bytes of contents, which cannot be opened again
    /// through /proc. Its size is in whole pages. `name` is what `/proc/PID/maps` shows. If `huge`,
    /// its memory comes in huge pages where they are available.
    pub(crate) fn new(name: &CStr, length: u64, huge: bool) -> Result<Self> {
        let pages = pages_for(length).ok_or(EFBIG)?;
        let size = pages.checked_mul(PAGE_SIZE).ok_or(EFBIG)?;
        let size = usize::try_from(size).map_err(|_| EFBIG)?;
        let tail = match length % PAGE_SIZE {
            0 => None,
            bytes => Some((pages.saturating_sub(1), bytes)),
        };
        // SAFETY: `name` is a string; the function copies it.
        let file = from_err_ptr(unsafe {
            bindings::vmem_shmem_create(name.as_char_ptr(), size, huge.into())
        })?;
        // INVARIANT: A new shmem file, whose size the helper has sealed.
        // SAFETY: The reference is ours, and no other thread uses the file.
        let file = unsafe { into_file(file) };
        Ok(Self { file, tail })
    }

    /// The file, for a descriptor.
    pub(crate) fn file(&self) -> &ARef<File> {
        &self.file
    }

    /// Lets programs open the file again through /proc, like other shared memory: all pages are
    /// present.
    pub(crate) fn allow_open(&self) {
        // SAFETY: By the type invariants the file is a shmem file.
        unsafe { bindings::vmem_shmem_allow_open(self.as_ptr()) };
    }

    pub(super) fn as_ptr(&self) -> *mut kernel::bindings::file {
        self.file.as_ptr()
    }

    /// The folio of a page, locked, for a fault in `mm`: from the page cache, from swap, or a new one
    /// of zeros, charged to the cgroup of `mm`.
    ///
    /// # Safety
    ///
    /// The address space is valid.
    pub(super) unsafe fn lock_folio(
        &self,
        pgoff: u64,
        mm: *mut kernel::bindings::mm_struct,
    ) -> Result<LockedFolio> {
        let pgoff = usize::try_from(pgoff).map_err(|_| EFBIG)?;
        // SAFETY: By the type invariants the file is a shmem file; `mm` by the safety requirement.
        let folio = unsafe { bindings::vmem_shmem_lock_folio(self.as_ptr(), pgoff, mm) };
        LockedFolio::new(from_err_ptr(folio)?)
    }

    /// The folio of a page, locked, if that takes no wait, no I/O and no memory.
    pub(super) fn trylock_cached(&self, pgoff: u64) -> Option<LockedFolio> {
        let pgoff = usize::try_from(pgoff).ok()?;
        // SAFETY: By the type invariants the file is a shmem file.
        let folio = unsafe { bindings::vmem_shmem_trylock_cached(self.as_ptr(), pgoff) };
        LockedFolio::new(from_err_ptr(folio).ok()?).ok()
    }

    /// Whether the page has memory, here or in swap. A page of zeros that nobody has touched has none.
    pub(crate) fn has_memory(&self, pgoff: u64) -> bool {
        let Ok(pgoff) = usize::try_from(pgoff) else {
            return false;
        };
        // SAFETY: By the type invariants the file is a shmem file.
        unsafe { bindings::vmem_shmem_has_memory(self.as_ptr(), pgoff) != 0 }
    }

    /// Drops the file's contents of `range`, which then reads as zeros.
    pub(crate) fn drop_pages(&self, range: PageRange) -> Result {
        let pos = usize::try_from(range.byte_start().ok_or(EINVAL)?).map_err(|_| EINVAL)?;
        let len = usize::try_from(range.bytes().ok_or(EINVAL)?).map_err(|_| EINVAL)?;
        // SAFETY: By the type invariants the file is a shmem file.
        to_result(unsafe { bindings::vmem_shmem_drop(self.as_ptr(), pos, len) })
    }

    /// Copies pages from user memory at `from`: the pages from the first of `range` on that are in
    /// one folio, charged to `charge`. [`None`] if user memory is not present. The caller then
    /// faults it in with no lock held, since that may take for ever.
    ///
    /// The folio stays locked, so that the state of its pages can be changed before the folio is
    /// used.
    pub(crate) fn fill(
        &self,
        range: PageRange,
        from: u64,
        charge: Option<&Memcg>,
    ) -> Result<Option<Filled>> {
        let pgoff = usize::try_from(range.start()).map_err(|_| EFBIG)?;
        let charge = charge.map_or(core::ptr::null_mut(), Memcg::as_ptr);
        // SAFETY: By the type invariants the file is a shmem file; `charge` is null or referenced for
        // the time of the call.
        let folio = from_err_ptr(unsafe {
            bindings::vmem_shmem_lock_to_fill(self.as_ptr(), pgoff, charge)
        })?;
        let folio = LockedFolio::new(folio)?;
        let nr = folio.end().min(range.end()).saturating_sub(range.start());
        let copied = folio.copy_from_user(range.start(), nr, from);
        let Some(pages) = PageRange::within(range.start(), copied, range.end()) else {
            return Ok(None);
        };
        if let Some((pgoff, bytes)) = self.tail_in(pages) {
            folio.zero(pgoff, bytes, PAGE_SIZE - bytes);
        }
        Ok(Some(Filled { pages, folio }))
    }

    /// Copies a page from the page cache of another file, or, without that, from memory of the
    /// kernel, charged to `charge` (to the running task, if [`None`]). `EIO` if memory is broken:
    /// the contents of the page are then undefined.
    pub(crate) fn fill_page(
        &self,
        pgoff: u64,
        from: PageSource<'_>,
        charge: Option<&Memcg>,
    ) -> Result<FilledPage> {
        let index = usize::try_from(pgoff).map_err(|_| EFBIG)?;
        let charge = charge.map_or(core::ptr::null_mut(), Memcg::as_ptr);
        // SAFETY: By the type invariants the file is a shmem file; `charge` is null or referenced for
        // the time of the call.
        let folio = from_err_ptr(unsafe {
            bindings::vmem_shmem_lock_to_fill(self.as_ptr(), index, charge)
        })?;
        let folio = LockedFolio::new(folio)?;
        let copied = folio.copy_page(index, from);
        if let Some((pgoff, bytes)) = self.tail.filter(|(last, _)| *last == pgoff) {
            folio.zero(pgoff, bytes, PAGE_SIZE - bytes);
        }
        copied?;
        Ok(FilledPage {
            pgoff,
            folio,
            others: false,
        })
    }

    fn tail_in(&self, pages: PageRange) -> Option<(u64, u64)> {
        self.tail
            .filter(|(pgoff, _)| (pages.start()..pages.end()).contains(pgoff))
    }

    /// Zeroes what is behind the contents in the last page, if that is one of `pages`.
    pub(crate) fn zero_tail(&self, pages: PageRange) -> Result {
        let Some((pgoff, bytes)) = self.tail_in(pages) else {
            return Ok(());
        };
        let index = usize::try_from(pgoff).map_err(|_| EFBIG)?;
        // SAFETY: By the type invariants the file is a shmem file.
        let folio = unsafe { bindings::vmem_shmem_lock_to_read(self.as_ptr(), index) };
        let folio = from_err_ptr(folio)?;
        if let Ok(folio) = LockedFolio::new(folio) {
            folio.zero(pgoff, bytes, PAGE_SIZE - bytes);
        }
        Ok(())
    }

    /// The folio of a page, locked, to be written to in part. A new one is zeros, charged to
    /// `charge`.
    pub(crate) fn lock_to_write(&self, pgoff: u64, charge: Option<&Memcg>) -> Result<LockedFolio> {
        let pgoff = usize::try_from(pgoff).map_err(|_| EFBIG)?;
        let charge = charge.map_or(core::ptr::null_mut(), Memcg::as_ptr);
        // SAFETY: By the type invariants the file is a shmem file; `charge` is null or referenced for
        // the time of the call.
        let folio = from_err_ptr(unsafe {
            bindings::vmem_shmem_lock_to_write(self.as_ptr(), pgoff, charge)
        })?;
        LockedFolio::new(folio)
    }
}

/// Where the contents of a page come from.
#[derive(Clone, Copy)]
pub(crate) enum PageSource<'a> {
    /// The page cache of a file.
    Cache(&'a CachedPage<'a>),
    /// Memory of the kernel, up to a page. The rest of the page is zeros.
    Memory(&'a [u8]),
}

/// Pages of one folio that have been filled. The folio is still locked.
pub(crate) struct Filled {
    pages: PageRange,
    folio: LockedFolio,
}

impl Filled {
    /// The pages.
    pub(crate) fn pages(&self) -> PageRange {
        self.pages
    }

    pub(super) fn folio(&self) -> &LockedFolio {
        &self.folio
    }
}

/// A page that has been filled. Its folio is still locked, so that a fault can map it without
/// another look-up.
pub(crate) struct FilledPage {
    pgoff: u64,
    folio: LockedFolio,
    others: bool,
}

impl FilledPage {
    /// The same page, which was filled together with others of `pages`.
    pub(crate) fn among(self, pages: PageRange) -> Self {
        Self {
            others: pages.len() > 1,
            ..self
        }
    }

    /// Whether pages beside it were filled together with it.
    pub(super) fn has_others(&self) -> bool {
        self.others
    }

    /// The folio, if the page is `pgoff`.
    pub(super) fn into_folio(self, pgoff: u64) -> Option<LockedFolio> {
        (self.pgoff == pgoff).then_some(self.folio)
    }
}

/// A locked folio.
///
/// # Invariants
///
/// The pointer carries a reference, and the folio is locked by this task.
pub(crate) struct LockedFolio(NonNull<kernel::bindings::folio>);

impl LockedFolio {
    pub(super) fn new(folio: *mut kernel::bindings::folio) -> Result<Self> {
        // INVARIANT: All callers pass the result of a function that returns such a folio.
        NonNull::new(folio).map(Self).ok_or(EIO)
    }

    /// A folio that the caller has locked, and will unlock.
    ///
    /// # Safety
    ///
    /// The folio is valid, and stays locked during `'a`.
    pub(super) unsafe fn borrow<'a>(folio: *mut kernel::bindings::folio) -> BorrowedFolio<'a> {
        // SAFETY: By the safety requirement the folio is valid, so it is not null.
        // INVARIANT: As above; the `LockedFolio` is never dropped.
        let folio = unsafe { NonNull::new_unchecked(folio) };
        BorrowedFolio(ManuallyDrop::new(Self(folio)), PhantomData)
    }

    pub(super) fn as_ptr(&self) -> *mut kernel::bindings::folio {
        self.0.as_ptr()
    }

    /// Whether it has more than one page.
    pub(super) fn is_large(&self) -> bool {
        // SAFETY: By the type invariants the folio is valid.
        unsafe { bindings::vmem_folio_is_large(self.0.as_ptr()) != 0 }
    }

    /// The page offset after its last page.
    fn end(&self) -> u64 {
        // SAFETY: By the type invariants the folio is valid.
        unsafe { bindings::vmem_folio_end(self.0.as_ptr()) as u64 }
    }

    /// Copies `nr` pages from user memory at `from` to the pages of this folio from `pgoff` on.
    /// Returns how many it has copied: the copy ends where user memory is not present.
    fn copy_from_user(&self, pgoff: u64, nr: u64, from: u64) -> u64 {
        let (pgoff, nr, from) = (pgoff as usize, nr as usize, from as usize);
        // SAFETY: By the type invariants the folio is valid, and locked for us, and the pages lie in
        // it; `from` is checked by the function as any user address.
        let copied = unsafe { bindings::vmem_folio_copy(self.0.as_ptr(), pgoff, nr, from) };
        if copied > 0 {
            // SAFETY: By the type invariants the folio is locked; these pages of it have contents.
            unsafe { bindings::vmem_folio_filled(self.0.as_ptr(), pgoff, copied) };
        }
        copied as u64
    }

    /// Copies contents to the page `pgoff`, which lies in the folio.
    fn copy_page(&self, pgoff: usize, from: PageSource<'_>) -> Result {
        let folio = self.0.as_ptr();
        let copied = match from {
            // SAFETY: By the type invariants the folio is valid, and locked for us, and has the page.
            PageSource::Cache(page) => unsafe { page.copy_to(folio, pgoff) },
            PageSource::Memory(bytes) => {
                let len = bytes.len().min(PAGE_SIZE as usize);
                // SAFETY: As above; there are as many bytes, and not more than a page takes.
                unsafe {
                    bindings::vmem_folio_copy_kernel(folio, pgoff, bytes.as_ptr().cast(), len);
                }
                Ok(())
            }
        };
        // SAFETY: By the type invariants the folio is locked. Without this, a new folio would not be
        // up to date, and hold what was there before.
        unsafe { bindings::vmem_folio_filled(folio, pgoff, 1) };
        copied
    }

    /// Copies `len` bytes to the page `pgoff`, which lies in the folio, from its byte `offset` on.
    /// Returns how many it has copied: the copy ends where user memory is not present.
    pub(crate) fn write(
        &self,
        pgoff: u64,
        offset: u64,
        len: u64,
        from: &mut IovIterSource<'_>,
    ) -> u64 {
        let len = len.min(PAGE_SIZE.saturating_sub(offset));
        // SAFETY: By the type invariants the folio is valid, and locked for us; the bytes lie in one of
        // its pages; the iterator is valid.
        unsafe {
            let (folio, from) = (self.0.as_ptr(), from.as_raw());
            let (pgoff, offset, len) = (pgoff as usize, offset as usize, len as usize);
            bindings::vmem_folio_write(folio, pgoff, offset, len, from) as u64
        }
    }

    /// Zeroes `len` bytes of the page `pgoff`, which lies in the folio, from its byte `offset` on.
    pub(crate) fn zero(&self, pgoff: u64, offset: u64, len: u64) {
        let len = len.min(PAGE_SIZE.saturating_sub(offset));
        let (pgoff, offset, len) = (pgoff as usize, offset as usize, len as usize);
        // SAFETY: By the type invariants the folio is valid, and locked for us; the bytes lie in one of
        // its pages.
        unsafe { bindings::vmem_folio_zero(self.0.as_ptr(), pgoff, offset, len) };
    }

    /// The page for `pgoff`, which lies in the folio.
    pub(super) fn page(&self, pgoff: u64) -> *mut kernel::bindings::page {
        // SAFETY: By the type invariants the folio is valid.
        unsafe { bindings::vmem_folio_page(self.0.as_ptr(), pgoff as usize) }
    }

    /// Passes the reference and the lock to the user of the page that is returned.
    pub(super) fn into_page(self, pgoff: u64) -> *mut kernel::bindings::page {
        let page = self.page(pgoff);
        core::mem::forget(self);
        page
    }
}

/// A folio that another function has locked, during `'a`.
pub(super) struct BorrowedFolio<'a>(ManuallyDrop<LockedFolio>, PhantomData<&'a ()>);

impl Deref for BorrowedFolio<'_> {
    type Target = LockedFolio;

    fn deref(&self) -> &LockedFolio {
        &self.0
    }
}

impl Drop for LockedFolio {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the lock and the reference are ours.
        unsafe { bindings::vmem_folio_unlock_put(self.0.as_ptr()) };
    }
}
