// SPDX-License-Identifier: GPL-2.0-or-later
//! Failures at random moments of moves with rounds: while the memory is sent, while the guest is stopped, or a little later. The guest is on exactly
//! one host then: at its source as before, or with all of its memory at its destination.
//!
//! What fails and when follows from a seed, which is printed; `VMEM_SEED` repeats it. Moments are amounts of sent memory, so they do not depend on how
//! fast the machine is, as far as that can be.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use rustix::process::Signal;

use super::rounds::{HYBRID, SLOW, are_pages_staged};
use super::stage::{Actor, Journey, Stage};
use super::write_log;
use crate::harm::ensure_unharmed;
use crate::machine::{self, Machine};
use crate::patience::{wait_at_most, wait_until};
use crate::vmemctl::{Vmemctl, said};

super::tests![
    Short one_failure_at_a_random_moment_leaves_the_guest_on_one_host,
    Long failures_at_random_moments_leave_the_guest_on_one_host,
];

/// How many failures the long test draws, if VMEM_DRAWS does not say it.
const DRAWS: u64 = 12;
/// How long a network is gone, unless the move ends before.
const BREAK: Duration = Duration::from_secs(20);
/// A vmemctl whose end is not waited for any longer: it waits for another one to be continued.
const NOTICED: Duration = Duration::from_secs(10);

/// vmemctl: it is done.
const DONE: i32 = 0;
/// vmemctl: the guest goes on at its source.
const AT_SOURCE: i32 = 2;
/// vmemctl: the move is to be gone on with: something is unknown, or a signal has ended vmemctl.
const TO_RECOVER: [i32; 2] = [3, 6];

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    DestinationsVmemd,
    SourcesVmemd,
    DestinationsVmemctl,
    SourcesVmemctl,
    Network,
    /// Nothing dies: vmemctl at the source gets SIGINT.
    Sigint,
}

const VICTIMS: [Victim; 6] = [
    Victim::DestinationsVmemd,
    Victim::SourcesVmemd,
    Victim::DestinationsVmemctl,
    Victim::SourcesVmemctl,
    Victim::Network,
    Victim::Sigint,
];

/// When it fails.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// When so many MiB have been sent.
    Sent(u64),
    /// So long after the guest has stopped at its source.
    Stopped(Duration),
}

/// A failure.
#[derive(Clone, Copy)]
struct Draw {
    victim: Victim,
    moment: Moment,
}

impl Draw {
    /// The failure of this number. `memory` is the guest's, in MiB.
    fn new(seed: u64, memory: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let victim = VICTIMS[random.usize(0..VICTIMS.len())];
        // Three of four are in the rounds.
        let moment = match random.u8(0..4) {
            0 => Moment::Stopped(Duration::from_millis(random.u64(0..600))),
            _ => Moment::Sent(random.u64(1..memory)),
        };
        Self { victim, moment }
    }
}

impl fmt::Display for Draw {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}, {:?}", self.victim, self.moment)
    }
}

fn one_failure_at_a_random_moment_leaves_the_guest_on_one_host(stage: &Stage) -> Result<()> {
    draws(stage, 1)
}

fn failures_at_random_moments_leave_the_guest_on_one_host(stage: &Stage) -> Result<()> {
    let count = match std::env::var("VMEM_DRAWS") {
        Ok(text) => text.parse().context("VMEM_DRAWS")?,
        Err(_) => DRAWS,
    };
    draws(stage, count)
}

fn draws(stage: &Stage, count: u64) -> Result<()> {
    let seed = match std::env::var("VMEM_SEED") {
        Ok(text) => text.parse().context("VMEM_SEED")?,
        Err(_) => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs(),
    };
    for seed in seed..seed + count {
        let (actor, source) = stage.guest_in_files()?;
        let memory = actor.guest.memory_mib.iter().sum::<u32>();
        let draw = Draw::new(seed, memory.into());
        // One line is a draw that can be repeated, also if the machine dies of it.
        println!("VMEM_SEED={seed}: {draw}");
        fail_once(stage, actor, source, draw).with_context(|| format!("VMEM_SEED={seed}: {draw}"))?;
    }
    Ok(())
}

/// Moves the guest, has something fail, and sees where the guest is.
fn fail_once(stage: &Stage, actor: Actor, source: Machine, draw: Draw) -> Result<()> {
    stage.rig.network.set_rate(SLOW)?;
    let sent = stage.rig.network.wire_bytes()?;
    let mut journey = actor.set_out(source, &[], &HYBRID)?;
    let is_moving = wait_for_moment(stage, &mut journey, sent, draw.moment)?;
    println!("  {}", if is_moving { "it fails" } else { "the move is over already" });
    strike(stage, &mut journey, draw.victim)?;
    stage.rig.network.set_rate(super::RATE)?;
    let code = end(stage, &actor, &mut journey, draw.victim)?;
    let machine = find(journey, code)?;
    println!("  the guest is on {}", machine.slot.host.name());
    stage.park(actor, machine)
}

/// Waits for it. Returns false if the move has ended before.
fn wait_for_moment(stage: &Stage, journey: &mut Journey, sent: u64, moment: Moment) -> Result<bool> {
    let mut is_moving = true;
    wait_until("the moment of the failure comes", || {
        is_moving = journey.migrate.runs()?;
        let log = journey.prepared.source.slot.read_log("migrate");
        let has_come = match moment {
            Moment::Sent(mib) => are_pages_staged(&log) && stage.rig.network.wire_bytes()? >= sent + (mib << 20),
            Moment::Stopped(_) => said(&log, "remainder").is_some(),
        };
        // What was not reached in the rounds is not reached any more.
        Ok(has_come || !is_moving || said(&log, "running").is_some())
    })?;
    if let Moment::Stopped(later) = moment {
        sleep(later);
    }
    Ok(is_moving)
}

/// Has it fail. What has ended by itself already cannot.
fn strike(stage: &Stage, journey: &mut Journey, victim: Victim) -> Result<()> {
    let Journey { prepared, migrate } = journey;
    match victim {
        Victim::DestinationsVmemd => drop(prepared.slot.host.kill_all("vmemd")),
        Victim::SourcesVmemd => drop(prepared.source.slot.host.kill_all("vmemd")),
        Victim::DestinationsVmemctl => prepared.receive.kill()?,
        Victim::SourcesVmemctl => migrate.kill()?,
        Victim::Network => stage.rig.network.set_wire(false)?,
        Victim::Sigint => drop(migrate.signal(Signal::INT)),
    }
    Ok(())
}

/// Goes on with the move as a user would, until both sides know what has become of it. Returns what `migrate`, or the `recover` after it, ended with.
fn end(stage: &Stage, actor: &Actor, journey: &mut Journey, victim: Victim) -> Result<i32> {
    let Journey { prepared, migrate } = journey;
    match victim {
        Victim::Network => {
            let since = Instant::now();
            while migrate.runs()? && since.elapsed() < BREAK {
                sleep(Duration::from_millis(50));
            }
            stage.rig.network.set_wire(true)?;
        }
        // If the source does not end the move because of it, the guest has been given away.
        Victim::DestinationsVmemctl if wait_at_most(NOTICED, "the source notices it", || Ok(!migrate.runs()?)).is_err() => {
            prepared.receive = Vmemctl::resume(&prepared.slot, &actor.guest)?;
        }
        _ => (),
    }
    let slot = &prepared.source.slot;
    let mut code = match victim {
        Victim::SourcesVmemctl => recover(slot)?,
        _ => migrate.end()?,
    };
    if TO_RECOVER.contains(&code) {
        code = recover(slot)?;
    }
    Ok(code)
}

fn recover(slot: &crate::slot::Slot) -> Result<i32> {
    Vmemctl::recover(slot)?.end()
}

/// Where the guest is: at its source, whose memory nobody tracks, or complete at its destination. Not on both, and not nowhere.
fn find(mut journey: Journey, code: i32) -> Result<Machine> {
    let there = journey.prepared.slot.host;
    let source = &mut journey.prepared.source;
    let [by_migrate, by_recover] = ["migrate", "recover"].map(|log| source.slot.read_log(log));
    let is_done = [&by_migrate, &by_recover].iter().any(|log| said(log, "done").is_some());
    match code {
        DONE if is_done => return journey.prepared.arrived(),
        // `recover` ends with 0 in this case, too.
        DONE if !by_recover.is_empty() => (),
        AT_SOURCE => (),
        other => bail!("vmemctl has ended with {other}: {by_migrate}{by_recover}"),
    }
    wait_until("the guest goes on at its source", || source.guest_runs())?;
    write_log::wait_until_over(source)?;
    wait_until("the destination has no vmemd", || Ok(there.processes_of("vmemd")?.is_empty()))?;
    let here = source.slot.host;
    wait_until("the source has no vmemd", || Ok(here.processes_of("vmemd")?.is_empty()))?;
    // A vmemctl that was killed has left it, and it has not run.
    if machine::running(&journey.prepared.slot).is_some() {
        let runs = Machine::is_running(&journey.prepared.slot)?;
        ensure_unharmed!(!runs, "the guest runs at its source, too, and at its destination");
    }
    journey.prepared.receive.kill()?;
    let _ = there.kill_all("qemu-system-x86");
    ensure!(
        journey.prepared.source.guest_runs()?,
        "the guest does not run where it should"
    );
    Ok(journey.prepared.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_gives_the_same_failure_again_and_seeds_give_all_of_them() {
        let text = |seed| Draw::new(seed, 192).to_string();
        assert_eq!(text(7), text(7));
        let drawn: Vec<Draw> = (0..200).map(|seed| Draw::new(seed, 192)).collect();
        for victim in VICTIMS {
            assert!(drawn.iter().any(|draw| draw.victim == victim), "{victim:?}");
        }
        assert!(drawn.iter().any(|draw| matches!(draw.moment, Moment::Stopped(_))));
    }
}
