// SPDX-License-Identifier: GPL-2.0

//! The results of fault handlers (`enum vm_fault_reason`).

use kernel::bindings as c;

/// The result of a fault handler.
#[derive(Clone, Copy)]
pub(crate) struct VmFaultReason(pub(super) c::vm_fault_t);

impl VmFaultReason {
    /// Retry. For a fault that may not wait.
    pub(crate) const RETRY: Self = Self(c::vm_fault_reason_VM_FAULT_RETRY);
    /// Retry. For a fault that was unlocked; the retried fault knows that it has waited.
    pub(crate) const RETRY_MAJOR: Self =
        Self(c::vm_fault_reason_VM_FAULT_RETRY | c::vm_fault_reason_VM_FAULT_MAJOR);
    /// For a fault that was unlocked: the page table has the page.
    pub(crate) const COMPLETED: Self = Self(
        c::vm_fault_reason_VM_FAULT_COMPLETED
            | c::vm_fault_reason_VM_FAULT_NOPAGE
            | c::vm_fault_reason_VM_FAULT_MAJOR,
    );
    /// The page is not available.
    pub(crate) const SIGBUS: Self = Self(c::vm_fault_reason_VM_FAULT_SIGBUS);
    /// The page counts as broken memory.
    pub(crate) const HWPOISON: Self = Self(c::vm_fault_reason_VM_FAULT_HWPOISON);
    pub(super) const OOM: Self = Self(c::vm_fault_reason_VM_FAULT_OOM);
    /// The page table has the page, or the fault is to be raised again.
    pub(super) const NOPAGE: Self = Self(c::vm_fault_reason_VM_FAULT_NOPAGE);
    /// The page is in `vmf->page`, and its folio is locked.
    pub(super) const LOCKED: Self = Self(c::vm_fault_reason_VM_FAULT_LOCKED);

    /// Whether a function has reported a lack of memory.
    pub(super) fn is_oom(self) -> bool {
        self.0 & Self::OOM.0 != 0
    }

    /// Whether this is the result of a function that has mapped a page.
    pub(super) fn is_nopage(raw: c::vm_fault_t) -> bool {
        raw == Self::NOPAGE.0
    }

    pub(super) fn into_raw(self) -> c::vm_fault_t {
        self.0
    }
}
