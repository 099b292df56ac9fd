// SPDX-License-Identifier: GPL-2.0

//! Mappings whose faults this module handles.
//!
//! Stands in for an abstraction of `vm_operations_struct`, which upstream does not have.
//!
//! The file of a VMA ([`MapFile`]) holds what the VMA's operations need, as in any file system. So
//! nothing depends on `open` and `close`, and the module cannot be unloaded before the last VMA is
//! gone.

use super::{
    bindings,
    fault::{
        Fault,
        FaultPolicy, //
    },
    file::{
        into_file,
        punched, //
    },
    staging::Staging,
    vm_fault_reason::VmFaultReason,
    write_fault::WriteFault, //
};
use crate::model::range::PageRange;
use core::marker::PhantomData;
use kernel::{
    error::from_err_ptr,
    ffi,
    fs::File,
    mm::virt::flags,
    prelude::*,
    sync::aref::ARef, //
};

/// The memory behind a mapping, and its operations.
pub(crate) trait VmOps: FaultPolicy + Sized + Send + Sync + 'static {
    /// The operations of all mappings of this kind.
    const VM_OPS: &'static VmOpsTables<Self>;

    /// The operations of the files that such mappings hold.
    const MAP_OPS: &'static MapFileOps<Self>;

    /// Handles a fault.
    fn fault(&self, fault: &mut Fault<'_>) -> VmFaultReason;

    /// Whether the page cache may map its pages of the blocks that `range` touches, large folios
    /// included: all pages of these blocks are present.
    fn blocks_present(&self, range: PageRange) -> bool;

    /// Protected pages of a mapping that logs writes are about to become writable. Returns whether
    /// they may; the folio then stays locked until they are.
    fn write_fault(&self, _fault: &WriteFault<'_>) -> bool {
        true
    }

    /// The program discards a range of bytes, which reads as zeros from now on.
    fn discard(&self, offset: u64, len: u64) -> Result;
}

/// Two tables of VMA operations: for mappings that log writes, and for others. It must be a static:
/// the tables' addresses identify this module's mappings.
pub(crate) struct VmOpsTables<M> {
    plain: kernel::bindings::vm_operations_struct,
    logged: kernel::bindings::vm_operations_struct,
    _type: PhantomData<fn(M)>,
}

// SAFETY: The tables are never written.
unsafe impl<M> Sync for VmOpsTables<M> {}

impl<M: VmOps> VmOpsTables<M> {
    /// The operations of `M`.
    pub(crate) const fn new() -> Self {
        Self {
            plain: Self::table(),
            logged: kernel::bindings::vm_operations_struct {
                page_mkwrite: Some(Self::page_mkwrite),
                ..Self::table()
            },
            _type: PhantomData,
        }
    }

    const fn table() -> kernel::bindings::vm_operations_struct {
        kernel::bindings::vm_operations_struct {
            fault: Some(Self::fault),
            map_pages: Some(Self::map_pages),
            #[cfg(CONFIG_NUMA)]
            set_policy: Some(bindings::vmem_vma_set_policy),
            #[cfg(CONFIG_NUMA)]
            get_policy: Some(bindings::vmem_vma_get_policy),
            ..pin_init::zeroed()
        }
    }

    /// The table of mappings that do not log writes.
    pub(super) const fn as_ptr(&'static self) -> *const kernel::bindings::vm_operations_struct {
        &raw const self.plain
    }

    /// The table of mappings that log writes.
    pub(super) const fn logged(&'static self) -> *const kernel::bindings::vm_operations_struct {
        &raw const self.logged
    }

    /// Whether `ops` is one of the two tables.
    pub(super) fn has(&'static self, ops: *const kernel::bindings::vm_operations_struct) -> bool {
        ops == self.as_ptr() || ops == self.logged()
    }

    /// # Safety
    ///
    /// The memory management calls it, for a VMA that [`NewVma::map`] has set up for an `M`.
    unsafe extern "C" fn fault(
        vmf: *mut kernel::bindings::vm_fault,
    ) -> kernel::bindings::vm_fault_t {
        // SAFETY: The fault is valid during the call, and so is its VMA until the fault is unlocked.
        let memory = unsafe { (*(*vmf).__bindgen_anon_1.vma).vm_private_data };
        // SAFETY: The VMA's file holds the `M`, and `fault` holds the file from when it is unlocked
        // until it is dropped, after the last use of `memory`.
        let (memory, mut fault) = unsafe { (&*memory.cast::<M>(), Fault::from_raw(vmf)) };
        memory.fault(&mut fault).into_raw()
    }

    /// # Safety
    ///
    /// The memory management calls it, for a VMA that [`NewVma::map`] has set up for an `M`.
    unsafe extern "C" fn map_pages(
        vmf: *mut kernel::bindings::vm_fault,
        start: ffi::c_ulong,
        end: ffi::c_ulong,
    ) -> kernel::bindings::vm_fault_t {
        // SAFETY: The fault and its VMA are valid during the call, and the VMA's file holds the `M`.
        let (memory, write_faults) = unsafe {
            let vma = (*vmf).__bindgen_anon_1.vma;
            let memory = &*(*vma).vm_private_data.cast::<M>();
            (memory, super::fault::first_write_faults(vma))
        };
        let nr = (end as u64).saturating_sub(start as u64).saturating_add(1);
        match PageRange::within(start as u64, nr, u64::MAX) {
            // The caller is in an RCU read-side section, whose end the start of a log waits for.
            Some(range)
                if memory.blocks_present(range)
                    && memory.allows_fault_around(range, write_faults) =>
            {
                // SAFETY: The caller's arguments, for the page cache of the VMA's file.
                unsafe { kernel::bindings::filemap_map_pages(vmf, start, end) }
            }
            _ => 0,
        }
    }

    /// # Safety
    ///
    /// The memory management calls it, for a VMA of an `M` that logs writes.
    unsafe extern "C" fn page_mkwrite(
        vmf: *mut kernel::bindings::vm_fault,
    ) -> kernel::bindings::vm_fault_t {
        // SAFETY: The fault and its VMA are valid during the call, and the VMA's file, which is a shmem
        // file, holds the `M`.
        unsafe {
            let memory = &*(*(*vmf).__bindgen_anon_1.vma).vm_private_data.cast::<M>();
            let may = |fault: &WriteFault<'_>| memory.write_fault(fault);
            WriteFault::page_mkwrite(vmf, may, || memory.await_writable())
        }
    }
}

/// The operations of the files that mappings hold.
pub(crate) struct MapFileOps<M> {
    ops: kernel::bindings::file_operations,
    _type: PhantomData<fn(M)>,
}

// SAFETY: The table is never written.
unsafe impl<M> Sync for MapFileOps<M> {}

impl<M: VmOps> MapFileOps<M> {
    /// The operations for `M`, owned by this module.
    pub(crate) const fn new() -> Self {
        Self {
            ops: kernel::bindings::file_operations {
                owner: &raw mut bindings::__this_module,
                release: Some(Self::release),
                fallocate: Some(Self::fallocate),
                // As in shmem: there is no disk to wait for.
                fsync: Some(kernel::bindings::noop_fsync),
                ..pin_init::zeroed()
            },
            _type: PhantomData,
        }
    }

    /// # Safety
    ///
    /// The VFS calls it once, for a file that [`MapFile::new`] has made for an `M`.
    unsafe extern "C" fn release(
        _inode: *mut kernel::bindings::inode,
        file: *mut kernel::bindings::file,
    ) -> ffi::c_int {
        // SAFETY: The private data came from `KBox::into_raw`, and this is the last use of it.
        drop(unsafe { KBox::from_raw((*file).private_data.cast::<M>()) });
        0
    }

    /// # Safety
    ///
    /// The VFS calls it, for a file that [`MapFile::new`] has made for an `M`.
    unsafe extern "C" fn fallocate(
        file: *mut kernel::bindings::file,
        mode: ffi::c_int,
        offset: kernel::bindings::loff_t,
        len: kernel::bindings::loff_t,
    ) -> ffi::c_long {
        // SAFETY: The file holds an `M` as long as it is open.
        let memory = unsafe { &*(*file).private_data.cast::<M>() };
        let discarded =
            punched(mode, offset, len).and_then(|(offset, len)| memory.discard(offset, len));
        discarded.err().map_or(0, |e| e.to_errno() as ffi::c_long)
    }
}

/// The file that the mappings of an `M` hold.
///
/// It is an open file of the staging file's inode, with this module's operations. The memory
/// management, which asks the inode, sees shmem, and the operations hold the module. The file never
/// has a descriptor.
pub(crate) struct MapFile<M> {
    pub(super) file: ARef<File>,
    pub(super) memory: *const M,
}

// SAFETY: A file and a shared reference to an `M`, which is `Send` and `Sync`.
unsafe impl<M: VmOps> Send for MapFile<M> {}
// SAFETY: As above.
unsafe impl<M: VmOps> Sync for MapFile<M> {}

impl<M: VmOps> MapFile<M> {
    /// Makes the file, which owns `memory` until its last user is gone. `name` is what
    /// `/proc/PID/maps` shows.
    pub(crate) fn new(staging: &Staging, name: &CStr, memory: M) -> Result<Self> {
        let memory = KBox::into_raw(KBox::new(memory, GFP_KERNEL)?);
        // SAFETY: The staging file is a shmem file; the operations live as long as the module, and
        // expect a boxed `M`.
        let file = unsafe {
            bindings::vmem_shmem_clone(
                staging.as_ptr(),
                name.as_char_ptr(),
                &raw const M::MAP_OPS.ops,
                memory.cast(),
            )
        };
        match from_err_ptr(file) {
            Ok(file) => Ok(Self {
                // SAFETY: A new file. The reference is ours, and it will have no descriptor.
                file: unsafe { into_file(file) },
                memory,
            }),
            Err(e) => {
                // SAFETY: It came from `into_raw` above, and no file owns it.
                drop(unsafe { KBox::from_raw(memory) });
                Err(e)
            }
        }
    }
}

/// The flags of a mapping that is plain memory.
#[derive(Clone, Copy)]
pub(crate) struct PlainFlags {
    /// Whether it has huge pages, as after madvise(MADV_HUGEPAGE).
    pub(crate) huge: bool,
}

impl PlainFlags {
    /// Sets the flags in a VMA.
    ///
    /// # Safety
    ///
    /// The VMA is being made, or the lock of its address space is held for writing.
    pub(super) unsafe fn apply(self, vma: *mut kernel::bindings::vm_area_struct) {
        // A file on an anonymous inode removes this flag, which shared anonymous memory has.
        let mut set = flags::MAYEXEC;
        // SAFETY: By the safety requirement.
        unsafe {
            if self.huge && (*vma).__bindgen_anon_2.vm_flags & flags::NOHUGEPAGE == 0 {
                set |= flags::HUGEPAGE;
            }
            bindings::vmem_vma_set_flags(vma, set, flags::DONTEXPAND);
        }
    }
}

/// A VMA that is being made.
pub(crate) struct NewVma<'a> {
    vma: *mut kernel::bindings::vm_area_struct,
    _call: PhantomData<&'a ()>,
}

impl NewVma<'_> {
    /// # Safety
    ///
    /// `vma` is being made by this task, in an mmap operation, during `'_`.
    pub(super) unsafe fn from_raw(vma: *mut kernel::bindings::vm_area_struct) -> Self {
        Self {
            vma,
            _call: PhantomData,
        }
    }

    /// Whether writes through the VMA go to the memory.
    pub(crate) fn is_shared(&self) -> bool {
        // SAFETY: The VMA is ours to read.
        unsafe { (*self.vma).__bindgen_anon_2.vm_flags & flags::SHARED != 0 }
    }

    /// The first page and the number of pages.
    pub(crate) fn pages(&self) -> (u64, u64) {
        // SAFETY: The VMA is ours to read.
        let (pgoff, start, end) = unsafe {
            let bounds = &(*self.vma).__bindgen_anon_1.__bindgen_anon_1;
            ((*self.vma).vm_pgoff, bounds.vm_start, bounds.vm_end)
        };
        (
            pgoff as u64,
            (end - start) as u64 >> crate::model::range::PAGE_SHIFT,
        )
    }

    /// Makes the VMA a mapping of `file`'s memory. If `logged`, it logs writes.
    ///
    /// `VM_DONTEXPAND` keeps khugepaged and MADV_COLLAPSE away, which would map absent pages as
    /// zeros: to them a hole in shmem is zeros. It also keeps mlock() away. After
    /// `mlockall(MCL_FUTURE | MCL_ONFAULT)` mmap() would bring in every page nevertheless, unless the
    /// mapping has `VM_LOCKONFAULT`, which goes together with `VM_LOCKED` if that is there.
    pub(crate) fn map<M: VmOps>(self, file: &MapFile<M>, logged: bool) {
        // SAFETY: The VMA is being made, so it may change its file; that file holds what the
        // operations need.
        unsafe {
            kernel::bindings::vma_set_file(self.vma, file.file.as_ptr());
            (*self.vma).vm_ops = if logged {
                M::VM_OPS.logged()
            } else {
                M::VM_OPS.as_ptr()
            };
            (*self.vma).vm_private_data = file.memory.cast_mut().cast();
            bindings::vmem_vma_set_flags(self.vma, flags::DONTEXPAND, 0);
            bindings::vmem_vma_unlock(self.vma);
        }
    }

    /// Makes the VMA a plain mapping of the staging file.
    pub(crate) fn map_plain(self, staging: &Staging, plain: PlainFlags) -> Result {
        // SAFETY: The VMA is being made.
        unsafe { plain.apply(self.vma) };
        // SAFETY: The VMA is being made, so it may change its file.
        kernel::error::to_result(unsafe {
            bindings::vmem_vma_mmap_plain(self.vma, staging.as_ptr())
        })
    }
}
