// SPDX-License-Identifier: GPL-2.0

//! The first write to protected pages.

use super::{
    bindings,
    staging::LockedFolio,
    vm_fault_reason::VmFaultReason, //
};
use crate::model::range::PageRange;
use kernel::bindings as c;

/// Pages of one folio that are about to become writable. The folio is locked.
pub(crate) struct WriteFault<'a> {
    folio: &'a LockedFolio,
    pages: PageRange,
}

impl<'a> WriteFault<'a> {
    /// For pages that are in the folio.
    pub(super) fn new(folio: &'a LockedFolio, pages: PageRange) -> Self {
        Self { folio, pages }
    }

    /// The pages.
    pub(crate) fn pages(&self) -> PageRange {
        self.pages
    }

    /// The folio that they are in.
    pub(crate) fn folio(&self) -> &LockedFolio {
        self.folio
    }
}

impl WriteFault<'_> {
    /// Implements `page_mkwrite`: locks the folio and asks `may` whether the pages may become
    /// writable. If so, the folio stays locked until they are. If not, calls `wait`, and the fault
    /// is raised again.
    ///
    /// # Safety
    ///
    /// `vmf` is the argument of `page_mkwrite`, for a VMA of a shmem file.
    pub(super) unsafe fn page_mkwrite(
        vmf: *mut c::vm_fault,
        may: impl FnOnce(&WriteFault<'_>) -> bool,
        wait: impl FnOnce(),
    ) -> c::vm_fault_t {
        let mut first = 0;
        // SAFETY: The fault is valid during the call.
        let nr = unsafe { bindings::vmem_tracked_lock(vmf, &raw mut first) };
        let Some(pages) = PageRange::within(first as u64, nr as u64, u64::MAX) else {
            return VmFaultReason::NOPAGE.into_raw();
        };
        // SAFETY: The fault is valid during the call; its page's folio has been locked, and the caller
        // has a reference.
        let folio = unsafe { LockedFolio::borrow(bindings::vmem_tracked_folio(vmf)) };
        if may(&WriteFault::new(&folio, pages)) {
            return VmFaultReason::LOCKED.into_raw();
        }
        // SAFETY: As above.
        unsafe { bindings::vmem_tracked_unlock(vmf) };
        // The lock of the mapping is held, so the wait is short.
        wait();
        VmFaultReason::NOPAGE.into_raw()
    }
}
