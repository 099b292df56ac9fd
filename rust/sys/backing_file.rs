// SPDX-License-Identifier: GPL-2.0

//! Files that pages of a region are read from.
//!
//! Stands in for `filemap_get_folio()`, `vfs_iocb_iter_read()` and `alloc_workqueue()`, which the
//! kernel crate does not have.

use super::{
    bindings,
    cached_page::CachedPage,
    file::into_file,
    memcg::Memcg,
    shared::InodeId, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    prelude::*,
    sync::aref::ARef,
    workqueue::Queue, //
};

/// A file that pages are read from.
///
/// # Invariants
///
/// The file is a regular file, open for reading, and can be read by `read_iter`.
pub(crate) struct BackingFile(ARef<File>);

impl BackingFile {
    /// The file of a descriptor of the running process. The uapi header lists the errors.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: The function accepts any number.
        let file = from_err_ptr(unsafe { bindings::vmem_backing_get(fd) })?;
        // INVARIANT: The function returns such files only.
        // SAFETY: The reference is ours. An ioctl is no `fdget_pos` section, and such a section of
        // another thread concerns only the file's position.
        Ok(Self(unsafe { into_file(file) }))
    }

    /// Another reference to the same file.
    pub(crate) fn duplicate(&self) -> Self {
        // INVARIANT: The same file.
        Self(self.0.clone())
    }

    /// The identity of the file.
    pub(crate) fn inode_id(&self) -> InodeId {
        // SAFETY: The file is held.
        unsafe { InodeId::of(self.0.as_ptr()) }
    }

    /// The page at `pos`, of which `len` bytes count, if the page cache has it.
    pub(crate) fn cached(&self, pos: u64, len: u64) -> Option<CachedPage<'_>> {
        let (pos, len) = (i64::try_from(pos).ok()?, usize::try_from(len).ok()?);
        // SAFETY: By the type invariants.
        let folio = unsafe { bindings::vmem_backing_cached(self.0.as_ptr(), pos, len) };
        // SAFETY: The function returns a reference, which is ours, to the file's folio that has the
        // page.
        unsafe { CachedPage::new(&self.0, folio, pos, len) }
    }

    /// Reads from `pos` on, as far as the file goes, up to the capacity of `to`, which is empty. It
    /// may wait for I/O. What the page cache takes for it is charged to `charge`.
    pub(crate) fn read(&self, pos: u64, to: &mut KVVec<u8>, charge: Option<&Memcg>) -> Result {
        let charge = charge.map_or(core::ptr::null_mut(), Memcg::as_ptr);
        let pos = i64::try_from(pos).map_err(|_| EINVAL)?;
        let room = to.spare_capacity_mut();
        let len = room.len();
        // SAFETY: By the type invariants; there are `len` bytes to write to; `charge` is null or
        // referenced for the time of the call.
        let read = unsafe {
            let room = room.as_mut_ptr().cast();
            bindings::vmem_backing_read(self.0.as_ptr(), pos, room, len, charge)
        };
        to_result(read.min(0) as core::ffi::c_int)?;
        // SAFETY: The function has written as many bytes, and not more than there is room for.
        unsafe { to.inc_len((read as usize).min(len)) };
        Ok(())
    }
}

/// The workers that read files. The module has them as long as it is loaded.
pub(crate) struct Readers(());

impl Readers {
    /// Makes the work queue. Only the module's initialization has the reference to the module, so
    /// this is called once.
    pub(crate) fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: The module is initialized once.
        to_result(unsafe { bindings::vmem_backing_init() })?;
        Ok(Self(()))
    }

    /// The work queue. Work that is put into it holds a reference to the module.
    pub(crate) fn queue() -> &'static Queue {
        // SAFETY: The queue exists until the module is unloaded. Callers come by a region, which
        // can be made only after the queue, and whose users hold the module.
        unsafe { Queue::from_raw(bindings::vmem_backing_readers()) }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        // SAFETY: It was initialized, and goes with the module: no region is left.
        unsafe { bindings::vmem_backing_exit() };
    }
}
