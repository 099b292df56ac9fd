// SPDX-License-Identifier: GPL-2.0-or-later
//! On which processor a thread runs, and how long it ran there.

use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::failure::{During, Outcome};

/// How many processors there are.
pub(crate) fn count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// From now on this thread, and those that it makes, run on this processor alone.
pub(crate) fn only(cpu: usize) -> Outcome {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).during("sched_setaffinity")
}

/// Makes something, and goes on on processor 0. A thread that it makes has the processor of the one that makes it: if it has one
/// (`has_thread`), that is the last processor. Where there is none, the other processor has nothing to do with it.
pub(crate) fn apart<T>(has_thread: bool, make: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    only(if has_thread { count() - 1 } else { 0 })?;
    let made = make()?;
    only(0)?;
    Ok(made)
}

/// From now on this thread, and those that it makes, run on any processor.
pub(crate) fn everywhere() -> Outcome {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
    sched_setaffinity(None, &set).during("sched_setaffinity")
}

/// Time that the threads of this process ran, in the program and in the kernel.
pub(crate) fn time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
