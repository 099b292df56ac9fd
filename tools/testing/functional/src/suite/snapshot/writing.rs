// SPDX-License-Identifier: GPL-2.0-or-later
//! What a snapshot does to those who write. That it has what was there before each kind of write, is in the tests of the log: each of their
//! writes is made beside a snapshot, too.

use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use vmem::PAGE_SIZE;
use vmem_functional_sys::{AreaBuilder, register_buffer};

use crate::failure::{Outcome, ensure, equal};
use crate::image::Image;
use crate::setting::{check_words, contents};
use crate::tracked::{Tracked, memfd};

crate::tests![
    reads_by_programs_copy_nothing,
    a_private_mapping_copies_nothing,
    a_write_to_a_hole_keeps_nothing,
    a_long_write_keeps_all_of_its_pages,
    a_hole_that_is_punched_is_kept,
    a_page_that_is_in_hand_is_copied_at_the_instant,
    next_snapshot_has_writes_after_the_end_of_the_first,
];

const PAGES: usize = 64;

fn settled() -> Outcome<Tracked> {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    Ok(memory)
}

fn reads_by_programs_copy_nothing() -> Outcome {
    let memory = settled()?;
    let image = Image::take(&memory.log, 0, 0)?;
    for page in 0..PAGES {
        memory.area.peek(page * PAGE_SIZE);
    }
    memory.bytes()?;
    let newer = memory.map()?;
    check_words(&newer.page(5), 5)?;
    image.bytes()?;
    equal!(image.info()?.copied, 0);
    equal!(image.info()?.pending, PAGES as u64);
    Ok(())
}

fn a_private_mapping_copies_nothing() -> Outcome {
    let memory = settled()?;
    let image = Image::take(&memory.log, 0, 0)?;
    let private = AreaBuilder::default().private().map(&memory.file, 0, PAGES)?;
    for page in 0..PAGES {
        private.poke(page * PAGE_SIZE, 9);
    }
    equal!(image.info()?.copied, 0);
    Ok(())
}

fn a_write_to_a_hole_keeps_nothing() -> Outcome {
    let memory = settled()?;
    const MADV_REMOVE: i32 = 9;
    memory.area.advise(8..16, MADV_REMOVE)?;
    let image = Image::take(&memory.log, 0, 0)?;
    memory.file.write_all_at(&[1; 8 * PAGE_SIZE], 8 * PAGE_SIZE as u64)?;
    let info = image.info()?;
    equal!((info.copied, info.kept, info.pending), (0, 0, PAGES as u64 - 8));
    ensure!(image.page(12)?.iter().all(|byte| *byte == 0), "the hole is not zeros");
    Ok(())
}

fn a_long_write_keeps_all_of_its_pages() -> Outcome {
    let memory = settled()?;
    let before = memory.bytes()?;
    let image = Image::take(&memory.log, 0, 0)?;
    memory.area.poke(5 * PAGE_SIZE, 1);
    memory.file.write_all_at(&vec![3; 20 * PAGE_SIZE], PAGE_SIZE as u64 / 2)?;
    equal!(image.info()?.copied, 21);
    image.check(&before)?;
    // One that is of no pages, and one that is refused.
    memory.file.write_all_at(&[], 30 * PAGE_SIZE as u64)?;
    let beyond = memory.file.write_at(&[1], (PAGES * PAGE_SIZE) as u64);
    ensure!(beyond.is_err(), "the file has grown");
    equal!(image.info()?.copied, 21);
    Ok(())
}

fn a_hole_that_is_punched_is_kept() -> Outcome {
    let memory = settled()?;
    let before = memory.bytes()?;
    let image = Image::take(&memory.log, 0, 0)?;
    // Parts of pages, too, which become zeros.
    fallocate(
        &memory.file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        3 * PAGE_SIZE as u64 + 100,
        5 * PAGE_SIZE as u64,
    )?;
    equal!(memory.area.peek(4 * PAGE_SIZE), 0);
    equal!(image.info()?.copied, 6);
    image.check(&before)?;
    // Memory that is allocated only is not written to.
    fallocate(&memory.file, FallocateFlags::KEEP_SIZE, 0, (PAGES * PAGE_SIZE) as u64)?;
    equal!(image.info()?.copied, 6);
    image.check(&before)
}

/// Of a page that a device may write to at any time the image has one of the contents that it had about then.
fn a_page_that_is_in_hand_is_copied_at_the_instant() -> Outcome {
    let file = memfd(PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    for page in 0..PAGES {
        area.write_page(page, &contents(page as u64));
    }
    let _pinned = register_buffer(&area, 4..6)?;
    let memory = Tracked::begin(file, area)?;
    crate::world::wait_until("only what is pinned is held", || {
        vmem_functional_sys::drain_page_lists()?;
        Ok(memory.log.bitmap(0..PAGES, true)?.held == 2)
    })?;
    let before = memory.bytes()?;
    let image = Image::take(&memory.log, 0, 0)?;
    equal!(image.info()?.copied, 2);
    for page in 0..PAGES {
        memory.area.write_page(page, &contents(60));
    }
    equal!(image.info()?.copied, PAGES as u64);
    image.check(&before)?;
    // They stay in the log.
    equal!(memory.log.bitmap(0..PAGES, true)?.held, 2);
    Ok(())
}

fn next_snapshot_has_writes_after_the_end_of_the_first() -> Outcome {
    let memory = settled()?;
    let image = Image::take(&memory.log, 0, 0)?;
    memory.area.poke(0, 1);
    equal!(image.info()?.copied, 1);
    drop(image);
    for page in 0..PAGES {
        memory.area.write_page(page, &contents(61));
    }
    let image = Image::take(&memory.log, 0, 0)?;
    equal!(image.page(1)?, crate::setting::bytes_of(&contents(61)));
    Ok(())
}
