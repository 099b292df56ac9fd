// SPDX-License-Identifier: GPL-2.0-or-later
//! Freezing: a thread that waits for a page keeps neither its group nor the machine from being frozen.

use std::thread::sleep;
use std::time::Duration;

use rustix::pipe::pipe;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{MemoryAt, write_from};

use crate::failure::{Outcome, ensure, equal};
use crate::kernel::{Freezer, hibernate, suspend};
use crate::program::{Program, asleep};
use crate::setting::{Setting, check_words};
use crate::watchdog::still_moving;
use crate::world::wait_until;

crate::tests![
    waiter_in_a_system_call_can_be_frozen,
    waiter_in_user_mode_can_be_frozen,
    waiter_in_a_system_call_does_not_prevent_suspend,
    waiter_in_user_mode_does_not_prevent_suspend,
    waiter_in_a_system_call_does_not_prevent_hibernation,
    waiter_in_user_mode_does_not_prevent_hibernation,
];

/// Those that want a kernel that can suspend.
pub(crate) const SUSPENDS: [&str; 2] = [
    "freeze::waiter_in_a_system_call_does_not_prevent_suspend",
    "freeze::waiter_in_user_mode_does_not_prevent_suspend",
];

/// Those that want a machine that is started again after it has hibernated.
pub(crate) const HIBERNATES: [&str; 2] = [
    "freeze::waiter_in_a_system_call_does_not_prevent_hibernation",
    "freeze::waiter_in_user_mode_does_not_prevent_hibernation",
];

/// Freezes a program that waits for page 1, fills the page meanwhile, and lets it go on.
fn frozen_while_it_waits(name: &str, program: impl FnOnce(&Setting) -> Outcome<Vec<u64>>) -> Outcome {
    let setting = Setting::new(4)?;
    let program = Program::start(|| program(&setting))?;
    equal!(setting.take_request()?, 1);
    setting.wait_waiters(1)?;
    let freezer = Freezer::new(name)?;
    freezer.add(program.pid())?;
    wait_until("it is frozen", || freezer.freeze())?;
    setting.fill([1])?;
    // Long enough for who would run on, and not for a state to come.
    sleep(Duration::from_millis(100));
    ensure!(asleep(program.pid(), program.pid())?, "it runs, though it is frozen");
    freezer.thaw()?;
    check_words(&program.join()?, 1)
}

/// The machine suspends or hibernates while a program waits for page 1, which waits on when the machine is back, and gets the page.
fn away_while_it_waits(go_away: fn() -> Outcome, program: impl FnOnce(&Setting) -> Outcome<Vec<u64>>) -> Outcome {
    let setting = Setting::new(4)?;
    let program = Program::start(|| program(&setting))?;
    equal!(setting.take_request()?, 1);
    setting.wait_waiters(1)?;
    go_away()?;
    still_moving();
    setting.wait_waiters(1)?;
    setting.fill([1])?;
    check_words(&program.join()?, 1)
}

/// Reads page 1 by write(2), which waits in it.
fn read_in_a_system_call(setting: &Setting) -> Outcome<Vec<u64>> {
    let area = setting.area()?;
    let (reader, writer) = pipe()?;
    let memory = MemoryAt {
        area: &area,
        offset: PAGE_SIZE,
        len: PAGE_SIZE,
    };
    equal!(write_from(&writer, memory)?, PAGE_SIZE);
    let mut bytes = vec![0; PAGE_SIZE];
    equal!(rustix::io::read(&reader, &mut bytes)?, PAGE_SIZE);
    Ok(bytes
        .chunks_exact(8)
        .map(|word| word.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte)))
        .collect())
}

/// Reads page 1 by touching it.
fn read_in_user_mode(setting: &Setting) -> Outcome<Vec<u64>> {
    Ok(setting.area()?.page(1))
}

fn waiter_in_a_system_call_can_be_frozen() -> Outcome {
    frozen_while_it_waits("call", read_in_a_system_call)
}

fn waiter_in_user_mode_can_be_frozen() -> Outcome {
    frozen_while_it_waits("user", read_in_user_mode)
}

fn waiter_in_a_system_call_does_not_prevent_suspend() -> Outcome {
    away_while_it_waits(suspend, read_in_a_system_call)
}

fn waiter_in_user_mode_does_not_prevent_suspend() -> Outcome {
    away_while_it_waits(suspend, read_in_user_mode)
}

fn waiter_in_a_system_call_does_not_prevent_hibernation() -> Outcome {
    away_while_it_waits(hibernate, read_in_a_system_call)
}

fn waiter_in_user_mode_does_not_prevent_hibernation() -> Outcome {
    away_while_it_waits(hibernate, read_in_user_mode)
}
