// SPDX-License-Identifier: GPL-2.0-or-later
//! Arguments that name the shared memory of a process.

use std::path::PathBuf;

use clap::Args;

/// Shared memory that a process has open.
#[derive(Debug, Args)]
pub(crate) struct MemoryOf {
    /// The process that has the memory open
    #[arg(long, value_name = "PID", requires = "memory", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: i32,
    /// The memory: its path as /proc/PID/fd shows it, a part of the path that is unique among the process's shared memory, or /proc/PID/fd/FD
    #[arg(long, value_name = "PATH", requires = "pid")]
    pub(crate) memory: PathBuf,
}
