// SPDX-License-Identifier: GPL-2.0

//! A page in the page cache of a file.
//!
//! Stands in for an abstraction of `struct folio`, which upstream does not have.

use super::bindings;
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    prelude::*, //
};

/// A page of a file, in the page cache.
///
/// # Invariants
///
/// The folio has the page `index` of the file, and carries a reference.
pub(crate) struct CachedPage {
    folio: NonNull<kernel::bindings::folio>,
    index: usize,
}

impl CachedPage {
    /// The page `index` of the file. [`None`] if `folio` is null.
    ///
    /// # Safety
    ///
    /// `folio` is null, or has the page and carries a reference, whose ownership the caller passes
    /// on.
    pub(super) unsafe fn new(folio: *mut kernel::bindings::folio, index: u64) -> Option<Self> {
        // INVARIANT: By the safety requirement.
        Some(Self {
            folio: NonNull::new(folio)?,
            index: index as usize,
        })
    }

    /// Copies the page to page `pgoff` of a folio. `EIO` if the memory of the page is broken.
    ///
    /// # Safety
    ///
    /// The folio is valid and locked, and has the page `pgoff`.
    pub(super) unsafe fn copy_to(&self, to: *mut kernel::bindings::folio, pgoff: usize) -> Result {
        // SAFETY: By the type invariants, and the safety requirement.
        to_result(unsafe {
            bindings::vmem_backing_copy(to, pgoff, self.folio.as_ptr(), self.index)
        })
    }
}

impl Drop for CachedPage {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the reference is ours.
        unsafe { bindings::vmem_backing_put(self.folio.as_ptr()) };
    }
}
