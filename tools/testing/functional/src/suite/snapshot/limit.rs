// SPDX-License-Identifier: GPL-2.0-or-later
//! What copies may take, and that writers go on when it is not enough.

use std::os::unix::fs::FileExt;

use vmem::PAGE_SIZE;
use vmem_functional_sys::AreaBuilder;

use crate::failure::{Outcome, ensure, equal, refused};
use crate::image::Image;
use crate::kernel::{Cgroup, Swap};
use crate::program::Program;
use crate::setting::{Board, bytes_of, check_words, contents};
use crate::tracked::Tracked;
use crate::world::wait_until;

crate::tests![
    beyond_the_limit_the_snapshot_fails_and_the_writer_goes_on,
    snapshot_below_its_limit_does_not_fail,
    pages_that_are_done_make_room,
    copies_are_charged_to_the_process_that_took_the_snapshot,
    snapshot_without_memory_for_copies_fails_and_kills_no_process,
];

const PAGES: usize = 64;

fn limit(pages: usize) -> u64 {
    (pages * PAGE_SIZE) as u64
}

/// Memory of which nothing is held, so that nothing is copied at the instant.
fn settled() -> Outcome<Tracked> {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    Ok(memory)
}

fn beyond_the_limit_the_snapshot_fails_and_the_writer_goes_on() -> Outcome {
    let memory = settled()?;
    let image = Image::take(&memory.log, 0, limit(8))?;
    for page in 0..8 {
        memory.area.write_page(page, &contents(100));
    }
    equal!(image.page(7)?, bytes_of(&contents(7)));
    for page in 8..PAGES {
        memory.area.write_page(page, &contents(100));
    }
    memory.file.write_all_at(&bytes_of(&contents(101)), 0)?;
    refused!(image.page(0), STALE);
    refused!(image.page(PAGES - 1), STALE);
    equal!(image.info()?.failed, 1);
    check_words(&memory.area.page(0), 101)?;
    check_words(&memory.area.page(PAGES - 1), 100)?;
    drop(image);
    equal!(Image::take(&memory.log, 0, 0)?.page(9)?, bytes_of(&contents(100)));
    Ok(())
}

fn snapshot_below_its_limit_does_not_fail() -> Outcome {
    let memory = settled()?;
    let before = memory.bytes()?;
    let image = Image::take(&memory.log, 0, limit(PAGES))?;
    for page in 0..PAGES {
        memory.area.write_page(page, &contents(100));
    }
    image.check(&before)?;
    equal!(image.info()?.kept, PAGES as u64);
    Ok(())
}

fn pages_that_are_done_make_room() -> Outcome {
    let memory = settled()?;
    let image = Image::take(&memory.log, 0, limit(8))?;
    for first in (0..PAGES).step_by(8) {
        for page in first..first + 8 {
            memory.area.write_page(page, &contents(100));
        }
        equal!(image.page(first)?, bytes_of(&contents(first as u64)));
        image.done(first, 8)?;
    }
    equal!(image.info()?.failed, 0);
    Ok(())
}

fn copies_are_charged_to_the_process_that_took_the_snapshot() -> Outcome {
    const MANY: usize = 1024;
    let memory = Tracked::new(MANY)?;
    memory.settle()?;
    let board = Board::new()?;
    let (owner, writer) = (Cgroup::new("snapshot-owner")?, Cgroup::new("snapshot-writer")?);
    let keeper = Program::start(|| {
        owner.enter()?;
        let image = Image::take(&memory.log, 0, 0)?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        Ok(vec![image.info()?.kept])
    })?;
    board.wait(0, 1)?;
    let program = Program::start(|| {
        writer.enter()?;
        for page in 0..MANY {
            memory.area.poke(page * PAGE_SIZE, 1);
        }
        Ok(vec![])
    })?;
    program.join()?;
    let (of_owner, of_writer) = (owner.stat("shmem")?, writer.stat("shmem")?);
    board.set(1, 1)?;
    equal!(keeper.join()?, [MANY as u64]);
    // The kernel counts in batches.
    ensure!(of_owner > limit(MANY * 7 / 8), "{of_owner} bytes are charged to the owner");
    ensure!(of_writer < limit(MANY / 8), "{of_writer} bytes are charged to the writer");
    Ok(())
}

fn snapshot_without_memory_for_copies_fails_and_kills_no_process() -> Outcome {
    const MANY: usize = 4096;
    let memory = Tracked::new(MANY)?;
    let board = Board::new()?;
    let (owner, other) = (Cgroup::new("snapshot-poor")?, Cgroup::new("snapshot-reader")?);
    let keeper = Program::start(|| {
        owner.enter()?;
        let image = Image::take(&memory.log, 0, 0)?;
        // Its own memory is not what there is too little of.
        other.enter()?;
        owner.set("memory.max", "4M")?;
        owner.set("memory.swap.max", "0")?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        let failed = image.info()?.failed;
        refused!(image.page(0), STALE);
        wait_until("the copies are given back", || Ok(image.info()?.kept == 0))?;
        Ok(vec![failed])
    })?;
    board.wait(0, 1)?;
    for page in 0..MANY {
        memory.area.poke(page * PAGE_SIZE, 1);
    }
    board.set(1, 1)?;
    equal!(keeper.join()?, [1]);
    // With swap there is room.
    let _swap = Swap::new()?;
    let owner = Cgroup::new("snapshot-swaps")?;
    let before = memory.bytes()?;
    let keeper = Program::start(|| {
        owner.enter()?;
        let image = Image::take(&memory.log, 0, 0)?;
        owner.set("memory.max", "8M")?;
        board.set(0, 2)?;
        board.wait(1, 2)?;
        let map = image.map(AreaBuilder::default().read_only())?;
        equal!(map.peek(PAGE_SIZE), before[PAGE_SIZE]);
        image.check(&before)?;
        Ok(vec![])
    })?;
    board.wait(0, 2)?;
    for page in 0..MANY {
        memory.area.poke(page * PAGE_SIZE, 2);
    }
    board.set(1, 2)?;
    keeper.join().map(drop)
}
