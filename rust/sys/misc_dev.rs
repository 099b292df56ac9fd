// SPDX-License-Identifier: GPL-2.0

//! A misc device whose open files hold a reference to the module.
//!
//! Stands in for `kernel::miscdevice`, whose operations have no owner, and which cannot choose a node
//! name.

use super::file_ops::{
    FileOps,
    FileOpsTable, //
};
use kernel::{
    bindings,
    error::to_result,
    ffi,
    prelude::*,
    str::as_char_ptr_in_const_context,
    types::Opaque, //
};

/// A registered misc device.
///
/// # Invariants
///
/// `inner` is registered with `misc_register()`.
#[pin_data(PinnedDrop)]
pub(crate) struct MiscDev {
    #[pin]
    inner: Opaque<bindings::miscdevice>,
}

// SAFETY: A device may be deregistered on another thread than the one that registered it.
unsafe impl Send for MiscDev {}
// SAFETY: A shared reference has no methods.
unsafe impl Sync for MiscDev {}

impl MiscDev {
    /// Registers the device `name`, whose node is `/dev/NODE`, for root only.
    pub(crate) fn register<T: FileOps>(
        name: &'static CStr,
        node: &'static CStr,
        ops: &'static FileOpsTable<T>,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let device = bindings::miscdevice {
                    minor: bindings::MISC_DYNAMIC_MINOR as ffi::c_int,
                    name: as_char_ptr_in_const_context(name),
                    nodename: as_char_ptr_in_const_context(node),
                    fops: ops.as_ptr(),
                    mode: 0o600,
                    ..pin_init::zeroed()
                };
                // SAFETY: `slot` is memory for a misc device.
                unsafe { slot.write(device) };
                // INVARIANT: If this succeeds, `inner` is registered.
                // SAFETY: `slot` was just written, and stays where it is until `drop`.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
        })
    }
}

#[pinned_drop]
impl PinnedDrop for MiscDev {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant.
        unsafe { bindings::misc_deregister(self.inner.get()) };
    }
}
