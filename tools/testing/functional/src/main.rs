// SPDX-License-Identifier: GPL-2.0-or-later
//! The functional tests: one for each promise, named after it.
//!
//! They run as root in a virtual machine with the stock kernel, one after the other. The program inserts the module itself (`VMEM_KO`,
//! or `build/module/vmem.ko`) and removes it at the end. After each test nothing of it may be left: no descriptor, no child, no region
//! (`world`). A test that hangs ends the run, and says what hangs where (`watchdog`).
//!
//! The tests wait for states, never for times: the machine may be an emulated one. A test that wants what this machine lacks is skipped, and says
//! why: failures on demand, the freezer of cgroup v1 or probes (`injector`, `kernel`, `probes`), two nodes (`suite::numa`), a processor that
//! x86-64 guests run on (`suite::qemu`), or somebody who starts the machine again after it has hibernated (`kernel`).
#![forbid(unsafe_code)]

mod adopted;
mod certificates;
mod failure;
mod image;
mod injector;
mod kernel;
mod link;
mod patience;
mod probes;
mod program;
mod schema;
mod server;
mod setting;
mod suite;
mod tracked;
mod watchdog;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, ColorSetting, Completion, Failed, Trial};

use crate::failure::Outcome;
use crate::watchdog::Watchdog;

/// A test: its name is that of the promise which it proves, after that of its group.
type Test = (&'static str, fn() -> Outcome);

/// A table of tests with the names of their functions, in the group that their module is.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[$((concat!(module_path!(), "::", stringify!($name)), $name)),*];
    };
}
use tests;

/// Why this machine cannot run the test; [`None`] if it can.
fn impossible(name: &str) -> Option<&'static str> {
    let (possible, why) = match group(name) {
        "injection" => (injector::available(), "the kernel has no failures on demand"),
        "freeze" if suite::freeze::SUSPENDS.contains(&name) => (kernel::can_suspend(), "the machine cannot suspend to idle"),
        "freeze" if suite::freeze::HIBERNATES.contains(&name) => (
            kernel::can_hibernate(),
            "nobody starts the machine again after it has hibernated",
        ),
        "freeze" => (kernel::Freezer::available(), "the kernel has no freezer of cgroup v1"),
        "inside" => (probes::available(), "the kernel has no probes"),
        "numa" => (suite::numa::available(), "the machine has one node"),
        "track" if name == suite::track::BEGINS_BESIDE_MMAP => {
            (!injector::available(), "the kernel checks itself, and is too slow")
        }
        "track" => (
            !suite::track::LET_GO.contains(&name) || kernel::lets_go_of_pages(),
            "the kernel has no multi-generational LRU",
        ),
        _ => (true, ""),
    };
    (!possible).then_some(why)
}

/// Runs a test, unless this machine cannot.
fn attempt(name: &str, test: fn() -> Outcome) -> Result<Completion, Failed> {
    if let Some(why) = impossible(name) {
        return Ok(Completion::ignored_with(why));
    }
    let _announced = (group(name) == "injection").then(injector::Announcement::new);
    match world::run(test) {
        Ok(()) => Ok(Completion::Completed),
        Err(failure) if failure.is_lack() => Ok(Completion::ignored_with(failure.text())),
        Err(failure) => {
            // Again at the end of the run, which a machine may not reach.
            eprintln!("  {}", failure.text());
            Err(failure.text().into())
        }
    }
}

/// The group that a test is in.
fn group(name: &str) -> &str {
    name.split("::").next().unwrap_or_default()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The tests share the module and look at its use count: one at a time, in this thread (they fork).
    arguments.test_threads = Some(1);
    arguments.color = Some(ColorSetting::Never);
    let inserted = if arguments.list { Ok(()) } else { world::insert_module() };
    if let Err(failure) = inserted {
        eprintln!("vmem-functional: cannot insert the module: {}", failure.text());
        return ExitCode::FAILURE;
    }
    let watchdog = Watchdog::start();
    let trials = suite::all()
        .map(|(path, test)| {
            let name = path.trim_start_matches("vmem_functional::suite::");
            let watchdog = watchdog.clone();
            Trial::ignorable_test(name, move || {
                let _watched = watchdog.watch(name);
                attempt(name, test)
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        if let Err(failure) = world::remove_module() {
            eprintln!("vmem-functional: cannot remove the module at the end: {}", failure.text());
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}
