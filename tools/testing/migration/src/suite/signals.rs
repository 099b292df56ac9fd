// SPDX-License-Identifier: GPL-2.0-or-later
//! Signals that end `vmemctl migrate`, `recover` and `receive`: before COMMIT the guest goes on at its source and nothing of the move stays;
//! after it the guest goes on at its destination, and so does the move.

use std::ffi::OsString;
use std::fs;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::stage::Stage;
use crate::method::vmem::Prepared;
use crate::patience::wait_until;
use crate::slot::Slot;
use crate::vmemctl::Vmemctl;

super::tests![
    Long sigint_while_the_destination_prepares_ends_the_move,
    Long sighup_while_the_state_is_sent_ends_the_move,
    Short sigterm_while_pages_come_leaves_them_coming,
    Long sigterm_to_receive_while_it_prepares_ends_the_move,
    Long sigint_to_receive_while_the_state_is_sent_ends_the_move,
    Long signals_to_receive_while_pages_come_leave_them_coming,
];

/// vmemctl: the guest goes on at its source.
const AT_SOURCE: i32 = 2;
/// vmemctl: a signal has ended it, and the move can be gone on with.
const DETACHED: i32 = 6;

/// Bytes that only pages are, and no conversation.
const PAGES: u64 = 1 << 20;

/// Nothing of a move is left on this host.
fn ensure_nothing_left(slot: &Slot) -> Result<()> {
    ensure!(slot.host.processes_of("vmemd")?.is_empty(), "a vmemd is left");
    let state = fs::read_dir(slot.state())?.flatten();
    let left: Vec<_> = state.map(|entry| entry.file_name()).collect();
    let is_record = |name: &OsString| ["in.", "out."].iter().any(|kind| name.to_string_lossy().starts_with(kind));
    ensure!(!left.iter().any(is_record), "a record is left: {left:?}");
    Ok(())
}

fn sigint_while_the_destination_prepares_ends_the_move(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let slot = actor.guest.slot(source.slot.host.other())?;
    // Instead of a QEMU it starts what never is one.
    let mut receive = Vmemctl::receive_as(&slot, &actor.guest, &["--", "sleep", "1000"])?;
    let mut migrate = Vmemctl::migrate(&source.slot, &actor.guest, &[])?;
    wait_until("the destination prepares", || {
        ensure!(migrate.runs()?, "vmemctl migrate has ended");
        Ok(!slot.host.processes_of("sleep")?.is_empty())
    })?;
    migrate.signal(Signal::INT)?;
    migrate.expect(&source.slot, AT_SOURCE)?;
    ensure_nothing_left(&source.slot)?;
    receive.kill()?;
    // It may have heard of it, and have ended that.
    let _ = slot.host.kill_all("sleep");
    stage.park(actor, source)
}

fn sighup_while_the_state_is_sent_ends_the_move(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let mut journey = actor.set_out(source, &[], &[])?;
    super::wait_for_part_of_the_state(stage, &mut journey)?;
    journey.migrate.signal(Signal::HUP)?;
    journey.migrate.expect(&journey.prepared.source.slot, AT_SOURCE)?;
    stage.rig.network.set_rate(super::RATE)?;
    journey.prepared.receive.expect(&journey.prepared.slot, AT_SOURCE)?;
    ensure_nothing_left(&journey.prepared.source.slot)?;
    stage.park(actor, journey.prepared.source)
}

fn sigterm_while_pages_come_leaves_them_coming(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    stage.rig.network.set_rate("50mbit")?;
    let mut journey = actor.set_out(source, &[], &[])?;
    journey.wait_switched()?;
    journey.migrate.signal(Signal::TERM)?;
    let slot = &journey.prepared.source.slot;
    journey.migrate.expect(slot, DETACHED)?;
    ensure!(
        slot.read_log("migrate").contains("recover --guest"),
        "it is not said how to go on"
    );
    let serving = slot.host.processes_of("vmemd")?;
    ensure!(serving.len() == 1, "{} of vmemd serve", serving.len());
    let mut recover = Vmemctl::recover(slot)?;
    recover.wait_for(slot, "running")?;
    recover.signal(Signal::INT)?;
    recover.expect(slot, DETACHED)?;
    stage.rig.network.set_rate(super::RATE)?;
    Vmemctl::recover(slot)?.expect(slot, 0)?;
    let machine = journey.prepared.arrived()?;
    stage.park(actor, machine)
}

fn sigterm_to_receive_while_it_prepares_ends_the_move(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let slot = actor.guest.slot(source.slot.host.other())?;
    // Instead of a QEMU it starts what never is one.
    let mut receive = Vmemctl::receive_as(&slot, &actor.guest, &["--", "sleep", "1000"])?;
    let mut migrate = Vmemctl::migrate(&source.slot, &actor.guest, &[])?;
    wait_until("the destination prepares", || {
        ensure!(migrate.runs()?, "vmemctl migrate has ended");
        Ok(!slot.host.processes_of("sleep")?.is_empty())
    })?;
    receive.signal(Signal::TERM)?;
    receive.expect(&slot, AT_SOURCE)?;
    migrate.expect(&source.slot, AT_SOURCE)?;
    let said = source.slot.read_log("migrate");
    ensure!(said.contains("SIGTERM was received"), "the source does not say why: {said}");
    ensure!(
        slot.host.processes_of("sleep")?.is_empty(),
        "what was started for QEMU is left"
    );
    ensure_nothing_left(&slot)?;
    ensure_nothing_left(&source.slot)?;
    stage.park(actor, source)
}

fn sigint_to_receive_while_the_state_is_sent_ends_the_move(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let mut journey = actor.set_out(source, &[], &[])?;
    super::wait_for_part_of_the_state(stage, &mut journey)?;
    let Prepared {
        receive, slot, source, ..
    } = &mut journey.prepared;
    receive.signal(Signal::INT)?;
    receive.expect(slot, AT_SOURCE)?;
    stage.rig.network.set_rate(super::RATE)?;
    journey.migrate.expect(&source.slot, AT_SOURCE)?;
    let left = slot.host.processes()?.len();
    ensure!(left == 0, "{left} processes are left at the destination");
    ensure_nothing_left(slot)?;
    ensure_nothing_left(&source.slot)?;
    stage.park(actor, journey.prepared.source)
}

/// Twice: `receive` and `receive --resume` are ended, and the same vmemd fetches pages all the time.
fn signals_to_receive_while_pages_come_leave_them_coming(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    stage.rig.network.set_rate("50mbit")?;
    let mut journey = actor.set_out(source, &[], &[])?;
    journey.wait_switched()?;
    let Prepared { receive, slot, .. } = &mut journey.prepared;
    let fetching = slot.host.processes_of("vmemd")?;
    for signal in [Signal::TERM, Signal::INT] {
        // It says so when the guest is this host's; the first one may not have got to that.
        receive.wait_for(slot, "running")?;
        receive.signal(signal)?;
        receive.expect(slot, DETACHED)?;
        let said = slot.read_log("receive");
        ensure!(said.contains("receive --resume --qmp"), "it is not said how to go on: {said}");
        let left = slot.host.processes_of("vmemd")?;
        ensure!(left == fetching, "of vmemd {fetching:?} {left:?} are left");
        let bytes = stage.rig.network.wire_bytes()?;
        wait_until("pages come", || Ok(stage.rig.network.wire_bytes()? > bytes + PAGES))?;
        ensure!(journey.migrate.runs()?, "vmemctl migrate has not waited");
        actor.guest.report()?;
        *receive = Vmemctl::resume(slot, &actor.guest)?;
    }
    stage.rig.network.set_rate(super::RATE)?;
    journey.migrate.expect(&journey.prepared.source.slot, 0)?;
    let machine = journey.prepared.arrived()?;
    stage.park(actor, machine)
}
