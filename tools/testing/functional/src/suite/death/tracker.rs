// SPDX-License-Identifier: GPL-2.0-or-later
//! Of those who have to do with tracked memory everybody dies: the program that writes, the tracker, the reader of a snapshot.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, AreaBuilder};
use vmem_sys::{VMEM_SNAPSHOT_CLEAN, VMEM_SNAPSHOT_ONCE};

use super::super::stress::Numbers;
use super::{after, before, number, rounds};
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal};
use crate::image::Image;
use crate::program::Program;
use crate::setting::Board;
use crate::tracked::memfd;
use crate::world::wait_until;

crate::tests![programs_trackers_and_readers_are_killed_at_random_moments];

const PAGES: usize = 256;

/// Slots of the board: how often the program has written all pages, and how many images were looked at.
const TIMES: usize = 0;
const IMAGES: usize = 1;

/// A program that writes all pages in their order, again and again, each time the next number.
fn writer(area: &Area, board: &Board) -> Outcome<Program> {
    Program::start(|| {
        loop {
            let time = board.get(TIMES)? + 1;
            for page in 0..PAGES {
                area.store(page * PAGE_SIZE, time);
            }
            board.set(TIMES, time)?;
        }
    })
}

/// Fails unless these are words of the pages at some moment: up to one of them it is a number, and behind that the one before.
fn check(words: &[u64]) -> Outcome<u64> {
    let first = words[0];
    let written = words.iter().take_while(|word| **word == first).count();
    ensure!(
        words[written..].iter().all(|word| *word + 1 == first),
        "{written} pages have {first}, and then there are {:?}",
        &words[written..]
    );
    Ok(first)
}

fn words(image: &Image) -> Outcome<Vec<u64>> {
    let bytes = image.bytes()?;
    let words = bytes.chunks_exact(PAGE_SIZE).filter_map(<[u8]>::first_chunk);
    Ok(words.map(|word| u64::from_ne_bytes(*word)).collect())
}

/// One that tracks, takes snapshots, and has another process read each of them.
fn tracker(area_of: &std::fs::File, board: &Board, seed: u64) -> Outcome<Program> {
    Program::start(|| {
        let mut numbers = Numbers(seed);
        loop {
            let log = Adopted::new(area_of)?;
            log.track()?;
            for _ in 0..8 {
                log.bitmap(0..PAGES, numbers.below(2) == 0)?;
                let flags = [0, VMEM_SNAPSHOT_CLEAN, VMEM_SNAPSHOT_ONCE][numbers.below(3)];
                let image = Image::take(&log, flags, 0)?;
                let reader = Program::start(|| {
                    let map = image.map(AreaBuilder::default().read_only())?;
                    map.peek(numbers.below(PAGES) * PAGE_SIZE);
                    check(&words(&image)?)?;
                    Ok(vec![])
                })?;
                if numbers.below(4) == 0 {
                    thread::sleep(Duration::from_micros(numbers.below(3_000) as u64));
                    reader.signal(Signal::KILL)?;
                    reader.join_unless_killed(Signal::KILL)?;
                } else {
                    image.done(0, numbers.below(8) + 1)?;
                    // It may find pages done.
                    let _ = reader.end()?;
                }
                board.set(IMAGES, board.get(IMAGES)? + 1)?;
            }
        }
    })
}

fn programs_trackers_and_readers_are_killed_at_random_moments() -> Outcome {
    let mut numbers = Numbers(number("VMEM_SEED", 1)?);
    let (file, board) = (memfd(PAGES)?, Board::new()?);
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    for round in rounds(12)? {
        let program = writer(&area, &board)?;
        let tracker = tracker(&file, &board, round + 1)?;
        if round % 16 == 0 {
            // Some of them come far.
            let images = board.get(IMAGES)?;
            wait_until("snapshots are taken", || Ok(board.get(IMAGES)? > images))?;
            before(round)?;
        }
        thread::sleep(Duration::from_micros(numbers.below(300_000) as u64));
        let victims = if numbers.below(2) == 0 {
            [&program, &tracker]
        } else {
            [&tracker, &program]
        };
        for victim in victims {
            victim.signal(Signal::KILL)?;
            thread::sleep(Duration::from_micros(numbers.below(2_000) as u64));
        }
        program.join_killed(Signal::KILL)?;
        tracker.join_killed(Signal::KILL)?;
        after(round)?;
        // The memory is plain, and has what was written.
        let found: Vec<_> = (0..PAGES).map(|page| area.load(page * PAGE_SIZE)).collect();
        let times = check(&found)?;
        ensure!(
            times == board.get(TIMES)? || times == board.get(TIMES)? + 1,
            "a write was lost"
        );
        // The next one begins with whole pages.
        for page in 0..PAGES {
            area.store(page * PAGE_SIZE, times);
        }
        board.set(TIMES, times)?;
    }
    let log = Adopted::new(&file)?;
    equal!(log.track()?.mappings, 1);
    Ok(())
}
