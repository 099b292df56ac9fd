// SPDX-License-Identifier: GPL-2.0-or-later
//! What the functional tests do to memory and processes that safe Rust has no words for: fork, mremap, wild ioctl arguments, ptrace.
//!
//! The functions are safe to call in the tests' sense: they touch nothing but what an [`Area`] holds or an argument names, and a wild
//! address ends in an errno. No reference into mapped memory ever exists; [`Area`] gives out copies.
//!
//! And what both the functional tests and the stress program print of a process that hangs: [`print_state`].

mod area;
mod ioctl;
mod numa;
mod pin;
mod process;
mod state;
mod transfer;

pub use area::{Area, AreaBuilder};
pub use ioctl::{Userfault, ioctl, ioctl_at, register_userfault, write_protect};
pub use numa::drain_page_lists;
pub use pin::register_buffer;
pub use process::{
    Child, End, become_root_of_a_namespace, become_user, catch_signal, catch_signal_on, caught, close_descriptors,
    exit_with_bus_code, fork, interrupt_thread, lock_all, peek_by_ptrace, poke_by_ptrace, reset_signal, set_robust_list,
    this_thread, wake_op,
};
pub use state::print_state;
pub use transfer::{MemoryAt, read_at_into, read_into, read_other, splice_from, write_at_from, write_from, write_other};

pub use libc::{BUS_ADRERR, BUS_MCEERR_AR, MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, SYS_ioctl, SYS_mmap, SYS_pwrite64};

use std::io;

/// Size of a page in bytes.
pub const PAGE: usize = 4096;

/// The errno of the call that has just failed.
fn errno() -> io::Error {
    io::Error::last_os_error()
}

/// -1 is an error.
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(errno()) } else { Ok(result) }
}

/// -1 is an error; else a length.
fn length(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| errno())
}
