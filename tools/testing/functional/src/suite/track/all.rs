// SPDX-License-Identifier: GPL-2.0-or-later
//! Logs that begin with all pages (VMEM_TRACK_ALL): nothing is protected before it is cleaned for the first time, and everything after that.

use std::os::unix::fs::FileExt;

use vmem::{PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{AreaBuilder, drain_page_lists, register_buffer};
use vmem_sys::{VMEM_TRACK_ALL, VMEM_TRACK_FILLS};

use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal};
use crate::image::Image;
use crate::program::Program;
use crate::setting::{Setting, contents, minor_faults};
use crate::tracked::{Tracked, fill, memfd};
use crate::world::wait_until;

crate::tests![
    a_log_can_begin_with_all_pages_and_protects_none,
    pages_are_protected_when_they_are_cleaned_for_the_first_time,
    writes_are_logged_after_the_first_clean_as_with_any_log,
    a_snapshot_at_the_beginning_has_what_was_there,
    pages_that_were_pinned_before_stay_in_the_log_when_they_are_cleaned,
    a_log_of_a_region_begins_with_its_absent_pages_too,
    a_log_that_ends_at_once_leaves_nothing,
];

const PAGES: usize = 192;

/// Memory all of whose pages are in the page table and written, and its log, which has just begun.
fn memory() -> Outcome<Tracked> {
    let file = memfd(PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    for page in 0..PAGES {
        area.write_page(page, &contents(page as u64));
    }
    let log = Adopted::new(&file)?;
    let call = log.track_with(VMEM_TRACK_ALL)?;
    equal!((call.mappings, call.held), (1, 0));
    Ok(Tracked { file, area, log })
}

fn a_log_can_begin_with_all_pages_and_protects_none() -> Outcome {
    let memory = memory()?;
    memory.check_log(0..PAGES)?;
    let before = minor_faults()?;
    for page in 0..PAGES {
        memory.area.poke(page * PAGE_SIZE, 1);
    }
    let faults = minor_faults()? - before;
    equal!(memory.log.tracking()?.faults, 0);
    // The kernel may take a page out of the page table for its own reasons.
    ensure!(faults < PAGES as u64 / 8, "{faults} faults");
    memory.check_log(0..PAGES)
}

fn pages_are_protected_when_they_are_cleaned_for_the_first_time() -> Outcome {
    let memory = memory()?;
    wait_until("the pages are not held", || {
        drain_page_lists()?;
        let cleaned = memory.log.bitmap(64..128, true)?;
        Ok(cleaned.held == 0)
    })?;
    memory.check_log((0..64).chain(128..PAGES))?;
    // One that was cleaned, and one that was not; by this process and by another.
    memory.area.poke(70 * PAGE_SIZE, 1);
    memory.area.poke(10 * PAGE_SIZE, 1);
    let area = &memory.area;
    Program::start(|| {
        area.poke(71 * PAGE_SIZE, 2);
        area.poke(11 * PAGE_SIZE, 2);
        Ok(vec![])
    })?
    .join()?;
    memory.file.write_all_at(&[3], 72 * PAGE_SIZE as u64)?;
    memory.check_log((0..64).chain(70..73).chain(128..PAGES))?;
    equal!(
        memory.log.bitmap(0..128, true)?.pages,
        (0..64).chain(70..73).collect::<Vec<_>>()
    );
    Ok(())
}

fn writes_are_logged_after_the_first_clean_as_with_any_log() -> Outcome {
    let memory = memory()?;
    memory.logs([3, 100, PAGES - 1], |time| {
        memory.area.poke(3 * PAGE_SIZE, time);
        memory.map()?.poke(100 * PAGE_SIZE, time);
        Ok(memory.file.write_all_at(&[time], ((PAGES - 1) * PAGE_SIZE) as u64)?)
    })
}

fn a_snapshot_at_the_beginning_has_what_was_there() -> Outcome {
    let memory = memory()?;
    let before = memory.bytes()?;
    let image = Image::take(&memory.log, 0, 0)?;
    for page in [0, 1, 77, PAGES - 1] {
        memory.area.poke(page * PAGE_SIZE, 9);
    }
    memory.file.write_all_at(&[9], 50 * PAGE_SIZE as u64)?;
    image.check(&before)?;
    equal!(image.log()?, (0..PAGES).collect::<Vec<_>>());
    // It was taken without a clean.
    memory.check_log(0..PAGES)
}

fn pages_that_were_pinned_before_stay_in_the_log_when_they_are_cleaned() -> Outcome {
    let file = memfd(PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    fill(&file, PAGES)?;
    let ring = register_buffer(&area, 40..44)?;
    let log = Adopted::new(&file)?;
    equal!(log.track_with(VMEM_TRACK_ALL)?.held, 0);
    let memory = Tracked { file, area, log };
    memory.check_log(0..PAGES)?;
    wait_until("nothing else is held", || {
        drain_page_lists()?;
        Ok(memory.log.bitmap(0..PAGES, true)?.held == 4)
    })?;
    memory.check_log(40..44)?;
    drop(ring);
    // It lets go of them some time later.
    memory.settle()
}

fn a_log_of_a_region_begins_with_its_absent_pages_too() -> Outcome {
    for flags in [VMEM_TRACK_ALL, VMEM_TRACK_ALL | VMEM_TRACK_FILLS] {
        let setting = Setting::create(RegionBuilder::new((PAGES * PAGE_SIZE) as u64))?;
        setting.fill(0..64)?;
        let area = setting.area()?;
        for page in 0..64 {
            area.write_page(page, &contents(page as u64));
        }
        let memory = Tracked {
            file: setting.region.staging().try_clone()?,
            area,
            log: Adopted::new(&setting.map)?,
        };
        equal!(memory.log.track_with(flags)?.mappings, 1);
        memory.check_log(0..PAGES)?;
        memory.area.poke(0, 1);
        equal!(memory.log.tracking()?.faults, 0);
        memory.settle()?;
        setting.fill([100])?;
        memory.check_log((flags & VMEM_TRACK_FILLS != 0).then_some(100))?;
        memory.settle()?;
        memory.area.poke(5 * PAGE_SIZE, 1);
        memory.area.poke(100 * PAGE_SIZE, 1);
        memory.check_log([5, 100])?;
        setting.no_request()?;
    }
    Ok(())
}

fn a_log_that_ends_at_once_leaves_nothing() -> Outcome {
    let memory = memory()?;
    memory.log.untrack()?;
    let before = minor_faults()?;
    (0..PAGES).for_each(|page| memory.area.poke(page * PAGE_SIZE, 200));
    let faults = minor_faults()? - before;
    ensure!(faults < PAGES as u64 / 8, "{faults} faults");
    // Another log knows nothing of the first.
    memory.log.track()?;
    memory.logs([7], |time| {
        memory.area.poke(7 * PAGE_SIZE, time);
        Ok(())
    })
}
