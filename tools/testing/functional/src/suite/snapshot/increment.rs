// SPDX-License-Identifier: GPL-2.0-or-later
//! VMEM_SNAPSHOT_CLEAN: what was written between two snapshots.

use vmem::PAGE_SIZE;
use vmem_sys::VMEM_SNAPSHOT_CLEAN;

use crate::adopted::page_bytes;
use crate::failure::{Outcome, equal, refused};
use crate::image::Image;
use crate::tracked::Tracked;

crate::tests![
    snapshot_without_clean_reports_the_log_and_leaves_it,
    snapshot_with_clean_takes_the_log,
    undone_page_is_put_back_into_the_log,
    done_page_is_not_put_back_into_the_log,
    a_snapshot_that_is_not_taken_leaves_the_log_alone,
    a_base_and_its_increments_are_the_memory,
];

const PAGES: usize = 300;

fn snapshot_without_clean_reports_the_log_and_leaves_it() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    for page in [0, 63, 64, 100, 299] {
        memory.area.poke(page * PAGE_SIZE, 1);
    }
    let image = Image::take(&memory.log, 0, 0)?;
    equal!(image.log()?, [0, 63, 64, 100, 299]);
    memory.check_log([0, 63, 64, 100, 299])?;
    // What is written later is in the memory's log alone, also where it was already.
    memory.area.poke(0, 2);
    memory.area.poke(7 * PAGE_SIZE, 2);
    equal!(image.log()?, [0, 63, 64, 100, 299]);
    memory.check_log([0, 7, 63, 64, 100, 299])?;
    drop(image);
    memory.check_log([0, 7, 63, 64, 100, 299])
}

fn snapshot_with_clean_takes_the_log() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.poke(63 * PAGE_SIZE, 1);
    memory.area.poke(200 * PAGE_SIZE, 1);
    let image = Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?;
    equal!(image.log()?, [63, 200]);
    memory.check_log([])?;
    memory.area.poke(200 * PAGE_SIZE, 2);
    memory.area.poke(201 * PAGE_SIZE, 2);
    memory.check_log([200, 201])?;
    image.done(0, PAGES)?;
    drop(image);
    let image = Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?;
    equal!(image.log()?, [200, 201]);
    equal!(image.page(200)?[0], 2);
    Ok(())
}

fn undone_page_is_put_back_into_the_log() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    for page in 10..20 {
        memory.area.poke(page * PAGE_SIZE, 1);
    }
    let image = Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?;
    memory.area.poke(250 * PAGE_SIZE, 1);
    image.done(0, 15)?;
    equal!(image.log()?, [15, 16, 17, 18, 19]);
    // Reading is not enough.
    equal!(image.page(15)?[0], 1);
    drop(image);
    memory.check_log([15, 16, 17, 18, 19, 250])
}

fn done_page_is_not_put_back_into_the_log() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    memory.area.poke(0, 1);
    let image = Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?;
    image.done(0, 1)?;
    equal!(image.info()?.dirty, 0);
    drop(image);
    memory.check_log([])
}

fn a_snapshot_that_is_not_taken_leaves_the_log_alone() -> Outcome {
    let [one, other] = [Tracked::new(PAGES)?, Tracked::new(PAGES)?];
    for memory in [&one, &other] {
        memory.settle()?;
        memory.area.poke(3 * PAGE_SIZE, 1);
    }
    let image = Image::take(&other.log, 0, 0)?;
    refused!(Image::take_all([&one.log, &other.log], VMEM_SNAPSHOT_CLEAN, 0), BUSY);
    one.check_log([3])?;
    other.check_log([3])?;
    one.logs_nothing(|| Ok(()))?;
    drop(image);
    other.check_log([3])
}

fn a_base_and_its_increments_are_the_memory() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    let mut copy = Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?.bytes()?;
    for round in 0..8usize {
        let before = memory.bytes()?;
        let image = Image::take(&memory.log, VMEM_SNAPSHOT_CLEAN, 0)?;
        // The program goes on while the increment is read.
        for page in (round..PAGES).step_by(7 + round) {
            memory.area.store(page * PAGE_SIZE + 8 * round, round as u64 + 1);
        }
        for page in image.log()? {
            copy[page_bytes(page)].copy_from_slice(&image.page(page)?);
        }
        image.done(0, PAGES)?;
        equal!(copy == before, true);
    }
    Ok(())
}
