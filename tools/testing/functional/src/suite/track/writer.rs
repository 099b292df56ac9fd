// SPDX-License-Identifier: GPL-2.0-or-later
//! Writes to memory, by programs and by the kernel for them: each is in the log, and no other page is.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use rustix::pipe::pipe;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{AreaBuilder, MemoryAt, poke_by_ptrace, read_at_into, read_into, write_other};

use crate::failure::{Outcome, equal};
use crate::kernel::Disk;
use crate::program::Program;
use crate::setting::{Board, bytes_of, contents};
use crate::tracked::{Tracked, fill, memfd};

crate::tests![
    a_store_through_a_mapping_that_is_older_than_the_log_is_logged,
    a_store_after_a_read_is_logged,
    a_store_to_a_hole_is_logged,
    a_store_to_a_page_without_a_page_table_entry_is_logged,
    each_store_to_a_cleaned_page_is_logged_anew,
    a_store_through_a_second_mapping_is_logged,
    a_store_of_another_thread_is_logged,
    a_store_of_another_process_is_logged,
    a_store_of_a_forked_child_is_logged,
    a_store_before_exec_is_logged,
    a_read_into_the_mapping_is_logged,
    a_direct_read_into_the_mapping_is_logged,
    process_vm_writev_is_logged,
    a_write_by_proc_pid_mem_is_logged,
    a_write_by_ptrace_is_logged,
    a_store_through_a_private_mapping_is_not_logged,
    reads_are_not_logged,
];

const PAGES: usize = 64;

fn a_store_through_a_mapping_that_is_older_than_the_log_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([0, 17, 63], |time| {
        memory.area.poke(0, time);
        // The last byte of one, and the first of the last one.
        memory.area.poke(18 * PAGE_SIZE - 1, time);
        memory.area.poke(63 * PAGE_SIZE, time);
        Ok(())
    })
}

/// The page is in the page table, for reading alone.
fn a_store_after_a_read_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([5, 6], |time| {
        for page in 0..PAGES {
            memory.area.peek(page * PAGE_SIZE);
        }
        memory.area.poke(5 * PAGE_SIZE, time);
        memory.area.poke(6 * PAGE_SIZE, time);
        Ok(())
    })
}

fn a_store_to_a_hole_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    const MADV_REMOVE: i32 = 9;
    memory.area.advise(8..16, MADV_REMOVE)?;
    memory.logs_once([9, 11], || {
        // A hole that has been read is a page of zeros.
        memory.area.peek(9 * PAGE_SIZE);
        memory.area.poke(9 * PAGE_SIZE, 1);
        memory.area.poke(11 * PAGE_SIZE, 1);
        Ok(())
    })
}

/// Of memory that nobody has mapped when the log began.
fn a_store_to_a_page_without_a_page_table_entry_is_logged() -> Outcome {
    let file = memfd(PAGES)?;
    fill(&file, PAGES)?;
    let log = crate::adopted::Adopted::new(&file)?;
    equal!(log.track()?.mappings, 0);
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    let memory = Tracked { file, area, log };
    memory.logs([20], |time| {
        memory.area.poke(20 * PAGE_SIZE, time);
        Ok(())
    })
}

fn each_store_to_a_cleaned_page_is_logged_anew() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    for time in 0..20 {
        memory.area.poke(7 * PAGE_SIZE, time);
        let cleaned = memory.log.bitmap(0..PAGES, true)?;
        equal!((cleaned.pages, cleaned.held), (vec![7], 0));
        memory.check_log([])?;
    }
    Ok(())
}

fn a_store_through_a_second_mapping_is_logged() -> Outcome {
    let file = memfd(PAGES)?;
    let areas = [
        AreaBuilder::default().map(&file, 0, PAGES)?,
        AreaBuilder::default().map(&file, 32, 32)?,
    ];
    let [area, second] = areas;
    let memory = Tracked::begin(file, area)?;
    memory.logs([40], |time| {
        // It has been written through the first one, and is in the page table there.
        memory.area.peek(40 * PAGE_SIZE);
        second.poke(8 * PAGE_SIZE, time);
        Ok(())
    })
}

fn a_store_of_another_thread_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs(4..8, |time| {
        thread::scope(|scope| {
            for page in 4..8 {
                let area = &memory.area;
                scope.spawn(move || area.poke(page * PAGE_SIZE, time));
            }
        });
        Ok(())
    })
}

/// A process that maps the file itself, before the log begins.
fn a_store_of_another_process_is_logged() -> Outcome {
    let board = Board::new()?;
    let file = memfd(PAGES)?;
    let writer = Program::start(|| {
        let area = AreaBuilder::default().map(&file, 0, PAGES)?;
        area.poke(33 * PAGE_SIZE, 77);
        for time in 1..=3 {
            board.set(0, time)?;
            board.wait(1, time)?;
            area.poke(33 * PAGE_SIZE, time as u8);
        }
        board.set(0, 4)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    let memory = Tracked::begin(file, area)?;
    equal!(memory.log.tracking()?.mappings, 2);
    memory.logs([33], |time| {
        board.set(1, time.into())?;
        board.wait(0, u64::from(time) + 1)
    })?;
    writer.join().map(drop)
}

fn a_store_of_a_forked_child_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([1, 2], |time| {
        let child = Program::start(|| {
            memory.area.poke(PAGE_SIZE, time);
            let grandchild = Program::start(|| {
                memory.area.poke(2 * PAGE_SIZE, time);
                Ok(vec![])
            })?;
            grandchild.join()
        })?;
        child.join().map(drop)
    })
}

/// The address space in which the page was written is gone when the log is read.
fn a_store_before_exec_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([50], |time| {
        let child = Program::start(|| {
            memory.area.poke(50 * PAGE_SIZE, time);
            Err(Command::new("/bin/true").exec().into())
        })?;
        child.join().map(drop)
    })
}

fn a_read_into_the_mapping_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([12, 13], |time| {
        let (reader, writer) = pipe()?;
        File::from(writer).write_all(&[time; 16])?;
        let over_two_pages = MemoryAt {
            area: &memory.area,
            offset: 13 * PAGE_SIZE - 8,
            len: 16,
        };
        equal!(read_into(&reader, over_two_pages)?, 16);
        Ok(())
    })
}

fn a_direct_read_into_the_mapping_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let disk = Disk::new("1M")?;
    let file = disk.open_direct()?;
    memory.logs(24..28, |time| {
        let buffered = OpenOptions::new().write(true).open(disk.path())?;
        for page in 0..4 {
            buffered.write_all_at(&bytes_of(&contents(1000 * u64::from(time) + page)), page * PAGE_SIZE as u64)?;
        }
        buffered.sync_all()?;
        let to = MemoryAt {
            area: &memory.area,
            offset: 24 * PAGE_SIZE,
            len: 4 * PAGE_SIZE,
        };
        equal!(read_at_into(&file, to)?, 4 * PAGE_SIZE);
        Ok(())
    })
}

/// A child of the test, which has the memory mapped at the same address and does nothing. `write` is told its process id.
fn to_a_child(memory: &Tracked, page: usize, mut write: impl FnMut(i32, usize, u8) -> Outcome) -> Outcome {
    let board = Board::new()?;
    let child = Program::start(|| {
        board.wait(0, 1)?;
        Ok(vec![])
    })?;
    memory.logs([page], |time| {
        write(child.pid(), memory.area.address() + page * PAGE_SIZE, time)
    })?;
    board.set(0, 1)?;
    child.join().map(drop)
}

fn process_vm_writev_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    to_a_child(&memory, 30, |pid, address, time| {
        equal!(write_other(pid, address + 100, &[time; 8])?, 8);
        Ok(())
    })
}

fn a_write_by_proc_pid_mem_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    to_a_child(&memory, 31, |pid, address, time| {
        let mem = OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"))?;
        Ok(mem.write_all_at(&[time; 8], address as u64 + 100)?)
    })
}

fn a_write_by_ptrace_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    to_a_child(&memory, 32, |pid, address, time| {
        Ok(poke_by_ptrace(pid, address + 104, time.into())?)
    })
}

/// Of one that is older than the log, and of one that is made while it runs.
fn a_store_through_a_private_mapping_is_not_logged() -> Outcome {
    let file = memfd(PAGES)?;
    let older = AreaBuilder::default().private().map(&file, 0, PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    let memory = Tracked::begin(file, area)?;
    equal!(memory.log.tracking()?.mappings, 1);
    memory.logs_nothing(|| {
        let newer = AreaBuilder::default().private().map(&memory.file, 0, PAGES)?;
        for private in [&older, &newer] {
            for page in 0..8 {
                private.peek(page * PAGE_SIZE);
                private.write_page(page, &contents(9000));
                equal!(private.page(page), contents(9000));
            }
        }
        Ok(())
    })
}

fn reads_are_not_logged() -> Outcome {
    const MADV_REMOVE: i32 = 9;
    let memory = Tracked::new(PAGES)?;
    memory.area.advise(8..16, MADV_REMOVE)?;
    memory.logs_nothing(|| {
        let second = memory.map()?;
        for page in 0..PAGES {
            let expected = if (8..16).contains(&page) {
                vec![0; 512]
            } else {
                contents(page as u64)
            };
            equal!(memory.area.page(page), expected);
            equal!(second.page(page), expected);
        }
        Ok(())
    })
}
