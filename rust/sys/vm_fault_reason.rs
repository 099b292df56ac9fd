// SPDX-License-Identifier: GPL-2.0

//! The answers of fault handlers.

use kernel::bindings as c;

/// What a fault handler returns.
#[derive(Clone, Copy)]
pub(crate) struct VmFaultReason(pub(super) c::vm_fault_t);

impl VmFaultReason {
    /// Start again: for a fault that may not wait.
    pub(crate) const RETRY: Self = Self(c::vm_fault_reason_VM_FAULT_RETRY);
    /// Start again: for a fault that was unlocked. It has waited, which the next try shall know.
    pub(crate) const RETRY_MAJOR: Self =
        Self(c::vm_fault_reason_VM_FAULT_RETRY | c::vm_fault_reason_VM_FAULT_MAJOR);
    /// For a fault that was unlocked: the page table is as it should be.
    pub(crate) const COMPLETED: Self = Self(
        c::vm_fault_reason_VM_FAULT_COMPLETED
            | c::vm_fault_reason_VM_FAULT_NOPAGE
            | c::vm_fault_reason_VM_FAULT_MAJOR,
    );
    /// The page cannot be had.
    pub(crate) const SIGBUS: Self = Self(c::vm_fault_reason_VM_FAULT_SIGBUS);
    /// The page is as good as broken memory.
    pub(crate) const HWPOISON: Self = Self(c::vm_fault_reason_VM_FAULT_HWPOISON);
    pub(super) const OOM: Self = Self(c::vm_fault_reason_VM_FAULT_OOM);
    /// The page table is as it should be, or the fault is to come again.
    pub(super) const NOPAGE: Self = Self(c::vm_fault_reason_VM_FAULT_NOPAGE);
    /// The page is in `vmf->page`, and its folio is locked.
    pub(super) const LOCKED: Self = Self(c::vm_fault_reason_VM_FAULT_LOCKED);

    /// Whether there was no memory, says the function that gave the answer.
    pub(super) fn is_oom(self) -> bool {
        self.0 & Self::OOM.0 != 0
    }

    /// Whether this is the answer of a function that has mapped a page.
    pub(super) fn is_nopage(raw: c::vm_fault_t) -> bool {
        raw == Self::NOPAGE.0
    }

    pub(super) fn into_raw(self) -> c::vm_fault_t {
        self.0
    }
}
