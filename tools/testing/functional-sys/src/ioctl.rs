// SPDX-License-Identifier: GPL-2.0-or-later
//! Calls with arguments that no library would let through.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::{Area, checked};

/// Makes the call `number` with this argument, whatever is in it.
///
/// An address in it that the kernel writes to must be 0, unmapped, or that of an [`Area`] or a buffer which the test still owns: that is
/// the tests' side of the contract.
pub fn ioctl<T: Copy>(fd: impl AsFd, number: u32, argument: &mut T) -> io::Result<()> {
    ioctl_at(fd, number, std::ptr::from_mut(argument) as usize)
}

/// Makes the call `number` with its argument at this address, for example one where nothing is.
pub fn ioctl_at(fd: impl AsFd, number: u32, address: usize) -> io::Result<()> {
    // SAFETY: vmem's calls write only to their argument, whose size is in the number, and to addresses in it: the caller's memory.
    checked(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number.into(), address) }).map(drop)
}

/// What userfaultfd can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Userfault {
    /// Faults on missing pages, as messages.
    Missing,
    /// To remember which pages are written (`UFFD_FEATURE_WP_ASYNC`).
    WriteProtectAsync,
}

/// Asks userfaultfd for this, in an area: as long as the descriptor is open.
pub fn register_userfault(area: &Area, what: Userfault) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Api {
        api: u64,
        features: u64,
        ioctls: u64,
    }
    #[repr(C)]
    struct Register {
        start: u64,
        len: u64,
        mode: u64,
        ioctls: u64,
    }
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    const WP_ASYNC: u64 = 1 << 15;
    let (features, mode) = match what {
        Userfault::Missing => (0, 1),
        Userfault::WriteProtectAsync => (WP_ASYNC, 2),
    };

    // SAFETY: the call has one argument, a set of flags.
    let fd = checked(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as libc::c_int)?;
    // SAFETY: the descriptor was just made and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut api = Api {
        api: 0xaa,
        features,
        ioctls: 0,
    };
    // SAFETY: the argument of this call is a `struct uffdio_api`, which `Api` is.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut api) })?;
    let mut register = Register {
        start: area.address() as u64,
        len: area.size() as u64,
        mode,
        ioctls: 0,
    };
    // SAFETY: the argument of this call is a `struct uffdio_register`, which `Register` is.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &mut register) })?;
    Ok(fd)
}

/// Has a userfaultfd that asked for [`Userfault::WriteProtectAsync`] remember anew which pages of the area are written.
pub fn write_protect(userfault: impl AsFd, area: &Area) -> io::Result<()> {
    #[repr(C)]
    struct WriteProtect {
        start: u64,
        len: u64,
        mode: u64,
    }
    const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
    let mut protect = WriteProtect {
        start: area.address() as u64,
        len: area.size() as u64,
        mode: 1,
    };
    let fd = userfault.as_fd().as_raw_fd();
    // SAFETY: the argument of this call is a `struct uffdio_writeprotect`, which `WriteProtect` is.
    checked(unsafe { libc::ioctl(fd, UFFDIO_WRITEPROTECT, &mut protect) }).map(drop)
}
