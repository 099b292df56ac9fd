// SPDX-License-Identifier: GPL-2.0

//! Shared memory whose writes are logged.
//!
//! While memory is tracked, its mappings have this module's operations, with which the first write
//! to each page is a fault. Its file, and each file that is opened meanwhile, has operations that
//! make new mappings the same way, and that log system calls that write. `shared.c` has the
//! operations on pages.
//!
//! As with [`super::vm_ops`], the file of a mapping holds what the mapping's operations need. That
//! file is a *clone*: an open file of the memory that the module makes, and that holds the log and
//! the module.

use super::{
    address_space::{
        AddressSpace,
        VmaFilter, //
    },
    bindings,
    file::into_file,
    shared::{
        InodeId,
        SharedMemory, //
    },
    task::ModuleRef,
    vm_ops::{
        VmOps,
        VmOpsTables, //
    },
    write_fault::WriteFault, //
};
use crate::model::range::{
    PageRange,
    PAGE_SIZE, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData, //
};
use kernel::{
    bindings as c,
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi,
    fs::File,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    types::ForeignOwnable, //
};

/// The log of writes to a memory.
pub(crate) trait WriteLog: Sized + Send + Sync + 'static {
    /// The operations of all memory with this kind of log.
    fn ops() -> &'static TrackedOps<Self>;

    /// The current log of a memory, if it has one.
    fn of(memory: InodeId) -> Option<Arc<Self>>;

    /// Waits until a system call may begin to write to these pages. `EINTR` if the task is being
    /// killed; else [`WriteLog::leave`] is called after the write.
    fn admit(&self, pages: Option<PageRange>) -> Result;

    /// Ends a system call that was admitted.
    fn leave(&self);

    /// Protected pages of one folio are about to become writable. Returns whether they may; the
    /// folio then stays locked until they are. The fault is in a mapping of `memory` that was made
    /// for this log. The log may have ended since.
    fn write_fault(&self, memory: InodeId, fault: &WriteFault<'_>) -> bool;

    /// Waits for a short time until pages of `memory` may become writable.
    fn await_writable(&self, memory: InodeId);

    /// Logs these pages, which a system call may have written to.
    fn log_write(&self, range: PageRange);
}

/// The operations of tracked memory: shmem's, except for what a log needs. They must be a static,
/// since files and mappings refer to them.
pub(crate) struct TrackedOps<L> {
    tables: UnsafeCell<Tables>,
    _type: PhantomData<fn(L)>,
}

struct Tables {
    /// For files of the memory.
    file: c::file_operations,
    /// For the files that mappings hold.
    clone: c::file_operations,
    vm: c::vm_operations_struct,
}

// SAFETY: Only `init` writes the tables, before any other code has them.
unsafe impl<L> Sync for TrackedOps<L> {}

impl<L: WriteLog> TrackedOps<L> {
    /// Operations that are not initialized yet.
    pub(crate) const fn new() -> Self {
        Self {
            tables: UnsafeCell::new(Tables {
                file: pin_init::zeroed(),
                clone: pin_init::zeroed(),
                vm: pin_init::zeroed(),
            }),
            _type: PhantomData,
        }
    }

    /// Initializes the operations. Only the module's initialization has the reference to the
    /// module, so this is called once, and [`super::staging::Shmem`] is initialized.
    pub(crate) fn init(
        &'static self,
        _module: &'static ThisModule,
        _shmem: &super::staging::Shmem,
    ) {
        // SAFETY: The module is being initialized, so no other code uses the tables; shmem's tables
        // are static, and looked up already.
        unsafe {
            let tables = &mut *self.tables.get();
            let mut file = *bindings::vmem_shmem_fops();
            file.owner = &raw mut bindings::__this_module;
            file.mmap_prepare = Some(Self::mmap_prepare);
            file.fallocate = Some(Self::fallocate);
            file.write_iter = Some(Self::write_iter);
            // shmem's function requires a file with shmem's own operations.
            file.get_unmapped_area = Some(c::thp_get_unmapped_area);
            tables.file = file;
            tables.clone.owner = file.owner;
            tables.clone.release = Some(Self::release);
            tables.clone.mmap_prepare = file.mmap_prepare;
            tables.clone.fallocate = file.fallocate;
            tables.clone.fsync = file.fsync;
            let mut vm = *bindings::vmem_shmem_vm_ops();
            vm.fault = Some(Self::fault);
            vm.page_mkwrite = Some(Self::page_mkwrite);
            // Tracked memory does not support userfaultfd.
            vm.uffd_ops = core::ptr::null();
            tables.vm = vm;
        }
    }

    fn file_ops(&'static self) -> *const c::file_operations {
        // SAFETY: The address of a part of the static.
        unsafe { &raw const (*self.tables.get()).file }
    }

    fn clone_ops(&'static self) -> *const c::file_operations {
        // SAFETY: The address of a part of the static.
        unsafe { &raw const (*self.tables.get()).clone }
    }

    fn vm_ops(&'static self) -> *const c::vm_operations_struct {
        // SAFETY: The address of a part of the static.
        unsafe { &raw const (*self.tables.get()).vm }
    }

    /// # Safety
    ///
    /// The memory management calls it, for a VMA that is tracked.
    unsafe extern "C" fn fault(vmf: *mut c::vm_fault) -> c::vm_fault_t {
        // SAFETY: The fault is valid during the call.
        unsafe { bindings::vmem_tracked_fault(vmf) }
    }

    /// # Safety
    ///
    /// The memory management calls it, for a VMA that is tracked.
    unsafe extern "C" fn page_mkwrite(vmf: *mut c::vm_fault) -> c::vm_fault_t {
        // SAFETY: The fault is valid during the call, and so is its VMA, whose file holds the log.
        unsafe {
            let vma = (*vmf).__bindgen_anon_1.vma;
            let log = <Arc<L> as ForeignOwnable>::borrow((*vma).vm_private_data);
            let memory = InodeId::of((*vma).vm_file);
            let may = |fault: &WriteFault<'_>| log.write_fault(memory, fault);
            WriteFault::page_mkwrite(vmf, may, || log.await_writable(memory))
        }
    }

    /// # Safety
    ///
    /// The VFS calls it, for a shmem file that is tracked or was opened while it was tracked.
    unsafe extern "C" fn mmap_prepare(desc: *mut c::vm_area_desc) -> ffi::c_int {
        // SAFETY: The description is valid during the call.
        let err = unsafe { bindings::vmem_shared_mmap_prepare(desc) };
        // SAFETY: As above.
        if err != 0 || unsafe { bindings::vmem_shared_desc_is_shared(desc) } == 0 {
            return err;
        }
        // SAFETY: As above; the caller holds the file that is mapped.
        let inode_id = unsafe { InodeId::of(bindings::vmem_shared_desc_file(desc)) };
        let Some(log) = L::of(inode_id) else {
            return 0;
        };
        // SAFETY: As above.
        if unsafe { bindings::vmem_shared_desc_is_backing(desc) } != 0 {
            // A stacked file system would keep the reference to the clone.
            return EBUSY.to_errno();
        }
        let data = log.into_foreign();
        // SAFETY: The file is a shmem file; the operations expect a log, and live as long as the module,
        // which the clone holds.
        let clone = from_err_ptr(unsafe {
            let file = bindings::vmem_shared_desc_file(desc);
            bindings::vmem_shared_clone(file, L::ops().clone_ops(), data)
        });
        match clone {
            Ok(clone) => {
                // SAFETY: The reference to the clone, which holds the log, goes to the mapping.
                unsafe {
                    bindings::vmem_shared_desc_track(desc, clone, L::ops().vm_ops(), data);
                }
                0
            }
            Err(e) => {
                // SAFETY: It came from `into_foreign` above, and no file owns it.
                drop(unsafe { <Arc<L> as ForeignOwnable>::from_foreign(data) });
                e.to_errno()
            }
        }
    }

    /// # Safety
    ///
    /// The VFS calls it, for a shmem file that is tracked or was opened while it was tracked.
    unsafe extern "C" fn write_iter(iocb: *mut c::kiocb, from: *mut c::iov_iter) -> isize {
        // The adopted file itself holds no reference to the module. The task that restores its
        // operations waits for tasks that are about to enter this function.
        let _module_ref = ModuleRef::new();
        let (mut pos, mut len) = (0, 0);
        // SAFETY: The arguments are valid during the call, and so is the file in them.
        let inode_id = unsafe {
            let file = bindings::vmem_shared_write_range(iocb, from, &raw mut pos, &raw mut len);
            InodeId::of(file)
        };
        let pages = pages_of(pos, len as u64);
        let _admitted = match AdmittedCall::<L>::new(inode_id, pages) {
            Ok(admitted) => admitted,
            Err(e) => return e.to_errno() as isize,
        };
        // SAFETY: The caller's arguments, for a shmem file.
        let written = unsafe { bindings::vmem_shared_write_iter(iocb, from) };
        // Also after an error: a part may have been written.
        log_write::<L>(inode_id, pages);
        written as isize
    }

    /// # Safety
    ///
    /// The VFS calls it, for a clone, or for a shmem file that is tracked or was opened while it
    /// was tracked.
    unsafe extern "C" fn fallocate(
        file: *mut c::file,
        mode: ffi::c_int,
        pos: c::loff_t,
        len: c::loff_t,
    ) -> ffi::c_long {
        // The adopted file itself holds no reference to the module. The task that restores its
        // operations waits for tasks that are about to enter this function.
        let _module_ref = ModuleRef::new();
        // SAFETY: The file is open during the call.
        let inode_id = unsafe { InodeId::of(file) };
        // An allocated page is zeros, as a hole is, so it is no write.
        let punches = mode as u32 & bindings::FALLOC_FL_PUNCH_HOLE != 0;
        let pages = pages_of(pos, u64::try_from(len).unwrap_or(0)).filter(|_| punches);
        let _admitted = match AdmittedCall::<L>::new(inode_id, pages) {
            Ok(admitted) => admitted,
            Err(e) => return e.to_errno() as ffi::c_long,
        };
        // SAFETY: The caller's arguments, for a file on a shmem inode.
        let result = unsafe { bindings::vmem_shared_fallocate(file, mode, pos, len) };
        log_write::<L>(inode_id, pages);
        result
    }

    /// # Safety
    ///
    /// The VFS calls it once, for a clone.
    unsafe extern "C" fn release(_inode: *mut c::inode, file: *mut c::file) -> ffi::c_int {
        // SAFETY: The private data came from `into_foreign`, and this is the last use of it.
        drop(unsafe { <Arc<L> as ForeignOwnable>::from_foreign((*file).private_data) });
        0
    }
}

/// The pages that a system call writes to. [`None`] if there are none.
fn pages_of(pos: i64, len: u64) -> Option<PageRange> {
    let pos = u64::try_from(pos).ok()?;
    let (start, end) = (pos / PAGE_SIZE, pos.saturating_add(len).div_ceil(PAGE_SIZE));
    PageRange::within(start, end.saturating_sub(start), u64::MAX)
}

/// A system call that may write. It must be logged before this is dropped.
struct AdmittedCall<L: WriteLog>(Option<Arc<L>>);

impl<L: WriteLog> AdmittedCall<L> {
    /// Waits until the call may write. `EINTR` if the task is being killed.
    fn new(memory: InodeId, pages: Option<PageRange>) -> Result<Self> {
        let log = L::of(memory);
        if let Some(log) = &log {
            log.admit(pages)?;
        }
        Ok(Self(log))
    }
}

impl<L: WriteLog> Drop for AdmittedCall<L> {
    fn drop(&mut self) {
        if let Some(log) = &self.0 {
            log.leave();
        }
    }
}

/// Logs pages in the memory's current log, which may be another one than when the call began.
fn log_write<L: WriteLog>(memory: InodeId, pages: Option<PageRange>) {
    if let (Some(log), Some(pages)) = (L::of(memory), pages) {
        log.log_write(pages);
    }
}

/// Replaces the operations of a memory by those of tracked memory, and restores them: of its
/// mappings, of its file, and of files that are opened meanwhile.
///
/// # Invariants
///
/// `clone` is a clone of the memory's file, and `data` the log that it holds.
pub(crate) struct OpsOverride<L> {
    clone: ARef<File>,
    data: *mut ffi::c_void,
    /// The seals that the memory had before.
    seals: Atomic<u32>,
    /// The address of the operations that the file had before. 0 if they have not been replaced.
    file_ops: Atomic<usize>,
    _type: PhantomData<fn(L)>,
}

// SAFETY: A file and a pointer to what it holds.
unsafe impl<L: WriteLog> Send for OpsOverride<L> {}
// SAFETY: As above.
unsafe impl<L: WriteLog> Sync for OpsOverride<L> {}

impl SharedMemory {
    /// The memory behind a descriptor, if it can have a log of this kind. The uapi header lists the
    /// errors.
    pub(crate) fn adopt<L: WriteLog>(fd: i32) -> Result<Self> {
        Self::from_fd(fd, L::ops().file_ops())
    }
}

impl<L: WriteLog> OpsOverride<L> {
    /// For this memory and this log. Nothing is replaced yet.
    pub(crate) fn new(memory: &SharedMemory, log: &Arc<L>) -> Result<Self> {
        let data = log.clone().into_foreign();
        // SAFETY: The memory is a shmem file; the operations expect a log.
        let clone = from_err_ptr(unsafe {
            bindings::vmem_shared_clone(memory.as_ptr(), L::ops().clone_ops(), data)
        })
        .inspect_err(|_| {
            // SAFETY: It came from `into_foreign` above, and no file has it.
            drop(unsafe { <Arc<L> as ForeignOwnable>::from_foreign(data) });
        })?;
        // INVARIANT: The clone was made here, and holds `data`.
        // SAFETY: The clone is a new file. Its reference is ours, and it will have no descriptor;
        // the memory's file is valid.
        unsafe {
            Ok(Self {
                clone: into_file(clone),
                data,
                seals: Atomic::new(0),
                file_ops: Atomic::new(0),
                _type: PhantomData,
            })
        }
    }

    /// Seals the memory's size and replaces the operations of its file. From here on, open, mmap
    /// and writes by descriptor use the log, until [`OpsOverride::restore`] has succeeded. If this
    /// fails, nothing has changed.
    pub(crate) fn install(&self, memory: &SharedMemory) -> Result {
        let mut seals = 0;
        // SAFETY: The memory's file is valid.
        to_result(unsafe { bindings::vmem_shared_seal(memory.as_ptr(), &raw mut seals) })?;
        self.seals.store(seals, Relaxed);
        let ops = L::ops().file_ops();
        // SAFETY: As above.
        let before = unsafe { bindings::vmem_shared_fops(memory.as_ptr()) };
        self.file_ops.store(before as usize, Relaxed);
        // SAFETY: As above; both tables have the same functions, so a task that reads the old table
        // at the same time continues with it.
        unsafe {
            let shmem = bindings::vmem_shmem_fops();
            bindings::vmem_shared_set_fops(memory.as_ptr(), ops, shmem, ops);
        }
        Ok(())
    }

    /// `EBUSY` if there is a shared mapping that is neither shmem's own nor, if the memory is a
    /// region's, one with `region_ops`.
    pub(crate) fn check_mappings<M: VmOps>(
        &self,
        memory: &SharedMemory,
        region_ops: Option<&'static VmOpsTables<M>>,
    ) -> Result {
        let region_ops = region_ops.map_or(core::ptr::null(), VmOpsTables::as_ptr);
        let tracked = L::ops().vm_ops();
        // SAFETY: The memory's file is valid, and the tables are static.
        match unsafe { bindings::vmem_shared_can_be_tracked(memory.as_ptr(), tracked, region_ops) }
        {
            0 => Err(EBUSY),
            _ => Ok(()),
        }
    }

    /// Makes every shared mapping of shmem's own log writes. The permissions in page tables do not
    /// change.
    pub(crate) fn track_mappings(&self, memory: &SharedMemory) -> Result {
        let track = |vma| {
            // SAFETY: The VMA is valid while its address space is locked, which allows changing it. The
            // clone holds what the operations expect.
            to_result(unsafe {
                let clone = self.clone.as_ptr();
                bindings::vmem_vma_track(vma, clone, L::ops().vm_ops(), self.data)
            })
        };
        // SAFETY: The memory's file is valid, and the tables are static.
        unsafe {
            let filter = VmaFilter::Unswitched {
                from: bindings::vmem_shmem_vm_ops(),
                to: L::ops().vm_ops(),
                data: self.data.cast_const(),
            };
            AddressSpace::change_mappings(memory.as_ptr(), filter, track)
        }
    }

    /// How many mappings of shmem's own log writes, up to `max`.
    pub(crate) fn mappings(&self, memory: &SharedMemory, max: usize) -> u64 {
        let filter = VmaFilter::Ops(L::ops().vm_ops()).to_raw();
        // SAFETY: The memory's file is valid, and the table is static.
        unsafe { bindings::vmem_count_vmas(memory.as_ptr(), &raw const filter, max) as u64 }
    }

    /// Restores the operations of the file and of all mappings. After success, no task is about to
    /// use the log. `EINTR` if the task is being killed; the call can be repeated.
    pub(crate) fn restore(&self, memory: &SharedMemory) -> Result {
        let before = self.file_ops.load(Relaxed) as *const c::file_operations;
        if before.is_null() {
            return Ok(());
        }
        // SAFETY: The memory's file is valid, and `before` is the operations that it had.
        unsafe {
            let shmem = bindings::vmem_shmem_fops();
            let (memory, tracked) = (memory.as_ptr(), L::ops().file_ops());
            bindings::vmem_shared_set_fops(memory, before, tracked, shmem);
        }
        match memory.await_mmaps() {
            // Programs map the memory all the time. A mapping that is missed keeps the tracked
            // operations without effect, and holds the module.
            Err(e) if e == EAGAIN => {}
            other => other?,
        }
        // SAFETY: The VMA is valid while its address space is locked, which allows changing it.
        let plain = |vma| to_result(unsafe { bindings::vmem_vma_make_plain(vma, memory.as_ptr()) });
        // SAFETY: The memory's file is valid, and the table is static.
        unsafe {
            let filter = VmaFilter::Ops(L::ops().vm_ops());
            AddressSpace::change_mappings(memory.as_ptr(), filter, plain)?;
        }
        // SAFETY: The memory's file is valid, and was sealed.
        to_result(unsafe {
            bindings::vmem_shared_unseal(memory.as_ptr(), self.seals.load(Relaxed))
        })?;
        // A task may have read the file's old operations and not yet entered them, without a
        // reference.
        // SAFETY: In process context, with nothing held that such a task could wait for.
        unsafe { bindings::vmem_synchronize_rcu_tasks() };
        Ok(())
    }
}
