// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of a thread, which touches the program's memory when no signal can reach it any more: the list of its robust futexes.

use std::thread;

use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, set_robust_list};

use crate::failure::{Outcome, equal};
use crate::program::Program;
use crate::setting::{Board, Setting};

crate::tests![
    a_killed_program_dies_though_its_exit_reads_an_absent_page,
    a_program_exits_though_its_exit_reads_an_absent_page,
    a_thread_ends_though_its_exit_reads_an_absent_page,
    a_thread_that_ends_gets_the_page_that_its_exit_reads,
];

/// The exit of the calling thread reads page `page`.
fn exit_reads(area: &Area, page: usize) -> Outcome {
    Ok(set_robust_list(area, page * PAGE_SIZE)?)
}

fn a_killed_program_dies_though_its_exit_reads_an_absent_page() -> Outcome {
    let setting = Setting::new(4)?;
    let board = Board::new()?;
    let program = Program::start(|| {
        let area = setting.area()?;
        exit_reads(&area, 2)?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    program.signal(Signal::KILL)?;
    program.join_killed(Signal::KILL)?;
    setting.no_request()
}

fn a_program_exits_though_its_exit_reads_an_absent_page() -> Outcome {
    let setting = Setting::new(4)?;
    let program = Program::start(|| {
        let area = setting.area()?;
        exit_reads(&area, 2)?;
        // Mapped to the end.
        std::mem::forget(area);
        Ok(vec![])
    })?;
    program.join()?;
    setting.no_request()
}

/// A program one of whose threads ends, with page 2 in its list.
fn ender(setting: &Setting) -> Outcome<Program> {
    Program::start(|| {
        let area = setting.area()?;
        thread::scope(|scope| {
            let ender = scope.spawn(|| exit_reads(&area, 2));
            ender.join().map_err(|_| "the thread panicked")?
        })?;
        Ok(vec![])
    })
}

fn a_thread_ends_though_its_exit_reads_an_absent_page() -> Outcome {
    let setting = Setting::new(4)?;
    let program = ender(&setting)?;
    equal!(setting.take_request()?, 2);
    program.join()?;
    equal!(setting.region.info()?.waiters, 0);
    Ok(())
}

fn a_thread_that_ends_gets_the_page_that_its_exit_reads() -> Outcome {
    let setting = Setting::new(4)?;
    let program = ender(&setting)?;
    equal!(setting.take_request()?, 2);
    setting.fill([2])?;
    program.join()?;
    Ok(())
}
