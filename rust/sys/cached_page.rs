// SPDX-License-Identifier: GPL-2.0

//! A page in the page cache of a file.
//!
//! Stands in for an abstraction of `struct folio`, which upstream does not have.

use super::bindings;
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    fs::File,
    prelude::*, //
};

/// A page of a file, in the page cache.
///
/// # Invariants
///
/// The folio has the page at `pos` of the file, and carries a reference.
pub(crate) struct CachedPage<'a> {
    file: &'a File,
    folio: NonNull<kernel::bindings::folio>,
    /// In bytes.
    pos: i64,
    /// Bytes of the page that count.
    len: usize,
}

impl<'a> CachedPage<'a> {
    /// The page at `pos` of the file, of which `len` bytes count. [`None`] if `folio` is null.
    ///
    /// # Safety
    ///
    /// `folio` is null, or has the page and carries a reference, whose ownership the caller passes
    /// on.
    pub(super) unsafe fn new(
        file: &'a File,
        folio: *mut kernel::bindings::folio,
        pos: i64,
        len: usize,
    ) -> Option<Self> {
        // INVARIANT: By the safety requirement.
        Some(Self {
            file,
            folio: NonNull::new(folio)?,
            pos,
            len,
        })
    }

    /// Copies the page to page `pgoff` of a folio. `EIO` if the memory of the page is broken,
    /// `ESTALE` if the file has been truncated meanwhile: the copy may be zeros.
    ///
    /// # Safety
    ///
    /// The folio is valid and locked, and has the page `pgoff`.
    pub(super) unsafe fn copy_to(&self, to: *mut kernel::bindings::folio, pgoff: usize) -> Result {
        let (file, from) = (self.file.as_ptr(), self.folio.as_ptr());
        // SAFETY: By the type invariants, and the safety requirement; the file is held.
        to_result(unsafe { bindings::vmem_backing_copy(to, pgoff, file, from, self.pos, self.len) })
    }
}

impl Drop for CachedPage<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the reference is ours.
        unsafe { bindings::vmem_backing_put(self.folio.as_ptr()) };
    }
}
