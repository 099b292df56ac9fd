// SPDX-License-Identifier: GPL-2.0

//! Where pages are wanted.

use super::{
    array_vec::ArrayVec,
    bindings, //
};
use kernel::bindings as c;

/// Where a page is wanted: an address of an address space, to read or to write.
///
/// It holds nothing: whoever waits for the page keeps the address space alive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FaultAddress {
    pub(super) mm: *mut c::mm_struct,
    pub(super) addr: usize,
    pub(super) write: bool,
}

/// How many places one wake-up serves at most. Who waits at others maps the page for himself.
const MAX_ADDRESSES: usize = 8;

/// Places where pages are waited for, each once, with their page offsets.
///
/// # Invariants
///
/// For each of them there is a reference of `mmget()` to its address space.
pub(crate) struct FaultAddresses(ArrayVec<(u64, FaultAddress), MAX_ADDRESSES>);

impl FaultAddresses {
    /// None.
    pub(crate) fn new() -> Self {
        // INVARIANT: There is none.
        Self(ArrayVec::new())
    }

    /// Adds the place where `pgoff` is wanted. Returns whether it is among them then.
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

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    /// Page offsets and places.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(u64, FaultAddress)> {
        self.0.as_slice().iter()
    }
}

impl Drop for FaultAddresses {
    fn drop(&mut self) {
        for (_, address) in self.iter() {
            // The last user tears the address space down, which is long and takes locks; leave it to
            // a worker.
            // SAFETY: By the type invariants the reference is ours.
            unsafe { c::mmput_async(address.mm) };
        }
    }
}
