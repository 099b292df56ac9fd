// SPDX-License-Identifier: GPL-2.0-or-later
//! The kernel interface of vmem: `include/uapi/linux/vmem.h` in Rust.
//!
//! The header is the documentation of every struct, field, flag and error; the names here are its names. [`calls`] has one safe
//! function for each ioctl. They accept any descriptor: the kernel refuses calls that a descriptor does not have (`ENOTTY`, `EPERM`).
//!
//! Programs use the `vmem` crate, which is built on this one.

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
