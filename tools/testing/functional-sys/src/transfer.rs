// SPDX-License-Identifier: GPL-2.0-or-later
//! System calls that read or write the memory of an area, without a touch by the program.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::{Area, length};

/// A part of an area.
#[derive(Debug, Clone, Copy)]
pub struct MemoryAt<'a> {
    /// The area.
    pub area: &'a Area,
    /// Offset in it, in bytes.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

impl MemoryAt<'_> {
    fn pointer(&self) -> *mut libc::c_void {
        self.area.at(self.offset, self.len).cast()
    }

    fn vector(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.pointer(),
            iov_len: self.len,
        }
    }
}

/// `write(2)` of the memory to a file.
pub fn write_from(fd: impl AsFd, memory: MemoryAt<'_>) -> io::Result<usize> {
    // SAFETY: the memory is inside its area, and the kernel only reads it.
    length(unsafe { libc::write(fd.as_fd().as_raw_fd(), memory.pointer(), memory.len) })
}

/// `read(2)` from a file into the memory.
pub fn read_into(fd: impl AsFd, memory: MemoryAt<'_>) -> io::Result<usize> {
    // SAFETY: the memory is inside its area, to which no reference exists.
    length(unsafe { libc::read(fd.as_fd().as_raw_fd(), memory.pointer(), memory.len) })
}

/// `pwrite(2)` of the memory to a file, at its begin.
pub fn write_at_from(fd: impl AsFd, memory: MemoryAt<'_>) -> io::Result<usize> {
    // SAFETY: the memory is inside its area, and the kernel only reads it.
    length(unsafe { libc::pwrite(fd.as_fd().as_raw_fd(), memory.pointer(), memory.len, 0) })
}

/// `pread(2)` from a file's begin into the memory.
pub fn read_at_into(fd: impl AsFd, memory: MemoryAt<'_>) -> io::Result<usize> {
    // SAFETY: the memory is inside its area, to which no reference exists.
    length(unsafe { libc::pread(fd.as_fd().as_raw_fd(), memory.pointer(), memory.len, 0) })
}

/// `vmsplice(2)` of the memory into a pipe.
pub fn splice_from(pipe: impl AsFd, memory: MemoryAt<'_>) -> io::Result<usize> {
    let vector = memory.vector();
    // SAFETY: the memory is inside its area, and the kernel only reads it.
    length(unsafe { libc::vmsplice(pipe.as_fd().as_raw_fd(), &vector, 1, 0) })
}

/// `process_vm_readv(2)`: reads another process's memory at `address`, which may be anything.
pub fn read_other(pid: i32, address: usize, to: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: to.len(),
    };
    // SAFETY: only `to` is written, which is borrowed mutably.
    length(unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) })
}

/// `process_vm_writev(2)`: writes another process's memory at `address`, which is a child of the test's.
pub fn write_other(pid: i32, address: usize, from: &[u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: from.as_ptr().cast_mut().cast(),
        iov_len: from.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: from.len(),
    };
    // SAFETY: `from` is only read; what is written is another process's.
    length(unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) })
}
