// SPDX-License-Identifier: GPL-2.0

//! The generated declarations of `include/uapi/linux/vmem.h` and `sys/helpers.h`.

// Structures of the kernel are only pointed at, so that those in it that Rust sees as empty (a lock
// class key without lockdep) do not matter.
#![allow(
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::all
)]

use kernel::{
    bindings::{
        address_space,
        file,
        file_lease,
        file_operations,
        folio,
        inode,
        iov_iter,
        kiocb,
        mem_cgroup,
        mempolicy,
        mm_struct,
        module,
        page,
        vm_area_desc,
        vm_area_struct,
        vm_fault,
        vm_operations_struct,
        workqueue_struct, //
    },
    ffi, //
};

include!("../bindings/bindings_generated.rs");
