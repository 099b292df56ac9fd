// SPDX-License-Identifier: GPL-2.0

//! The addresses at which faults wait for pages.

use super::{
    array_vec::ArrayVec,
    bindings, //
};
use kernel::bindings as c;

/// Where a fault wants to map a page: an address in an address space, to read or to write.
///
/// It holds no reference: the waiting fault keeps the address space alive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FaultAddress {
    pub(super) mm: *mut c::mm_struct,
    pub(super) addr: usize,
    pub(super) write: bool,
}

/// How many addresses one wake-up serves at most. Faults at other addresses map the page
/// themselves.
const MAX_ADDRESSES: usize = 8;

/// Addresses at which faults wait for pages, each once, with their page offsets.
///
/// # Invariants
///
/// For each address there is a reference of `mmget()` to its address space.
pub(crate) struct FaultAddresses(ArrayVec<(u64, FaultAddress), MAX_ADDRESSES>);

impl FaultAddresses {
    /// An empty set.
    pub(crate) fn new() -> Self {
        // INVARIANT: The set is empty.
        Self(ArrayVec::new())
    }

    /// Adds the address at which a fault waits for `pgoff`. Returns whether the set has the address
    /// then.
    ///
    /// # Safety
    ///
    /// The address space of `address` has a user during the call.
    pub(super) unsafe fn add(&mut self, pgoff: u64, address: FaultAddress) -> bool {
        if self.iter().any(|(_, known)| *known == address) {
            return true;
        }
        if self.0.remaining_capacity() == 0 {
            return false;
        }
        // SAFETY: By the safety requirement the address space is valid.
        // INVARIANT: The reference is taken here.
        unsafe { bindings::vmem_mmget(address.mm) != 0 && self.0.push((pgoff, address)) }
    }

    /// Whether the set is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    /// Page offsets and addresses.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(u64, FaultAddress)> {
        self.0.as_slice().iter()
    }
}

impl Drop for FaultAddresses {
    fn drop(&mut self) {
        for (_, address) in self.iter() {
            // The last user tears the address space down, which takes long and takes locks. Leave
            // it to a worker.
            // SAFETY: By the type invariants the reference is ours.
            unsafe { c::mmput_async(address.mm) };
        }
    }
}
