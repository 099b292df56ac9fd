// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest of KVM that does nothing but touch pages.

use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::{Memory, PAGE_SIZE, Sharing};

/// Where the guest finds the memory that it writes to: after all that a machine may want in its first MiB.
const MEMORY: u64 = 1 << 28;
/// Where it finds its programs.
const READER: u64 = 0;
const WRITER: u64 = 64;
/// Where it finds the addresses of the pages that it writes to, 4 bytes each.
const ADDRESSES: u64 = PAGE_SIZE as u64;
/// KVM's numbers of the two memories.
const MEMORY_SLOT: u32 = 0;
const PROGRAM_SLOT: u32 = 1;
/// In `include/uapi/linux/kvm.h`.
const KVM_CLEAR_DIRTY_LOG: Opcode = opcode::read_write::<kvm_clear_dirty_log>(0xae, 0xc0);

/// Bits of the processor's register CR0: protection enable, not write-through, cache disable.
const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;

/// The guest's two programs, for a processor without paging: each takes one address after the other from the list, touches the byte behind the
/// first word of that page, and halts at the end. The first only reads. The second only writes, since a store that reads before is two faults
/// on an emulated processor.
const READ: [u8; 7] = [
    0xad, // next: lodsd
    0x84, 0x40, 0x08, // testb %al, 8(%eax)
    0xe2, 0xfa, // loop next
    0xf4, // hlt
];
const WRITE: [u8; 8] = [
    0xad, // next: lodsd
    0xc6, 0x40, 0x08, 0x5a, // movb $0x5a, 8(%eax)
    0xe2, 0xf9, // loop next
    0xf4, // hlt
];

/// Who hears of what the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvmLog {
    /// KVM does, as it does for a migration.
    On,
    /// Not KVM.
    Off,
}

/// A virtual machine of one processor, which has a memory of the program that is measured and writes to its pages.
#[derive(Debug)]
pub struct Guest {
    processor: VcpuFd,
    machine: VmFd,
    program: Memory,
    /// Where the memory is that the guest has, and how many pages.
    memory: (usize, usize),
}

impl Guest {
    /// A guest that has `memory`.
    ///
    /// # Errors
    ///
    /// `ENOENT`, `ENODEV` or `ENXIO` if this machine has no KVM; `ERANGE` for more memory than the guest's addresses reach; what KVM's calls give.
    pub fn new(memory: &Memory, log: KvmLog) -> Result<Self, Errno> {
        if MEMORY + (memory.pages() * PAGE_SIZE) as u64 > 1 << 32 {
            return Err(Errno::RANGE);
        }
        let machine = Kvm::new().map_err(of_kvm)?.create_vm().map_err(of_kvm)?;
        if log == KvmLog::On {
            // The pages that are taken out of the log and those that are protected again are told apart, as QEMU does it.
            let mut manual = kvm_enable_cap {
                cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                ..Default::default()
            };
            manual.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into();
            machine.enable_cap(&manual).map_err(of_kvm)?;
        }
        let program = Memory::anonymous(1 + (4 * memory.pages()).div_ceil(PAGE_SIZE), Sharing::Shared)?;
        let mut page = vec![0; PAGE_SIZE];
        page[READER as usize..][..READ.len()].copy_from_slice(&READ);
        page[WRITER as usize..][..WRITE.len()].copy_from_slice(&WRITE);
        program.write_pages(0, &page);
        for (slot, place, of, flags) in [
            (PROGRAM_SLOT, READER, &program, 0),
            (
                MEMORY_SLOT,
                MEMORY,
                memory,
                if log == KvmLog::On { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            ),
        ] {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: place,
                memory_size: (of.pages() * PAGE_SIZE) as u64,
                userspace_addr: of.address() as u64,
            };
            // SAFETY: KVM writes there only while the guest runs, which is in `run()`. That borrows a `Memory` of this address and length, and
            // owns the programs'; no reference to either exists.
            unsafe { machine.set_user_memory_region(region) }.map_err(of_kvm)?;
        }
        let processor = machine.create_vcpu(0).map_err(of_kvm)?;
        let mut registers = processor.get_sregs().map_err(of_kvm)?;
        let flat = |kind| kvm_segment {
            limit: u32::MAX,
            type_: kind,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..Default::default()
        };
        // Code that can be read, data that can be written, both accessed.
        registers.cs = flat(0xb);
        for data in [&mut registers.ds, &mut registers.es, &mut registers.ss] {
            *data = flat(0x3);
        }
        // Protected mode, with caches.
        registers.cr0 = (registers.cr0 | CR0_PE) & !(CR0_NW | CR0_CD);
        processor.set_sregs(&registers).map_err(of_kvm)?;
        Ok(Self {
            processor,
            machine,
            program,
            memory: (memory.address(), memory.pages()),
        })
    }

    /// Has the guest read these pages, in this order.
    ///
    /// # Errors
    ///
    /// `EFAULT` if `memory` is not what the guest has; `ERANGE` for more pages than it has, or others; `EIO` if the guest
    /// ends in another way than by its last instruction; what KVM gives.
    pub fn read(&mut self, memory: &Memory, pages: &[u64]) -> Result<(), Errno> {
        self.run(READER, memory, pages)
    }

    /// Has the guest write to these pages, in this order: one byte behind the first word of each.
    ///
    /// # Errors
    ///
    /// As for [`Guest::read`].
    pub fn write(&mut self, memory: &Memory, pages: &[u64]) -> Result<(), Errno> {
        self.run(WRITER, memory, pages)
    }

    fn run(&mut self, program: u64, memory: &Memory, pages: &[u64]) -> Result<(), Errno> {
        if self.memory != (memory.address(), memory.pages()) {
            return Err(Errno::FAULT);
        }
        if pages.len() > memory.pages() || pages.iter().any(|page| *page >= memory.pages() as u64) {
            return Err(Errno::RANGE);
        }
        if pages.is_empty() {
            return Ok(());
        }
        let mut list: Vec<u8> = pages.iter().flat_map(|page| address(*page).to_le_bytes()).collect();
        list.resize(list.len().next_multiple_of(PAGE_SIZE), 0);
        self.program.write_pages(1, &list);
        let mut registers = self.processor.get_regs().map_err(of_kvm)?;
        registers.rip = program;
        registers.rsi = ADDRESSES;
        registers.rcx = pages.len() as u64;
        // The bit that is always set.
        registers.rflags = 2;
        self.processor.set_regs(&registers).map_err(of_kvm)?;
        loop {
            match self.processor.run() {
                Ok(VcpuExit::Hlt) => return Ok(()),
                // A signal, or something that KVM wants done: it goes on.
                Ok(VcpuExit::Intr) => (),
                Err(error) if of_kvm(error) == Errno::INTR => (),
                Ok(_) => return Err(Errno::IO),
                Err(error) => return Err(of_kvm(error)),
            }
        }
    }

    /// Asks KVM which pages the guest has written to since they were protected, and protects these again. A bit a page.
    ///
    /// # Errors
    ///
    /// `ENOENT` if KVM keeps no log; what its calls give.
    pub fn clean(&mut self) -> Result<Vec<u64>, Errno> {
        let pages = self.memory.1;
        let log = self.machine.get_dirty_log(MEMORY_SLOT, pages * PAGE_SIZE).map_err(of_kvm)?;
        let mut clear = kvm_clear_dirty_log {
            slot: MEMORY_SLOT,
            num_pages: u32::try_from(pages).map_err(|_| Errno::OVERFLOW)?,
            first_page: 0,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: log.as_ptr().cast_mut().cast(),
            },
        };
        // SAFETY: the descriptor is open as long as `self.machine` is.
        let machine = unsafe { BorrowedFd::borrow_raw(self.machine.as_raw_fd()) };
        // SAFETY: the argument of this call is a `kvm_clear_dirty_log`.
        let call = unsafe { Updater::<KVM_CLEAR_DIRTY_LOG, _>::new(&mut clear) };
        // SAFETY: `log` has a bit for each page, and the call reads it alone.
        unsafe { ioctl(machine, call) }?;
        Ok(log)
    }
}

/// The guest's address of a page.
fn address(page: u64) -> u32 {
    (MEMORY + page * PAGE_SIZE as u64) as u32
}

fn of_kvm(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}
