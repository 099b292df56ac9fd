// SPDX-License-Identifier: GPL-2.0
//! The kernel interface of vmem, as `include/uapi/linux/vmem.h` has it.
//!
//! The header is the documentation of every struct, field, flag and error; the names here are its names. [`calls`] has one safe
//! function for each ioctl. They take any descriptor: it is the kernel that says which calls a descriptor has (`ENOTTY`, `EPERM`).
//!
//! Programs want the `vmem` crate, which is built on this one.

pub use rustix::io::Errno;

#[rustfmt::skip]
#[allow(missing_docs, non_camel_case_types, clippy::all)]
mod bindings;
pub mod calls;
mod ioctl;
mod layout;

pub use bindings::*;

/// Size of a page in bytes. A module whose `vmem_features.page_size` differs cannot be used with this crate.
pub const PAGE_SIZE: usize = 4096;
