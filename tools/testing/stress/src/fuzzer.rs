// SPDX-License-Identifier: GPL-2.0
//! Calls with arguments that nobody would make, on regions of its own.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{OFlags, fcntl_setfl};
use vmem::{Control, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder, ioctl_at};
use vmem_sys::{
    VMEM_ATTACH, VMEM_CREATE_VMEM, VMEM_FILL_PAGES, VMEM_GET_FEATURES, VMEM_GET_INFO, VMEM_GET_MAP_FD, VMEM_GET_PAGE_REQUEST,
    VMEM_GET_PRESENT, VMEM_MAKE_PAGES_PRESENT, VMEM_MAKE_VMA_ANONYMOUS, VMEM_MARK_PAGE_CACHED, VMEM_READY, VMEM_WAIT_READY,
};

use crate::board::{Board, Note};
use crate::numbers::Numbers;

const PAGES: usize = 96;
const CALLS: [u32; 13] = [
    VMEM_GET_FEATURES,
    VMEM_CREATE_VMEM,
    VMEM_ATTACH,
    VMEM_WAIT_READY,
    VMEM_READY,
    VMEM_GET_PAGE_REQUEST,
    VMEM_MARK_PAGE_CACHED,
    VMEM_MAKE_PAGES_PRESENT,
    VMEM_MAKE_VMA_ANONYMOUS,
    VMEM_FILL_PAGES,
    VMEM_GET_PRESENT,
    VMEM_GET_INFO,
    VMEM_GET_MAP_FD,
];

/// Memory for arguments. The last page of it is not mapped, the one before can only be read.
struct Arguments {
    memory: Area,
}

impl Arguments {
    const PAGES: usize = 6;

    fn new() -> anyhow::Result<Self> {
        let memory = AreaBuilder::default().private().anonymous(Self::PAGES).context("memory")?;
        memory.protect(Self::PAGES - 2..Self::PAGES - 1, 1)?;
        memory.protect(Self::PAGES - 1..Self::PAGES, 0)?;
        Ok(Self { memory })
    }

    /// An address: mostly one where something is.
    fn address(&self, numbers: &mut Numbers, absent: &Area) -> u64 {
        let base = self.memory.address() as u64;
        let inside = base + numbers.below(4 * PAGE_SIZE - 8192) as u64 / 8 * 8;
        match numbers.below(12) {
            0 => 0,
            1 => numbers.any(),
            2 => 0xffff_8880_0000_0000,
            3 => 0x7fff_ffff_f000,
            4 => base + (Self::PAGES as u64 - 2) * PAGE_SIZE as u64 - numbers.below(64) as u64,
            5 => base + (Self::PAGES as u64 - 1) * PAGE_SIZE as u64 - numbers.below(64) as u64,
            // A page that comes too late, or not at all.
            6 => (absent.address() + numbers.below(PAGES) * PAGE_SIZE) as u64,
            7 => inside + 1,
            _ => inside,
        }
    }

    /// A number that may stand for pages, entries, flags, sizes.
    fn number(numbers: &mut Numbers) -> u64 {
        match numbers.below(10) {
            0 => numbers.any(),
            1 => u64::MAX - numbers.below(3) as u64,
            2 => 1 << numbers.below(64),
            3 => PAGES as u64,
            4..6 => 0,
            _ => numbers.below(PAGES + 3) as u64,
        }
    }

    /// Fills the memory with something, and gives the address of an argument.
    fn make(&self, numbers: &mut Numbers, absent: &Area) -> usize {
        // Many fields must be zero for a call to come far.
        let zeros = numbers.below(16) * 8;
        for offset in (0..2048).step_by(8) {
            let word = match numbers.below(4) {
                _ if (zeros..96).contains(&offset) => 0,
                0 => self.address(numbers, absent),
                // Two numbers of 32 bits.
                1 => (Self::number(numbers) & 0xffff_ffff) | (Self::number(numbers) << 32),
                _ => Self::number(numbers),
            };
            self.memory.store(offset, word);
        }
        // The sizes of regions: small ones, as there may be thousands, or impossible ones.
        let size = self.memory.load(0);
        if (1 << 24..=1 << 44).contains(&size) {
            self.memory.store(0, size % (1 << 24));
        }
        if numbers.once_in(12) {
            self.address(numbers, absent) as usize
        } else {
            self.memory.address()
        }
    }
}

/// Calls in a life. What descriptors they gave goes with it.
const CALLS_IN_A_LIFE: usize = 600;

/// A fuzzer's life.
pub(crate) fn run(board: &Board, actor: usize, mut numbers: Numbers) -> anyhow::Result<()> {
    let arguments = Arguments::new()?;
    let control = Control::open()?;
    let region = RegionBuilder::new((PAGES * PAGE_SIZE) as u64)
        .fault_timeout(Duration::from_millis(5))
        .create(&control)
        .context("create")?;
    let map = region.map_handle().context("map descriptor")?;
    let area = AreaBuilder::default().map(&map, 0, PAGES).context("mapping")?;
    for fd in [region.as_fd(), map.as_fd()] {
        fcntl_setfl(fd, OFlags::NONBLOCK)?;
    }
    for _ in 0..CALLS_IN_A_LIFE {
        if board.is_over()? {
            break;
        }
        board.count(actor, Note::Steps)?;
        let fd: BorrowedFd<'_> = numbers.pick(&[region.as_fd(), region.as_fd(), map.as_fd(), control.as_fd()]);
        let call = match numbers.below(20) {
            // Numbers and sizes that are no call.
            0 => numbers.any() as u32,
            1 => numbers.pick(&CALLS) ^ (1 << numbers.below(32)),
            _ => numbers.pick(&CALLS),
        };
        let argument = arguments.make(&mut numbers, &area);
        // Whatever comes of it.
        let _ = ioctl_at(fd, call, argument);
        board.count(actor, Note::Wild)?;
    }
    Ok(())
}
