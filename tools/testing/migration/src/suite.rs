// SPDX-License-Identifier: GPL-2.0-or-later
//! The tests: real guests that are moved, and what goes wrong meanwhile.
//!
//! One after the other. A test that leaves its guest intact parks it, and the next one takes it, wherever it runs (`stage`). After each test
//! nothing else is left on the hosts. The tests wait for states, never for times: the machine may be an emulated one.

mod after;
mod agent;
mod balloon;
mod before;
mod lost;
mod moving;
mod qemu;
mod random;
mod rounds;
mod signals;
mod stage;
mod two_hosts;
mod vhost_user;
mod write_log;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, ColorSetting, Trial};
use rustix::process::{Signal, kill_process};

use crate::network::{Host, Wire};
use crate::patience::wait_until;
use crate::rig::Rig;
use stage::{Journey, Stage};

/// A test.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    /// The path of its function.
    path: &'static str,
    length: Length,
    run: fn(&Stage) -> Result<()>,
}

/// Which runs a test is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// Each of them: one that tells much in little time.
    Short,
    /// Only `make test-migration`.
    Long,
}

/// The wire of the tests.
const RATE: &str = "1gbit";
const DELAY_MS: f64 = 0.25;

/// A table of tests: the [`Length`] and the function of each, which gives it its name.
macro_rules! tests {
    ($($length:ident $name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[crate::suite::Test] = &[$(crate::suite::Test {
            path: concat!(module_path!(), "::", stringify!($name)),
            length: crate::suite::Length::$length,
            run: $name,
        }),*];
    };
}
use tests;

/// All tests, in the order in which they run.
fn all() -> impl Iterator<Item = Test> {
    [
        moving::TESTS,
        before::TESTS,
        after::TESTS,
        signals::TESTS,
        lost::TESTS,
        rounds::TESTS,
        random::TESTS,
        vhost_user::TESTS,
        qemu::TESTS,
        agent::TESTS,
        balloon::TESTS,
        two_hosts::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Runs those that the arguments name, or those of them that are short.
pub(crate) fn run(arguments: Vec<String>, only_short: bool) -> Result<ExitCode> {
    let mut arguments = Arguments::from_iter(["vmem-migration".to_owned()].into_iter().chain(arguments));
    arguments.test_threads = Some(1);
    arguments.color = Some(ColorSetting::Never);
    let wire = Wire {
        delay_ms: DELAY_MS,
        rate: Some(RATE.into()),
    };
    let stage = match arguments.list {
        true => None,
        false => Some(Arc::new(Stage::new(Rig::new(&wire)?))),
    };
    let trials = all()
        .filter(|test| test.length == Length::Short || !only_short)
        .map(|test| {
            let stage = stage.clone();
            let name = test.path.trim_start_matches("vmem_migration::suite::");
            let wants_kvm = name.starts_with("lost::") && stage.is_some() && Rig::accelerator() != "KVM";
            Trial::test(name, move || match &stage {
                None => Ok(()),
                Some(stage) => run_one(stage, test.run).map_err(|error| format!("{error:#}").into()),
            })
            .with_ignored_flag(wants_kvm)
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(stage) = stage.and_then(Arc::into_inner) {
        // Its guest has memory of the module.
        stage.clear();
        stage.rig.remove()?;
    }
    Ok(conclusion.exit_code())
}

/// Runs a test, and then sees that it left nothing.
fn run_one(stage: &Stage, test: fn(&Stage) -> Result<()>) -> Result<()> {
    let outcome = test(stage).and_then(|()| nothing_left(stage));
    stage.rig.network.set_wire(true)?;
    stage.rig.network.set_rate(RATE)?;
    if let Err(error) = &outcome {
        // Now: the list at the end may not come, if the machine dies before.
        println!("\n  {error:#}");
        // A guest of a failed test is nobody's any more, and so is what served it.
        stage.clear();
        for host in Host::BOTH {
            for pid in host.processes()? {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        wait_until("the hosts are empty", || Ok(processes()? == 0))?;
    }
    outcome
}

fn nothing_left(stage: &Stage) -> Result<()> {
    let parked = usize::from(stage.is_parked());
    let left = wait_until("nothing but a parked guest is left", || Ok(processes()? == parked));
    if left.is_err() {
        for host in Host::BOTH {
            for program in ["vmemd", "vmemctl", "qemu-system-x86"] {
                let count = host.processes_of(program)?.len();
                ensure!(count == 0, "{count} of {program} are left on {}", host.name());
            }
        }
    }
    left
}

fn processes() -> Result<usize> {
    Ok(Host::First.processes()?.len() + Host::Second.processes()?.len())
}

/// The destination's QEMU gets its state slowly: waits until it has part of it.
fn wait_for_part_of_the_state(stage: &Stage, journey: &mut Journey) -> Result<()> {
    /// The state has a few hundred KiB.
    const PART: u64 = 60_000;
    wait_until("the destination's QEMU is there", || Ok(journey.prepared.slot.pid().exists()))?;
    stage.rig.network.set_rate("500kbit")?;
    let bytes = stage.rig.network.wire_bytes()?;
    wait_until("part of the state is there", || {
        ensure!(journey.migrate.runs()?, "it is over already");
        sleep(Duration::from_millis(20));
        Ok(stage.rig.network.wire_bytes()? > bytes + PART)
    })
}
