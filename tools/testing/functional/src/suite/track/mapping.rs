// SPDX-License-Identifier: GPL-2.0-or-later
//! What programs do to mappings of memory that is tracked: all of them are tracked, and are plain again afterwards.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, AreaBuilder};

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::{Board, check_page, contents, mapped_pages, minor_faults, smaps};
use crate::tracked::{Tracked, maps_line, memfd};
use crate::world::{module_users, wait_until};

crate::tests![
    mappings_are_counted,
    a_mapping_made_while_tracked_is_tracked,
    a_mapping_of_a_descriptor_opened_while_tracked_is_tracked,
    a_mapping_made_beside_another_one_is_tracked,
    a_mapping_made_over_another_one_is_tracked,
    a_mapping_that_is_populated_is_tracked_and_nothing_is_logged,
    a_mapping_that_moves_stays_tracked,
    a_mapping_that_grows_stays_tracked,
    a_duplicate_of_a_mapping_is_tracked,
    a_mapping_whose_pages_are_rearranged_stays_tracked,
    a_mapping_that_is_split_and_joined_stays_tracked,
    a_mapping_that_becomes_writable_is_tracked,
    a_mapping_of_a_read_only_descriptor_cannot_become_writable,
    a_locked_mapping_is_tracked_and_nothing_is_logged,
    populating_for_writes_loses_no_store,
    dropping_page_table_entries_is_no_write,
    mappings_are_plain_after_the_log,
    pages_fault_as_often_as_plain_ones_after_the_log,
];

const PAGES: usize = 64;
const READ: i32 = 1;
const WRITE: i32 = 2;
const MADV_DONTNEED: i32 = 4;
const MADV_POPULATE_WRITE: i32 = 23;

/// Fails unless stores through this mapping, which shows the memory from page `pgoff` on, are logged.
fn is_tracked(memory: &Tracked, area: &Area, pgoff: usize) -> Outcome {
    let last = area.pages() - 1;
    memory.logs([pgoff, pgoff + last], |_| {
        // Something else than what is there, which is read without the mapping.
        let mut byte = [0];
        memory.file.read_exact_at(&mut byte, (pgoff * PAGE_SIZE) as u64)?;
        area.poke(0, byte[0].wrapping_add(1));
        // This page is in the page table when it is written.
        area.store(last * PAGE_SIZE, area.load(last * PAGE_SIZE) + 1);
        Ok(())
    })
}

fn mappings_are_counted() -> Outcome {
    let (board, file) = (Board::new()?, memfd(PAGES)?);
    let _private = AreaBuilder::default().private().map(&file, 0, PAGES)?;
    let second = AreaBuilder::default().read_only().map(&file, 8, 8)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    let memory = Tracked::begin(file, area)?;
    let mappings = || -> Outcome<u64> { Ok(memory.log.tracking()?.mappings) };
    equal!(mappings()?, 2);
    second.unmap(2..4)?;
    equal!(mappings()?, 3);
    let child = Program::start(|| {
        board.set(0, 1)?;
        board.wait(1, 1)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    equal!(mappings()?, 6);
    board.set(1, 1)?;
    child.join()?;
    drop(second);
    equal!(mappings()?, 1);
    memory.log.untrack()?;
    equal!(mappings()?, 0);
    equal!(memory.log.track()?.mappings, 1);
    Ok(())
}

fn a_mapping_made_while_tracked_is_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    is_tracked(&memory, &memory.map()?, 0)?;
    is_tracked(&memory, &AreaBuilder::default().map(&memory.file, 10, 20)?, 10)
}

/// Opens a file anew, with its own struct file.
fn reopen(file: &File, write: bool) -> Outcome<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(OpenOptions::new().read(true).write(write).open(path)?)
}

fn a_mapping_of_a_descriptor_opened_while_tracked_is_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let again = reopen(&memory.file, true)?;
    let area = AreaBuilder::default().map(&again, 0, PAGES)?;
    // The mapping is enough.
    drop(again);
    is_tracked(&memory, &area, 0)
}

/// The kernel joins mappings that show what follows on each other, unless they have different files.
fn a_mapping_made_beside_another_one_is_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.area.unmap(40..48)?;
    memory.area.cover(40..48, &memory.file, 40)?;
    memory.logs([39, 40, 47, 48], |time| {
        for page in [39, 40, 47, 48] {
            memory.area.poke(page * PAGE_SIZE, time);
        }
        Ok(())
    })
}

fn a_mapping_made_over_another_one_is_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let area = AreaBuilder::default().private().anonymous(8)?;
    area.poke(0, 1);
    area.cover(0..8, &memory.file, 16)?;
    is_tracked(&memory, &area, 16)?;
    // And one that is covered is so no more.
    let plain = memfd(8)?;
    memory.area.cover(0..8, &plain, 0)?;
    memory.logs_nothing(|| {
        memory.area.poke(0, 1);
        Ok(())
    })
}

fn a_mapping_that_is_populated_is_tracked_and_nothing_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs_nothing(|| {
        let area = AreaBuilder::default().populate().map(&memory.file, 0, PAGES)?;
        ensure!(mapped_pages(&area)?.iter().all(|mapped| *mapped));
        Ok(())
    })?;
    is_tracked(&memory, &AreaBuilder::default().populate().map(&memory.file, 0, PAGES)?, 0)
}

fn a_mapping_that_moves_stays_tracked() -> Outcome {
    let mut memory = Tracked::new(PAGES)?;
    let place = AreaBuilder::default().private().anonymous(PAGES)?;
    let (from, to) = (memory.area.address(), place.address());
    // With entries in the page table, one of them for writing.
    memory.area.poke(3 * PAGE_SIZE, 1);
    memory.area.replace(place)?;
    ensure!(from != to && memory.area.address() == to);
    equal!(memory.area.peek(3 * PAGE_SIZE), 1);
    memory.area.poke(3 * PAGE_SIZE, 2);
    is_tracked(&memory, &memory.area, 0)?;
    equal!(memory.log.tracking()?.mappings, 1);
    // So it is when it moves between the taking of the log and the store.
    memory.settle()?;
    memory.area.replace(AreaBuilder::default().private().anonymous(PAGES)?)?;
    memory.area.poke(3 * PAGE_SIZE, 3);
    memory.check_log([3])
}

fn a_mapping_that_grows_stays_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let mut part = AreaBuilder::default().map(&memory.file, 4, 4)?;
    part.poke(0, 1);
    part.remap(32, true)?;
    is_tracked(&memory, &part, 4)?;
    part.remap(8, true)?;
    is_tracked(&memory, &part, 4)
}

fn a_duplicate_of_a_mapping_is_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let duplicate = memory.area.duplicate()?;
    is_tracked(&memory, &duplicate, 0)?;
    is_tracked(&memory, &memory.area, 0)?;
    equal!(memory.log.tracking()?.mappings, 2);
    drop(duplicate);
    is_tracked(&memory, &memory.area, 0)
}

fn a_mapping_whose_pages_are_rearranged_stays_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let area = memory.map()?;
    area.rearrange(10..11, 50)?;
    check_page(&area, 10, 50)?;
    memory.logs([50], |time| {
        area.poke(10 * PAGE_SIZE, time);
        Ok(())
    })
}

fn a_mapping_that_is_split_and_joined_stays_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs([29, 30, 31, 32], |time| {
        memory.area.poke(30 * PAGE_SIZE, time);
        memory.area.protect(30..32, READ)?;
        memory.area.poke(29 * PAGE_SIZE, time);
        memory.area.poke(32 * PAGE_SIZE, time);
        memory.area.protect(30..32, READ | WRITE)?;
        memory.area.poke(31 * PAGE_SIZE, time);
        Ok(())
    })?;
    equal!(memory.log.tracking()?.mappings, 1);
    Ok(())
}

/// A page that was written, became read-only, was cleaned, and becomes writable again; and a mapping that never was writable.
fn a_mapping_that_becomes_writable_is_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.area.poke(12 * PAGE_SIZE, 5);
    memory.area.protect(0..PAGES, READ)?;
    memory.settle()?;
    for page in 0..PAGES {
        memory.area.peek(page * PAGE_SIZE);
    }
    memory.area.protect(0..PAGES, READ | WRITE)?;
    memory.check_log([])?;
    is_tracked(&memory, &memory.area, 0)?;

    let reader = AreaBuilder::default().read_only().map(&memory.file, 8, 8)?;
    reader.peek(0);
    reader.protect(0..8, READ | WRITE)?;
    is_tracked(&memory, &reader, 8)
}

fn a_mapping_of_a_read_only_descriptor_cannot_become_writable() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let again = reopen(&memory.file, false)?;
    refused!(AreaBuilder::default().map(&again, 0, PAGES), ACCESS);
    let reader = AreaBuilder::default().read_only().map(&again, 0, PAGES)?;
    check_page(&reader, 7, 7)?;
    refused!(reader.protect(0..PAGES, READ | WRITE), ACCESS);
    Ok(())
}

fn a_locked_mapping_is_tracked_and_nothing_is_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs_nothing(|| Ok(memory.area.lock(0..PAGES)?))?;
    is_tracked(&memory, &memory.area, 0)?;
    let older = {
        let file = memfd(PAGES)?;
        let area = AreaBuilder::default().map(&file, 0, PAGES)?;
        area.lock(0..PAGES)?;
        Tracked::begin(file, area)?
    };
    is_tracked(&older, &older.area, 0)
}

/// It prepares for writes and is none; what is written afterwards is in the log, cleaned in between or not.
fn populating_for_writes_loses_no_store() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.advise(0..PAGES, MADV_POPULATE_WRITE)?;
    memory.area.poke(9 * PAGE_SIZE, 1);
    ensure!(memory.log.bitmap(0..PAGES, false)?.pages.contains(&9));
    memory.area.advise(0..PAGES, MADV_POPULATE_WRITE)?;
    memory.settle()?;
    memory.area.poke(10 * PAGE_SIZE, 1);
    memory.check_log([10])
}

fn dropping_page_table_entries_is_no_write() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.logs_nothing(|| {
        for page in 0..PAGES {
            memory.area.peek(page * PAGE_SIZE);
        }
        Ok(memory.area.advise(0..PAGES, MADV_DONTNEED)?)
    })?;
    // What was written before is still in the log.
    memory.logs([4], |time| {
        memory.area.poke(4 * PAGE_SIZE, time);
        Ok(memory.area.advise(0..PAGES, MADV_DONTNEED)?)
    })
}

/// Those that are older than the log, and those that were made while it ran, are as one of memory that nobody has tracked.
fn mappings_are_plain_after_the_log() -> Outcome {
    let this = std::process::id();
    let describe = |area: &Area| -> Outcome<(String, String)> {
        // Each page in the page table, for writing.
        for page in 0..PAGES {
            area.poke(page * PAGE_SIZE, 1);
        }
        let line = maps_line(this as i32, area.address())?;
        let (_, name) = line.split_once(' ').ok_or("no permissions in maps")?;
        Ok((smaps(this, area.address())?, name.to_owned()))
    };
    let file = memfd(PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    let plain = describe(&area)?;
    let memory = Tracked::begin(file, area)?;
    memory.log.untrack()?;
    equal!(describe(&memory.area)?, plain);
    memory.log.track()?;
    let Tracked { file, area, log } = memory;
    drop(area);
    let newer = AreaBuilder::default().map(&file, 0, PAGES)?;
    newer.write_page(5, &contents(5));
    drop(log);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    equal!(describe(&newer)?, plain);
    Ok(())
}

fn pages_fault_as_often_as_plain_ones_after_the_log() -> Outcome {
    const PAGES: usize = 512;
    let faults = |area: &Area| -> Outcome<u64> {
        area.advise(0..PAGES, MADV_DONTNEED)?;
        let before = minor_faults()?;
        for page in 0..PAGES {
            area.peek(page * PAGE_SIZE);
            area.poke(page * PAGE_SIZE, 1);
        }
        Ok(minor_faults()? - before)
    };
    let file = memfd(PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    faults(&area)?;
    let plain = faults(&area)?;
    let memory = Tracked::begin(file, area)?;
    let tracked = faults(&memory.area)?;
    ensure!(tracked >= PAGES as u64, "{tracked} faults only while tracked");
    memory.log.untrack()?;
    let after = faults(&memory.area)?;
    // The figure is read by calls that may fault, too.
    ensure!(after <= plain + 16, "{after} faults, and {plain} before it was tracked");
    Ok(())
}
