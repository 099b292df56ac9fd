// SPDX-License-Identifier: GPL-2.0-or-later
//! What goes wrong before the switch: the guest goes on at its source, and nobody has a second one.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::stage::Stage;
use crate::command::run;
use crate::guest::Guest;
use crate::method::vmem::Prepared;
use crate::patience::wait_until;
use crate::slot::Slot;
use crate::vmemctl::{Vmemctl, said};

super::tests![
    Long nobody_is_there_to_receive,
    Long the_destination_lacks_the_module,
    Long the_destinations_vmemctl_dies,
    Short the_destinations_qemu_dies,
    Long the_destinations_qemu_lacks_a_device_and_the_source_says_its_words,
    Long the_destination_has_another_size_of_memory,
    Long the_destination_lacks_a_device,
    Long the_destination_has_too_little_memory,
    Long the_devices_state_is_cut,
];

/// vmemctl: the guest goes on at its source.
const AT_SOURCE: i32 = 2;
/// vmemctl: nothing has begun.
const LOCAL: i32 = 1;

fn nobody_is_there_to_receive(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let mut migrate = Vmemctl::migrate(&source.slot, &actor.guest, &[])?;
    migrate.expect(&source.slot, LOCAL)?;
    stage.park(actor, source)
}

fn the_destination_lacks_the_module(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    // Where nothing is in /dev/vmem.
    let script =
        "mount -t tmpfs none /dev/vmem && exec build/target/release/vmemctl receive --insecure --qmp /run/none --region ram=1M";
    let output = Command::new("unshare").args(["-m", "sh", "-c", script]).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(LOCAL) && text.contains("is the module loaded?"),
        "{}: {text}",
        output.status
    );
    let mut migrate = Vmemctl::migrate(&source.slot, &actor.guest, &[])?;
    migrate.expect(&source.slot, LOCAL)?;
    stage.park(actor, source)
}

fn the_destinations_vmemctl_dies(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let slot = actor.guest.slot(source.slot.host.other())?;
    // Instead of a QEMU it starts what kills it.
    let mut receive = Vmemctl::receive_as(&slot, &actor.guest, &["--", "sh", "-c", "kill -KILL $PPID"])?;
    let mut migrate = Vmemctl::migrate(&source.slot, &actor.guest, &[])?;
    migrate.expect(&source.slot, AT_SOURCE)?;
    wait_until("vmemctl receive has died", || Ok(!receive.runs()?))?;
    stage.park(actor, source)
}

fn the_destinations_qemu_dies(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let mut journey = actor.set_out(source, &[], &[])?;
    let mut pid = None;
    wait_until("the destination's QEMU is there", || {
        let text = fs::read_to_string(journey.prepared.slot.pid()).unwrap_or_default();
        pid = text.trim().parse().ok().and_then(Pid::from_raw);
        Ok(pid.is_some())
    })?;
    kill_process(pid.context("no number")?, Signal::KILL)?;
    let (receive, slot) = (&mut journey.prepared.receive, &journey.prepared.slot);
    wait_until("the destination gives the guest up", || Ok(waits(slot) || !receive.runs()?))?;
    // A guest that was prepared for already is the only one.
    if waits(slot) {
        expect_waiting(receive, slot)?;
    } else {
        receive.expect(slot, AT_SOURCE)?;
    }
    stage.park(actor, journey.fail(AT_SOURCE)?)
}

fn the_destinations_qemu_lacks_a_device_and_the_source_says_its_words(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let slot = actor.guest.slot(source.slot.host.other())?;
    let mut words = vec!["--".to_owned()];
    words.extend(actor.guest.taker(&slot));
    words.extend(["-device", "no-such-device"].map(str::to_owned));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut receive = Vmemctl::receive_as(&slot, &actor.guest, &words)?;
    Vmemctl::migrate(&source.slot, &actor.guest, &[])?.expect(&source.slot, AT_SOURCE)?;
    let log = source.slot.read_log("migrate");
    let failed = said(&log, "failed").with_context(|| format!("the source does not say that it has failed: {log}"))?;
    let error = failed["error"].as_str().unwrap_or_default();
    ensure!(
        error.contains("QEMU has ended (exit status: 1)") && error.contains("'no-such-device' is not a valid device model name"),
        "the source does not say what the destination's QEMU has said: {error}"
    );
    expect_waiting(&mut receive, &slot)?;
    stage.park(actor, source)
}

/// Whether the destination's vmemctl has refused a guest, and waits for another.
fn waits(slot: &Slot) -> bool {
    slot.read_log("receive").contains("waiting for another")
}

/// It does, until a signal ends it.
fn expect_waiting(receive: &mut Vmemctl, slot: &Slot) -> Result<()> {
    wait_until("the destination waits for another guest", || Ok(waits(slot)))?;
    ensure!(receive.runs()?, "vmemctl receive has ended");
    receive.signal(Signal::TERM)?;
    receive.expect(slot, LOCAL)
}

/// When the destination finds out that its guest is another one.
enum Found {
    /// While it prepares.
    Early,
    /// When the state comes.
    Late,
}

/// The destination's QEMU is started for this guest, which differs from the one that comes.
fn received_as(stage: &Stage, other: impl FnOnce(&mut Guest), found: Found) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let mut guest = actor.guest.clone();
    other(&mut guest);
    let mut prepared = Prepared::new(&guest, source, &[])?;
    let mut migrate = Vmemctl::migrate(&prepared.source.slot, &guest, &[])?;
    migrate.expect(&prepared.source.slot, AT_SOURCE)?;
    match found {
        Found::Early => expect_waiting(&mut prepared.receive, &prepared.slot)?,
        Found::Late => prepared.receive.expect(&prepared.slot, AT_SOURCE)?,
    }
    stage.park(actor, prepared.source)
}

fn the_destination_has_another_size_of_memory(stage: &Stage) -> Result<()> {
    received_as(stage, |guest| guest.memory_mib = vec![128], Found::Early)
}

fn the_destination_lacks_a_device(stage: &Stage) -> Result<()> {
    received_as(stage, |guest| guest.network = false, Found::Late)
}

fn the_destination_has_too_little_memory(stage: &Stage) -> Result<()> {
    /// Less than the guest has.
    const LEFT_MIB: u64 = 150;
    // It is there before the memory is taken.
    let (actor, source) = stage.guest()?;
    stage.park(actor, source)?;
    let available = vmem::available_memory()? >> 20;
    let place = "/run/vmem-migration/taken";
    fs::create_dir_all(place)?;
    run("mount", &["-t", "tmpfs", "-o", "size=100%", "none", place])?;
    let outcome = run(
        "fallocate",
        &["-l", &format!("{}M", available - LEFT_MIB), &format!("{place}/memory")],
    )
    .and_then(|_| received_as(stage, |_| (), Found::Early));
    run("umount", &[place])?;
    outcome
}

fn the_devices_state_is_cut(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let mut journey = actor.set_out(source, &[], &["--timeout", "20"])?;
    super::wait_for_part_of_the_state(stage, &mut journey)?;
    stage.rig.network.set_wire(false)?;
    let slot = &journey.prepared.source.slot;
    journey.migrate.expect(slot, AT_SOURCE)?;
    stage.rig.network.set_wire(true)?;
    journey.prepared.receive.expect(&journey.prepared.slot, AT_SOURCE)?;
    stage.park(actor, journey.prepared.source)
}
