// SPDX-License-Identifier: GPL-2.0

//! Address spaces of processes, and their locks.
//!
//! Stands in for iteration over the VMAs of an `mm_struct`, and for a killable mmap lock, which the
//! kernel crate does not have.

use super::bindings;
use kernel::{
    bindings as c,
    error::to_result,
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// How long one call may wait for mmap locks, in total.
pub(crate) struct LockBudget {
    left_ns: i64,
}

impl LockBudget {
    /// A tenth of a second.
    pub(crate) fn new() -> Self {
        Self {
            left_ns: 100_000_000,
        }
    }
}

/// How many address spaces are collected in the first attempt, and how many are changed at a time.
/// Both are powers of two.
pub(super) const SPACES_BATCH: usize = 64;

/// Selects mappings of a file.
#[derive(Clone, Copy)]
pub(super) enum VmaFilter {
    /// The mappings whose fault handler is that of this table.
    FaultHandler(*const c::vm_operations_struct),
    /// The mappings with exactly this table.
    Ops(*const c::vm_operations_struct),
    /// The shared mappings that have the fault handler of `from` or the table `to`, except those
    /// that already have `to` and `data`.
    Unswitched {
        from: *const c::vm_operations_struct,
        to: *const c::vm_operations_struct,
        data: *const core::ffi::c_void,
    },
}

impl VmaFilter {
    /// The C structure.
    pub(super) fn to_raw(self) -> bindings::vmem_vma_filter {
        let (kind, ops, data) = match self {
            Self::FaultHandler(kind) => (kind, core::ptr::null(), core::ptr::null()),
            Self::Ops(ops) => (core::ptr::null(), ops, core::ptr::null()),
            Self::Unswitched { from, to, data } => (from, to, data),
        };
        bindings::vmem_vma_filter { kind, ops, data }
    }
}

/// An address space. It may have no user any more.
///
/// # Invariants
///
/// The pointer carries a reference of `mmgrab()`.
pub(crate) struct AddressSpace {
    mm: *mut c::mm_struct,
    /// Whether an attempt to lock it has timed out.
    busy: bool,
}

impl AddressSpace {
    /// Collects up to `room` (a power of two) address spaces that have such mappings of `file`.
    /// Also returns whether there may be more.
    ///
    /// # Safety
    ///
    /// The file is valid, and so are the tables.
    pub(super) unsafe fn collect(
        file: *mut c::file,
        filter: VmaFilter,
        room: usize,
    ) -> Result<(KVVec<Self>, bool)> {
        super::task::cond_resched_or_killed()?;
        let slots = room.checked_mul(2).ok_or(ENOMEM)?;
        let memory = GFP_KERNEL | __GFP_NOWARN;
        let mut spaces = KVVec::with_capacity(room, memory)?;
        let mut table = KVVec::from_elem(core::ptr::null_mut::<c::mm_struct>(), slots, memory)?;
        let (filter, bits) = (filter.to_raw(), slots.trailing_zeros());
        // SAFETY: The file is valid, and the table, which is empty, has so many slots.
        let more = unsafe {
            bindings::vmem_collect_mms(file, &raw const filter, table.as_mut_ptr(), bits)
        };
        for mm in table.iter().copied().filter(|mm| !mm.is_null()) {
            // INVARIANT: The function has taken a reference for each. The vector has room for all
            // of them; without room the reference would be dropped here.
            let _ = spaces.push_within_capacity(Self { mm, busy: false });
        }
        Ok((spaces, more != 0))
    }

    /// Calls `change` for each such mapping, with the mmap lock of its address space held for
    /// writing. After `change` the filter must not select the mapping any more.
    ///
    /// `EINTR` if the task is being killed; some mappings are then not changed.
    ///
    /// # Safety
    ///
    /// The file is valid, and so are the tables.
    pub(super) unsafe fn change_mappings(
        file: *mut c::file,
        filter: VmaFilter,
        mut change: impl FnMut(*mut c::vm_area_struct) -> Result,
    ) -> Result {
        // SAFETY: The file is valid.
        let mapping = unsafe { (*file).f_mapping };
        let raw = filter.to_raw();
        // Repeat until no mapping is found. There may be more address spaces than one batch takes,
        // and a fork may copy a mapping before it is changed, into an address space that did not
        // exist when they were collected.
        loop {
            // SAFETY: The file is valid.
            let (spaces, _) = unsafe { Self::collect(file, filter, SPACES_BATCH)? };
            super::task::cond_resched_or_killed()?;
            if spaces.is_empty() {
                return Ok(());
            }
            for space in &spaces {
                let Some(mut locked) = space.write()? else {
                    continue;
                };
                for vma in locked.vmas_from(0) {
                    super::task::cond_resched_or_killed()?;
                    // SAFETY: The VMA is valid while the address space is locked.
                    if unsafe { bindings::vmem_vma_matches(vma, mapping, &raw const raw) } != 0 {
                        change(vma)?;
                    }
                }
            }
        }
    }

    /// Takes the mmap lock for writing. [`None`] if the address space has no user any more.
    fn write(&self) -> Result<Option<WriteLocked>> {
        self.mmget()?.map(MmUser::write).transpose()
    }

    /// Takes the mmap lock for reading. [`None`] if the address space has no user any more, or if
    /// the lock is not free within the budget: its holder may wait for a page that the caller has
    /// to bring.
    pub(super) fn read(&mut self, budget: &mut LockBudget) -> Result<Option<ReadLocked>> {
        if self.busy {
            return Ok(None);
        }
        let Some(user) = self.mmget()? else {
            return Ok(None);
        };
        loop {
            // SAFETY: `user` holds the address space.
            if unsafe { bindings::vmem_mmap_read_trylock(user.0) } != 0 {
                return Ok(Some(ReadLocked(user)));
            }
            if budget.left_ns <= 0 {
                self.busy = true;
                return Ok(None);
            }
            let since = Instant::<Monotonic>::now();
            super::task::sleep_killable()?;
            budget.left_ns = budget.left_ns.saturating_sub(since.elapsed().as_nanos());
        }
    }

    fn mmget(&self) -> Result<Option<MmUser>> {
        super::task::cond_resched_or_killed()?;
        // SAFETY: By the type invariant the structure is valid.
        Ok((unsafe { bindings::vmem_mmget(self.mm) } != 0).then(|| MmUser(self.mm)))
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::vmem_mmdrop(self.mm) };
    }
}

/// A user of an address space.
///
/// # Invariants
///
/// The pointer carries a reference of `mmget()`.
pub(super) struct MmUser(pub(super) *mut c::mm_struct);

impl MmUser {
    /// Takes the mmap lock for writing. `EINTR` if the task is being killed.
    pub(super) fn write(self) -> Result<WriteLocked> {
        // SAFETY: By the type invariant the address space is valid.
        to_result(unsafe { bindings::vmem_mmap_write_lock(self.0) })?;
        Ok(WriteLocked(self))
    }

    /// The VMAs that end after `at`, in order of address. A VMA is valid as long as the caller
    /// holds the lock.
    fn vmas_from(&self, mut at: usize) -> impl Iterator<Item = *mut c::vm_area_struct> + '_ {
        core::iter::from_fn(move || {
            // SAFETY: By the type invariant the address space is valid; the callers hold its lock.
            let vma = unsafe { c::find_vma(self.0, at) };
            if vma.is_null() {
                return None;
            }
            // SAFETY: It was just found, under the lock.
            at = unsafe { (*vma).__bindgen_anon_1.__bindgen_anon_1.vm_end };
            Some(vma)
        })
    }
}

impl Drop for MmUser {
    fn drop(&mut self) {
        // The last user tears the address space down, which takes long and takes locks. Leave it to
        // a worker.
        // SAFETY: By the type invariant the reference is ours.
        unsafe { c::mmput_async(self.0) };
    }
}

/// An address space whose lock is held for writing.
pub(super) struct WriteLocked(MmUser);

impl WriteLocked {
    pub(super) fn vmas_from(
        &mut self,
        at: usize,
    ) -> impl Iterator<Item = *mut c::vm_area_struct> + '_ {
        self.0.vmas_from(at)
    }
}

impl Drop for WriteLocked {
    fn drop(&mut self) {
        // SAFETY: The lock is held.
        unsafe { bindings::vmem_mmap_write_unlock(self.0 .0) };
    }
}

/// An address space whose lock is held for reading.
pub(super) struct ReadLocked(pub(super) MmUser);

impl ReadLocked {
    pub(super) fn vmas(&mut self) -> impl Iterator<Item = *mut c::vm_area_struct> + '_ {
        self.0.vmas_from(0)
    }
}

impl Drop for ReadLocked {
    fn drop(&mut self) {
        // SAFETY: The lock is held.
        unsafe { bindings::vmem_mmap_read_unlock(self.0 .0) };
    }
}
