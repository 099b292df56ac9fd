// SPDX-License-Identifier: GPL-2.0-or-later
//! A back end of vhost-user, a process of its own, that writes into the guest's memory during every round.

use anyhow::{Context, Result, bail, ensure};

use super::rounds::{HYBRID, SLOW, all_said};
use super::stage::{Actor, Stage};
use crate::disk;
use crate::guest::{Guest, Load, Memory};
use crate::machine::Machine;
use crate::network::Host;
use crate::patience::wait_until;
use crate::vmemctl::said;

super::tests![Short guest_whose_disk_writes_into_its_memory_in_every_round_moves];

/// Reads of the disk before the move: each buffer has been read into several times.
const BEFORE: u64 = 1000;

fn guest_whose_disk_writes_into_its_memory_in_every_round_moves(stage: &Stage) -> Result<()> {
    let guest = Guest {
        number: 2,
        memory_mib: vec![128],
        work_mib: 32,
        has_disk: true,
        ..Guest::default()
    };
    disk::create(guest.number)?;
    let outcome = moved(stage, &guest);
    disk::remove(guest.number);
    outcome
}

fn moved(stage: &Stage, guest: &Guest) -> Result<()> {
    let source = Machine::boot(Host::First, guest, Memory::Shared)?;
    let actor = Actor::new(guest.clone())?;
    guest.start_disk()?;
    // What is dirty then is the disk's doing: the guest's kernel writes its own few pages, and the processor writes no buffer.
    guest.work(Load::Idle)?;
    wait_until("the disk is read", || Ok(guest.check_disk()? > BEFORE))?;
    stage.rig.network.set_rate(SLOW)?;
    let mut journey = actor.set_out(source, &[], &[&HYBRID[..], &["--verify"]].concat())?;
    journey.wait_switched()?;
    stage.rig.network.set_rate(super::RATE)?;
    let log = journey.prepared.source.slot.read_log("migrate");
    let rounds = all_said(&log, "round");
    let dirtied: Vec<u64> = rounds
        .iter()
        .filter_map(|round| round["vmemd"]["dirtied_pages"].as_u64())
        .collect();
    println!("  pages written in each round: {dirtied:?}");
    // The last one is after the guest has stopped.
    let [running @ .., _] = &dirtied[..] else {
        bail!("there were no rounds: {log}")
    };
    ensure!(
        running.len() > 1 && running.iter().all(|pages| *pages > 0),
        "in a round the disk has written nothing: {rounds:?}"
    );
    let verified = said(&log, "verified").context("nothing was compared before the guest ran")?;
    ensure!(verified["different"] == 0, "a write of the disk was lost: {verified}");
    // Each buffer holds what was read last, before the switch or after it; and the disk goes on.
    let reads = guest.check_disk()?;
    wait_until("the disk is read at the destination", || Ok(guest.check_disk()? > reads))?;
    let machine = journey.arrive()?;
    guest.check_disk()?;
    actor.intact(machine).map(drop)
}
