// SPDX-License-Identifier: GPL-2.0

//! References to open files, and reservations of descriptors.

use super::{
    bindings,
    errno, //
};
use core::ptr::NonNull;
use kernel::{
    ffi,
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

/// The bytes that fallocate() discards. `EOPNOTSUPP` if it shall do something else.
pub(super) fn punched(mode: ffi::c_int, offset: i64, len: i64) -> Result<(u64, u64)> {
    if mode as u32 != bindings::FALLOC_FL_PUNCH_HOLE | bindings::FALLOC_FL_KEEP_SIZE {
        return Err(errno::opnotsupp());
    }
    let bytes = |number| u64::try_from(number).map_err(|_| EINVAL);
    Ok((bytes(offset)?, bytes(len)?))
}
