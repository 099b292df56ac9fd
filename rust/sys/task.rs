// SPDX-License-Identifier: GPL-2.0

//! The running task, and the machine.
//!
//! Stands in for `cond_resched()`, `fatal_signal_pending()`, a killable sleep, `si_mem_available()` and
//! `system_dfl_wq`, which the kernel crate does not have.

use super::bindings;
use kernel::{
    iov::IovIterSource,
    prelude::*,
    workqueue::Queue, //
};

/// How much memory is available without swapping, in bytes.
pub(crate) fn available_memory() -> u64 {
    // SAFETY: Reads counters.
    unsafe { bindings::vmem_available_memory() as u64 }
}

/// The work queue for work that nothing waits for, on any processor.
pub(crate) fn system_dfl_wq() -> &'static Queue {
    // SAFETY: This queue of the kernel exists before any module is loaded.
    unsafe { Queue::from_raw(kernel::bindings::system_dfl_wq) }
}

/// Waits, when the module drops it, until no task is preempted in the module's code.
///
/// A task that puts the last reference to the module from within its code has yet to return: a
/// kernel thread in a fault, whose file another thread releases, or a task that removes a node.
/// While the task is preempted there, the code must stay.
pub(crate) struct ExitBarrier;

impl Drop for ExitBarrier {
    fn drop(&mut self) {
        // SAFETY: In process context, with nothing held: the module's exit, or the end of a failed
        // initialization.
        unsafe { bindings::vmem_synchronize_rcu_tasks() };
    }
}

/// A reference to the module, for objects that may exist while none of its files is open.
pub(crate) struct ModuleRef;

impl ModuleRef {
    /// Takes a reference. The caller has one, or the module's exit waits for the caller.
    pub(crate) fn new() -> Self {
        // SAFETY: The module is loaded: its code runs.
        unsafe { kernel::bindings::__module_get(&raw mut bindings::__this_module) };
        Self
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: The reference is ours. [`ExitBarrier`] waits for tasks that are preempted in the
        // code after this.
        unsafe { kernel::bindings::module_put(&raw mut bindings::__this_module) };
    }
}

/// Whether the running task is exiting, so that no signal reaches it any more.
pub(crate) fn is_exiting() -> bool {
    // SAFETY: The running task is valid, and its flags are its own to read.
    unsafe { (*kernel::task::Task::current_raw()).flags & kernel::bindings::PF_EXITING != 0 }
}

/// `EFAULT` unless user memory can be at `[addr, addr + len)`.
pub(crate) fn check_user_range(addr: u64, len: u64) -> Result {
    let addr = usize::try_from(addr).map_err(|_| EFAULT)?;
    let len = usize::try_from(len).map_err(|_| EFAULT)?;
    // SAFETY: Compares numbers.
    match unsafe { bindings::vmem_access_ok(addr, len) } {
        0 => Err(EFAULT),
        _ => Ok(()),
    }
}

/// Faults in a page of user memory, for reading. `EFAULT` if that fails, `EINTR` if the task is
/// being killed. The fault may wait for another process to bring the page, so the caller holds no
/// lock.
pub(crate) fn fault_in_readable(addr: u64) -> Result {
    cond_resched_or_killed()?;
    let addr = usize::try_from(addr).map_err(|_| EFAULT)?;
    // SAFETY: The function checks the address as any user address.
    kernel::error::to_result(unsafe { bindings::vmem_fault_in_readable(addr) })
}

/// The same for `len` bytes that are to be written to a file, as far as they are user memory.
pub(crate) fn fault_in_source(from: &mut IovIterSource<'_>, len: u64) -> Result {
    cond_resched_or_killed()?;
    let len = usize::try_from(len).map_err(|_| EFAULT)?;
    // SAFETY: The iterator is valid.
    kernel::error::to_result(unsafe { bindings::vmem_fault_in_source(from.as_raw(), len) })
}

/// Sleeps for a tick of the clock. `EINTR` if the task is being killed.
pub(crate) fn sleep_killable() -> Result {
    let left = kernel::time::msecs_to_jiffies(1) as isize;
    // SAFETY: As for `cond_resched_or_killed`; the time is not negative.
    unsafe { kernel::bindings::schedule_timeout_killable(left) };
    cond_resched_or_killed()
}

/// Waits until all RCU read-side sections that have begun have ended.
pub(crate) fn synchronize_rcu() {
    // SAFETY: In process context, with nothing held that a reader could wait for.
    unsafe { bindings::vmem_synchronize_rcu() };
}

/// For use between two pieces of long work: lets other tasks run. `EINTR` if the task is being
/// killed.
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
