// SPDX-License-Identifier: GPL-2.0

//! Shared memory that tells of writes to it.
//!
//! While memory is tracked, its mappings have operations of ours, by which the first write to each
//! page is a fault; and its file, and each that is opened meanwhile, has operations by which new
//! mappings are so, too, and system calls that write are heard of. `shared.c` has what is done to a
//! page.
//!
//! As with [`super::vm_ops`], what the operations of a mapping need is held by the file of the
//! mapping: an open of the memory of our own (a clone), which holds the log and the module.

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

/// What hears of writes to memory.
pub(crate) trait WriteLog: Sized + Send + Sync + 'static {
    /// The operations of all memory that has such a log.
    fn ops() -> &'static TrackedOps<Self>;

    /// The log of a memory, if it has one now.
    fn of(memory: InodeId) -> Option<Arc<Self>>;

    /// Returns when a system call may begin to write to these pages. `EINTR` if the task is being
    /// killed. [`WriteLog::left`] is called when it is over.
    fn admit(&self, pages: Option<PageRange>) -> Result;

    /// A system call that was admitted is over.
    fn leave(&self);

    /// Protected pages of one folio are about to become writable. Returns whether they may: the folio
    /// is then locked until they are.
    /// It is through a mapping of `memory` that was made for this log, which may have ended since.
    fn write_fault(&self, memory: InodeId, fault: &WriteFault<'_>) -> bool;

    /// Waits for a short time until they may.
    fn await_writable(&self, memory: InodeId);

    /// A system call may have written to these pages.
    fn log_write(&self, range: PageRange);
}

/// The operations of tracked memory: those of shmem, but for what a log needs. They must be a static:
/// files and mappings refer to them.
pub(crate) struct TrackedOps<L> {
    tables: UnsafeCell<Tables>,
    _type: PhantomData<fn(L)>,
}

struct Tables {
    /// Of the memory's files.
    file: c::file_operations,
    /// Of the files that mappings hold.
    clone: c::file_operations,
    vm: c::vm_operations_struct,
}

// SAFETY: The tables are written by `init` only, before anybody else has them.
unsafe impl<L> Sync for TrackedOps<L> {}

impl<L: WriteLog> TrackedOps<L> {
    /// Operations that are not ready yet.
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

    /// Makes them ready. The reference to the module, which only its initialization has, says that this
    /// is called once; [`super::staging::Shmem`] is there.
    pub(crate) fn init(
        &'static self,
        _module: &'static ThisModule,
        _shmem: &super::staging::Shmem,
    ) {
        // SAFETY: The module is being initialized, so nobody else uses the tables; those of shmem are
        // static, and known.
        unsafe {
            let tables = &mut *self.tables.get();
            let mut file = *bindings::vmem_shmem_fops();
            file.owner = &raw mut bindings::__this_module;
            file.mmap_prepare = Some(Self::mmap_prepare);
            file.fallocate = Some(Self::fallocate);
            file.write_iter = Some(Self::write_iter);
            // That of shmem insists on a file with shmem's own operations.
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
            // userfaultfd is not for memory that is tracked.
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
    /// The VFS calls it, for a shmem file that was opened while it was tracked, or is.
    unsafe extern "C" fn mmap_prepare(desc: *mut c::vm_area_desc) -> ffi::c_int {
        // SAFETY: The description is valid during the call.
        let err = unsafe { bindings::vmem_shared_mmap_prepare(desc) };
        // SAFETY: As above.
        if err != 0 || unsafe { bindings::vmem_shared_desc_is_shared(desc) } == 0 {
            return err;
        }
        // SAFETY: As above; the file that is mapped is held by the caller.
        let inode_id = unsafe { InodeId::of(bindings::vmem_shared_desc_file(desc)) };
        let Some(log) = L::of(inode_id) else {
            return 0;
        };
        // SAFETY: As above.
        if unsafe { bindings::vmem_shared_desc_is_backing(desc) } != 0 {
            // A file system above would keep the reference to the clone.
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
                // SAFETY: It came from `into_foreign` above, and no file has it.
                drop(unsafe { <Arc<L> as ForeignOwnable>::from_foreign(data) });
                e.to_errno()
            }
        }
    }

    /// # Safety
    ///
    /// The VFS calls it, for a shmem file that was opened while it was tracked, or is.
    unsafe extern "C" fn write_iter(iocb: *mut c::kiocb, from: *mut c::iov_iter) -> isize {
        // The file that was adopted holds no module: whoever gives it its old operations back waits for
        // those who are on their way here.
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
        // Also if it was an error: some of it may have been written.
        log_write::<L>(inode_id, pages);
        written as isize
    }

    /// # Safety
    ///
    /// The VFS calls it, for a shmem file that was opened while it was tracked, or is, or for a clone.
    unsafe extern "C" fn fallocate(
        file: *mut c::file,
        mode: ffi::c_int,
        pos: c::loff_t,
        len: c::loff_t,
    ) -> ffi::c_long {
        // The file that was adopted holds no module: whoever gives it its old operations back waits for
        // those who are on their way here.
        let _module_ref = ModuleRef::new();
        // SAFETY: The file is open during the call.
        let inode_id = unsafe { InodeId::of(file) };
        // What is allocated is zeros, as a hole is.
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

/// The pages that a system call writes to; [`None`] if there is none.
fn pages_of(pos: i64, len: u64) -> Option<PageRange> {
    let pos = u64::try_from(pos).ok()?;
    let (start, end) = (pos / PAGE_SIZE, pos.saturating_add(len).div_ceil(PAGE_SIZE));
    PageRange::within(start, end.saturating_sub(start), u64::MAX)
}

/// A system call that may write. It is to be heard of before it goes.
struct AdmittedCall<L: WriteLog>(Option<Arc<L>>);

impl<L: WriteLog> AdmittedCall<L> {
    /// Waits until it may; `EINTR` if the task is being killed.
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

/// Tells the log that the memory has now, which need not be the one that it had when the call began.
fn log_write<L: WriteLog>(memory: InodeId, pages: Option<PageRange>) {
    if let (Some(log), Some(pages)) = (L::of(memory), pages) {
        log.log_write(pages);
    }
}

/// What gives memory the operations of ours, and back: its mappings, its file, and those that are opened.
///
/// # Invariants
///
/// `clone` is a clone of the memory's file, and `data` the log that it holds.
pub(crate) struct OpsOverride<L> {
    clone: ARef<File>,
    data: *mut ffi::c_void,
    /// What the memory had before.
    seals: Atomic<u32>,
    /// The address of the file's operations; 0 before they were changed.
    file_ops: Atomic<usize>,
    _type: PhantomData<fn(L)>,
}

// SAFETY: A file and a pointer to what it holds.
unsafe impl<L: WriteLog> Send for OpsOverride<L> {}
// SAFETY: As above.
unsafe impl<L: WriteLog> Sync for OpsOverride<L> {}

impl SharedMemory {
    /// That behind a descriptor, if it can have a log of this kind. The header says which errors there
    /// are.
    pub(crate) fn adopt<L: WriteLog>(fd: i32) -> Result<Self> {
        Self::from_fd(fd, L::ops().file_ops())
    }
}

impl<L: WriteLog> OpsOverride<L> {
    /// For this memory and this log; nothing has changed yet.
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
        // INVARIANT: As made here.
        // SAFETY: The clone is a new file, which is ours and will have no descriptor; the memory's file
        // is valid.
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

    /// Seals the memory's size and gives its file our operations. From here on those who open or map it,
    /// or begin to write by a descriptor, meet the log, until [`OpsOverride::end`] has succeeded. If it fails,
    /// nothing has changed.
    pub(crate) fn install(&self, memory: &SharedMemory) -> Result {
        let mut seals = 0;
        // SAFETY: The memory's file is valid.
        to_result(unsafe { bindings::vmem_shared_seal(memory.as_ptr(), &raw mut seals) })?;
        self.seals.store(seals, Relaxed);
        let ops = L::ops().file_ops();
        // SAFETY: As above.
        let before = unsafe { bindings::vmem_shared_fops(memory.as_ptr()) };
        self.file_ops.store(before as usize, Relaxed);
        // SAFETY: As above; both tables have the same functions, so that whoever reads the old one
        // beside this goes on with it.
        unsafe {
            let shmem = bindings::vmem_shmem_fops();
            bindings::vmem_shared_set_fops(memory.as_ptr(), ops, shmem, ops);
        }
        Ok(())
    }

    /// `EBUSY` if a shared mapping is neither shmem's own nor, if the memory is a region's, one of `region_ops`.
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

    /// Has every shared mapping of shmem's own tell of writes. What page tables permit is as before.
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

    /// How many mappings of shmem's own tell of writes, up to `max`.
    pub(crate) fn mappings(&self, memory: &SharedMemory, max: usize) -> u64 {
        let filter = VmaFilter::Ops(L::ops().vm_ops()).to_raw();
        // SAFETY: The memory's file is valid, and the table is static.
        unsafe { bindings::vmem_count_vmas(memory.as_ptr(), &raw const filter, max) as u64 }
    }

    /// Gives the file and all mappings back what they had. Nobody is on the way to the log any more when
    /// it succeeds. `EINTR` if the task is being killed; it can be called again.
    pub(crate) fn restore(&self, memory: &SharedMemory) -> Result {
        let before = self.file_ops.load(Relaxed) as *const c::file_operations;
        if before.is_null() {
            return Ok(());
        }
        // SAFETY: The memory's file is valid, and these are the operations that it had.
        unsafe {
            let shmem = bindings::vmem_shmem_fops();
            let (memory, tracked) = (memory.as_ptr(), L::ops().file_ops());
            bindings::vmem_shared_set_fops(memory, before, tracked, shmem);
        }
        match memory.await_mmaps() {
            // Somebody maps it all the time: what is left over is tracked in vain, and holds the module.
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
        // Who has read the file's operations and is on his way to them, without a reference.
        // SAFETY: In process context, with nothing held that such a task could wait for.
        unsafe { bindings::vmem_synchronize_rcu_tasks() };
        Ok(())
    }
}
