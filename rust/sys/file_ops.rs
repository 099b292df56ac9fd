// SPDX-License-Identifier: GPL-2.0

//! File operations of a module that cannot be unloaded under an open file.
//!
//! Stands in for the table of `kernel::miscdevice`, which has no poll() and no llseek() and, in 7.2,
//! no owner (Rust-for-Linux issue 1182), and for an abstraction of `anon_inode_getfile()`.

use super::{
    bindings,
    file::into_file,
    uapi::UserArg,
    vm_ops::NewVma,
    wait::PollQueue, //
};
use core::marker::PhantomData;
use kernel::{
    error::from_err_ptr,
    ffi,
    fs::{
        File,
        LocalFile, //
    },
    iov::IovIterDest,
    prelude::*,
    seq_file::SeqFile,
    sync::aref::ARef,
    types::ForeignOwnable, //
};

/// The operations of a file. An operation that is not provided behaves as for a file without it.
#[vtable]
pub(crate) trait FileOps: Sized + 'static {
    /// The private data of the file.
    type Data: ForeignOwnable + Send + Sync;

    /// A node with this minor number is opened.
    fn open(_minor: u32) -> Result<Self::Data> {
        Err(ENXIO)
    }

    /// An ioctl.
    fn ioctl(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _cmd: u32,
        _arg: UserArg,
    ) -> Result {
        Err(ENOTTY)
    }

    /// mmap().
    fn mmap(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>, _vma: NewVma<'_>) -> Result {
        Err(ENODEV)
    }

    /// For poll(): the queue that is woken when the file becomes readable. The queue is a part of
    /// the file's private data.
    fn poll_queue<'a>(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'a>,
    ) -> Option<&'a PollQueue> {
        None
    }

    /// For poll(): whether the file is readable.
    fn is_readable(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>) -> bool {
        false
    }

    /// For poll(): whether the file has failed.
    fn has_failed(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>) -> bool {
        false
    }

    /// Size in bytes, for lseek().
    fn size(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>) -> u64 {
        0
    }

    /// For lseek(): the first position from `pos` on, before the end, that has data (or, if not
    /// `is_data`, that has none).
    fn seek(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _pos: u64,
        _is_data: bool,
    ) -> Result<u64> {
        Err(EINVAL)
    }

    /// Reads from `pos` on. Returns how many bytes were read.
    fn read(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _pos: u64,
        _to: &mut IovIterDest<'_>,
    ) -> Result<usize> {
        Err(EINVAL)
    }

    /// `/proc/PID/fdinfo`.
    fn show_fdinfo(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>, _m: &SeqFile) {}
}

/// A table of operations. It must be a static, since open files refer to it.
pub(crate) struct FileOpsTable<T> {
    ops: kernel::bindings::file_operations,
    _type: PhantomData<fn(T)>,
}

// SAFETY: The table is never written.
unsafe impl<T> Sync for FileOpsTable<T> {}

impl<T: FileOps> FileOpsTable<T> {
    /// The operations of `T`, owned by this module.
    pub(crate) const fn new() -> Self {
        Self {
            ops: kernel::bindings::file_operations {
                owner: &raw mut bindings::__this_module,
                open: if T::HAS_OPEN { Some(Self::open) } else { None },
                release: Some(Self::release),
                unlocked_ioctl: if T::HAS_IOCTL {
                    Some(Self::ioctl)
                } else {
                    None
                },
                compat_ioctl: if T::HAS_IOCTL {
                    kernel::bindings::compat_ptr_ioctl
                } else {
                    None
                },
                mmap: if T::HAS_MMAP { Some(Self::mmap) } else { None },
                get_unmapped_area: if T::HAS_MMAP {
                    Some(kernel::bindings::thp_get_unmapped_area)
                } else {
                    None
                },
                poll: if T::HAS_POLL_QUEUE {
                    Some(Self::poll)
                } else {
                    None
                },
                llseek: if T::HAS_SIZE {
                    Some(Self::llseek)
                } else {
                    Some(kernel::bindings::noop_llseek)
                },
                read_iter: if T::HAS_READ {
                    Some(Self::read_iter)
                } else {
                    None
                },
                splice_read: if T::HAS_READ {
                    Some(kernel::bindings::copy_splice_read)
                } else {
                    None
                },
                show_fdinfo: if T::HAS_SHOW_FDINFO {
                    Some(Self::show_fdinfo)
                } else {
                    None
                },
                ..pin_init::zeroed()
            },
            _type: PhantomData,
        }
    }

    pub(super) const fn as_ptr(&'static self) -> *const kernel::bindings::file_operations {
        &raw const self.ops
    }

    /// The private data of `file`.
    ///
    /// # Safety
    ///
    /// `file` is open with the operations of `T`, and not yet released, during `'a`.
    unsafe fn data<'a>(
        file: *mut kernel::bindings::file,
    ) -> <T::Data as ForeignOwnable>::Borrowed<'a> {
        // SAFETY: By the safety requirement; the private data was set from `into_foreign` when the
        // file was opened and does not change.
        unsafe { T::Data::borrow((*file).private_data) }
    }

    /// # Safety
    ///
    /// The VFS calls it, with the inode and the file that is being opened.
    unsafe extern "C" fn open(
        inode: *mut kernel::bindings::inode,
        file: *mut kernel::bindings::file,
    ) -> ffi::c_int {
        // SAFETY: The inode is valid.
        let minor = unsafe { bindings::vmem_node_minor(inode) };
        match T::open(minor) {
            Ok(data) => {
                // SAFETY: No other thread uses a file that is being opened.
                unsafe { (*file).private_data = data.into_foreign() };
                0
            }
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// The VFS calls it once, for a file opened with the operations of `T`.
    unsafe extern "C" fn release(
        _inode: *mut kernel::bindings::inode,
        file: *mut kernel::bindings::file,
    ) -> ffi::c_int {
        // SAFETY: The private data came from `into_foreign`, and this is the last use of it.
        drop(unsafe { T::Data::from_foreign((*file).private_data) });
        0
    }

    /// # Safety
    ///
    /// The VFS calls it, for a file opened with the operations of `T`.
    unsafe extern "C" fn ioctl(
        file: *mut kernel::bindings::file,
        cmd: ffi::c_uint,
        arg: ffi::c_ulong,
    ) -> ffi::c_long {
        // SAFETY: The file is open during the call.
        let data = unsafe { Self::data(file) };
        // SAFETY: The file is valid during the call, and ioctl takes no `fdget_pos` reference.
        let file = unsafe { File::from_raw_file(file) };
        match T::ioctl(data, file, cmd, UserArg::new(arg)) {
            Ok(()) => 0,
            Err(e) => e.to_errno() as ffi::c_long,
        }
    }

    /// # Safety
    ///
    /// The VFS calls it, for a file opened with the operations of `T` and a VMA that is being made.
    unsafe extern "C" fn mmap(
        file: *mut kernel::bindings::file,
        vma: *mut kernel::bindings::vm_area_struct,
    ) -> ffi::c_int {
        // SAFETY: The file is open during the call.
        let data = unsafe { Self::data(file) };
        // SAFETY: The VMA is being made, by this task, during the call.
        let vma = unsafe { NewVma::from_raw(vma) };
        match T::mmap(data, vma) {
            Ok(()) => 0,
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// The VFS calls it, for a file opened with the operations of `T`.
    unsafe extern "C" fn poll(
        file: *mut kernel::bindings::file,
        table: *mut kernel::bindings::poll_table,
    ) -> kernel::bindings::__poll_t {
        // SAFETY: The file is open during the call.
        if let Some(queue) = T::poll_queue(unsafe { Self::data(file) }) {
            // SAFETY: `file` and `table` are valid during the call. The queue borrows from what the
            // file holds, so it lives as long as the file, and the VFS takes a file out of all poll
            // tables before it releases it.
            unsafe { kernel::bindings::poll_wait(file, queue.as_ptr(), table) };
        }
        let mut events = 0;
        // SAFETY: The file is open during the call.
        if T::is_readable(unsafe { Self::data(file) }) {
            events |= kernel::bindings::POLLIN | kernel::bindings::POLLRDNORM;
        }
        // SAFETY: The file is open during the call.
        if T::has_failed(unsafe { Self::data(file) }) {
            events |= kernel::bindings::POLLERR;
        }
        events
    }

    /// # Safety
    ///
    /// The VFS calls it, for a file opened with the operations of `T` and memory to be written to.
    unsafe extern "C" fn read_iter(
        iocb: *mut kernel::bindings::kiocb,
        to: *mut kernel::bindings::iov_iter,
    ) -> isize {
        // SAFETY: The file is open during the call.
        let data = unsafe { Self::data((*iocb).ki_filp) };
        // SAFETY: The iterator is valid during the call, and this call's.
        let to = unsafe { IovIterDest::from_raw(to) };
        // SAFETY: The control block is this call's.
        let pos = unsafe { (*iocb).ki_pos };
        let read = u64::try_from(pos)
            .map_err(|_| EINVAL)
            .and_then(|pos| T::read(data, pos, to));
        match read {
            Ok(nr) => {
                // SAFETY: As above. The position is within a file of at most `VMEM_MAX_SIZE`, or
                // unchanged.
                unsafe { (*iocb).ki_pos = pos.saturating_add(nr as i64) };
                nr as isize
            }
            Err(e) => e.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// The VFS calls it, for a file opened with the operations of `T`.
    unsafe extern "C" fn llseek(
        file: *mut kernel::bindings::file,
        offset: kernel::bindings::loff_t,
        whence: ffi::c_int,
    ) -> kernel::bindings::loff_t {
        // SAFETY: The file is open during the call.
        let size = T::size(unsafe { Self::data(file) });
        let is_data = whence as u32 == kernel::bindings::SEEK_DATA;
        if T::HAS_SEEK && (is_data || whence as u32 == kernel::bindings::SEEK_HOLE) {
            let found = match u64::try_from(offset) {
                // SAFETY: The file is open during the call.
                Ok(pos) if pos < size => T::seek(unsafe { Self::data(file) }, pos, is_data),
                _ => Err(ENXIO),
            };
            return match found {
                // SAFETY: The file is valid during the call; the position is within it.
                Ok(pos) => unsafe { kernel::bindings::vfs_setpos(file, pos as i64, size as i64) },
                Err(e) => e.to_errno().into(),
            };
        }
        // SAFETY: The file is valid during the call. A size is at most `VMEM_MAX_SIZE`.
        unsafe { kernel::bindings::fixed_size_llseek(file, offset, whence, size as i64) }
    }

    /// # Safety
    ///
    /// procfs calls it, for a file opened with the operations of `T`.
    unsafe extern "C" fn show_fdinfo(
        m: *mut kernel::bindings::seq_file,
        file: *mut kernel::bindings::file,
    ) {
        // SAFETY: The file is open during the call.
        let data = unsafe { Self::data(file) };
        // SAFETY: The seq file is valid during the call, and this thread's.
        T::show_fdinfo(data, unsafe { SeqFile::from_raw(m) });
    }
}

/// Opens a file with these operations on an anonymous inode, so that it cannot be opened again
/// through /proc. The file holds a reference to the owner of its operations as long as it lives.
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
        // SAFETY: A new file. The reference is ours, and no descriptor refers to the file.
        Ok(file) => Ok(unsafe { into_file(file) }),
        Err(e) => {
            // SAFETY: It came from `into_foreign` above, and no file owns it.
            drop(unsafe { T::Data::from_foreign(data) });
            Err(e)
        }
    }
}

/// Calls `with` with the private data of the open file behind a descriptor of the running process,
/// and the file. `EBADF` if there is no such file, `EINVAL` if it has other operations.
pub(crate) fn with_fd<T: FileOps, R>(
    ops: &'static FileOpsTable<T>,
    fd: i32,
    with: impl FnOnce(<T::Data as ForeignOwnable>::Borrowed<'_>, &LocalFile) -> R,
) -> Result<R> {
    let file = LocalFile::fget(u32::try_from(fd).map_err(|_| EBADF)?)?;
    // SAFETY: The file is open as long as it is held here.
    if unsafe { (*file.as_ptr()).f_op } != ops.as_ptr() {
        return Err(EINVAL);
    }
    // SAFETY: It has these operations, and is held until the call is over.
    let data = unsafe { FileOpsTable::<T>::data(file.as_ptr()) };
    Ok(with(data, &file))
}
