// SPDX-License-Identifier: GPL-2.0

//! A fault in a mapping of a staging file.
//!
//! Stands in for an abstraction of `struct vm_fault`, which upstream does not have.

use super::{
    bindings,
    fault_address::FaultAddress,
    memcg::Memcg,
    staging::{
        FilledPage,
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

/// How many pages one read fault maps, if they are present. The page cache does the same for files
/// (`fault_around_bytes`).
const FAULT_AROUND_PAGES: usize = 16;

const PAGE_SIZE: usize = crate::model::range::PAGE_SIZE as usize;

/// Whether and how a fault may wait (`FAULT_FLAG_ALLOW_RETRY`, `FAULT_FLAG_RETRY_NOWAIT`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryMode {
    /// It may not wait: the caller retries later (KVM's asynchronous page faults).
    NoWait,
    /// It may wait after [`Fault::unlock`].
    DropLock,
    /// It waits with the lock held: the caller cannot retry.
    HoldLock,
}

/// What a fault may map. `write_faults` says whether the first write to a mapped page causes a
/// fault of its own. If not, such a write is not seen.
pub(crate) trait FaultPolicy {
    /// Whether all of these pages are present.
    fn present(&self, range: PageRange) -> bool;

    /// Which of these pages, at most 64, are present: a bit for each, the lowest for the first.
    fn present_among(&self, range: PageRange) -> u64;

    /// Decides whether a page may be mapped. Unless `write_faults`, it becomes writable with that.
    /// Its folio stays locked until it is mapped.
    fn may_map(&self, fault: &WriteFault<'_>, write_faults: bool) -> MapDecision;

    /// Waits for a short time until a page may become writable.
    fn await_writable(&self) {}

    /// Whether these pages, which are around the touched one, may be mapped, too. Called with their
    /// folio locked.
    fn allows_fault_around(&self, around: PageRange, write_faults: bool) -> bool;
}

/// The decision about a page that a fault wants to map.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapDecision {
    /// Map the page, and its folio as far as the memory management does.
    Map,
    /// Map the page, and no other page of its folio.
    MapPageOnly,
    /// Map nothing; the fault is raised again.
    Retry,
    /// Answer with SIGBUS.
    Sigbus,
}

/// Whether the first write to a page of a VMA is a fault of its own. It always is in a private
/// mapping, whose writes do not reach the memory.
///
/// # Safety
///
/// The VMA is locked.
pub(super) unsafe fn first_write_faults(vma: *mut c::vm_area_struct) -> bool {
    // SAFETY: By the safety requirement; a VMA whose faults come to this module has operations.
    unsafe {
        (*vma).__bindgen_anon_2.vm_flags & kernel::mm::virt::flags::SHARED == 0
            || (*(*vma).vm_ops).page_mkwrite.is_some()
    }
}

/// A fault.
///
/// # Invariants
///
/// `vmf` is valid during `'a`. Its VMA is valid until the fault is unlocked; from then on, `pinned`
/// holds the file that the VMA had.
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

    /// The page offset of the touched page.
    pub(crate) fn pgoff(&self) -> u64 {
        // SAFETY: By the type invariants.
        unsafe { (*self.vmf).__bindgen_anon_1.pgoff as u64 }
    }

    fn has(&self, flag: c::fault_flag) -> bool {
        // SAFETY: By the type invariants.
        unsafe { (*self.vmf).flags & flag != 0 }
    }

    /// Whether and how the fault may wait.
    pub(crate) fn retry_mode(&self) -> RetryMode {
        if !self.has(c::fault_flag_FAULT_FLAG_ALLOW_RETRY) {
            RetryMode::HoldLock
        } else if self.has(c::fault_flag_FAULT_FLAG_RETRY_NOWAIT) {
            RetryMode::NoWait
        } else {
            RetryMode::DropLock
        }
    }

    /// What may end the wait of an unlocked fault. A touch in a system call cannot be ended by a
    /// signal that does not kill: the touch would be retried at once with the signal still pending.
    /// The caller of such a fault gets one chance to abort it.
    pub(crate) fn wait_mode(&self) -> WaitMode {
        let leaves = self.has(c::fault_flag_FAULT_FLAG_USER) || !self.tried();
        if self.has(c::fault_flag_FAULT_FLAG_INTERRUPTIBLE) && leaves {
            WaitMode::Interruptible
        } else {
            WaitMode::Killable
        }
    }

    /// Whether this is a retry of a fault that has waited.
    pub(crate) fn tried(&self) -> bool {
        self.has(c::fault_flag_FAULT_FLAG_TRIED)
    }

    /// Whether no signal reaches the task: a kernel thread that faults for another task, or an
    /// exiting thread, which still clears the word of its thread id and walks its robust futexes.
    pub(crate) fn is_kernel_or_exiting_thread(&self) -> bool {
        task_flags() & (c::PF_KTHREAD | c::PF_EXITING) != 0
    }

    /// Whether the task is a kernel thread in the address space of a live process (vhost's).
    pub(crate) fn is_kthread_of_live_process(&self) -> bool {
        if !self.is_in_current_mm() {
            return false;
        }
        // SAFETY: By the type invariants; the fault is not unlocked.
        let mm = unsafe { (*self.vma()).vm_mm };
        // SAFETY: The VMA is locked, so its address space is valid.
        task_flags() & c::PF_KTHREAD != 0 && unsafe { bindings::vmem_mm_is_owned(mm) } != 0
    }

    /// Whether the fault is in the address space that the task runs in, and not unlocked. A fault
    /// of a debugger or of `/proc/PID/mem` is not.
    pub(crate) fn is_in_current_mm(&self) -> bool {
        if !self.pinned.is_null() {
            return false;
        }
        // SAFETY: By the type invariants; the fault is not unlocked.
        let mm = unsafe { (*self.vma()).vm_mm };
        // SAFETY: The running task is valid, and its address space its own to read.
        mm == unsafe { (*kernel::task::Task::current_raw()).mm }
    }

    /// Whether the mapping can write to the region, and the fault is not unlocked. A private
    /// mapping cannot, nor can a shared mapping of a file that is open for reading.
    pub(crate) fn may_write(&self) -> bool {
        if !self.pinned.is_null() {
            return false;
        }
        // SAFETY: By the type invariants; the fault is not unlocked.
        let vm_flags = unsafe { (*self.vma()).__bindgen_anon_2.vm_flags };
        vm_flags & kernel::mm::virt::flags::SHARED != 0
    }

    /// Whether the task locks memory on fault (`MLOCK_ONFAULT`, `MCL_ONFAULT`). Such a call touches
    /// each page of a range and needs none of them. Each of its touches is a new fault. A retried
    /// fault is a touch of something else on the call's way out, for example of a signal frame.
    pub(crate) fn is_mlock_onfault(&self) -> bool {
        !self.has(c::fault_flag_FAULT_FLAG_USER)
            && !self.tried()
            && self.retry_mode() == RetryMode::DropLock
            && self.is_in_current_mm()
            // SAFETY: Reads the registers of the running task.
            && unsafe { bindings::vmem_in_mlock_onfault() } != 0
    }

    /// The address of the touch.
    pub(crate) fn user_address(&self) -> usize {
        // SAFETY: By the type invariants.
        unsafe { (*self.vmf).__bindgen_anon_1.address }
    }

    /// Whether the process writes its core dump, or exits with all of its threads.
    pub(crate) fn is_process_dying(&self) -> bool {
        // SAFETY: Reads flags of the running task.
        unsafe { bindings::vmem_process_is_dying() != 0 }
    }

    /// The memory cgroup of the address space, if that is not the task's own.
    pub(crate) fn foreign_charge(&self) -> Option<Memcg> {
        if !self.pinned.is_null() || self.is_in_current_mm() {
            return None;
        }
        // SAFETY: By the type invariants; the fault is not unlocked, so its address space is valid.
        unsafe { Memcg::of_mm((*self.vma()).vm_mm) }
    }

    /// Where the page is to be mapped. [`None`] if the fault will copy the page (a write to a
    /// private mapping), or is unlocked.
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

    /// Drops the mmap or VMA lock, so that the fault may wait without blocking other threads. The
    /// fault must then return [`VmFaultReason::RETRY_MAJOR`] or [`VmFaultReason::COMPLETED`].
    ///
    /// The VMA may be freed after this. What its file holds stays valid until the fault has been
    /// answered.
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

    /// Answers with the page from the staging file. The page is present, and the fault is not
    /// unlocked. `filled` is the page if this fault has just read it.
    ///
    /// The memory management maps a large folio as a whole. So if pages near the touched one are
    /// absent, or if each written page is to be logged, this function maps only the touched page
    /// itself.
    pub(crate) fn map(
        &mut self,
        staging: &Staging,
        policy: &impl FaultPolicy,
        filled: Option<FilledPage>,
    ) -> VmFaultReason {
        if !self.pinned.is_null() {
            return VmFaultReason::RETRY_MAJOR;
        }
        let pgoff = self.pgoff();
        let vma = self.vma();
        // SAFETY: By the type invariants the VMA and its file are valid, as the fault is not
        // unlocked. So is the staging file.
        if unsafe { (*(*vma).vm_file).f_mapping != (*staging.as_ptr()).f_mapping } {
            return VmFaultReason::SIGBUS;
        }
        // SAFETY: By the type invariants; the fault is not unlocked.
        let (vm_flags, write_faults) =
            unsafe { ((*vma).__bindgen_anon_2.vm_flags, first_write_faults(vma)) };
        let shared = vm_flags & kernel::mm::virt::flags::SHARED != 0;
        let write = self.has(c::fault_flag_FAULT_FLAG_WRITE);
        let copied = write && !shared;
        let around = match &filled {
            // The pages around it are absent, or were brought by touches that have mapped them.
            Some(filled) => filled.has_others() && !copied,
            None => !write,
        };
        // A fault that has waited for its page is alone, or follows other faults that have mapped
        // the pages around it.
        if around && !self.tried() {
            self.fault_around(staging, policy, write_faults);
        }

        let folio = match filled.and_then(|filled| filled.into_folio(pgoff)) {
            Some(folio) => Ok(folio),
            // SAFETY: By the type invariants; the fault is not unlocked.
            None => unsafe { staging.lock_folio(pgoff, (*vma).vm_mm) },
        };
        let folio = match folio {
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
                // The lock of the mapping is held, so the wait is short.
                policy.await_writable();
                return VmFaultReason::NOPAGE;
            }
            MapDecision::Sigbus => return VmFaultReason::SIGBUS,
        }
        let whole = || !alone && block_of(pgoff).is_some_and(|block| policy.present(block));
        if folio.is_large() && !copied && !whole() {
            // The folio's lock keeps other threads from mapping the folio as a whole. A thread that
            // has done so before knew that all of it is present.
            // SAFETY: By the type invariants.
            if unsafe { bindings::vmem_fault_pmd_is_leaf(self.vmf) } != 0 {
                return VmFaultReason::NOPAGE;
            }
            return self.insert(&folio, pgoff);
        }
        // SAFETY: By the type invariants; the page's reference and its folio's lock pass to the
        // caller.
        unsafe { (*self.vmf).page = folio.into_page(pgoff) };
        VmFaultReason::LOCKED
    }

    /// Maps the touched page of a folio, which is locked.
    fn insert(&self, folio: &LockedFolio, pgoff: u64) -> VmFaultReason {
        // SAFETY: By the type invariants; the fault is not unlocked.
        if unsafe { bindings::vmem_fault_has_marker(self.vmf) } != 0 {
            // userfaultfd does not register such a VMA, so there is no marker. If there were one,
            // the insertion would leave it alone, and the fault would be raised again for ever; and
            // the kernel's own way to replace a marker may map all of the folio.
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
        // A page table that was freed under the fault looks like a lack of memory for one. An error
        // here would end a system call, and a virtual machine, though the page is present.
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

    /// Maps the present pages around a fault that are in the page cache, so that they will not
    /// fault. The page cache's own function would map a large folio beyond the range that it is
    /// asked for.
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
        // One page table has all of the window.
        let first = base.max(start);
        let end = base.saturating_add(window).min(end);
        let nr = end.saturating_sub(first) / PAGE_SIZE;
        let before = own.saturating_sub(first) / PAGE_SIZE;
        let Some(pgoff) = self.pgoff().checked_sub(before as u64) else {
            return;
        };
        let Some(around) = PageRange::within(pgoff, nr as u64, u64::MAX) else {
            return;
        };
        // SAFETY: By the type invariants; the fault is not unlocked. The window is in the VMA.
        let unmapped = unsafe { bindings::vmem_fault_unmapped(self.vmf, first, nr as u32) };
        let mut left = unmapped as u64 & !(1 << before);
        if left != 0 {
            left &= policy.present_among(around);
        }
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            left &= left - 1;
            let pgoff = pgoff.saturating_add(at as u64);
            let Some(folio) = staging.trylock_cached(pgoff) else {
                continue;
            };
            let Some(page) = PageRange::within(pgoff, 1, u64::MAX) else {
                continue;
            };
            if folio.is_large() || !policy.allows_fault_around(page, write_faults) {
                continue;
            }
            let addr = first.saturating_add(at * PAGE_SIZE);
            // SAFETY: The VMA is locked and the address in it; the page's folio is locked, small,
            // and of the VMA's file.
            let answer = unsafe { bindings::vmem_fault_insert(vma, addr, folio.page(pgoff)) };
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
