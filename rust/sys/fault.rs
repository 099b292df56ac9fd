// SPDX-License-Identifier: GPL-2.0

//! A fault in a mapping of a staging file.
//!
//! Stands in for an abstraction of `struct vm_fault`, which upstream does not have.

use super::{
    bindings,
    fault_address::FaultAddress,
    staging::{
        LockedFolio,
        Staging, //
    },
    vm_fault_reason::VmFaultReason,
    wait::WaitMode,
    write_fault::WriteFault, //
};
use crate::model::range::{
    PageRange,
    BLOCK_PAGES, //
};
use core::marker::PhantomData;
use kernel::{
    bindings as c,
    prelude::*, //
};

/// Pages that one read fault maps, if they are present: what the page cache does for files
/// (`fault_around_bytes`).
const FAULT_AROUND_PAGES: usize = 16;

const PAGE_SIZE: usize = crate::model::range::PAGE_SIZE as usize;

/// Whether the fault may wait, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryMode {
    /// Not at all: the caller comes back (KVM's asynchronous page faults).
    NoWait,
    /// After [`Fault::unlock`].
    DropLock,
    /// Where it is, with the lock held: the caller cannot start again.
    HoldLock,
}

/// What the pages behind a mapping say to a fault. `write_faults` is whether the first write to a page that is mapped
/// will be a fault again, or else nobody is told of it.
pub(crate) trait FaultPolicy {
    /// Whether these pages are all present.
    fn present(&self, range: PageRange) -> bool;

    /// What becomes of a page that is to be mapped, and is about to become writable unless `write_faults`. Its folio
    /// is locked until it is mapped.
    fn may_map(&self, fault: &WriteFault<'_>, write_faults: bool) -> MapDecision;

    /// Waits for a short time until a page may become writable.
    fn await_writable(&self) {}

    /// Whether pages that nobody touches may be mapped as well. Asked with their folio locked.
    fn allows_fault_around(&self, write_faults: bool) -> bool;
}

/// What becomes of a page that is to be mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapDecision {
    /// It is mapped.
    Map,
    /// It is, but nothing else of its folio.
    MapPageOnly,
    /// The fault comes again.
    Retry,
    /// It cannot be had.
    Sigbus,
}

/// Whether the first write to a page of a VMA is a fault of its own, or no write to the memory at all.
///
/// # Safety
///
/// The VMA is locked.
pub(super) unsafe fn first_write_faults(vma: *mut c::vm_area_struct) -> bool {
    // SAFETY: By the safety requirement; a VMA whose faults come here has operations.
    unsafe {
        (*vma).__bindgen_anon_2.vm_flags & kernel::mm::virt::flags::SHARED == 0
            || (*(*vma).vm_ops).page_mkwrite.is_some()
    }
}

/// A fault.
///
/// # Invariants
///
/// `vmf` is valid during `'a`; its VMA is until the fault is unlocked, and then `pinned` holds the
/// file that the VMA had.
pub(crate) struct Fault<'a> {
    vmf: *mut c::vm_fault,
    pinned: *mut c::file,
    _call: PhantomData<&'a mut ()>,
}

impl Fault<'_> {
    /// # Safety
    ///
    /// `vmf` is a fault that is being handled during `'_`, and its VMA is locked.
    pub(super) unsafe fn from_raw(vmf: *mut c::vm_fault) -> Self {
        // INVARIANT: By the safety requirement.
        Self {
            vmf,
            pinned: core::ptr::null_mut(),
            _call: PhantomData,
        }
    }

    /// The page that is wanted.
    pub(crate) fn pgoff(&self) -> u64 {
        // SAFETY: By the type invariants.
        unsafe { (*self.vmf).__bindgen_anon_1.pgoff as u64 }
    }

    fn has(&self, flag: c::fault_flag) -> bool {
        // SAFETY: By the type invariants.
        unsafe { (*self.vmf).flags & flag != 0 }
    }

    /// Whether it may wait.
    pub(crate) fn retry_mode(&self) -> RetryMode {
        if !self.has(c::fault_flag_FAULT_FLAG_ALLOW_RETRY) {
            RetryMode::HoldLock
        } else if self.has(c::fault_flag_FAULT_FLAG_RETRY_NOWAIT) {
            RetryMode::NoWait
        } else {
            RetryMode::DropLock
        }
    }

    /// What may end its wait, if it is unlocked. A system call that touches the page cannot be left
    /// for a signal that does not kill: it would start again at once, and again; it is given one
    /// chance to look.
    pub(crate) fn wait_mode(&self) -> WaitMode {
        let leaves = self.has(c::fault_flag_FAULT_FLAG_USER) || !self.tried();
        if self.has(c::fault_flag_FAULT_FLAG_INTERRUPTIBLE) && leaves {
            WaitMode::Interruptible
        } else {
            WaitMode::Killable
        }
    }

    /// Whether it has waited before.
    pub(crate) fn tried(&self) -> bool {
        self.has(c::fault_flag_FAULT_FLAG_TRIED)
    }

    /// Whether no signal reaches the task: a kernel thread that faults for somebody else, or a
    /// thread that ends, which still clears the word of its thread id and walks its robust futexes.
    pub(crate) fn is_kernel_or_exiting_thread(&self) -> bool {
        task_flags() & (c::PF_KTHREAD | c::PF_EXITING) != 0
    }

    /// Whether it is a kernel thread in the address space of a process that lives (vhost's).
    pub(crate) fn is_kthread_of_live_process(&self) -> bool {
        if !self.is_in_current_mm() {
            return false;
        }
        // SAFETY: By the type invariants; the fault is not unlocked.
        let mm = unsafe { (*self.vma()).vm_mm };
        // SAFETY: The VMA is locked, so its address space is valid.
        task_flags() & c::PF_KTHREAD != 0 && unsafe { bindings::vmem_mm_is_owned(mm) } != 0
    }

    /// Whether it is in the address space that the task runs in, and not unlocked. A debugger's and
    /// those of `/proc/PID/mem` are not.
    pub(crate) fn is_in_current_mm(&self) -> bool {
        if !self.pinned.is_null() {
            return false;
        }
        // SAFETY: By the type invariants; the fault is not unlocked.
        let mm = unsafe { (*self.vma()).vm_mm };
        // SAFETY: The running task is valid, and its address space its own to read.
        mm == unsafe { (*kernel::task::Task::current_raw()).mm }
    }

    /// Whether it comes through a mapping that can write to the region, and is not unlocked. A private
    /// mapping cannot, nor a shared one of a file that is open for reading.
    pub(crate) fn may_write(&self) -> bool {
        if !self.pinned.is_null() {
            return false;
        }
        // SAFETY: By the type invariants; the fault is not unlocked.
        let vm_flags = unsafe { (*self.vma()).__bindgen_anon_2.vm_flags };
        vm_flags & kernel::mm::virt::flags::SHARED != 0
    }

    /// Whether the task locks memory on fault: it touches each page of a range, and needs none of them.
    /// Such a touch starts anew each time. One that comes again is of something else on the call's way
    /// out, the frame of a signal, say.
    pub(crate) fn is_mlock_onfault(&self) -> bool {
        !self.has(c::fault_flag_FAULT_FLAG_USER)
            && !self.tried()
            && self.retry_mode() == RetryMode::DropLock
            && self.is_in_current_mm()
            // SAFETY: Reads the registers of the running task.
            && unsafe { bindings::vmem_in_mlock_onfault() } != 0
    }

    /// Where the touch is.
    pub(crate) fn user_address(&self) -> usize {
        // SAFETY: By the type invariants.
        unsafe { (*self.vmf).__bindgen_anon_1.address }
    }

    /// Whether the process writes its core dump, or ends with all of its threads.
    pub(crate) fn is_process_dying(&self) -> bool {
        // SAFETY: Reads what the running task says of itself.
        unsafe { bindings::vmem_process_is_dying() != 0 }
    }

    /// Where the page is wanted; [`None`] if it will be copied there, or the fault is unlocked.
    pub(crate) fn fault_address(&self) -> Option<FaultAddress> {
        if !self.pinned.is_null() {
            return None;
        }
        let write = self.has(c::fault_flag_FAULT_FLAG_WRITE);
        let vma = self.vma();
        // SAFETY: By the type invariants; the fault is not unlocked.
        let (mm, vm_flags, addr) = unsafe {
            (
                (*vma).vm_mm,
                (*vma).__bindgen_anon_2.vm_flags,
                (*self.vmf).__bindgen_anon_1.address,
            )
        };
        let shared = vm_flags & kernel::mm::virt::flags::SHARED != 0;
        (shared || !write).then_some(FaultAddress { mm, addr, write })
    }

    /// Lets go of the lock that others need, so that the fault may wait; its answer is then
    /// [`VmFaultReason::RETRY_MAJOR`] or [`VmFaultReason::COMPLETED`].
    ///
    /// The VMA may go. What its file holds stays until the fault has been answered.
    pub(crate) fn unlock(&mut self) {
        if !self.pinned.is_null() {
            return;
        }
        // SAFETY: By the type invariants the VMA is valid, and so is its file; the VMA's lock is held
        // and the caller of the fault allows for its release.
        // INVARIANT: `pinned` holds the file from before the lock is released.
        unsafe {
            self.pinned = c::get_file((*(*self.vmf).__bindgen_anon_1.vma).vm_file);
            bindings::vmem_fault_unlock(self.vmf);
        }
    }

    /// Answers with the page from the staging file. It is present, and the fault not unlocked.
    ///
    /// A folio of several pages is mapped as a whole by the memory management, so if pages near it are
    /// absent, or each is to be heard of, only the wanted page is mapped, and here.
    pub(crate) fn map(&mut self, staging: &Staging, policy: &impl FaultPolicy) -> VmFaultReason {
        if !self.pinned.is_null() {
            return VmFaultReason::RETRY_MAJOR;
        }
        let pgoff = self.pgoff();
        let vma = self.vma();
        // SAFETY: By the type invariants the VMA and its file are valid: the fault is not unlocked. So
        // is the staging file.
        if unsafe { (*(*vma).vm_file).f_mapping != (*staging.as_ptr()).f_mapping } {
            return VmFaultReason::SIGBUS;
        }
        // SAFETY: By the type invariants; the fault is not unlocked.
        let (vm_flags, write_faults) =
            unsafe { ((*vma).__bindgen_anon_2.vm_flags, first_write_faults(vma)) };
        let shared = vm_flags & kernel::mm::virt::flags::SHARED != 0;
        let write = self.has(c::fault_flag_FAULT_FLAG_WRITE);
        // Who has waited for a page comes alone, or behind others who have mapped what is around it.
        if !write && !self.tried() {
            self.fault_around(staging, policy, write_faults);
        }

        // SAFETY: By the type invariants; the fault is not unlocked.
        let folio = match unsafe { staging.lock_folio(pgoff, (*vma).vm_mm) } {
            Ok(folio) => folio,
            Err(e) if e == ENOMEM => return VmFaultReason::OOM,
            Err(_) => return VmFaultReason::SIGBUS,
        };
        let Some(page) = PageRange::within(pgoff, 1, u64::MAX) else {
            return VmFaultReason::SIGBUS;
        };
        // With a write fault the core asks for one page and then makes all of its folio writable.
        let mut alone = shared && write && write_faults;
        match policy.may_map(&WriteFault::new(&folio, page), write_faults) {
            MapDecision::Map => {}
            MapDecision::MapPageOnly => alone = true,
            MapDecision::Retry => {
                drop(folio);
                // The lock of the mapping is held, so not for long.
                policy.await_writable();
                return VmFaultReason::NOPAGE;
            }
            MapDecision::Sigbus => return VmFaultReason::SIGBUS,
        }
        let copied = write && !shared;
        let whole = || !alone && block_of(pgoff).is_some_and(|block| policy.present(block));
        if folio.is_large() && !copied && !whole() {
            // The lock of the folio keeps others from mapping it as a whole. Whoever has done so
            // knew that it is present.
            // SAFETY: By the type invariants.
            if unsafe { bindings::vmem_fault_pmd_is_leaf(self.vmf) } != 0 {
                return VmFaultReason::NOPAGE;
            }
            return self.insert(&folio, pgoff);
        }
        // SAFETY: By the type invariants; the page's reference and its folio's lock go with it.
        unsafe { (*self.vmf).page = folio.into_page(pgoff) };
        VmFaultReason::LOCKED
    }

    /// Maps the wanted page of a folio, which is locked.
    fn insert(&self, folio: &LockedFolio, pgoff: u64) -> VmFaultReason {
        // SAFETY: By the type invariants; the fault is not unlocked.
        if unsafe { bindings::vmem_fault_has_marker(self.vmf) } != 0 {
            // userfaultfd does not register such a VMA, so there is no marker. If there were one, the
            // insertion would leave it alone, and the fault would come again for ever; and the kernel's
            // own way to replace it may map all of the folio.
            return VmFaultReason::SIGBUS;
        }
        let insert = || {
            // SAFETY: The VMA is locked, and the address of the fault is in it; the page's folio is locked.
            VmFaultReason(unsafe {
                let addr = (*self.vmf).__bindgen_anon_1.address;
                bindings::vmem_fault_insert(self.vma(), addr, folio.page(pgoff))
            })
        };
        let answer = insert();
        if !answer.is_oom() {
            return answer;
        }
        let again = insert();
        // A page table that was taken away under the fault looks like one for which there is no
        // memory. That would end a system call, and a virtual machine, though the page is here.
        // SAFETY: In process context; no spinlock is held.
        if again.is_oom() && unsafe { bindings::vmem_has_page_table_memory() } != 0 {
            return VmFaultReason::NOPAGE;
        }
        again
    }

    fn vma(&self) -> *mut c::vm_area_struct {
        // SAFETY: By the type invariants.
        unsafe { (*self.vmf).__bindgen_anon_1.vma }
    }

    /// Maps the present pages around a read fault, those that the page cache has at hand, so that
    /// they will not fault. The page cache's own function would map a large folio beyond the range
    /// that it is asked for.
    fn fault_around(&mut self, staging: &Staging, policy: &impl FaultPolicy, write_faults: bool) {
        let vma = self.vma();
        // SAFETY: By the type invariants; the fault is not unlocked.
        let (addr, start, end) = unsafe {
            let bounds = &(*vma).__bindgen_anon_1.__bindgen_anon_1;
            (
                (*self.vmf).__bindgen_anon_1.address,
                bounds.vm_start,
                bounds.vm_end,
            )
        };
        let window = FAULT_AROUND_PAGES * PAGE_SIZE;
        let own = addr & !(PAGE_SIZE - 1);
        let base = addr & !(window - 1);
        for at in (base..base.saturating_add(window)).step_by(PAGE_SIZE) {
            if at == own || at < start || at >= end {
                continue;
            }
            // `at` and `own` are in one VMA, so the page offsets differ as the addresses do.
            let pgoff = (self.pgoff() as i64) + (at as i64 - own as i64) / PAGE_SIZE as i64;
            let Some(range) = PageRange::within(pgoff as u64, 1, u64::MAX) else {
                continue;
            };
            if !policy.present(range) {
                continue;
            }
            let Some(folio) = staging.trylock_cached(range.start()) else {
                continue;
            };
            if folio.is_large() || !policy.allows_fault_around(write_faults) {
                continue;
            }
            // SAFETY: The VMA is locked and the address in it; the page's folio is locked, small,
            // and of the VMA's file.
            let answer = unsafe { bindings::vmem_fault_insert(vma, at, folio.page(range.start())) };
            if !VmFaultReason::is_nopage(answer) {
                return;
            }
        }
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        if !self.pinned.is_null() {
            // SAFETY: By the type invariants the reference is ours.
            unsafe { c::fput(self.pinned) };
        }
    }
}

/// The `PF_` flags of the running task.
fn task_flags() -> u32 {
    // SAFETY: The running task is valid, and its flags are its own to read.
    unsafe { (*kernel::task::Task::current_raw()).flags }
}

/// The block that a page is in.
fn block_of(pgoff: u64) -> Option<PageRange> {
    PageRange::within(pgoff & !(BLOCK_PAGES - 1), BLOCK_PAGES, u64::MAX)
}
