// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers of what the kernel crate does not offer yet.
//!
//! The only layer with unsafe code. It has no policy of vmem: the layers above decide what a fault
//! means, which process may make which call, and when a page is present. Each file names the
//! interface that it replaces; `Documentation/upstream-gaps.rst` lists them.

pub(crate) mod address_space;
pub(crate) mod array_vec;
pub(crate) mod backing_file;
pub(crate) mod bindings;
pub(crate) mod cached_page;
pub(crate) mod copies;
pub(crate) mod errno;
pub(crate) mod fault;
pub(crate) mod fault_address;
pub(crate) mod file;
pub(crate) mod file_ops;
pub(crate) mod file_system;
pub(crate) mod global;
pub(crate) mod memcg;
pub(crate) mod misc_dev;
pub(crate) mod mm;
pub(crate) mod node;
pub(crate) mod shared;
pub(crate) mod staging;
pub(crate) mod task;
pub(crate) mod tracked;
pub(crate) mod uapi;
pub(crate) mod vm_fault_reason;
pub(crate) mod vm_ops;
pub(crate) mod wait;
pub(crate) mod write_fault;
