// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that the kernel has in hand for long: the registered buffer of an io_uring.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::{Area, checked};

const IORING_REGISTER_BUFFERS: u32 = 0;

/// Registers pages of an area as a buffer of a new io_uring, which pins them as long as the descriptor is open.
pub fn register_buffer(area: &Area, pages: Range<usize>) -> io::Result<OwnedFd> {
    /// `struct io_uring_params`: all zero asks for nothing special.
    #[repr(C)]
    struct Parameters([u64; 15]);

    let mut parameters = Parameters([0; 15]);
    // SAFETY: the second argument is a `struct io_uring_params`, which `Parameters` has the size of.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut parameters) };
    let fd = checked(fd as libc::c_int)?;
    // SAFETY: the descriptor was just made and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let (iov_base, iov_len) = area.range(&pages);
    let vector = libc::iovec { iov_base, iov_len };
    let ring = fd.as_raw_fd();
    // SAFETY: the call reads one vector; nothing is ever read or written by way of the buffer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            IORING_REGISTER_BUFFERS,
            &raw const vector,
            1,
        )
    };
    checked(result as libc::c_int)?;
    Ok(fd)
}
