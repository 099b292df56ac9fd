// SPDX-License-Identifier: GPL-2.0

//! Nodes under `/dev/vmem`, with mode and owner.
//!
//! Stands in for abstractions of `cdev` and of class devices, which upstream does not have.

use super::{
    bindings,
    file_ops::{
        FileOps,
        FileOpsTable, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi,
    prelude::*,
};

/// The reserved minor numbers of the nodes.
///
/// # Invariants
///
/// At most one value exists at a time, since there is one table of nodes.
pub(crate) struct Nodes(());

impl Nodes {
    /// Reserves `count` minor numbers, whose nodes are opened with `ops`. Only the module's
    /// initialization has the reference to the module, so this is called once.
    pub(crate) fn register<T: FileOps>(
        _module: &'static ThisModule,
        ops: &'static FileOpsTable<T>,
        count: u32,
    ) -> Result<Self> {
        // SAFETY: `ops` lives as long as the module, and the numbers are released in `drop`.
        to_result(unsafe { bindings::vmem_nodes_register(ops.as_ptr(), count) })?;
        Ok(Self(()))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // SAFETY: The numbers were registered; an existing node holds a region, and a region the
        // module.
        unsafe { bindings::vmem_nodes_unregister() };
    }
}

/// Mode and owner of a node and of a file. The ids are those of the first user namespace.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    /// Permission bits.
    pub(crate) mode: u32,
    /// A user.
    pub(crate) uid: u32,
    /// A group.
    pub(crate) gid: u32,
}

impl Access {
    /// For ids of the caller's user namespace, or `VMEM_ID_KEEP`. `EINVAL` if that namespace does
    /// not have them. A mode of 0 is 0600.
    pub(crate) fn of_caller(mode: u32, uid: u32, gid: u32) -> Result<Self> {
        // SAFETY: Looks up numbers in the user namespace of the running task.
        let (uid, gid) = unsafe {
            (
                bindings::vmem_kernel_uid(uid),
                bindings::vmem_kernel_gid(gid),
            )
        };
        if uid == u32::MAX || gid == u32::MAX {
            return Err(EINVAL);
        }
        let mode = if mode == 0 { 0o600 } else { mode };
        Ok(Self { mode, uid, gid })
    }
}

/// A node of a region. It is removed when this is dropped.
///
/// # Invariants
///
/// The pointer was returned by `vmem_node_create()`.
pub(crate) struct Node(NonNull<ffi::c_void>);

// SAFETY: A device may be removed on any thread.
unsafe impl Send for Node {}
// SAFETY: A shared reference has no methods.
unsafe impl Sync for Node {}

impl Node {
    /// Creates `/dev/vmem/NAME` with the minor number `minor`, one of those reserved.
    pub(crate) fn new(name: &CStr, minor: u32, access: Access) -> Result<Self> {
        // SAFETY: `name` is a string, which the function copies.
        let node = from_err_ptr(unsafe {
            bindings::vmem_node_create(
                name.as_char_ptr(),
                minor,
                access.mode,
                access.uid,
                access.gid,
            )
        })?;
        // INVARIANT: `vmem_node_create()` returned it.
        NonNull::new(node).map(Self).ok_or(ENOMEM)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and this is the last use.
        unsafe { bindings::vmem_node_remove(self.0.as_ptr()) };
    }
}
