// SPDX-License-Identifier: GPL-2.0-or-later
//! Calls with arguments that nobody would make, on regions of its own.

use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, ftruncate, memfd_create};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use vmem::{Control, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder, ioctl_at};
use vmem_sys::{
    VMEM_ADOPT, VMEM_ATTACH, VMEM_CREATE_VMEM, VMEM_DIRTY, VMEM_FILL_PAGES, VMEM_GET_FEATURES, VMEM_GET_INFO, VMEM_GET_MAP_FD,
    VMEM_GET_PAGE_REQUEST, VMEM_GET_PRESENT, VMEM_GET_SNAPSHOT, VMEM_GET_TRACKING, VMEM_MAKE_PAGES_PRESENT,
    VMEM_MAKE_VMA_ANONYMOUS, VMEM_MARK_PAGE_CACHED, VMEM_READY, VMEM_SNAPSHOT, VMEM_SNAPSHOT_DONE, VMEM_TRACK, VMEM_UNTRACK,
    VMEM_WAIT_READY, calls, vmem_adopt, vmem_create, vmem_map_fd, vmem_snapshot, vmem_snapshot_member,
};

use crate::board::{Board, Note};
use crate::numbers::Numbers;

const PAGES: usize = 96;
const CALLS: [u32; 21] = [
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
    VMEM_ADOPT,
    VMEM_TRACK,
    VMEM_UNTRACK,
    VMEM_DIRTY,
    VMEM_GET_TRACKING,
    VMEM_SNAPSHOT,
    VMEM_SNAPSHOT_DONE,
    VMEM_GET_SNAPSHOT,
];

/// Memory for arguments. The last page of it is not mapped, the one before can only be read.
struct Arguments {
    memory: Area,
}

impl Arguments {
    const PAGES: usize = 6;
    /// Where the members of a snapshot are.
    const MEMBERS: usize = 2048;

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

    /// Fills the memory with something, and gives the address of a call's argument.
    fn make(&self, numbers: &mut Numbers, absent: &Area, call: u32) -> usize {
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
        // The sizes of regions: small ones, as there may be thousands, or impossible ones. One of terabytes takes hundreds of megabytes,
        // and its cgroup's programs would be killed for it.
        let size = self.memory.load(0);
        if (1 << 24..=1 << 44).contains(&size) {
            self.memory.store(0, size % (1 << 24));
        }
        let wild = self.address(numbers, absent) as usize;
        let is_in = |area: &Area| (area.address()..area.address() + area.size()).contains(&wild);
        let is_size = call == VMEM_CREATE_VMEM && (is_in(&self.memory) || is_in(absent));
        match numbers.once_in(12) && !is_size {
            true => wild,
            false => self.memory.address(),
        }
    }

    /// A snapshot of this memory, in the place of something wild.
    fn make_snapshot(&self, vmem: &impl AsFd, numbers: &mut Numbers) -> usize {
        let words = [
            (
                offset_of!(vmem_snapshot, members),
                (self.memory.address() + Self::MEMBERS) as u64,
            ),
            (offset_of!(vmem_snapshot, nr), 1 | ((numbers.below(4) as u64) << 32)),
            (offset_of!(vmem_snapshot, limit), Self::number(numbers)),
            (offset_of!(vmem_snapshot, closed_ns), 0),
            (offset_of!(vmem_snapshot, reserved), 0),
            (offset_of!(vmem_snapshot, reserved) + 8, 0),
            (Self::MEMBERS, vmem.as_fd().as_raw_fd() as u64 | (u64::from(u32::MAX) << 32)),
        ];
        for (offset, word) in words {
            self.memory.store(offset, word);
        }
        self.memory.address()
    }

    /// The descriptor that a call has stored at `offset`.
    fn descriptor(&self, offset: usize) -> i32 {
        (0..4).fold(0, |value, byte| {
            value | (i32::from(self.memory.peek(offset + byte)) << (8 * byte))
        })
    }
}

/// Calls in a life. What descriptors they gave goes with it.
const CALLS_IN_A_LIFE: usize = 600;
/// Calls on a region that has become plain: most of them can only be refused then.
const CALLS_WHEN_PLAIN: usize = 20;
/// Descriptors that calls gave and that are used for others.
const DESCRIPTORS: usize = 16;
/// What leaves the processors to the others.
const PAUSE: Duration = Duration::from_millis(1);

/// The descriptor that a call has given, if it is one that may be used: whoever serves the others' regions, too, makes their pages wrong.
fn given(call: u32, arguments: &Arguments) -> anyhow::Result<Option<OwnedFd>> {
    let offset = match call {
        VMEM_CREATE_VMEM => offset_of!(vmem_create, vmem_fd),
        VMEM_GET_MAP_FD => offset_of!(vmem_map_fd, fd),
        VMEM_ADOPT => offset_of!(vmem_adopt, vmem_fd),
        VMEM_SNAPSHOT => Arguments::MEMBERS + offset_of!(vmem_snapshot_member, snapshot_fd),
        _ => return Ok(None),
    };
    let itself = pidfd_open(getpid(), PidfdFlags::empty()).context("pidfd")?;
    let fd =
        pidfd_getfd(&itself, arguments.descriptor(offset), PidfdGetfdFlags::empty()).context("a descriptor that a call gave")?;
    fcntl_setfl(&fd, OFlags::NONBLOCK)?;
    Ok(Some(fd))
}

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
    // Memory that is written to, so that there is something in its log and its images.
    let memory = memfd_create("wild", MemfdFlags::CLOEXEC).context("memfd")?;
    ftruncate(&memory, (PAGES * PAGE_SIZE) as u64).context("memfd")?;
    let written = AreaBuilder::default().map(&memory, 0, PAGES).context("mapping a memfd")?;
    let adopted = calls::adopt(control.as_fd(), memory.as_fd()).context("adopt")?.vmem;
    let mut others: Vec<OwnedFd> = Vec::new();
    let mut left = CALLS_IN_A_LIFE;
    while left > 0 && !board.is_over()? {
        left -= 1;
        board.count(actor, Note::Steps)?;
        written.store(numbers.below(PAGES) * PAGE_SIZE, numbers.any());
        let fd: BorrowedFd<'_> = match numbers.below(9) {
            0 => control.as_fd(),
            1 => map.as_fd(),
            6..9 => adopted.as_fd(),
            at if at < 4 && !others.is_empty() => others[numbers.below(others.len())].as_fd(),
            _ => region.as_fd(),
        };
        let call = match numbers.below(20) {
            // Numbers and sizes that are no call.
            0 => numbers.any() as u32,
            1 => numbers.pick(&CALLS) ^ (1 << numbers.below(32)),
            _ => numbers.pick(&CALLS),
        };
        let argument = match call {
            VMEM_SNAPSHOT if numbers.once_in(2) => arguments.make_snapshot(&adopted, &mut numbers),
            _ => arguments.make(&mut numbers, &area, call),
        };
        // Whatever comes of it.
        let result = ioctl_at(fd, call, argument);
        board.count(actor, Note::Wild)?;
        if result.is_ok() && argument == arguments.memory.address() {
            if let Some(fd) = given(call, &arguments)? {
                if others.len() == DESCRIPTORS {
                    others.swap_remove(numbers.below(DESCRIPTORS));
                }
                others.push(fd);
            }
        }
        if result.is_ok() && call == VMEM_MAKE_VMA_ANONYMOUS && region.info()?.plain {
            left = left.min(CALLS_WHEN_PLAIN);
        }
        sleep(PAUSE);
    }
    Ok(())
}
