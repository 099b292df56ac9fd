// SPDX-License-Identifier: GPL-2.0-or-later
//! The image is of one instant: programs write in a total order, and each image is exactly what they had written up to one of those writes.

use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::Duration;

use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, AreaBuilder, write_other};
use vmem_sys::{VMEM_SNAPSHOT_CLEAN, VMEM_SNAPSHOT_ONCE};

use super::super::stress::Numbers;
use crate::adopted::page_bytes;
use crate::failure::{Outcome, ensure, equal};
use crate::image::Image;
use crate::program::Program;
use crate::setting::Board;
use crate::tracked::Tracked;

crate::tests![
    images_of_programs_that_write_in_turn_are_of_one_instant,
    images_of_two_memories_are_of_one_instant,
    images_and_a_reader_of_the_log_do_not_disturb_each_other,
    increments_are_the_memory_of_each_instant,
];

const PAGES: usize = 512;

/// Slots of the board.
const TURN: usize = 0;
const END: usize = 1;

/// Where the write of this number goes: a memory, a page and a word of it. Word 0 of page 0 of the first one has the number of the last one
/// that is over.
fn place(number: u64, memories: usize) -> (usize, usize) {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let memory = (mixed >> 40) as usize % memories;
    let page = 1 + (mixed >> 20) as usize % (PAGES - 1);
    (memory, page * PAGE_SIZE + (mixed >> 8) as usize % 512 * 8)
}

/// Ways to write a word.
enum Way<'a> {
    Store(Vec<&'a Area>),
    Call(Vec<&'a std::fs::File>),
    Other(i32, Vec<usize>),
}

impl Way<'_> {
    fn write(&self, memory: usize, offset: usize, word: u64) -> Outcome {
        match self {
            Self::Store(areas) => areas[memory].store(offset, word),
            Self::Call(files) => files[memory].write_all_at(&word.to_ne_bytes(), offset as u64)?,
            Self::Other(pid, addresses) => {
                equal!(write_other(*pid, addresses[memory] + offset, &word.to_ne_bytes())?, 8);
            }
        }
        Ok(())
    }
}

/// One of several writers, each of which writes when its turn comes. Returns the number of its last write.
fn write_in_turn(board: &Board, writers: u64, writer: u64, way: &Way<'_>, memories: usize) -> Outcome<Vec<u64>> {
    let mut number = writer + 1;
    while board.get(END)? == 0 {
        if board.get(TURN)? + 1 != number {
            std::thread::yield_now();
            continue;
        }
        let (memory, offset) = place(number, memories);
        way.write(memory, offset, number)?;
        way.write(0, 0, number)?;
        board.set(TURN, number)?;
        number += writers;
    }
    Ok(vec![number])
}

/// What the memories hold when the write of this number is over, made write by write.
struct Replay {
    bytes: Vec<Vec<u8>>,
    number: u64,
}

impl Replay {
    fn new(memories: &[Tracked]) -> Outcome<Self> {
        let bytes = memories.iter().map(Tracked::bytes).collect::<Outcome<_>>()?;
        Ok(Self { bytes, number: 0 })
    }

    fn put(&mut self, memory: usize, offset: usize, word: u64) {
        self.bytes[memory][offset..offset + 8].copy_from_slice(&word.to_ne_bytes());
    }

    /// Fails unless these are the images after some write, or in the middle of the next one.
    fn check(&mut self, images: &[Vec<u8>]) -> Outcome {
        let last = u64::from_ne_bytes(images[0][..8].try_into().expect("eight bytes"));
        ensure!(last >= self.number, "the image of {last} comes after that of {}", self.number);
        while self.number < last {
            self.number += 1;
            let (memory, offset) = place(self.number, self.bytes.len());
            self.put(memory, offset, self.number);
        }
        if last > 0 {
            self.put(0, 0, last);
        }
        let (memory, offset) = place(last + 1, self.bytes.len());
        if images[memory][offset..offset + 8] == (last + 1).to_ne_bytes() {
            self.put(memory, offset, last + 1);
        }
        for (memory, (image, bytes)) in images.iter().zip(&self.bytes).enumerate() {
            let wrong = (0..PAGES).find(|page| image[page_bytes(*page)] != bytes[page_bytes(*page)]);
            ensure!(
                wrong.is_none(),
                "page {wrong:?} of memory {memory} is not what it was after write {last}"
            );
        }
        Ok(())
    }
}

/// Runs writers of all kinds, and calls `look` so often.
fn beside_writers(memories: &[Tracked], rounds: usize, mut look: impl FnMut(&mut Replay, usize) -> Outcome) -> Outcome {
    const WRITERS: u64 = 4;
    let mut replay = Replay::new(memories)?;
    let board = Board::new()?;
    let newer = memories.iter().map(Tracked::map).collect::<Outcome<Vec<_>>>()?;
    // One that is written to from outside.
    let target = Board::new()?;
    let passive = Program::start(|| {
        target.wait(0, 1)?;
        Ok(vec![])
    })?;
    let ways = [
        Way::Store(memories.iter().map(|memory| &memory.area).collect()),
        Way::Store(newer.iter().collect()),
        Way::Call(memories.iter().map(|memory| &memory.file).collect()),
        Way::Other(passive.pid(), memories.iter().map(|memory| memory.area.address()).collect()),
    ];
    let writers = (0..WRITERS)
        .zip(&ways)
        .map(|(writer, way)| Program::start(|| write_in_turn(&board, WRITERS, writer, way, memories.len())))
        .collect::<Outcome<Vec<_>>>()?;
    let looked = (0..rounds).try_for_each(|round| {
        sleep(Duration::from_millis(20));
        look(&mut replay, round)
    });
    board.set(END, 1)?;
    let ends = writers.into_iter().map(Program::join).collect::<Outcome<Vec<_>>>();
    target.set(0, 1)?;
    passive.join()?;
    looked?;
    let written = ends?.iter().map(|end| end[0]).max().unwrap_or(0);
    ensure!(written > 20 * rounds as u64, "there were {written} writes only");
    Ok(())
}

fn take(memories: &[Tracked], flags: u32) -> Outcome<Vec<Image>> {
    let images = match memories {
        [one] => Vec::from([Image::take(&one.log, flags, 0)?]),
        [one, other] => Image::take_all([&one.log, &other.log], flags, 0)?.into(),
        _ => return Err("one or two memories".into()),
    };
    Ok(images)
}

/// The images, read slowly, in an order of pages that differs from round to round, while the writers go on.
fn read_slowly(images: &[Image], round: usize) -> Outcome<Vec<Vec<u8>>> {
    let mut numbers = Numbers(0x1234_5678 + round as u64);
    images
        .iter()
        .map(|image| {
            let mut bytes = vec![0; PAGES * PAGE_SIZE];
            let begin = numbers.below(PAGES);
            for page in (begin..PAGES).chain(0..begin) {
                bytes[page_bytes(page)].copy_from_slice(&image.page(page)?);
            }
            Ok(bytes)
        })
        .collect()
}

const ROUNDS: usize = 30;

fn images_of_programs_that_write_in_turn_are_of_one_instant() -> Outcome {
    let memories = [Tracked::new(PAGES)?];
    beside_writers(&memories, ROUNDS, |replay, round| {
        let flags = [0, VMEM_SNAPSHOT_CLEAN, VMEM_SNAPSHOT_ONCE][round % 3];
        let images = take(&memories, flags)?;
        // Also by a mapping.
        if round % 5 == 4 {
            let map = images[0].map(AreaBuilder::default().read_only())?;
            let words = (0..PAGES).flat_map(|page| map.page(page));
            let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
            return replay.check(&[bytes]);
        }
        replay.check(&read_slowly(&images, round)?)
    })
}

fn images_of_two_memories_are_of_one_instant() -> Outcome {
    let memories = [Tracked::new(PAGES)?, Tracked::new(PAGES)?];
    beside_writers(&memories, ROUNDS, |replay, round| {
        let images = take(&memories, VMEM_SNAPSHOT_CLEAN)?;
        replay.check(&read_slowly(&images, round)?)
    })
}

/// The log is cleaned all the time. When the writers rest, its reader has a copy.
fn images_and_a_reader_of_the_log_do_not_disturb_each_other() -> Outcome {
    let memories = [Tracked::new(PAGES)?];
    let mut copy = memories[0].bytes()?;
    let mut keep = |memory: &Tracked| -> Outcome {
        for page in memory.log.bitmap(0..PAGES, true)?.pages {
            let bytes = page_bytes(page);
            memory.file.read_exact_at(&mut copy[bytes.clone()], bytes.start as u64)?;
        }
        Ok(())
    };
    beside_writers(&memories, ROUNDS, |replay, round| {
        let images = take(&memories, 0)?;
        keep(&memories[0])?;
        replay.check(&read_slowly(&images, round)?)?;
        keep(&memories[0])
    })?;
    keep(&memories[0])?;
    equal!(copy == memories[0].bytes()?, true);
    Ok(())
}

/// A copy of the first image, into which only what the next ones tell is taken over.
fn increments_are_the_memory_of_each_instant() -> Outcome {
    let memories = [Tracked::new(PAGES)?];
    let mut copy = vec![take(&memories, VMEM_SNAPSHOT_CLEAN)?[0].bytes()?];
    let mut taken_over = 0;
    beside_writers(&memories, ROUNDS, |replay, round| {
        let images = take(&memories, VMEM_SNAPSHOT_CLEAN)?;
        let log = images[0].log()?;
        for page in &log {
            copy[0][page_bytes(*page)].copy_from_slice(&images[0].page(*page)?);
        }
        // A checkpoint that is given up half-way loses nothing.
        if round % 4 != 3 {
            images[0].done(0, PAGES)?;
            taken_over += usize::from(log.len() < PAGES);
        }
        replay.check(&copy)
    })?;
    ensure!(taken_over > 0, "no increment was smaller than the memory");
    Ok(())
}
