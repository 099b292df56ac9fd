// SPDX-License-Identifier: GPL-2.0

//! References to open files, and reservations of descriptors.

use core::ptr::NonNull;
use kernel::{
    fs::{
        file::{
            flags,
            FileDescriptorReservation, //
        },
        File, //
    },
    prelude::*,
    sync::aref::ARef, //
};

/// Takes over a reference to a file.
///
/// # Safety
///
/// `file` is valid and carries a reference, whose ownership the caller passes on; no thread is in a
/// light (`fdget_pos`) section on it.
pub(super) unsafe fn into_file(file: *mut kernel::bindings::file) -> ARef<File> {
    // SAFETY: `File` is a transparent wrapper of `struct file`; the rest by the safety requirements.
    unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast::<File>())) }
}

/// Reserves a descriptor number, close-on-exec.
pub(crate) fn reserve_fd() -> Result<FileDescriptorReservation> {
    FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)
}
