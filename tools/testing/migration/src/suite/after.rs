// SPDX-License-Identifier: GPL-2.0-or-later
//! What goes wrong after the switch: the guest waits for its pages, and then goes on.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Actor, Journey, Stage};
use crate::machine::Machine;
use crate::patience::wait_until;
use crate::traffic::Traffic;
use crate::vmemctl::Vmemctl;

super::tests![
    Short the_network_breaks_and_returns,
    Long the_sources_vmemd_is_killed,
    Short the_destinations_vmemd_is_killed,
    Short the_sources_vmemctl_dies,
    Long the_destinations_vmemctl_dies,
    Long receive_and_its_vmemd_are_killed_together,
    Long receive_and_its_vmemd_are_killed_together_and_the_guests_network_is_busy,
    Long the_source_is_back_after_the_retries,
    Long the_source_host_is_gone,
];

/// How long the network is broken.
const BREAK: Duration = Duration::from_secs(3);

/// A guest which has switched, and most of whose memory has not come yet.
fn switched(stage: &Stage, receive: &[&str]) -> Result<(Actor, Journey)> {
    let (actor, source) = stage.guest()?;
    stage.rig.network.set_rate("100mbit")?;
    let mut journey = actor.set_out(source, receive, &[])?;
    journey.wait_switched()?;
    Ok((actor, journey))
}

/// All comes now.
fn hurry(stage: &Stage) -> Result<()> {
    stage.rig.network.set_rate(super::RATE)
}

fn the_network_breaks_and_returns(stage: &Stage) -> Result<()> {
    let (actor, mut journey) = switched(stage, &[])?;
    stage.rig.network.set_wire(false)?;
    sleep(BREAK);
    ensure!(journey.migrate.runs()?, "vmemctl migrate has not waited");
    stage.rig.network.set_wire(true)?;
    hurry(stage)?;
    stage.park(actor, journey.arrive()?)
}

fn the_sources_vmemd_is_killed(stage: &Stage) -> Result<()> {
    let (actor, journey) = switched(stage, &[])?;
    journey.prepared.source.slot.host.kill_all("vmemd")?;
    hurry(stage)?;
    stage.park(actor, journey.arrive()?)
}

fn the_destinations_vmemd_is_killed(stage: &Stage) -> Result<()> {
    let (actor, journey) = switched(stage, &[])?;
    journey.prepared.slot.host.kill_all("vmemd")?;
    hurry(stage)?;
    stage.park(actor, journey.arrive()?)
}

fn the_sources_vmemctl_dies(stage: &Stage) -> Result<()> {
    let (actor, mut journey) = switched(stage, &[])?;
    journey.migrate.kill()?;
    let mut recover = Vmemctl::recover(&journey.prepared.source.slot)?;
    hurry(stage)?;
    recover.expect(&journey.prepared.source.slot, 0)?;
    let machine = journey.prepared.arrived()?;
    stage.park(actor, machine)
}

fn the_destinations_vmemctl_dies(stage: &Stage) -> Result<()> {
    let (actor, mut journey) = switched(stage, &[])?;
    journey.prepared.receive.kill()?;
    journey.prepared.receive = Vmemctl::resume(&journey.prepared.slot, &actor.guest)?;
    hurry(stage)?;
    journey.migrate.expect(&journey.prepared.source.slot, 0)?;
    let machine = journey.prepared.arrived()?;
    stage.park(actor, machine)
}

/// Nobody serves the guest for a while: it waits, and so does QEMU's main loop if it touches a page that is missing. QEMU then answers
/// nothing before pages come again.
fn receive_and_its_vmemd_are_killed_together(stage: &Stage) -> Result<()> {
    let (actor, journey) = switched(stage, &[])?;
    let machine = killed_together(stage, &actor, journey)?;
    stage.park(actor, machine)
}

/// QEMU's main loop copies what comes for the guest into its memory: that is where it waits.
fn receive_and_its_vmemd_are_killed_together_and_the_guests_network_is_busy(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let traffic = Traffic::start(&actor.guest)?;
    // So that few of the pages that the device needs have come by then.
    stage.rig.network.set_rate("5mbit")?;
    let mut journey = actor.set_out(source, &[], &[])?;
    journey.wait_switched()?;
    let machine = killed_together(stage, &actor, journey)?;
    traffic.end(&actor.guest)?;
    stage.park(actor, machine)
}

/// Kills `receive` and its vmemd; the next `receive` goes on.
fn killed_together(stage: &Stage, actor: &Actor, mut journey: Journey) -> Result<Machine> {
    // In this order: the first would start the second again.
    journey.prepared.receive.kill()?;
    journey.prepared.slot.host.kill_all("vmemd")?;
    sleep(BREAK);
    journey.prepared.receive = Vmemctl::resume(&journey.prepared.slot, &actor.guest)?;
    hurry(stage)?;
    journey.migrate.expect(&journey.prepared.source.slot, 0)?;
    journey.prepared.arrived()
}

/// The guest is paused, or waits in QEMU, which then gets to the order to pause it only when the source is back. It goes on in any case.
fn the_source_is_back_after_the_retries(stage: &Stage) -> Result<()> {
    let (actor, mut journey) = switched(stage, &["--retry", "2"])?;
    stage.rig.network.set_wire(false)?;
    let receive = &mut journey.prepared.receive;
    wait_until("the loss is noticed", || {
        ensure!(receive.runs()?, "vmemctl receive has not waited");
        Ok(journey.prepared.slot.read_log("receive").contains("missing"))
    })?;
    // Until it has tried to have QEMU stop the guest.
    sleep(BREAK);
    stage.rig.network.set_wire(true)?;
    hurry(stage)?;
    stage.park(actor, journey.arrive()?)
}

fn the_source_host_is_gone(stage: &Stage) -> Result<()> {
    let (_, mut journey) = switched(stage, &["--retry", "2"])?;
    let host = journey.prepared.source.slot.host;
    journey.migrate.kill()?;
    host.kill_all("vmemd")?;
    host.kill_all("qemu-system-x86")?;
    // What is not here will never come: the guest is paused, and it is said which pages it lacks.
    let receive = &mut journey.prepared.receive;
    wait_until("the loss is noticed", || {
        ensure!(receive.runs()?, "vmemctl receive has not waited");
        Ok(journey.prepared.slot.read_log("receive").contains("missing"))
    })?;
    let mut machine = Machine::adopt(journey.prepared.slot)?;
    wait_until("the guest is paused", || Ok(!machine.guest_runs()?))?;
    receive.kill()?;
    machine.slot.host.kill_all("vmemd").or_else(|_| Ok(()))
}
