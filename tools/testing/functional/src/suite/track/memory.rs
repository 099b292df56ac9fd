// SPDX-License-Identifier: GPL-2.0-or-later
//! What the kernel does to the pages of memory that is tracked: huge pages, swap, guard pages, long-term pins.

use std::ops::Range;
use std::time::Duration;

use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{
    Area, AreaBuilder, MemoryAt, Userfault, drain_page_lists, read_at_into, register_buffer, register_userfault, write_protect,
};

use super::super::huge::{HUGE, SHMEM_ENABLED, collapse, huge, while_dropped};
use crate::adopted::{Adopted, runs};
use crate::failure::{Outcome, ensure, equal, refused};
use crate::kernel::{Setting as KernelSetting, Swap};
use crate::program::Program;
use crate::setting::{check_page, smaps};
use crate::tracked::{Tracked, fill, memfd};
use crate::world::{field, wait_until};

crate::tests![
    a_write_to_a_huge_page_logs_one_page,
    pages_that_are_collapsed_while_tracked_keep_their_log,
    pages_that_are_swapped_out_keep_their_log,
    swap_is_no_write,
    guard_pages_stay_and_a_store_after_them_is_logged,
    writes_beside_asynchronous_write_protection_are_logged,
    writes_to_huge_pages_beside_asynchronous_write_protection_are_logged,
    page_table_freed_during_a_fault_is_no_failure,
    pages_that_were_pinned_before_the_log_stay_in_it,
    memory_cannot_be_pinned_for_long_while_it_is_tracked,
];

const PAGES: usize = 64;
const MADV_PAGEOUT: i32 = 21;
const MADV_POPULATE_WRITE: i32 = 23;
const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// A file of two huge pages, tracked, and mapped by huge pages.
fn huge_memory() -> Outcome<Tracked> {
    let file = memfd(2 * HUGE)?;
    fill(&file, 2 * HUGE)?;
    let area = AreaBuilder::default().aligned(HUGE).map(&file, 0, 2 * HUGE)?;
    collapse(&area)?;
    equal!(huge(&area)?, 4096);
    let log = Adopted::new(&file)?;
    log.track()?;
    Ok(Tracked { file, area, log })
}

fn a_write_to_a_huge_page_logs_one_page() -> Outcome {
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "advise")?;
    let memory = huge_memory()?;
    memory.settle()?;
    // Mapped as a whole, for reading.
    memory.area.peek(0);
    memory.area.peek(HUGE * PAGE_SIZE);
    equal!(huge(&memory.area)?, 4096);
    memory.area.poke(700 * PAGE_SIZE, 1);
    memory.check_log([700])?;
    // Not mapped at all.
    memory.logs([3, HUGE - 1, HUGE], |time| {
        for page in [3, HUGE - 1, HUGE] {
            memory.area.poke(page * PAGE_SIZE, time);
        }
        Ok(())
    })?;
    memory.logs([600], |time| {
        use std::os::unix::fs::FileExt;
        Ok(memory.file.write_all_at(&[time], 600 * PAGE_SIZE as u64)?)
    })
}

fn pages_that_are_collapsed_while_tracked_keep_their_log() -> Outcome {
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "advise")?;
    let file = memfd(2 * HUGE)?;
    let area = AreaBuilder::default().aligned(HUGE).map(&file, 0, 2 * HUGE)?;
    let memory = Tracked::begin(file, area)?;
    memory.settle()?;
    memory.area.poke(40 * PAGE_SIZE, 1);
    collapse(&memory.area)?;
    memory.check_log([40])?;
    memory.area.poke(41 * PAGE_SIZE, 1);
    memory.check_log([40, 41])?;
    // Nothing that was written before is written unseen now.
    memory.logs([40, 900], |time| {
        memory.area.poke(40 * PAGE_SIZE + 1, time);
        memory.area.poke(900 * PAGE_SIZE, time);
        Ok(())
    })
}

/// Moves these pages out, and says how many have gone. One that was just used may stay.
fn page_out(area: &Area, pages: Range<usize>) -> Outcome<u64> {
    drain_page_lists()?;
    area.advise(pages, MADV_PAGEOUT)?;
    Ok(field(&smaps(std::process::id(), area.address())?, "Swap")? / 4)
}

fn pages_that_are_swapped_out_keep_their_log() -> Outcome {
    const PAGES: usize = 1024;
    let _swap = Swap::new()?;
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    for page in 0..PAGES {
        memory.area.peek(page * PAGE_SIZE);
    }
    let written: Vec<_> = (0..PAGES).step_by(3).collect();
    for page in &written {
        memory.area.poke(page * PAGE_SIZE, 1);
    }
    let out = page_out(&memory.area, 0..PAGES)?;
    ensure!(out > 256, "only {out} pages went to swap");
    memory.check_log(written.iter().copied())?;
    // They are cleaned where they are, and written again from there.
    memory.settle()?;
    page_out(&memory.area, 0..PAGES)?;
    for page in &written {
        equal!(memory.area.peek(page * PAGE_SIZE), 1);
        memory.area.poke(page * PAGE_SIZE, 2);
    }
    memory.check_log(written.iter().copied())?;
    page_out(&memory.area, 0..PAGES)?;
    for page in (0..PAGES).filter(|page| page % 3 != 0) {
        check_page(&memory.area, page, page)?;
    }
    for page in &written {
        equal!(memory.area.peek(page * PAGE_SIZE), 2);
    }
    memory.check_log(written)
}

fn swap_is_no_write() -> Outcome {
    const PAGES: usize = 1024;
    let _swap = Swap::new()?;
    let memory = Tracked::new(PAGES)?;
    memory.logs_nothing(|| {
        for page in 0..PAGES {
            memory.area.peek(page * PAGE_SIZE);
        }
        let out = page_out(&memory.area, 0..PAGES)?;
        ensure!(out > 256, "only {out} pages went to swap");
        for page in 0..PAGES {
            check_page(&memory.area, page, page)?;
        }
        Ok(())
    })
}

fn guard_pages_stay_and_a_store_after_them_is_logged() -> Outcome {
    let file = memfd(PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    fill(&file, PAGES)?;
    area.advise(8..10, MADV_GUARD_INSTALL)?;
    let log = Adopted::new(&file)?;
    log.track()?;
    let memory = Tracked { file, area, log };
    memory.settle()?;
    memory.area.advise(20..21, MADV_GUARD_INSTALL)?;
    let guarded = |page: usize| -> Outcome {
        Program::start(|| Ok(vec![memory.area.peek(page * PAGE_SIZE).into()]))?.join_killed(Signal::SEGV)
    };
    guarded(8)?;
    guarded(20)?;
    memory.settle()?;
    guarded(9)?;
    guarded(20)?;
    memory.area.advise(9..10, MADV_GUARD_REMOVE)?;
    memory.area.advise(20..21, MADV_GUARD_REMOVE)?;
    memory.check_log([])?;
    memory.logs([9, 20], |time| {
        memory.area.poke(9 * PAGE_SIZE, time);
        memory.area.poke(20 * PAGE_SIZE, time);
        Ok(())
    })?;
    memory.log.untrack()?;
    guarded(8)
}

/// userfaultfd's own log, of which a program may have one for itself while it is tracked.
fn writes_beside_asynchronous_write_protection_are_logged() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.poke(3 * PAGE_SIZE, 5);
    let userfault = register_userfault(&memory.area, Userfault::WriteProtectAsync)?;
    memory.check_log([3])?;
    memory.logs([3, 17, 30], |time| {
        memory.area.poke(3 * PAGE_SIZE, time);
        write_protect(&userfault, &memory.area)?;
        memory.area.poke(17 * PAGE_SIZE, time);
        memory.area.peek(30 * PAGE_SIZE);
        memory.area.poke(30 * PAGE_SIZE, time);
        Ok(())
    })?;
    // Protected by both when it is cleaned.
    memory.area.poke(9 * PAGE_SIZE, 1);
    write_protect(&userfault, &memory.area)?;
    memory.logs([9], |time| {
        memory.area.peek(9 * PAGE_SIZE);
        memory.area.poke(9 * PAGE_SIZE, time + 1);
        Ok(())
    })?;
    // It outlives the log, and is in the way of the next one.
    memory.log.untrack()?;
    write_protect(&userfault, &memory.area)?;
    memory.area.poke(9 * PAGE_SIZE, 8);
    equal!(memory.area.peek(9 * PAGE_SIZE), 8);
    refused!(memory.log.track(), BUSY);
    drop(userfault);
    memory.log.track()?;
    memory.logs([9], |time| {
        memory.area.poke(9 * PAGE_SIZE, time);
        Ok(())
    })
}

/// Then more pages of the huge page may be logged than were written.
fn writes_to_huge_pages_beside_asynchronous_write_protection_are_logged() -> Outcome {
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "advise")?;
    let memory = huge_memory()?;
    let userfault = register_userfault(&memory.area, Userfault::WriteProtectAsync)?;
    for time in 1..4 {
        memory.settle()?;
        if time > 1 {
            write_protect(&userfault, &memory.area)?;
        }
        // Of the second huge page one is read first, and none of the first one.
        memory.area.peek(700 * PAGE_SIZE);
        for page in [3, 700, 701] {
            memory.area.poke(page * PAGE_SIZE, time);
        }
        let logged = memory.log.bitmap(0..memory.pages(), true)?.pages;
        ensure!([3, 700, 701].iter().all(|page| logged.contains(page)), "{}", runs(&logged));
        // No page is writable that was cleaned, or never written.
        for page in [4, 700, 702] {
            memory.area.poke(page * PAGE_SIZE + 1, time);
        }
        let again = memory.log.bitmap(0..memory.pages(), false)?.pages;
        ensure!([4, 700, 702].iter().all(|page| again.contains(page)), "{}", runs(&again));
    }
    Ok(())
}

/// As the test of this name for regions: a page of a huge page is mapped alone, in a page table that goes while it is used.
fn page_table_freed_during_a_fault_is_no_failure() -> Outcome {
    const DURATION: Duration = Duration::from_secs(4);
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "advise")?;
    let memory = huge_memory()?;
    let source = memfd(1)?;
    // It fills the page tables as fast as can be, so that freeing one takes long.
    let populate = |first| Ok(memory.area.advise(first..first + HUGE, MADV_POPULATE_WRITE)?);
    let touch_and_call = |first| {
        memory.area.poke((first + 1) * PAGE_SIZE, 1);
        let second = MemoryAt {
            area: &memory.area,
            offset: (first + 2) * PAGE_SIZE,
            len: PAGE_SIZE,
        };
        equal!(read_at_into(&source, second)?, PAGE_SIZE);
        Ok(())
    };
    while_dropped(&memory.area, DURATION, &populate, &touch_and_call)
}

/// Who has pinned them may write to them at any time.
fn pages_that_were_pinned_before_the_log_stay_in_it() -> Outcome {
    let file = memfd(PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    fill(&file, PAGES)?;
    let ring = register_buffer(&area, 40..44)?;
    let log = Adopted::new(&file)?;
    drain_page_lists()?;
    equal!(log.track()?.held, 4);
    let memory = Tracked { file, area, log };
    wait_until("nothing else is held", || {
        drain_page_lists()?;
        Ok(memory.log.bitmap(0..PAGES, true)?.held == 4)
    })?;
    for _ in 0..3 {
        memory.check_log(40..44)?;
        let cleaned = memory.log.ranges(0..PAGES, true, 8)?;
        equal!((cleaned.pages, cleaned.held), (vec![40, 41, 42, 43], 4));
    }
    drop(ring);
    // It lets go of them some time later.
    memory.settle()?;
    memory.logs([41], |time| {
        memory.area.poke(41 * PAGE_SIZE, time);
        Ok(())
    })
}

fn memory_cannot_be_pinned_for_long_while_it_is_tracked() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    refused!(register_buffer(&memory.area, 4..8), FAULT);
    memory.settle()?;
    memory.log.untrack()?;
    register_buffer(&memory.area, 4..8)?;
    Ok(())
}
