// SPDX-License-Identifier: GPL-2.0

//! The task that runs, and the machine.
//!
//! Stands in for `cond_resched()`, `fatal_signal_pending()`, a killable sleep, `si_mem_available()` and
//! `system_dfl_wq`, which the kernel crate does not have.

use super::bindings;
use kernel::{
    prelude::*,
    workqueue::Queue, //
};

/// Memory that can be had without swapping, in bytes.
pub(crate) fn available_memory() -> u64 {
    // SAFETY: Reads counters.
    unsafe { bindings::vmem_available_memory() as u64 }
}

/// Where work is put that nobody waits for, on any processor.
pub(crate) fn system_dfl_wq() -> &'static Queue {
    // SAFETY: A queue of the kernel's own, which is there from before any module.
    unsafe { Queue::from_raw(kernel::bindings::system_dfl_wq) }
}

/// That the code of the module may be in use; dropped when the module goes.
///
/// Who puts the last reference to the module from within its code has yet to return: a kernel thread
/// in a fault, whose file another thread releases, or who removes a node. While it is preempted there,
/// the code must stay.
pub(crate) struct ExitBarrier;

impl Drop for ExitBarrier {
    fn drop(&mut self) {
        // SAFETY: In process context, with nothing held: the module's exit, or the end of a failed
        // initialization.
        unsafe { bindings::vmem_synchronize_rcu_tasks() };
    }
}

/// A reference to the module, for what may be used while no file of ours is open.
pub(crate) struct ModuleRef;

impl ModuleRef {
    /// For a caller who has one, or is waited for.
    pub(crate) fn new() -> Self {
        // SAFETY: The module is there: its code runs.
        unsafe { kernel::bindings::__module_get(&raw mut bindings::__this_module) };
        Self
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: The reference is ours. [`ExitBarrier`] waits for who is preempted in the code after it.
        unsafe { kernel::bindings::module_put(&raw mut bindings::__this_module) };
    }
}

/// Whether the running task ends, so that no signal reaches it any more.
pub(crate) fn is_exiting() -> bool {
    // SAFETY: The running task is valid, and its flags are its own to read.
    unsafe { (*kernel::task::Task::current_raw()).flags & kernel::bindings::PF_EXITING != 0 }
}

/// `EFAULT` unless `[addr, addr + len)` is a place where user memory can be.
pub(crate) fn check_user_range(addr: u64, len: u64) -> Result {
    let addr = usize::try_from(addr).map_err(|_| EFAULT)?;
    let len = usize::try_from(len).map_err(|_| EFAULT)?;
    // SAFETY: Compares numbers.
    match unsafe { bindings::vmem_access_ok(addr, len) } {
        0 => Err(EFAULT),
        _ => Ok(()),
    }
}

/// Brings a page of user memory in, for reading; `EFAULT` if it cannot be had. May wait for whoever
/// has the page, so nothing is held. `EINTR` if the task is being killed.
pub(crate) fn fault_in_readable(addr: u64) -> Result {
    cond_resched_or_killed()?;
    let addr = usize::try_from(addr).map_err(|_| EFAULT)?;
    // SAFETY: The address is checked by the function as any user address.
    kernel::error::to_result(unsafe { bindings::vmem_fault_in_readable(addr) })
}

/// Sleeps for a tick of the clock, or stops (`EINTR`) if the task is being killed.
pub(crate) fn sleep_killable() -> Result {
    let left = kernel::time::msecs_to_jiffies(1) as isize;
    // SAFETY: As for `cond_resched_or_killed`; the time is not negative.
    unsafe { kernel::bindings::schedule_timeout_killable(left) };
    cond_resched_or_killed()
}

/// Waits until all read-side sections of RCU that have begun are over.
pub(crate) fn synchronize_rcu() {
    // SAFETY: In process context, with nothing held that a reader could wait for.
    unsafe { bindings::vmem_synchronize_rcu() };
}

/// Between two pieces of long work: lets others run, and stops (`EINTR`) if the task is being killed.
pub(crate) fn cond_resched_or_killed() -> Result {
    // SAFETY: Callers are in process context and hold no spinlock: they are between two pieces of
    // work of a system call.
    unsafe { bindings::vmem_cond_resched() };
    // SAFETY: Reads a flag of the running task.
    if unsafe { bindings::vmem_fatal_signal_pending() } != 0 {
        return Err(EINTR);
    }
    Ok(())
}
