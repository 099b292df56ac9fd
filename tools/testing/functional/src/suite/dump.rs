// SPDX-License-Identifier: GPL-2.0-or-later
//! Core dumps: what is here is in them, and a dying program waits for nothing.

use std::fs;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use vmem::PAGE_SIZE;

use crate::failure::{Outcome, ensure, equal};
use crate::program::Program;
use crate::setting::{Board, Setting, bytes_of, check_page, contents, pages};
use crate::world::wait_until;

crate::tests![
    a_core_dump_holds_present_pages_and_waits_for_no_absent_one,
    a_core_dump_goes_past_unreadable_pages,
    a_waiter_that_is_to_dump_core_does_not_wait_on,
];

/// Where core dumps go as long as this lives.
struct Cores {
    before: String,
}

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

impl Cores {
    fn new() -> Outcome<Self> {
        let before = fs::read_to_string(PATTERN)?;
        fs::write(PATTERN, "/tmp/vmem-core.%p")?;
        Ok(Self { before })
    }

    /// Takes the dump of a process.
    fn take(&self, pid: i32) -> Outcome<Vec<u8>> {
        let path = PathBuf::from(format!("/tmp/vmem-core.{pid}"));
        wait_until("there is a core dump", || Ok(path.exists()))?;
        let core = fs::read(&path)?;
        fs::remove_file(&path)?;
        Ok(core)
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        let _ = fs::write(PATTERN, &self.before);
    }
}

fn number(core: &[u8], at: usize, len: usize) -> Outcome<u64> {
    let bytes = core.get(at..at + len).ok_or("the core dump is too short")?;
    Ok(bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
}

/// The bytes of a dump from this address on, as far as its segment has some. A segment's bytes may end before its memory does.
fn dumped(core: &[u8], address: u64) -> Outcome<&[u8]> {
    ensure!(core.starts_with(b"\x7fELF"), "not a core dump");
    let (table, size, count) = (number(core, 32, 8)?, number(core, 54, 2)?, number(core, 56, 2)?);
    for at in 0..count {
        let header = (table + at * size) as usize;
        let (kind, offset, start, len) = (
            number(core, header, 4)?,
            number(core, header + 8, 8)?,
            number(core, header + 16, 8)?,
            number(core, header + 32, 8)?,
        );
        if kind == 1 && (start..start + len).contains(&address) {
            return Ok(core
                .get((offset + address - start) as usize..(offset + len) as usize)
                .ok_or("a segment beyond the end")?);
        }
    }
    Err(format!("nothing is dumped of {address:#x}").into())
}

/// A program that maps the region, tells where, and waits to be killed.
fn victim(setting: &Setting, board: &Board, touch: Option<usize>) -> Outcome<(Program, u64)> {
    let program = Program::start(|| {
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        setrlimit(Resource::Core, unlimited)?;
        let area = setting.area()?;
        check_page(&area, 1, 1)?;
        board.set(0, area.address() as u64)?;
        match touch {
            Some(pgoff) => Ok(area.page(pgoff)),
            None => board.wait(1, 1).map(|()| vec![]),
        }
    })?;
    board.wait(0, 1)?;
    let address = board.get(0)?;
    Ok((program, address))
}

fn check_dump(core: &[u8], address: u64, present: &[usize], not_there: &[usize]) -> Outcome {
    let memory = dumped(core, address)?;
    ensure!(memory.len() >= 8 * PAGE_SIZE, "only {} bytes are dumped", memory.len());
    for pgoff in present {
        let bytes = &memory[pgoff * PAGE_SIZE..(pgoff + 1) * PAGE_SIZE];
        ensure!(bytes == bytes_of(&contents(*pgoff as u64)), "page {pgoff} is not in the dump");
    }
    for pgoff in not_there {
        let bytes = &memory[pgoff * PAGE_SIZE..(pgoff + 1) * PAGE_SIZE];
        ensure!(bytes.iter().all(|byte| *byte == 0), "page {pgoff} is in the dump");
    }
    Ok(())
}

fn a_core_dump_holds_present_pages_and_waits_for_no_absent_one() -> Outcome {
    let (setting, board, cores) = (Setting::new(8)?, Board::new()?, Cores::new()?);
    // Page 5 is present and was never touched by the program.
    setting.fill([0, 1, 5])?;
    let (program, address) = victim(&setting, &board, None)?;
    let pid = program.pid();
    program.signal(Signal::ABORT)?;
    program.join_killed(Signal::ABORT)?;
    check_dump(&cores.take(pid)?, address, &[0, 1, 5], &[2, 3, 4, 6, 7])?;
    setting.no_request()?;
    equal!(setting.region.info()?.present, 3);
    Ok(())
}

fn a_core_dump_goes_past_unreadable_pages() -> Outcome {
    let (setting, board, cores) = (Setting::new(8)?, Board::new()?, Cores::new()?);
    setting.fill([0, 1, 5])?;
    setting.region.mark_unreadable(&[pages(2, 2)]).complete()?;
    let (program, address) = victim(&setting, &board, None)?;
    let pid = program.pid();
    program.signal(Signal::SEGV)?;
    program.join_killed(Signal::SEGV)?;
    check_dump(&cores.take(pid)?, address, &[0, 1, 5], &[2, 3, 4])
}

fn a_waiter_that_is_to_dump_core_does_not_wait_on() -> Outcome {
    let (setting, board, cores) = (Setting::new(8)?, Board::new()?, Cores::new()?);
    setting.fill([0, 1])?;
    let (program, address) = victim(&setting, &board, Some(6))?;
    setting.wait_waiters(1)?;
    let pid = program.pid();
    program.signal(Signal::ABORT)?;
    program.join_killed(Signal::ABORT)?;
    check_dump(&cores.take(pid)?, address, &[0, 1], &[6])?;
    equal!(setting.region.info()?.waiters, 0);
    Ok(())
}
