// SPDX-License-Identifier: GPL-2.0-or-later
//! From the rounds to faults: what is present when, and in which order the remainder comes.

use std::collections::BTreeSet;

use vmem::{MapHandle, PAGE_SIZE};

use super::memory::Memory;
use super::moves::{Move, Receiver, Sender};
use super::writer::{Writer, Writes};
use crate::failure::{Outcome, ensure, equal};
use crate::link::Link;
use crate::world::wait_until;

crate::tests![
    a_program_that_touches_a_staged_page_waits_for_start,
    staged_pages_are_present_at_start_and_the_remainder_is_fetched,
    the_stream_begins_with_the_hottest_pages_of_the_remainder,
    start_before_finish_waits_for_the_remainder,
];

const PAGES: usize = 1024;

fn a_program_that_touches_a_staged_page_waits_for_start() -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let writers = [Writer::new(&memories, 1, 16, Writes::anywhere)?];
    let mut moved = Move::new(&memories, &writers, "auto")?;
    moved.sender.round()?;
    // All pages were sent.
    let reader = moved.receiver.reader(7)?;
    moved.sender.round()?;
    moved.receiver.check_absent()?;
    equal!(moved.receiver.handles[0].info()?.waiters, 1);
    moved.finish()?;
    equal!(moved.receiver.handles[0].info()?.waiters, 1);
    let expected = memories[0].bytes()?[7 * PAGE_SIZE..][..8].to_vec();
    moved.start()?;
    equal!(reader.join()?[0].to_ne_bytes().to_vec(), expected);
    Ok(())
}

fn staged_pages_are_present_at_start_and_the_remainder_is_fetched() -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let writers = [Writer::new(&memories, 1, 64, Writes::anywhere)?];
    let sender = Sender::new(&memories, writers[0].pid(), &["--rounds", "hybrid"])?;
    let link = Link::new(&sender.source.address, 100 << 20)?;
    let mut moved = Move::to(&memories, &writers, sender, &link.address)?;
    moved.sender.round()?;
    moved.sender.round()?;
    writers[0].wait_steps(300)?;
    let remainder = moved.finish()?;
    ensure!((1..PAGES as u64).contains(&remainder), "{remainder}");
    // The list has come, and nothing else comes.
    link.wait_quiet()?;
    link.allow(0);
    moved.receiver.start()?;
    let handle = &moved.receiver.handles[0];
    let staged = PAGES as u64 - remainder;
    wait_until("staged pages are present", || Ok(handle.info()?.present == staged))?;
    link.allow_all();
    moved.ends()
}

/// Pages of a region that are absent.
fn absent(handle: &MapHandle) -> Outcome<BTreeSet<u64>> {
    let map = handle.present_map()?;
    let runs = map.absent();
    Ok(runs.flat_map(|run| run.iter()).map(|page| page.get()).collect())
}

fn the_stream_begins_with_the_hottest_pages_of_the_remainder() -> Outcome {
    const HOT: u64 = 16;
    const COOL: usize = 512;
    let memories = [Memory::memfd(PAGES)?];
    let writers = [Writer::new(&memories, 1, 64, Writes::hot_spot)?];
    let sender = Sender::new(&memories, writers[0].pid(), &["--rounds", "hybrid"])?;
    let link = Link::new(&sender.source.address, 100 << 20)?;
    // One batch of 256 pages is outstanding at most, on the only connection: of several, each begins with pages of its own.
    let receiver = Receiver::new(1, &link.address, &["--window", "1", "--streams", "1"])?;
    let mut moved = Move::of(&memories, &writers, sender, receiver);
    for _ in 0..4 {
        moved.sender.round()?;
    }
    link.allow(0);
    // Half of these pages can be on their way at most.
    let area = memories[0].area()?;
    (0..COOL).for_each(|page| area.poke(page * PAGE_SIZE, 1));
    drop(area);
    writers[0].wait_steps(1000)?;
    let remainder = moved.finish()?;
    ensure!(remainder >= HOT + COOL as u64 / 2, "{remainder}");
    link.allow_all();
    link.wait_quiet()?;
    link.allow(0);
    moved.receiver.start()?;
    let handle = &moved.receiver.handles[0];
    let staged = PAGES as u64 - remainder;
    wait_until("staged pages are present", || Ok(handle.info()?.present == staged))?;
    let hot: BTreeSet<u64> = (PAGES as u64 / 2..).take(HOT as usize).collect();
    ensure!(hot.is_subset(&absent(handle)?), "{:?}", absent(handle)?);
    // The first frame, which is no longer than this.
    link.allow((1 << 20) + 4096);
    wait_until("pages have come", || Ok(handle.info()?.present > staged))?;
    let left = absent(handle)?;
    ensure!(!left.is_empty() && left.is_disjoint(&hot), "{left:?}");
    link.allow_all();
    moved.ends()
}

fn start_before_finish_waits_for_the_remainder() -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let writers = [Writer::new(&memories, 1, 16, Writes::anywhere)?];
    let mut moved = Move::new(&memories, &writers, "auto")?;
    moved.sender.round()?;
    moved.receiver.start()?;
    moved.sender.round()?;
    moved.receiver.check_absent()?;
    writers[0].stop()?;
    moved.sender.finish()?;
    moved.ends()
}
