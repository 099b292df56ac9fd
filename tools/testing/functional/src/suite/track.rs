// SPDX-License-Identifier: GPL-2.0-or-later
//! VMEM_TRACK and VMEM_UNTRACK: how a log begins and ends, and that nothing of it is left.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, fcntl_get_seals};
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{
    Area, AreaBuilder, MemoryAt, SYS_ioctl, SYS_pwrite64, Userfault, ioctl, register_userfault, write_at_from,
};
use vmem_sys::{VMEM_TRACK, calls, vmem_track};

use super::module::cannot_remove;
use super::stress::Numbers;
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::{Program, asleep_in};
use crate::setting::{Board, Setting, check_page, contents, smaps};
use crate::tracked::{Tracked, fill, maps_line, memfd};
use crate::world::{insert_module, module_users, remove_module, wait_until};

pub(super) mod all;
pub(super) mod consistency;
pub(super) mod dirty;
pub(super) mod file;
pub(super) mod mapping;
pub(super) mod memory;
pub(super) mod region;
pub(super) mod writer;

/// A test that begins to track while others are in `mmap`, for which a debug kernel (CONFIG_DEBUG_VM) ends: tracking.rst has why.
pub(crate) const BEGINS_BESIDE_MMAP: &str =
    "track::consistency::a_log_that_begins_while_programs_write_misses_nothing_after_that";

/// Tests which want that a page is not held any more when it has just been cleaned.
pub(crate) const LET_GO: [&str; 6] = [
    "track::dirty::read_without_clean_leaves_the_log",
    "track::dirty::clean_is_for_the_pages_of_its_range_alone",
    "track::dirty::the_call_stops_when_the_array_of_ranges_is_full",
    "track::dirty::an_argument_that_cannot_be_written_loses_no_page",
    "track::dirty::figures_count_what_was_written_and_cleaned",
    "track::writer::each_store_to_a_cleaned_page_is_logged_anew",
];

crate::tests![
    a_second_log_is_ealready,
    a_log_that_is_not_there_can_be_ended,
    dirty_read_without_a_log_is_enodata,
    a_new_log_is_empty,
    a_write_that_is_under_way_when_a_log_begins_is_not_missed,
    wrong_arguments_are_einval,
    memory_of_userfaultfd_is_refused_and_left_as_it_is,
    userfaultfd_cannot_register_memory_that_is_tracked,
    a_file_that_was_opened_a_second_time_for_writing_is_refused,
    the_size_cannot_be_changed_while_tracked,
    the_log_ends_with_the_last_descriptor,
    the_log_ends_with_the_program_that_reads_it,
    a_tracker_that_is_killed_anywhere_leaves_plain_memory,
    memory_outlives_the_module,
    the_log_outlives_everything_else_of_the_memory,
    the_module_cannot_be_removed_while_memory_is_tracked,
];

const PAGES: usize = 64;

/// A file with contents, a mapping of it that has written all of it, and how that looks from outside.
struct Plain {
    file: File,
    area: Area,
    line: String,
}

impl Plain {
    fn new() -> Outcome<Self> {
        let file = memfd(PAGES)?;
        let area = AreaBuilder::default().map(&file, 0, PAGES)?;
        for page in 0..PAGES {
            area.write_page(page, &contents(page as u64));
        }
        let line = maps_line(std::process::id() as i32, area.address())?;
        Ok(Self { file, area, line })
    }

    /// Fails unless the memory is as any other: its mapping, its contents, its size and its writers.
    fn check(&self) -> Outcome {
        equal!(maps_line(std::process::id() as i32, self.area.address())?, self.line);
        for page in 0..PAGES {
            check_page(&self.area, page, page)?;
        }
        self.area.write_page(1, &contents(501));
        let mut bytes = vec![0; PAGE_SIZE];
        self.file.read_exact_at(&mut bytes, PAGE_SIZE as u64)?;
        ensure!(bytes == crate::setting::bytes_of(&contents(501)), "a store was lost");
        self.area.write_page(1, &contents(1));
        self.file
            .write_all_at(&crate::setting::bytes_of(&contents(2)), 2 * PAGE_SIZE as u64)?;
        let size = (PAGES * PAGE_SIZE) as u64;
        self.file.set_len(size + 1)?;
        self.file.set_len(size)?;
        register_userfault(&self.area, Userfault::WriteProtectAsync)?;
        Ok(())
    }
}

fn a_second_log_is_ealready() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.poke(5 * PAGE_SIZE, 1);
    refused!(memory.log.track(), ALREADY);
    // The first one goes on.
    memory.check_log([5])?;
    memory.logs([6], |time| {
        memory.area.poke(6 * PAGE_SIZE, time);
        Ok(())
    })
}

fn a_log_that_is_not_there_can_be_ended() -> Outcome {
    let plain = Plain::new()?;
    let log = Adopted::new(&plain.file)?;
    log.untrack()?;
    plain.check()?;
    log.track()?;
    log.untrack()?;
    plain.check()?;
    log.untrack()?;
    plain.check()
}

fn dirty_read_without_a_log_is_enodata() -> Outcome {
    let file = memfd(PAGES)?;
    let log = Adopted::new(&file)?;
    let nothing = || -> Outcome {
        for clean in [false, true] {
            let bitmap = calls::dirty_bitmap(log.as_fd(), 0, PAGES as u64, clean, &mut [0]);
            equal!(bitmap.error, Some(rustix::io::Errno::NODATA));
            let ranges = calls::dirty_ranges(log.as_fd(), 0, PAGES as u64, clean, &mut [Default::default()]);
            equal!(ranges.error, Some(rustix::io::Errno::NODATA));
        }
        let figures = log.tracking()?;
        equal!([figures.tracked, figures.mappings, figures.dirty, figures.faults], [0; 4]);
        Ok(())
    };
    nothing()?;
    log.track()?;
    file.write_all_at(&[1], 0)?;
    equal!(log.tracking()?.tracked, 1);
    log.untrack()?;
    nothing()
}

/// Nothing of what was in the log before.
fn a_new_log_is_empty() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    for page in 0..PAGES {
        memory.area.poke(page * PAGE_SIZE, 9);
    }
    memory.log.untrack()?;
    memory.area.poke(0, 10);
    vmem_functional_sys::drain_page_lists()?;
    let track = memory.log.track()?;
    equal!((track.flags, track.reserved0, track.reserved), (0, 0, [0; 2]));
    equal!(memory.log.bitmap(0..PAGES, false)?.pages.len() as u64, track.held);
    memory.settle()?;
    memory.logs([3], |time| {
        memory.area.poke(3 * PAGE_SIZE, time);
        Ok(())
    })
}

/// Who copies the memory when the log has begun, and then what it reports, misses nothing of a write that began before.
fn a_write_that_is_under_way_when_a_log_begins_is_not_missed() -> Outcome {
    // The writes are held up by the pages that they read.
    let (setting, board) = (Setting::new(2)?, Board::new()?);
    let file = memfd(PAGES)?;
    let log = Adopted::new(&file)?;
    let writer = |page: usize| {
        Program::start(|| {
            let memory = MemoryAt {
                area: &setting.area()?,
                offset: page * PAGE_SIZE,
                len: PAGE_SIZE,
            };
            equal!(write_at_from(&file, memory)?, PAGE_SIZE);
            Ok(vec![])
        })
    };
    // One has the lock of the file; the tracker waits for it, and behind that a write that knows of no log.
    let first = writer(0)?;
    equal!(setting.take_request()?, 0);
    setting.wait_waiters(1)?;
    let tracker = Program::start(|| {
        log.track()?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        Ok(vec![])
    })?;
    let waits_in = |program: &Program, call| wait_until("the program waits", || asleep_in(program.pid(), program.pid(), call));
    waits_in(&tracker, SYS_ioctl)?;
    let second = writer(1)?;
    waits_in(&second, SYS_pwrite64)?;
    setting.fill([0])?;
    first.join()?;
    equal!(setting.take_request()?, 1);
    setting.wait_waiters(1)?;
    // Time for a log to begin that does not wait for the second one.
    sleep(Duration::from_millis(500));
    let has_begun = board.get(0)? == 1;
    setting.fill([1])?;
    second.join()?;
    board.wait(0, 1)?;
    ensure!(
        !has_begun || log.bitmap(0..PAGES, false)?.pages == [0],
        "the log has missed the write"
    );
    board.set(1, 1)?;
    tracker.join()?;
    Ok(())
}

fn wrong_arguments_are_einval() -> Outcome {
    let plain = Plain::new()?;
    let log = Adopted::new(&plain.file)?;
    let flags = (2..32).map(|bit| vmem_track {
        flags: 1 << bit,
        ..Default::default()
    });
    let reserved = [(1, [0, 0]), (0, [1, 0]), (0, [0, 1 << 63])].map(|(reserved0, reserved)| vmem_track {
        reserved0,
        reserved,
        ..Default::default()
    });
    for mut call in flags.chain(reserved) {
        refused!(ioctl(log.as_fd(), VMEM_TRACK, &mut call), INVAL);
    }
    equal!(log.tracking()?.tracked, 0);
    plain.check()
}

fn memory_of_userfaultfd_is_refused_and_left_as_it_is() -> Outcome {
    for what in [Userfault::Missing, Userfault::WriteProtectAsync] {
        let plain = Plain::new()?;
        let second = AreaBuilder::default().map(&plain.file, 0, PAGES)?;
        let lines = || -> Outcome<[String; 2]> {
            let line = |area: &Area| maps_line(std::process::id() as i32, area.address());
            Ok([line(&plain.area)?, line(&second)?])
        };
        let before = lines()?;
        let log = Adopted::new(&plain.file)?;
        let registered = register_userfault(&second, what)?;
        refused!(log.track(), BUSY);
        equal!(log.tracking()?.tracked, 0);
        equal!(lines()?, before);
        for page in 0..PAGES {
            check_page(&second, page, page)?;
        }
        second.write_page(3, &contents(3));
        ensure!(smaps(std::process::id(), second.address())?.contains(match what {
            Userfault::Missing => " um",
            Userfault::WriteProtectAsync => " uw",
        }));
        plain.check()?;
        drop(registered);
        equal!(log.track()?.mappings, 2);
        log.untrack()?;
        equal!(lines()?, before);
        plain.check()?;
    }
    Ok(())
}

fn userfaultfd_cannot_register_memory_that_is_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let newer = memory.map()?;
    for area in [&memory.area, &newer] {
        refused!(register_userfault(area, Userfault::Missing), INVAL);
    }
    memory.logs([3], |time| {
        newer.poke(3 * PAGE_SIZE, time);
        Ok(())
    })?;
    memory.log.untrack()?;
    for what in [Userfault::Missing, Userfault::WriteProtectAsync] {
        register_userfault(&memory.area, what)?;
        register_userfault(&newer, what)?;
    }
    Ok(())
}

fn a_file_that_was_opened_a_second_time_for_writing_is_refused() -> Outcome {
    let plain = Plain::new()?;
    let log = Adopted::new(&plain.file)?;
    let path = format!("/proc/self/fd/{}", plain.file.as_raw_fd());
    let second = OpenOptions::new().read(true).write(true).open(&path)?;
    refused!(log.track(), BUSY);
    // Its mapping is as much of it.
    let mapping = AreaBuilder::default().map(&second, 0, PAGES)?;
    drop(second);
    refused!(log.track(), BUSY);
    equal!(log.tracking()?.tracked, 0);
    drop(mapping);
    // Who can only read is nobody to look at.
    let reader = File::open(&path)?;
    let _mapping = AreaBuilder::default().read_only().map(&reader, 0, PAGES)?;
    plain.check()?;
    log.track()?;
    log.untrack()?;
    plain.check()
}

fn the_size_cannot_be_changed_while_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let size = (PAGES * PAGE_SIZE) as u64;
    for other in [0, size - 1, size / 2, size + 1, 2 * size] {
        refused!(memory.file.set_len(other), PERM);
    }
    refused!(memory.file.write_all_at(&[1], size), PERM);
    refused!(fallocate(&memory.file, FallocateFlags::empty(), size, PAGE_SIZE as u64), PERM);
    equal!(memory.file.metadata()?.len(), size);
    memory.log.untrack()?;
    memory.file.set_len(2 * size)?;
    memory.file.write_all_at(&[1], 2 * size - 1)?;
    memory.file.set_len(size / 2)?;
    // What is adopted is memory of a size: one that has changed is adopted anew.
    let Tracked { file, area, log } = memory;
    let seals = fcntl_get_seals(&file)?;
    drop(log);
    let log = Adopted::new(&file)?;
    equal!(log.size, size / 2);
    log.track()?;
    refused!(file.set_len(size), PERM);
    drop(log);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    equal!(fcntl_get_seals(&file)?, seals);
    file.set_len(size)?;
    check_page(&area, 3, 3)
}

fn the_log_ends_with_the_last_descriptor() -> Outcome {
    let plain = Plain::new()?;
    let log = Adopted::new(&plain.file)?;
    let duplicate = rustix::io::fcntl_dupfd_cloexec(&log, 0)?;
    log.track()?;
    drop(log);
    equal!(calls::get_tracking(duplicate.as_fd())?.tracked, 1);
    refused!(plain.file.set_len(1), PERM);
    drop(duplicate);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    plain.check()
}

/// A program that adopts the memory, tracks it, and reads the log, until it is killed.
fn tracker(file: &File, board: &Board) -> Outcome<Program> {
    Program::start(|| {
        let log = Adopted::new(file)?;
        for cycle in 1.. {
            log.track()?;
            board.set(0, cycle)?;
            for _ in 0..20 {
                log.bitmap(0..PAGES, true)?;
            }
            log.untrack()?;
        }
        Ok(vec![])
    })
}

fn the_log_ends_with_the_program_that_reads_it() -> Outcome {
    let (plain, board) = (Plain::new()?, Board::new()?);
    let program = Program::start(|| {
        let log = Adopted::new(&plain.file)?;
        log.track()?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    refused!(plain.file.set_len(1), PERM);
    plain.area.write_page(9, &contents(9));
    program.signal(Signal::KILL)?;
    program.join_killed(Signal::KILL)?;
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    plain.check()
}

/// In the middle of TRACK, of DIRTY and of UNTRACK.
fn a_tracker_that_is_killed_anywhere_leaves_plain_memory() -> Outcome {
    let (plain, board) = (Plain::new()?, Board::new()?);
    let mut numbers = Numbers(0x1357);
    for _ in 0..12 {
        board.set(0, 0)?;
        let program = tracker(&plain.file, &board)?;
        if numbers.below(2) == 0 {
            board.wait(0, 1)?;
        }
        sleep(Duration::from_micros(numbers.below(250_000) as u64));
        program.signal(Signal::KILL)?;
        program.join_killed(Signal::KILL)?;
        wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
        plain.check()?;
    }
    // Nor is anything left that would be in the way of the next one.
    let log = Adopted::new(&plain.file)?;
    equal!(log.track()?.mappings, 1);
    Ok(())
}

fn memory_outlives_the_module() -> Outcome {
    let plain = Plain::new()?;
    let log = Adopted::new(&plain.file)?;
    log.track()?;
    let newer = AreaBuilder::default().map(&plain.file, 0, PAGES)?;
    newer.write_page(4, &contents(4));
    drop(log);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    remove_module()?;
    let checked = plain.check().and_then(|()| check_page(&newer, 4, 4));
    newer.write_page(4, &contents(4));
    drop(newer);
    insert_module()?;
    checked?;
    // The module that comes then knows nothing of it.
    let log = Adopted::new(&plain.file)?;
    equal!(log.track()?.mappings, 1);
    log.untrack()?;
    plain.check()
}

/// The file, its mappings and the process that had them.
fn the_log_outlives_everything_else_of_the_memory() -> Outcome {
    let Tracked { file, area, log } = Tracked::new(PAGES)?;
    drop(area);
    equal!(log.tracking()?.mappings, 0);
    drop(file);
    log.bitmap(0..PAGES, true)?;
    log.untrack()?;
    equal!(log.track()?.mappings, 0);
    log.bitmap(0..PAGES, true)?;
    Ok(())
}

fn the_module_cannot_be_removed_while_memory_is_tracked() -> Outcome {
    let path = Path::new("/dev/shm/vmem-tracked");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    std::fs::remove_file(path)?;
    fill(&file, PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    let log = Adopted::new(&file)?;
    cannot_remove()?;
    log.track()?;
    cannot_remove()?;
    area.poke(0, 1);
    log.untrack()?;
    cannot_remove()
}
