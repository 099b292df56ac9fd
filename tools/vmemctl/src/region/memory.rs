// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory that a command line names: a region, or shared memory that a process has open.

use std::os::fd::{AsFd, BorrowedFd};

use vmem::{Access, MapHandle, MemoryHandle, ProcessMemory};
use vmem_cli::Error;

use super::shown;
use crate::cli;

/// An open descriptor of the memory, by which it can be adopted.
#[derive(Debug)]
pub(super) struct Memory {
    handle: MemoryHandle,
    what: String,
}

impl Memory {
    /// Opens the memory that the command line names.
    pub(super) fn open(args: &cli::Memory) -> Result<Self, Error> {
        match (&args.name, &args.of_process) {
            (Some(name), _) => {
                let what = format!("region {name}");
                let node = MapHandle::open(name, Access::ReadWrite).map_err(Error::call(&*what))?;
                Ok(Self {
                    handle: MemoryHandle::Region(node),
                    what,
                })
            }
            (None, Some(args)) => {
                let memory = ProcessMemory::open(args.pid, &args.memory).map_err(Error::call("cannot find the memory"))?;
                Ok(Self {
                    what: format!("{} of process {}", shown(&memory.file().path), args.pid),
                    handle: MemoryHandle::File(memory),
                })
            }
            (None, None) => Err(Error::other("neither NAME nor --pid and --memory")),
        }
    }

    /// A description, for users.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// Whether the named process has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.handle.has_ended()
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}
