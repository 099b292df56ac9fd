// SPDX-License-Identifier: GPL-2.0

//! Address spaces of processes, and their locks.
//!
//! Stands in for iteration over the VMAs of an `mm_struct`, and for its lock where the kernel crate
//! has no killable one.

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

/// How long a call may wait for the locks of address spaces, all in all.
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

/// How many address spaces are looked at first, and how many are changed at a time. Both are powers of
/// two.
pub(super) const SPACES_BATCH: usize = 64;

/// Which mappings of a file are meant.
#[derive(Clone, Copy)]
pub(super) enum VmaFilter {
    /// Those whose faults go where those of this table go.
    FaultHandler(*const c::vm_operations_struct),
    /// Those with just this table.
    Ops(*const c::vm_operations_struct),
    /// The shared ones of the kind of `from`, and those with the table `to`, that do not have `to` and
    /// `data`.
    Unswitched {
        from: *const c::vm_operations_struct,
        to: *const c::vm_operations_struct,
        data: *const core::ffi::c_void,
    },
}

impl VmaFilter {
    /// As C wants it.
    pub(super) fn to_raw(self) -> bindings::vmem_vma_filter {
        let (kind, ops, data) = match self {
            Self::FaultHandler(kind) => (kind, core::ptr::null(), core::ptr::null()),
            Self::Ops(ops) => (core::ptr::null(), ops, core::ptr::null()),
            Self::Unswitched { from, to, data } => (from, to, data),
        };
        bindings::vmem_vma_filter { kind, ops, data }
    }
}

/// An address space, which may have lost its last user.
///
/// # Invariants
///
/// The pointer carries a reference of `mmgrab()`.
pub(crate) struct AddressSpace {
    mm: *mut c::mm_struct,
    /// Its lock was not to be had once.
    busy: bool,
}

impl AddressSpace {
    /// `room` of those that have such mappings of `file`, a power of two, and whether there may be more.
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
            // INVARIANT: The function has taken a reference for each. There is room for all, and one that
            // had none would be given back here.
            let _ = spaces.push_within_capacity(Self { mm, busy: false });
        }
        Ok((spaces, more != 0))
    }

    /// Calls `change` for each such mapping, with its address space locked against all changes. `change`
    /// has it match no more.
    ///
    /// `EINTR` if the task is being killed; some are then left.
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
        // Until none is found: there may be more than are taken at a time, and a fork may copy a mapping
        // before it is changed, into an address space that was not there when they were collected.
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

    /// Locks it against all changes; [`None`] if it has no user any more.
    fn write(&self) -> Result<Option<WriteLocked>> {
        self.mmget()?.map(MmUser::write).transpose()
    }

    /// Locks it against changes of its mappings; [`None`] if it has no user any more, or if the lock
    /// is not to be had: its holder may wait for what the caller has to bring.
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
    /// Locks it against all changes. `EINTR` if the task is being killed.
    pub(super) fn write(self) -> Result<WriteLocked> {
        // SAFETY: By the type invariant the address space is valid.
        to_result(unsafe { bindings::vmem_mmap_write_lock(self.0) })?;
        Ok(WriteLocked(self))
    }

    /// Its VMAs that end after `at`, in order of address. A VMA is valid as long as the caller holds the
    /// lock.
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
        // The last user tears the address space down, which is long and takes locks; leave it to a
        // worker.
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
