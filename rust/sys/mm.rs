// SPDX-License-Identifier: GPL-2.0

//! All the mappings of a region, in every process.
//!
//! Stands in for iteration over `address_space.i_mmap`, which upstream does not have. That tree is
//! the only list of the mappings, so no other list can disagree with it.

use super::{
    address_space::{
        AddressSpace,
        LockBudget,
        MmUser,
        VmaFilter,
        SPACES_BATCH, //
    },
    bindings,
    fault::first_write_faults,
    fault_address::{
        FaultAddress,
        FaultAddresses, //
    },
    memcg::Memcg,
    staging::{
        Filled,
        LockedFolio,
        Staging, //
    },
    vm_fault_reason::VmFaultReason,
    vm_ops::{
        MapFile,
        PlainFlags,
        VmOps,
        VmOpsTables, //
    }, //
};
use crate::model::range::{
    PageRange,
    PAGE_SHIFT, //
};
use kernel::{
    bindings as c,
    error::to_result,
    mm::virt::flags,
    prelude::*, //
};

/// Mappings are counted up to this number: none can be made or removed during the count.
const MAX_COUNT: usize = 4096;

/// How many address spaces are collected at most.
const MAX_SPACES: usize = 32768;

/// The mappings of a staging file that have this module's operations.
pub(crate) struct Mappings<'a, M: VmOps> {
    staging: &'a Staging,
    ops: &'static VmOpsTables<M>,
}

impl<'a, M: VmOps> Mappings<'a, M> {
    /// The mappings of `staging` as `M`.
    pub(crate) fn of(staging: &'a Staging) -> Self {
        Self {
            staging,
            ops: M::VM_OPS,
        }
    }

    fn all(&self) -> VmaFilter {
        VmaFilter::FaultHandler(self.ops.as_ptr())
    }

    fn count_matching(&self, filter: VmaFilter, max: usize) -> u64 {
        let filter = filter.to_raw();
        // SAFETY: The staging file is valid, and the tables are static.
        unsafe { bindings::vmem_count_vmas(self.staging.as_ptr(), &raw const filter, max) as u64 }
    }

    /// How many mappings there are. [`MAX_COUNT`] stands for that number and more.
    pub(crate) fn count(&self) -> u64 {
        self.count_matching(self.all(), MAX_COUNT)
    }

    /// How many of them log writes, up to `max`.
    pub(crate) fn count_logged(&self, max: usize) -> u64 {
        self.count_matching(VmaFilter::Ops(self.ops.logged()), max)
    }

    /// Makes all shared mappings log writes, as mappings of `file`. The permissions in page tables
    /// do not change. `EINTR` if the task is being killed; some mappings are then not changed.
    pub(crate) fn start_logging(&self, file: &MapFile<M>) -> Result {
        let filter = VmaFilter::Unswitched {
            from: self.ops.as_ptr(),
            to: self.ops.logged(),
            data: file.memory.cast(),
        };
        self.switch_ops(filter, file, self.ops.logged())
    }

    /// Makes the mappings that log writes plain mappings of `file` again. `EINTR` as above.
    pub(crate) fn stop_logging(&self, file: &MapFile<M>) -> Result {
        self.switch_ops(VmaFilter::Ops(self.ops.logged()), file, self.ops.as_ptr())
    }

    fn switch_ops(
        &self,
        filter: VmaFilter,
        file: &MapFile<M>,
        to: *const c::vm_operations_struct,
    ) -> Result {
        let switch = |vma| {
            // SAFETY: The VMA is valid while its address space is locked, which allows changing it.
            // The file is of the same memory, and holds what the operations need.
            unsafe {
                let memory = file.memory.cast_mut().cast();
                bindings::vmem_vma_switch(vma, file.file.as_ptr(), to, memory);
            }
            Ok(())
        };
        // SAFETY: The staging file is valid, and the tables are static.
        unsafe { AddressSpace::change_mappings(self.staging.as_ptr(), filter, switch) }
    }

    /// The address spaces that have such mappings, each once, but at most [`MAX_SPACES`]. Address
    /// spaces that are being torn down are left out: no task can fault in them.
    pub(crate) fn address_spaces(&self) -> Result<KVVec<AddressSpace>> {
        let mut room = SPACES_BATCH;
        loop {
            let (spaces, more) = self.collect_address_spaces(room)?;
            if !more || room >= MAX_SPACES {
                return Ok(spaces);
            }
            room = room.saturating_mul(8);
        }
    }

    fn collect_address_spaces(&self, room: usize) -> Result<(KVVec<AddressSpace>, bool)> {
        // SAFETY: The staging file is valid.
        unsafe { AddressSpace::collect(self.staging.as_ptr(), self.all(), room) }
    }

    /// Converts every mapping to what mmap() of the staging file gives. If the memory is tracked,
    /// that is a mapping that logs writes.
    ///
    /// `EINTR` if the task is being killed; some mappings are then not changed.
    pub(crate) fn make_plain(&self, plain: PlainFlags) -> Result {
        let staging = self.staging.as_ptr();
        let make_plain = |vma| {
            // SAFETY: The VMA is valid while its address space is locked, which allows changing it. Its
            // page tables hold pages of the same address space as before.
            unsafe {
                to_result(bindings::vmem_vma_make_plain(vma, staging))?;
                plain.apply(vma);
                // From here on mlock() pins pages, and brings them in.
                bindings::vmem_vma_set_flags(vma, 0, flags::LOCKONFAULT);
            }
            Ok(())
        };
        // SAFETY: The staging file is valid.
        unsafe { AddressSpace::change_mappings(staging, self.all(), make_plain) }
    }

    /// Sets `VM_LOCKONFAULT` in the mapping at `addr` of the running process, if it is one of
    /// these, so that a lock on fault does not bring in all of its pages. `EINTR` if the task is
    /// being killed.
    pub(crate) fn set_lockonfault(&self, addr: usize) -> Result {
        // SAFETY: The running task is valid, and its address space its own to read.
        let mm = unsafe { (*kernel::task::Task::current_raw()).mm };
        // SAFETY: A task in a system call of its own has an address space.
        if unsafe { bindings::vmem_mmget(mm) } == 0 {
            return Ok(());
        }
        let mut locked = MmUser(mm).write()?;
        let found = locked.vmas_from(addr).next();
        if let Some(vma) = found.filter(|vma| self.contains(*vma)) {
            // SAFETY: The VMA is valid while the lock is held, which allows changing its flags.
            unsafe {
                if (*vma).__bindgen_anon_1.__bindgen_anon_1.vm_start <= addr {
                    bindings::vmem_vma_set_flags(vma, flags::LOCKONFAULT, 0);
                }
            }
        }
        Ok(())
    }

    /// Faults in those pages of `range` for which `present` holds, in `space`. Returns how many
    /// pages are mapped then. Once the lock of `space` was not free within `budget`, the result is
    /// 0.
    pub(crate) fn populate(
        &self,
        space: &mut AddressSpace,
        budget: &mut LockBudget,
        range: PageRange,
        present: impl Fn(PageRange) -> bool,
    ) -> Result<u64> {
        let Some(mut locked) = space.read(budget)? else {
            return Ok(0);
        };
        // SAFETY: `locked` holds the address space.
        let charge = unsafe { Memcg::of_mm(locked.0 .0) };
        let charge = charge.as_ref().map_or(core::ptr::null_mut(), Memcg::as_ptr);
        let mut mapped = 0;
        for vma in locked.vmas() {
            super::task::cond_resched_or_killed()?;
            // SAFETY: The VMA is valid while the lock is held.
            let (start, end, pgoff, vm_flags) = unsafe {
                let bounds = &(*vma).__bindgen_anon_1.__bindgen_anon_1;
                (
                    bounds.vm_start,
                    bounds.vm_end,
                    (*vma).vm_pgoff as u64,
                    (*vma).__bindgen_anon_2.vm_flags,
                )
            };
            if !self.contains(vma) || vm_flags & (flags::READ | flags::WRITE | flags::EXEC) == 0 {
                continue;
            }
            let last = pgoff.saturating_add((end - start) as u64 >> PAGE_SHIFT);
            for at in range.start().max(pgoff)..range.end().min(last) {
                if !PageRange::within(at, 1, u64::MAX).is_some_and(&present) {
                    continue;
                }
                let addr = start + ((at - pgoff) << PAGE_SHIFT) as usize;
                // SAFETY: The lock is held, and the address is in the VMA; `charge` is null or held
                // above. Present pages do not make the fault wait, so it does not need permission
                // to unlock.
                let answer = unsafe { bindings::vmem_fault_remote(vma, addr, charge) };
                if answer & c::vm_fault_reason_VM_FAULT_OOM != 0 {
                    return Err(ENOMEM);
                }
                let failed = c::vm_fault_reason_VM_FAULT_SIGBUS
                    | c::vm_fault_reason_VM_FAULT_SIGSEGV
                    | c::vm_fault_reason_VM_FAULT_HWPOISON
                    | c::vm_fault_reason_VM_FAULT_HWPOISON_LARGE;
                mapped += u64::from(answer & failed == 0);
            }
        }
        Ok(mapped)
    }

    /// Maps a page that has just been filled at all `addresses`. Returns whether it is mapped at
    /// each of them. Page tables that this allocates are charged to `charge`. If writes are
    /// `logged`, the page is mapped only where its first write faults.
    pub(crate) fn map_filled(
        &self,
        filled: &Filled,
        addresses: &FaultAddresses,
        charge: Option<&Memcg>,
        logged: bool,
    ) -> bool {
        let charge = charge.map_or(core::ptr::null_mut(), Memcg::as_ptr);
        // Other threads may have mapped a large folio as a whole.
        !filled.folio().is_large()
            && addresses.iter().all(|(pgoff, address)| {
                filled.pages().start() == *pgoff
                    && self.map_page(filled.folio(), *pgoff, address, charge, logged)
            })
    }

    /// Maps the page of a small folio, which is locked, at an address, unless that would have to
    /// wait.
    fn map_page(
        &self,
        folio: &LockedFolio,
        pgoff: u64,
        address: &FaultAddress,
        charge: *mut c::mem_cgroup,
        logged: bool,
    ) -> bool {
        // SAFETY: `addresses` holds a user of each address space.
        let vma = unsafe { c::lock_vma_under_rcu(address.mm, address.addr) };
        if vma.is_null() {
            return false;
        }
        let page = folio.page(pgoff);
        // SAFETY: The VMA is locked for reading, until the end of this block; the page's folio is
        // locked and of the staging file; `charge` is null or referenced by the caller.
        unsafe {
            let mapped = self.may_map_at(vma, pgoff, address)
                && (!logged || first_write_faults(vma))
                && VmFaultReason::is_nopage(bindings::vmem_fault_insert_charged(
                    vma,
                    address.addr,
                    page,
                    charge,
                ));
            bindings::vmem_vma_end_read(vma);
            mapped
        }
    }

    /// Whether the VMA still maps the page at this address, with the permission that the fault
    /// needs.
    ///
    /// # Safety
    ///
    /// The VMA is locked, and the address in it.
    unsafe fn may_map_at(
        &self,
        vma: *mut c::vm_area_struct,
        pgoff: u64,
        address: &FaultAddress,
    ) -> bool {
        // SAFETY: By the safety requirement.
        let (start, first, vm_flags) = unsafe {
            let bounds = &(*vma).__bindgen_anon_1.__bindgen_anon_1;
            (
                bounds.vm_start,
                (*vma).vm_pgoff as u64,
                (*vma).__bindgen_anon_2.vm_flags,
            )
        };
        let needed = match address.write {
            true => flags::WRITE | flags::SHARED,
            false => flags::READ,
        };
        let at = first.checked_add((address.addr.saturating_sub(start) >> PAGE_SHIFT) as u64);
        self.contains(vma) && at == Some(pgoff) && vm_flags & needed == needed
    }

    fn contains(&self, vma: *mut c::vm_area_struct) -> bool {
        // SAFETY: Callers hold the lock of the address space or of the VMA, so the VMA is valid; a
        // VMA with our operations has a file.
        unsafe {
            self.ops.has((*vma).vm_ops)
                && (*(*vma).vm_file).f_mapping == (*self.staging.as_ptr()).f_mapping
        }
    }
}
