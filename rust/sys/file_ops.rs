// SPDX-License-Identifier: GPL-2.0

//! File operations of a module that cannot be unloaded under an open file.
//!
//! Stands in for the table of `kernel::miscdevice`, which has no poll() and no llseek() and, in 7.2,
//! no owner (Rust-for-Linux issue 1182), and for an abstraction of `anon_inode_getfile()`.

use super::{
    bindings,
    errno,
    file::{
        into_file,
        punched, //
    },
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
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    seq_file::SeqFile,
    sync::aref::ARef,
    types::ForeignOwnable, //
};

/// The inode of a file that is being opened.
pub(crate) struct OpenedInode<'a> {
    inode: *mut kernel::bindings::inode,
    _call: PhantomData<&'a ()>,
}

impl OpenedInode<'_> {
    /// The minor number of a node.
    pub(crate) fn minor(&self) -> u32 {
        // SAFETY: The inode is valid during the call.
        unsafe { bindings::vmem_node_minor(self.inode) }
    }

    /// The number of a file in the file system.
    pub(crate) fn file_id(&self) -> u64 {
        // SAFETY: The inode is valid during the call.
        unsafe { bindings::vmem_file_id(self.inode) }
    }
}

/// How long a read or write may wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum IoWait {
    /// For as long as it takes.
    Forever,
    /// Not for what another process has to do (`O_NONBLOCK`).
    NotForOthers,
    /// Not at all (`RWF_NOWAIT`, the first attempt of io_uring).
    Never,
}

/// The operations of a file. An operation that is not provided behaves as for a file without it.
#[vtable]
pub(crate) trait FileOps: Sized + 'static {
    /// The private data of the file.
    type Data: ForeignOwnable + Send + Sync;

    /// A node, or a file of the file system, is opened.
    fn open(_inode: &OpenedInode<'_>) -> Result<Self::Data> {
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

    /// For poll(): whether the file is writable.
    fn is_writable(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>) -> bool {
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
        _wait: IoWait,
    ) -> Result<usize> {
        Err(EINVAL)
    }

    /// Writes from `pos` on. Returns how many bytes were written. Only for a file of the file
    /// system, which then also has what goes with it: splice(), fsync(), leases.
    fn write(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _pos: u64,
        _from: &mut IovIterSource<'_>,
        _wait: IoWait,
    ) -> Result<usize> {
        Err(EINVAL)
    }

    /// fallocate(FALLOC_FL_PUNCH_HOLE): these bytes read as zeros from now on.
    fn punch(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _offset: u64,
        _len: u64,
    ) -> Result {
        Err(errno::opnotsupp())
    }

    /// posix_fadvise(POSIX_FADV_WILLNEED) and readahead(): these bytes will be read. A length of 0
    /// is up to the end.
    fn prefetch(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _offset: u64,
        _len: u64,
    ) -> Result {
        Ok(())
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
                write_iter: if T::HAS_WRITE {
                    Some(Self::write_iter)
                } else {
                    None
                },
                splice_write: if T::HAS_WRITE {
                    Some(kernel::bindings::iter_file_splice_write)
                } else {
                    None
                },
                // As in shmem: there is no disk to wait for.
                fsync: if T::HAS_WRITE {
                    Some(kernel::bindings::noop_fsync)
                } else {
                    None
                },
                setlease: if T::HAS_WRITE {
                    Some(bindings::vmem_setlease)
                } else {
                    None
                },
                remap_file_range: if T::HAS_WRITE {
                    Some(Self::remap_file_range)
                } else {
                    None
                },
                fallocate: if T::HAS_PUNCH {
                    Some(Self::fallocate)
                } else {
                    None
                },
                fadvise: if T::HAS_PREFETCH {
                    Some(Self::fadvise)
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
        let opened = OpenedInode {
            inode,
            _call: PhantomData,
        };
        match T::open(&opened) {
            Ok(data) => {
                // SAFETY: No other thread uses a file that is being opened.
                unsafe { (*file).private_data = data.into_foreign() };
                if T::HAS_WRITE {
                    // SAFETY: As above.
                    unsafe { bindings::vmem_file_allow_nowait(file) };
                }
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
        if T::is_writable(unsafe { Self::data(file) }) {
            events |= kernel::bindings::POLLOUT | kernel::bindings::POLLWRNORM;
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
        unsafe { Self::transfer(iocb, |pos, wait| T::read(data, pos, to, wait)) }
    }

    /// # Safety
    ///
    /// The VFS calls it, for a file opened with the operations of `T` and memory to be read from.
    unsafe extern "C" fn write_iter(
        iocb: *mut kernel::bindings::kiocb,
        from: *mut kernel::bindings::iov_iter,
    ) -> isize {
        // SAFETY: The arguments are this call's.
        let nr = unsafe { kernel::bindings::generic_write_checks(iocb, from) };
        if nr <= 0 {
            return nr;
        }
        // SAFETY: The file is open during the call.
        let data = unsafe { Self::data((*iocb).ki_filp) };
        // SAFETY: The iterator is valid during the call, and this call's.
        let from = unsafe { IovIterSource::from_raw(from) };
        // SAFETY: The control block is this call's.
        unsafe { Self::transfer(iocb, |pos, wait| T::write(data, pos, from, wait)) }
    }

    /// Calls `transfer` with the position, and moves it by the result.
    ///
    /// # Safety
    ///
    /// The control block is the caller's.
    unsafe fn transfer(
        iocb: *mut kernel::bindings::kiocb,
        transfer: impl FnOnce(u64, IoWait) -> Result<usize>,
    ) -> isize {
        // SAFETY: By the safety requirement.
        let (pos, wait) = unsafe { ((*iocb).ki_pos, bindings::vmem_iocb_wait(iocb)) };
        let wait = match wait {
            0 => IoWait::Forever,
            1 => IoWait::NotForOthers,
            _ => IoWait::Never,
        };
        let transferred = u64::try_from(pos)
            .map_err(|_| EINVAL)
            .and_then(|pos| transfer(pos, wait));
        match transferred {
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
    unsafe extern "C" fn fallocate(
        file: *mut kernel::bindings::file,
        mode: ffi::c_int,
        offset: kernel::bindings::loff_t,
        len: kernel::bindings::loff_t,
    ) -> ffi::c_long {
        // SAFETY: The file is open during the call.
        let data = unsafe { Self::data(file) };
        let punched =
            punched(mode, offset, len).and_then(|(offset, len)| T::punch(data, offset, len));
        punched.err().map_or(0, |e| e.to_errno() as ffi::c_long)
    }

    /// # Safety
    ///
    /// The VFS calls it, for a file opened with the operations of `T`.
    unsafe extern "C" fn fadvise(
        file: *mut kernel::bindings::file,
        offset: kernel::bindings::loff_t,
        len: kernel::bindings::loff_t,
        advice: ffi::c_int,
    ) -> ffi::c_int {
        let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else {
            return EINVAL.to_errno();
        };
        let advised = match advice as u32 {
            // SAFETY: The file is open during the call.
            bindings::POSIX_FADV_WILLNEED => T::prefetch(unsafe { Self::data(file) }, offset, len),
            bindings::POSIX_FADV_NORMAL
            | bindings::POSIX_FADV_RANDOM
            | bindings::POSIX_FADV_SEQUENTIAL
            | bindings::POSIX_FADV_DONTNEED
            | bindings::POSIX_FADV_NOREUSE => Ok(()),
            _ => Err(EINVAL),
        };
        advised.err().map_or(0, |e| e.to_errno())
    }

    /// FICLONE and its like: no two files share pages.
    extern "C" fn remap_file_range(
        _from: *mut kernel::bindings::file,
        _from_pos: kernel::bindings::loff_t,
        _to: *mut kernel::bindings::file,
        _to_pos: kernel::bindings::loff_t,
        _len: kernel::bindings::loff_t,
        _flags: ffi::c_uint,
    ) -> kernel::bindings::loff_t {
        errno::opnotsupp().to_errno().into()
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
