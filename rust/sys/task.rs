// SPDX-License-Identifier: GPL-2.0

//! The task that runs.

use super::bindings;
use kernel::prelude::*;

/// Between two pieces of long work: lets others run, and stops (`EINTR`) if the task is being killed.
pub(crate) fn breathe() -> Result {
    // SAFETY: Callers are in process context and hold no spinlock: they are between two pieces of
    // work of a system call.
    unsafe { bindings::vmem_cond_resched() };
    // SAFETY: Reads a flag of the running task.
    if unsafe { bindings::vmem_fatal_signal_pending() } != 0 {
        return Err(EINTR);
    }
    Ok(())
}
