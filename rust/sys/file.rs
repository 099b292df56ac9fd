// SPDX-License-Identifier: GPL-2.0

//! Making open files.
//!
//! Stands in for an abstraction of `anon_inode_getfile()`, which upstream does not have. The file
//! references the owner of its operations, the module, as long as it lives.

use super::{
    bindings,
    file_ops::{
        FileOps,
        FileOpsTable, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    fs::File,
    prelude::*,
    sync::aref::ARef,
    types::ForeignOwnable, //
};

/// Takes over a reference to a file.
///
/// # Safety
///
/// `file` is valid and carries a reference, which the caller gives up; no thread is in a light
/// (`fdget_pos`) section on it.
pub(super) unsafe fn into_file(file: *mut kernel::bindings::file) -> ARef<File> {
    // SAFETY: `File` is a transparent wrapper of `struct file`; the rest by the safety requirements.
    unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast::<File>())) }
}

/// A file on an inode of its own kind, which cannot be opened again through /proc.
pub(crate) fn anonymous<T: FileOps>(
    name: &CStr,
    ops: &'static FileOpsTable<T>,
    data: T::Data,
    flags: u32,
) -> Result<ARef<File>> {
    let data = data.into_foreign();
    // SAFETY: `ops` lives as long as the module, which the file references; `data` is what those
    // operations expect as private data.
    let file =
        unsafe { bindings::vmem_anon_file(name.as_char_ptr(), ops.as_ptr(), data, flags as i32) };
    match from_err_ptr(file) {
        // SAFETY: A new file, which is ours and no descriptor refers to.
        Ok(file) => Ok(unsafe { into_file(file) }),
        Err(e) => {
            // SAFETY: It came from `into_foreign` above, and no file has it.
            drop(unsafe { T::Data::from_foreign(data) });
            Err(e)
        }
    }
}
