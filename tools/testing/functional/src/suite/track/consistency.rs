// SPDX-License-Identifier: GPL-2.0-or-later
//! No write is lost: while programs write as fast as they can, a copy is kept of what the log reports. When they rest it is the memory.
//!
//! A lost write is seen only if the page is not written again. So all writers are in one window, whose pages are cleaned again and again; then
//! it moves on, and these pages are left alone until it comes round.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, AreaBuilder, MemoryAt, fork, read_into, write_other};

use super::super::stress::Numbers;
use crate::adopted::{Adopted, Report, page_bytes, runs};
use crate::failure::{Outcome, ensure, equal};
use crate::kernel::Disk;
use crate::program::Program;
use crate::setting::{Board, Setting, bytes_of, contents};
use crate::tracked::{Tracked, memfd};
use crate::world::wait_until;

crate::tests![
    a_copy_by_the_log_is_the_memory_that_programs_write,
    a_copy_by_the_log_is_the_memory_that_is_read_into_directly,
    a_log_that_begins_while_programs_write_misses_nothing_after_that,
    a_log_of_a_region_that_begins_while_programs_write_misses_nothing_after_that,
];

/// Pages that the writers have in hand at a time.
const WINDOW: usize = 64;

/// Slot of the board with how often the window has moved.
const MOVES: usize = 511;

/// Slot of the board with what the writers shall do: an even number is to write, an odd one to rest, this one to end.
const ORDER: usize = 0;
const END: u64 = u64::MAX;

/// The window in these pages, when it has moved so often.
fn window(pages: &Range<usize>, moves: u64) -> Range<usize> {
    let begin = pages.start + moves as usize * WINDOW % pages.len();
    begin..begin + WINDOW
}

/// Programs that write, and rest when they are told.
struct Writers<'a> {
    board: &'a Board,
    programs: Vec<Program>,
    order: u64,
}

/// What a writer is told.
struct Turn<'a> {
    board: &'a Board,
    slot: usize,
}

impl Turn<'_> {
    /// Whether to write once more. Waits while the writers shall rest.
    fn next(&self) -> Outcome<bool> {
        loop {
            match self.board.get(ORDER)? {
                END => return Ok(false),
                order if order % 2 == 0 => return Ok(true),
                order => self.board.set(self.slot, order)?,
            }
            sleep(Duration::from_millis(1));
        }
    }
}

impl<'a> Writers<'a> {
    fn new(board: &'a Board) -> Self {
        Self {
            board,
            programs: Vec::new(),
            order: 0,
        }
    }

    /// Starts one, which does `write` again and again, with a page of these in its window.
    fn start(&mut self, pages: Range<usize>, mut write: impl FnMut(usize, &mut Numbers) -> Outcome) -> Outcome {
        let turn = Turn {
            board: self.board,
            slot: self.programs.len() + 1,
        };
        let program = Program::start(|| {
            let mut numbers = Numbers(0x2545_f491 * turn.slot as u64);
            let mut writes = 0;
            while turn.next()? {
                let at = window(&pages, turn.board.get(MOVES)?).start;
                write(at + numbers.below(WINDOW), &mut numbers)?;
                writes += 1;
            }
            Ok(vec![writes])
        })?;
        self.programs.push(program);
        Ok(())
    }

    /// Waits until none writes.
    fn rest(&mut self) -> Outcome {
        self.order += 1;
        self.board.set(ORDER, self.order)?;
        let rested = (1..=self.programs.len()).try_for_each(|slot| self.board.wait(slot, self.order));
        if rested.is_err() {
            // One that has failed does not rest: what it says is worth more.
            self.board.set(ORDER, END)?;
            for program in std::mem::take(&mut self.programs) {
                program.join()?;
            }
        }
        rested
    }

    /// Lets them write again.
    fn resume(&mut self) -> Outcome {
        self.order += 1;
        self.board.set(ORDER, self.order)
    }

    /// Ends them. Each has written so often at least.
    fn end(self, least: u64) -> Outcome {
        self.board.set(ORDER, END)?;
        for (writer, program) in self.programs.into_iter().enumerate() {
            let writes = program.join()?[0];
            ensure!(writes >= least, "writer {writer} has written {writes} times only");
        }
        Ok(())
    }
}

/// A copy of the memory, which is kept by its log.
struct Copy<'a> {
    memory: &'a Tracked,
    bytes: Vec<u8>,
    /// Pages that were copied since it was begun.
    copied: usize,
}

impl<'a> Copy<'a> {
    /// All of it, as it is now or later.
    fn begin(memory: &'a Tracked) -> Outcome<Self> {
        Ok(Self {
            memory,
            bytes: memory.bytes()?,
            copied: 0,
        })
    }

    /// Copies the pages of a report.
    fn copy(&mut self, report: Report) -> Outcome {
        for page in &report.pages {
            let bytes = page_bytes(*page);
            self.memory
                .file
                .read_exact_at(&mut self.bytes[bytes.clone()], bytes.start as u64)?;
        }
        self.copied += report.pages.len();
        Ok(())
    }

    /// Copies what the log reports of all pages, told by ranges, for which there may be too little room.
    fn copy_all(&mut self) -> Outcome {
        self.copy(self.memory.log.ranges(0..self.memory.pages(), true, 100)?)
    }

    /// Copies what the log reports, for so long, in this many parts of the memory that have a window each. A few pages are cleaned in a moment,
    /// which may be over while a writer is in the middle of a fault. They are also cleaned after the window has moved on: each time some write
    /// is the last one.
    fn keep(&mut self, board: &Board, parts: usize, duration: Duration) -> Outcome {
        const CLEANS: usize = 20;
        let part = self.memory.pages() / parts;
        let since = Instant::now();
        let mut moves = board.get(MOVES)?;
        while since.elapsed() < duration {
            moves += 1;
            board.set(MOVES, moves)?;
            for time in 0..2 * CLEANS {
                // At first where it was, and then where it is.
                let moves = moves - u64::from(time < CLEANS);
                for number in 0..parts {
                    let pages = window(&(number * part..(number + 1) * part), moves);
                    self.copy(self.memory.log.bitmap(pages, true)?)?;
                }
            }
            if moves % 16 == 0 {
                self.copy_all()?;
            }
        }
        Ok(())
    }

    /// The writers rest: fails unless it is the memory after a last update.
    fn check(&mut self) -> Outcome {
        self.copy_all()?;
        let memory = self.memory.bytes()?;
        let lost: Vec<_> = (0..self.memory.pages())
            .filter(|page| memory[page_bytes(*page)] != self.bytes[page_bytes(*page)])
            .collect();
        ensure!(lost.is_empty(), "the log has missed {} pages: {}", lost.len(), runs(&lost));
        Ok(())
    }
}

/// A word of the page, and what to store there.
fn word(page: usize, numbers: &mut Numbers) -> (usize, u64) {
    (page * PAGE_SIZE + numbers.below(512) * 8, numbers.0)
}

/// Keeps a copy in rounds, at the end of each of which the writers rest and it is compared.
fn check_in_rounds(memory: &Tracked, mut writers: Writers<'_>) -> Outcome {
    const ROUNDS: usize = 4;
    let mut copy = Copy::begin(memory)?;
    for _ in 0..ROUNDS {
        copy.keep(writers.board, 1, Duration::from_millis(800))?;
        writers.rest()?;
        copy.check()?;
        writers.resume()?;
    }
    writers.end(100)?;
    // There was something to miss.
    ensure!(copy.copied > 1000, "{} pages were copied only", copy.copied);
    equal!(memory.log.tracking()?.tracked, 1);
    Ok(())
}

fn a_copy_by_the_log_is_the_memory_that_programs_write() -> Outcome {
    const PAGES: usize = 4096;
    let (board, target) = (Board::new()?, Board::new()?);
    let memory = Tracked::new(PAGES)?;
    let newer = memory.map()?;
    // One that is written to from outside.
    let passive = Program::start(|| {
        target.wait(0, 1)?;
        Ok(vec![])
    })?;
    let (pid, base) = (passive.pid(), memory.area.address());
    let mut writers = Writers::new(&board);
    for area in [&memory.area, &newer] {
        writers.start(0..PAGES, |page, numbers| {
            let (offset, word) = word(page, numbers);
            area.store(offset, word);
            Ok(())
        })?;
    }
    writers.start(0..PAGES, |page, numbers| {
        let (offset, word) = word(page, numbers);
        Ok(memory.file.write_all_at(&word.to_ne_bytes(), offset as u64)?)
    })?;
    writers.start(0..PAGES, |page, numbers| {
        let (offset, word) = word(page, numbers);
        equal!(write_other(pid, base + offset, &word.to_ne_bytes())?, 8);
        Ok(())
    })?;
    check_in_rounds(&memory, writers)?;
    target.set(0, 1)?;
    passive.join().map(drop)
}

fn a_copy_by_the_log_is_the_memory_that_is_read_into_directly() -> Outcome {
    const PAGES: usize = 2048;
    const SOURCE: usize = 256;
    /// Pages of one read: all of them are in hand while the first ones are written.
    const READ: usize = 16;
    let disk = Disk::new("1M")?;
    {
        let buffered = OpenOptions::new().write(true).open(disk.path())?;
        for page in 0..SOURCE {
            buffered.write_all_at(&bytes_of(&contents(5000 + page as u64)), (page * PAGE_SIZE) as u64)?;
        }
        buffered.sync_all()?;
    }
    let board = Board::new()?;
    let memory = Tracked::new(PAGES)?;
    let mut writers = Writers::new(&board);
    for _ in 0..3 {
        let mut file = disk.open_direct()?;
        let area = &memory.area;
        writers.start(0..PAGES, move |page, numbers| {
            file.seek(SeekFrom::Start((numbers.below(SOURCE - READ) * PAGE_SIZE) as u64))?;
            let to = MemoryAt {
                area,
                offset: page.min(PAGES - READ) * PAGE_SIZE,
                len: READ * PAGE_SIZE,
            };
            equal!(read_into(&file, to)?, READ * PAGE_SIZE);
            Ok(())
        })?;
    }
    check_in_rounds(&memory, writers)
}

/// What programs do to memory and to mappings of it, each with a write.
fn start_programs(writers: &mut Writers<'_>, memory: &Memory) -> Outcome {
    const PART: usize = Memory::PAGES / Memory::PARTS;
    let part = |number: usize| number * PART..(number + 1) * PART;
    let Memory {
        file,
        map,
        area,
        is_plain,
    } = memory;
    // A mapping that comes and goes.
    writers.start(part(0), |page, numbers| {
        let short = AreaBuilder::default().map(map, page, 1)?;
        short.store(numbers.below(512) * 8, numbers.0);
        Ok(())
    })?;
    // A child that writes to what it has inherited.
    writers.start(part(1), |page, numbers| {
        let (offset, word) = word(page, numbers);
        area.store(offset, word);
        fork(|| {
            area.store(offset, word + 1);
            0
        })?
        .wait()?;
        Ok(())
    })?;
    // Mappings that are split and joined.
    writers.start(part(2), |page, numbers| {
        let (offset, word) = word(page, numbers);
        area.protect(page..page + 1, 1)?;
        area.store(offset + PAGE_SIZE, word);
        area.protect(page..page + 1, 3)?;
        area.store(offset, word);
        Ok(())
    })?;
    // A mapping that grows and moves.
    writers.start(part(3), |page, numbers| {
        let mut moving = AreaBuilder::default().map(map, page, 1)?;
        moving.store(numbers.below(512) * 8, numbers.0);
        moving.replace(AreaBuilder::default().private().anonymous(1)?)?;
        moving.store(numbers.below(512) * 8, numbers.0);
        if !is_plain {
            return Ok(());
        }
        moving.remap(2, true)?;
        moving.store(numbers.below(1024) * 8, numbers.0);
        let second = moving.duplicate()?;
        second.store(numbers.below(1024) * 8, numbers.0);
        Ok(())
    })?;
    // Holes.
    writers.start(part(4), |page, numbers| {
        const MADV_REMOVE: i32 = 9;
        let (offset, word) = word(page, numbers);
        match numbers.below(4) {
            0 => area.advise(page..page + 1, MADV_REMOVE)?,
            1 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, flags, (page * PAGE_SIZE) as u64, PAGE_SIZE as u64)?;
            }
            _ => area.store(offset, word),
        }
        Ok(())
    })?;
    // Descriptors: that which is adopted, and one that is opened anew.
    writers.start(part(5), |page, numbers| {
        let (offset, word) = word(page, numbers);
        Ok(file.write_all_at(&word.to_ne_bytes(), offset as u64)?)
    })?;
    writers.start(part(6), |page, numbers| {
        let (offset, word) = word(page, numbers);
        if !is_plain {
            area.store(offset, word);
            return Ok(());
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let again = OpenOptions::new().write(true).open(path)?;
        again.write_all_at(&word.to_ne_bytes(), offset as u64)?;
        drop(again);
        // A log cannot begin while it is open: it is closed most of the time.
        sleep(Duration::from_millis(5));
        Ok(())
    })
}

/// Memory that is not always tracked, and the mapping of all of it that the writers have inherited.
struct Memory {
    /// Where its pages are.
    file: File,
    /// What mappings of it are made by.
    map: OwnedFd,
    area: Area,
    /// Whether it is no region: mappings can grow, and the file be opened again.
    is_plain: bool,
}

impl Memory {
    const PAGES: usize = 2048;
    /// Each program has its own.
    const PARTS: usize = 8;
}

/// In each cycle everything is copied when the log has begun, and then what it reports.
fn misses_nothing_after_its_begin(memory: &Memory) -> Outcome {
    const DURATION: Duration = Duration::from_secs(4);
    let board = Board::new()?;
    for page in 0..Memory::PAGES {
        memory.area.write_page(page, &contents(page as u64));
    }
    let log = Adopted::new(&memory.map)?;
    let mut writers = Writers::new(&board);
    start_programs(&mut writers, memory)?;
    let tracked = Tracked {
        file: memory.file.try_clone()?,
        area: AreaBuilder::default().map(&memory.map, 0, Memory::PAGES)?,
        log,
    };
    let since = Instant::now();
    let (mut cycles, mut copied) = (0, 0);
    while cycles < 3 || since.elapsed() < DURATION {
        crate::watchdog::still_moving();
        // Passing: a descriptor was open for writing just then, or the memory was never at rest.
        wait_until("a log can begin", || match tracked.log.track() {
            Err(Errno::BUSY | Errno::AGAIN) => Ok(false),
            result => Ok(result.map(|_| true)?),
        })?;
        let mut copy = Copy::begin(&tracked)?;
        copy.keep(&board, Memory::PARTS, Duration::from_millis(300))?;
        writers.rest()?;
        copy.check()
            .map_err(|failure| format!("cycle {cycles}: {}", failure.text()))?;
        copied += copy.copied;
        writers.resume()?;
        tracked.log.untrack()?;
        cycles += 1;
    }
    writers.end(20)?;
    ensure!(copied > 1000, "{copied} pages were copied only");
    Ok(())
}

fn a_log_that_begins_while_programs_write_misses_nothing_after_that() -> Outcome {
    let file = memfd(Memory::PAGES)?;
    misses_nothing_after_its_begin(&Memory {
        map: file.try_clone()?.into(),
        area: AreaBuilder::default().map(&file, 0, Memory::PAGES)?,
        file,
        is_plain: true,
    })
}

fn a_log_of_a_region_that_begins_while_programs_write_misses_nothing_after_that() -> Outcome {
    let setting = Setting::new(Memory::PAGES)?;
    setting.fill_all()?;
    misses_nothing_after_its_begin(&Memory {
        file: setting.region.staging().try_clone()?,
        map: setting.map.as_fd().try_clone_to_owned()?,
        area: setting.area()?,
        is_plain: false,
    })
}
