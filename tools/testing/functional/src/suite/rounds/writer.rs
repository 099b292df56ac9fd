// SPDX-License-Identifier: GPL-2.0-or-later
//! Programs that write to memory all the time, until they are stopped.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, write_other};

use super::super::stress::Numbers;
use super::memory::Memory;
use crate::failure::Outcome;
use crate::program::Program;
use crate::setting::{Board, WORDS, bytes_of, contents};
use crate::world::{threads, wait_until};

const MADV_REMOVE: i32 = 9;

/// What a program does to its memory, again and again.
pub(super) struct Writes {
    pub(super) area: Area,
    pub(super) file: File,
    pub(super) numbers: Numbers,
    /// The number of the write, from 1.
    pub(super) step: u64,
}

impl Writes {
    fn any_page(&mut self) -> usize {
        self.numbers.below(self.area.pages())
    }

    /// Some bytes of a page.
    pub(super) fn touch(&mut self, page: usize) {
        let word = self.numbers.below(WORDS);
        self.area.store(page * PAGE_SIZE + word * 8, (self.step << 20) | page as u64);
    }

    /// Pages all over the memory.
    pub(super) fn anywhere(&mut self) -> Outcome {
        let page = self.any_page();
        self.touch(page);
        Ok(())
    }

    /// Sixteen pages in the middle, if there are so many.
    pub(super) fn hot_spot(&mut self) -> Outcome {
        let pages = self.area.pages();
        let page = pages / 2 + self.numbers.below((pages - pages / 2).min(16));
        self.touch(page);
        Ok(())
    }

    /// Pages of the last quarter.
    pub(super) fn last_quarter(&mut self) -> Outcome {
        let quarter = self.area.pages() / 4;
        let page = self.area.pages() - quarter + self.numbers.below(quarter);
        self.touch(page);
        Ok(())
    }

    /// By `write(2)`.
    pub(super) fn by_write(&mut self) -> Outcome {
        let page = self.any_page();
        let bytes = bytes_of(&contents((self.step << 16) | page as u64));
        // Also parts of pages, and more than one at once.
        let (from, len) = (self.numbers.below(PAGE_SIZE), 1 + self.numbers.below(PAGE_SIZE));
        let at = page * PAGE_SIZE + from;
        let len = len.min(self.area.size() - at);
        Ok(self.file.write_all_at(&bytes[..len], at as u64)?)
    }

    /// Data becomes zero and a hole, and zero pages and holes become data.
    pub(super) fn holes(&mut self) -> Outcome {
        let page = self.any_page();
        let count = 1 + self.numbers.below(8).min(self.area.pages() - 1 - page);
        match self.numbers.below(6) {
            0 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.file, flags, (page * PAGE_SIZE) as u64, (count * PAGE_SIZE) as u64)?;
            }
            1 => self.area.advise(page..page + count, MADV_REMOVE)?,
            2 => (page..page + count).for_each(|page| self.area.write_page(page, &[0; WORDS])),
            3 => self
                .file
                .write_all_at(&vec![0; count * PAGE_SIZE], (page * PAGE_SIZE) as u64)?,
            4 => self.by_write()?,
            _ => self.touch(page),
        }
        Ok(())
    }

    /// Everything.
    pub(super) fn mixed(&mut self) -> Outcome {
        match self.numbers.below(4) {
            0 => self.hot_spot(),
            1 => self.by_write(),
            2 => self.holes(),
            _ => self.anywhere(),
        }
    }
}

/// A program that writes.
pub(super) struct Writer {
    program: Program,
    board: Board,
}

/// Where on the board it says how often it has written, and where it has mapped the memory.
const STEPS: usize = 0;
const ADDRESS: usize = 1;

impl Writer {
    /// A program with the memories open and mapped, which pauses after so many writes for a millisecond.
    pub(super) fn new(memories: &[Memory], seed: u64, burst: u64, write: impl Fn(&mut Writes) -> Outcome) -> Outcome<Self> {
        let board = Board::new()?;
        let program = Program::start(|| {
            let mut all: Vec<Writes> = (1..)
                .zip(memories)
                .map(|(number, memory)| {
                    Ok(Writes {
                        area: memory.area()?,
                        // The same open file.
                        file: memory.file.try_clone()?,
                        numbers: Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number) | 1),
                        step: 0,
                    })
                })
                .collect::<Outcome<_>>()?;
            board.set(ADDRESS, all[0].area.address() as u64)?;
            for step in 1.. {
                for writes in &mut all {
                    writes.step = step;
                    write(writes)?;
                }
                board.set(STEPS, step)?;
                if step % burst == 0 {
                    sleep(Duration::from_millis(1));
                }
            }
            Ok(vec![])
        })?;
        board.wait(ADDRESS, 1)?;
        Ok(Self { program, board })
    }

    /// A program that has the memories open and mapped, and writes nothing.
    pub(super) fn idle(memories: &[Memory]) -> Outcome<Self> {
        Self::new(memories, 1, 1, |_| {
            sleep(Duration::from_millis(10));
            Ok(())
        })
    }

    /// A program that writes into the address space of another one.
    pub(super) fn of_other(other: &Writer, pages: usize) -> Outcome<Self> {
        let board = Board::new()?;
        let (pid, address) = (other.pid(), other.board.get(ADDRESS)? as usize);
        let program = Program::start(|| {
            let mut numbers = Numbers(77);
            for step in 1_u64.. {
                let page = numbers.below(pages);
                let bytes = ((step << 20) | page as u64).to_le_bytes();
                write_other(pid, address + page * PAGE_SIZE + numbers.below(WORDS) * 8, &bytes)?;
                board.set(STEPS, step)?;
            }
            Ok(vec![])
        })?;
        Ok(Self { program, board })
    }

    pub(super) fn pid(&self) -> i32 {
        self.program.pid()
    }

    /// Stops it: after this, it does not write.
    pub(super) fn stop(&self) -> Outcome {
        self.program.signal(Signal::STOP)?;
        wait_until("the program has stopped", || {
            let mut stopped = true;
            for thread in threads(self.pid())? {
                let stat = fs::read_to_string(format!("/proc/{}/task/{thread}/stat", self.pid()))?;
                let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
                stopped &= state == Some('T');
            }
            Ok(stopped)
        })
    }

    /// Has it go on, and waits until it has written.
    pub(super) fn goes_on(&self) -> Outcome {
        self.program.signal(Signal::CONT)?;
        let steps = self.board.get(STEPS)?;
        self.wait_more(steps, 10)
    }

    /// Waits until it has written so many times more than now.
    pub(super) fn wait_steps(&self, more: u64) -> Outcome {
        self.wait_more(self.board.get(STEPS)?, more)
    }

    fn wait_more(&self, steps: u64, more: u64) -> Outcome {
        wait_until("the program has written", || Ok(self.board.get(STEPS)? >= steps + more))
    }
}
