// SPDX-License-Identifier: GPL-2.0

//! A file system with one directory, whose files a [`Directory`] knows.
//!
//! Stands in for abstractions of super blocks, inodes and dentries, which upstream does not have.
//! `file_system.c` has their operations.

use super::{
    bindings,
    file_ops::{
        FileOps,
        FileOpsTable, //
    }, //
};
pub(crate) use bindings::{
    vmem_dir_entry as DirEntry,
    vmem_file_attrs as FileAttrs,
    vmem_file_change as FileChange,
    vmem_totals as Totals, //
};
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    ffi,
    prelude::*, //
};

/// The time of day in nanoseconds since 1970, as precise as the times of files are.
pub(crate) fn now_ns() -> i64 {
    // SAFETY: Reads a clock.
    unsafe { bindings::vmem_now_ns() }
}

/// The files of a file system. A file has a number that no other file ever has.
pub(crate) trait Directory: 'static {
    /// The file with this name. `ENOENT` if there is none.
    fn find(name: &[u8]) -> Result<FileAttrs>;

    /// The file with this number. `ENOENT` if there is none.
    fn attrs(id: u64) -> Result<FileAttrs>;

    /// Whether there is a file with this number.
    fn exists(id: u64) -> bool;

    /// The file whose number is the next one after `after`.
    fn next(after: u64) -> Option<DirEntry>;

    /// A user who may do so changes mode, owner, size or times of a file.
    fn change(id: u64, change: &FileChange) -> Result;

    /// All files together.
    fn totals() -> Totals;
}

/// The functions of a directory. It must be a static, since the file system refers to it.
pub(crate) struct DirectoryTable<D> {
    ops: bindings::vmem_directory_ops,
    _type: PhantomData<fn(D)>,
}

// SAFETY: The table is never written.
unsafe impl<D> Sync for DirectoryTable<D> {}

impl<D: Directory> DirectoryTable<D> {
    /// The functions of `D`.
    pub(crate) const fn new() -> Self {
        Self {
            ops: bindings::vmem_directory_ops {
                find: Some(Self::find),
                attrs: Some(Self::attrs),
                exists: Some(Self::exists),
                next: Some(Self::next),
                change: Some(Self::change),
                totals: Some(Self::totals),
            },
            _type: PhantomData,
        }
    }

    /// # Safety
    ///
    /// `name` has `len` bytes, which do not change during the call; `attrs` is valid for writing.
    unsafe extern "C" fn find(
        name: *const ffi::c_char,
        len: usize,
        attrs: *mut FileAttrs,
    ) -> ffi::c_int {
        // SAFETY: By the safety requirement.
        let name = unsafe { core::slice::from_raw_parts(name.cast::<u8>(), len) };
        // SAFETY: By the safety requirement.
        unsafe { write_to(attrs, D::find(name)) }
    }

    /// # Safety
    ///
    /// `attrs` is valid for writing.
    unsafe extern "C" fn attrs(id: u64, attrs: *mut FileAttrs) -> ffi::c_int {
        // SAFETY: By the safety requirement.
        unsafe { write_to(attrs, D::attrs(id)) }
    }

    extern "C" fn exists(id: u64) -> ffi::c_int {
        D::exists(id).into()
    }

    /// # Safety
    ///
    /// `entry` is valid for writing.
    unsafe extern "C" fn next(after: u64, entry: *mut DirEntry) -> ffi::c_int {
        let Some(found) = D::next(after) else {
            return 0;
        };
        // SAFETY: By the safety requirement.
        unsafe { entry.write(found) };
        1
    }

    /// # Safety
    ///
    /// `change` is valid during the call.
    unsafe extern "C" fn change(id: u64, change: *const FileChange) -> ffi::c_int {
        // SAFETY: By the safety requirement.
        let change = unsafe { &*change };
        D::change(id, change).err().map_or(0, |e| e.to_errno())
    }

    /// # Safety
    ///
    /// `totals` is valid for writing.
    unsafe extern "C" fn totals(totals: *mut Totals) {
        // SAFETY: By the safety requirement.
        unsafe { totals.write(D::totals()) };
    }
}

/// Writes the attributes of a file to `to`, or returns the error.
///
/// # Safety
///
/// `to` is valid for writing.
unsafe fn write_to(to: *mut FileAttrs, found: Result<FileAttrs>) -> ffi::c_int {
    match found {
        Ok(found) => {
            // SAFETY: By the safety requirement.
            unsafe { to.write(found) };
            0
        }
        Err(e) => e.to_errno(),
    }
}

/// The registered file system type.
///
/// # Invariants
///
/// At most one value exists at a time, since there is one type.
pub(crate) struct FileSystem(());

impl FileSystem {
    /// Registers the type `vmem`, whose files are opened with `ops`. Only the module's
    /// initialization has the reference to the module, so this is called once.
    pub(crate) fn register<D: Directory, T: FileOps>(
        _module: &'static ThisModule,
        directory: &'static DirectoryTable<D>,
        ops: &'static FileOpsTable<T>,
    ) -> Result<Self> {
        // SAFETY: Both tables live as long as the module; the type is unregistered in `drop`.
        to_result(unsafe { bindings::vmem_fs_register(&raw const directory.ops, ops.as_ptr()) })?;
        Ok(Self(()))
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // SAFETY: The type was registered; a mount holds the module.
        unsafe { bindings::vmem_fs_unregister() };
    }
}
