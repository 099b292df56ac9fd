// SPDX-License-Identifier: GPL-2.0

//! The memory cgroup that pages are charged to.
//!
//! Stands in for an abstraction of `include/linux/memcontrol.h`, which upstream does not have.

use super::bindings;
use core::ptr::NonNull;

/// A reference to a memory cgroup.
///
/// # Invariants
///
/// The pointer carries a reference count.
pub(crate) struct Memcg(NonNull<kernel::bindings::mem_cgroup>);

// SAFETY: A memory cgroup is reference-counted with atomics, and may be used and put on any thread.
unsafe impl Send for Memcg {}
// SAFETY: A shared reference gives only the pointer, whose use is thread-safe in C.
unsafe impl Sync for Memcg {}

impl Memcg {
    /// The cgroup that the running task's memory is charged to; [`None`] if memory cgroups are off.
    pub(crate) fn of_current() -> Option<Self> {
        // INVARIANT: The function returns a reference of its own, or null.
        // SAFETY: The running task is valid, and so is its mm (or null, which is allowed).
        NonNull::new(unsafe { bindings::vmem_memcg_of_current() }).map(Self)
    }

    /// The cgroup that the memory of `mm` is charged to; [`None`] if memory cgroups are off.
    ///
    /// # Safety
    ///
    /// The address space is valid.
    pub(super) unsafe fn of_mm(mm: *mut kernel::bindings::mm_struct) -> Option<Self> {
        // INVARIANT: The function returns a reference of its own, or null.
        // SAFETY: By the safety requirement.
        NonNull::new(unsafe { bindings::vmem_memcg_of_mm(mm) }).map(Self)
    }

    /// Whether it has not been removed.
    pub(crate) fn is_online(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { bindings::vmem_memcg_is_online(self.0.as_ptr()) != 0 }
    }

    /// The pointer, valid as long as `self` is.
    pub(crate) fn as_ptr(&self) -> *mut kernel::bindings::mem_cgroup {
        self.0.as_ptr()
    }
}

impl Drop for Memcg {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to put.
        unsafe { bindings::vmem_memcg_put(self.0.as_ptr()) };
    }
}
