// SPDX-License-Identifier: GPL-2.0-or-later
//! What a program does with a mapping while steps of it fail: it may get SIGBUS, and no wrong page.

use std::fs;

use rustix::io::Errno;
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, End, MemoryAt, fork, write_from};

use super::{MEMORY, MOST, PAGES, absent, errno, present, tell};
use crate::failure::{Outcome, ensure, equal};
use crate::injector::Injector;
use crate::kernel::Swap;
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Setting, check_page, contents, smaps};
use crate::watchdog::still_moving;
use crate::world::{field, wait_until};

crate::tests![
    touches_of_present_pages_survive_a_failure_at_every_step,
    touches_of_absent_pages_survive_a_failure_at_every_step,
    touches_of_swapped_pages_survive_a_failure_at_every_step,
    fork_fails_cleanly_at_every_step,
];

/// As [`super::sweep`], for what a program does with a mapping of a region: it may get SIGBUS when a step fails. Then its pages must be right
/// for the next program. Before the first failure the program does `ready`.
fn sweep_program(what: &str, prepare: impl Fn() -> Outcome<Setting>, ready: Touch, touch: Touch) -> Outcome {
    let mut killed = 0;
    for nth in 1..MOST {
        still_moving();
        let setting = prepare()?;
        let server = Server::start(&setting.region);
        let program = Program::start(|| {
            let area = setting.area()?;
            let injector = Injector::new()?;
            ready(&area)?;
            injector.arm(nth)?;
            let result = touch(&area);
            let failed = injector.disarm()?;
            result?;
            Ok(vec![failed.into()])
        })?;
        let told = program.join_unless_killed(Signal::BUS)?;
        killed += u32::from(told.is_none());
        setting.checker(0..PAGES)?.join()?;
        server.stop()?;
        if told.is_some_and(|told| told == [0]) {
            println!("  {what}: {killed} times SIGBUS");
            return tell(what, nth - 1);
        }
    }
    Err(format!("{what} has more than {MOST} steps").into())
}

/// A way to touch pages.
type Touch = fn(&Area) -> Outcome;

const TOUCHES: [(&str, Touch); 4] = [
    ("load", |area| check_page(area, 2, 2)),
    ("store", |area| {
        area.poke(6 * PAGE_SIZE, contents(6)[0] as u8);
        check_page(area, 6, 6)
    }),
    ("write", |area| {
        let Ok((_reader, writer)) = rustix::pipe::pipe() else {
            return Ok(());
        };
        let memory = MemoryAt {
            area,
            offset: 7 * PAGE_SIZE,
            len: 100,
        };
        match write_from(&writer, memory) {
            Ok(100) => Ok(()),
            Ok(len) => Err(format!("{len} bytes were written").into()),
            Err(error) => {
                ensure!(MEMORY.contains(&errno(&error)), "{error}");
                Ok(())
            }
        }
    }),
    ("mlock", |area| match area.lock(8..10) {
        Ok(()) => check_page(area, 8, 8),
        Err(error) => {
            // EAGAIN: some of it could not be locked.
            ensure!([Errno::NOMEM, Errno::AGAIN].contains(&errno(&error)), "{error}");
            Ok(())
        }
    }),
];

fn touches_of_present_pages_survive_a_failure_at_every_step() -> Outcome {
    for (what, touch) in TOUCHES {
        sweep_program(&format!("{what} of present pages"), present, |_| Ok(()), touch)?;
    }
    Ok(())
}

fn touches_of_absent_pages_survive_a_failure_at_every_step() -> Outcome {
    for (what, touch) in TOUCHES {
        sweep_program(&format!("{what} of absent pages"), absent, |_| Ok(()), touch)?;
    }
    Ok(())
}

fn touches_of_swapped_pages_survive_a_failure_at_every_step() -> Outcome {
    const MADV_PAGEOUT: i32 = 21;
    let _swap = Swap::new()?;
    let out = |area: &Area| -> Outcome {
        (0..PAGES).try_for_each(|page| check_page(area, page, page))?;
        // What was just filled may wait in a list of some processor, where nobody can take it from; this empties all of them.
        fs::write("/proc/sys/vm/compact_memory", "1")?;
        wait_until("all pages are in swap", || {
            area.advise(0..PAGES, MADV_PAGEOUT)?;
            Ok(field(&smaps(std::process::id(), area.address())?, "Swap")? == (PAGES * PAGE_SIZE / 1024) as u64)
        })
    };
    for (what, touch) in TOUCHES {
        sweep_program(&format!("{what} of swapped pages"), present, out, touch)?;
    }
    Ok(())
}

/// How many forks one program tries.
const FORKS: u32 = 40;

/// A fork can fail in hundreds of places, so a program tries many of them. Each child touches a page that nobody has touched before.
fn fork_fails_cleanly_at_every_step() -> Outcome {
    for (what, filled) in [("fork, present pages", true), ("fork, absent pages", false)] {
        let setting = Setting::new((MOST + FORKS) as usize)?;
        if filled {
            setting.fill_all()?;
        }
        let server = Server::start(&setting.region);
        let mut tried = 0;
        loop {
            still_moving();
            let told = Program::start(|| forks(&setting, tried))?.join()?;
            if let [last] = told[..] {
                server.stop()?;
                tell(what, last as u32 - 1)?;
                break;
            }
            tried += FORKS;
            ensure!(tried < MOST, "{what}: more than {MOST} steps");
        }
    }
    Ok(())
}

/// Tries what comes after the first `tried` steps of a fork. Gives the first step that there is not, if it has come to that.
fn forks(setting: &Setting, tried: u32) -> Outcome<Vec<u64>> {
    let area = setting.area()?;
    let injector = Injector::new()?;
    for nth in tried + 1..=tried + FORKS {
        let page = nth as usize;
        injector.arm(nth)?;
        let child = fork(|| i32::from(check_page(&area, page, page).is_err()));
        let failed = injector.disarm()?;
        match child {
            Ok(mut child) => equal!(child.wait()?, End::Exited(0)),
            Err(error) => ensure!(
                [Errno::NOMEM, Errno::AGAIN].contains(&errno(&error)),
                "{error} when step {nth} fails"
            ),
        }
        check_page(&area, page, page)?;
        if !failed {
            return Ok(vec![nth.into()]);
        }
    }
    Ok(vec![])
}
