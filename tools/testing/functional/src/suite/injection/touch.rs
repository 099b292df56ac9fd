// SPDX-License-Identifier: GPL-2.0
//! What a program does with a mapping while steps of it fail: it may get SIGBUS, and no wrong page.

use rustix::io::Errno;
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, End, MemoryAt, fork, write_from};

use super::{MEMORY, MOST, PAGES, absent, errno, present, tell};
use crate::failure::{Outcome, ensure, equal};
use crate::injector::Injector;
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Setting, check_page, contents};
use crate::watchdog::still_moving;

crate::tests![
    touches_of_present_pages_survive_a_failure_at_every_step,
    touches_of_absent_pages_survive_a_failure_at_every_step,
    fork_fails_cleanly_at_every_step,
];

/// As [`super::sweep`], for what a program does with a mapping of a region: it may get SIGBUS when a step fails. Then its pages must be right
/// for the next program.
fn sweep_program(what: &str, prepare: impl Fn() -> Outcome<Setting>, touch: impl Fn(&Area) -> Outcome) -> Outcome {
    let mut killed = 0;
    for nth in 1..MOST {
        still_moving();
        let setting = prepare()?;
        let server = Server::start(&setting.region);
        let program = Program::start(|| {
            let area = setting.area()?;
            let injector = Injector::new()?;
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
        sweep_program(&format!("{what} of present pages"), present, touch)?;
    }
    Ok(())
}

fn touches_of_absent_pages_survive_a_failure_at_every_step() -> Outcome {
    for (what, touch) in TOUCHES {
        sweep_program(&format!("{what} of absent pages"), absent, touch)?;
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
