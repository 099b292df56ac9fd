// SPDX-License-Identifier: GPL-2.0-or-later
//! How soon a restored guest answers: vmem, whose memory follows, and QEMU, which loads all of it first.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use super::names::{ALL_THERE, FIRST_ANSWER, FULL_LOAD, RESTORE};
use super::pauses::{FILE, Image, set_capabilities, wait_completed};
use super::results::{Figures, found};
use crate::guest::{Guest, Load, Memory};
use crate::machine::Machine;
use crate::network::Host;
use crate::scratch::Scratch;
use crate::vmemctl::Vmemctl;

/// From a checkpoint of the store. The guest looks at all of its pages at the end.
pub(super) fn from_store(guest: &Guest, image: &Image) -> Result<Figures> {
    let slot = guest.slot(Host::First)?;
    let qmp = slot.qmp();
    let qmp = qmp.to_str().context("a path that is no text")?;
    let qemu = guest.taker(&slot);
    let mut words = vec!["--store", image.store.path()?, "--qmp", qmp, &image.checkpoint, "--"];
    words.extend(qemu.iter().map(String::as_str));
    let since = Instant::now();
    let mut restore = Vmemctl::checkpoint(&slot, &[], "restore", &words)?;
    restore.wait_for(&slot, "restored")?;
    let mut machine = Machine::adopt(slot)?;
    let first = answer(guest, &mut machine, since)?;
    restore.expect(&machine.slot, 0)?;
    let all = since.elapsed().as_secs_f64();
    verify(guest, &mut machine)?;
    Ok(vec![
        found(FIRST_ANSWER, "s", RESTORE, first),
        found(ALL_THERE, "s", RESTORE, all),
    ])
}

/// From a file that QEMU has written, all of it first.
pub(super) fn full_load(guest: &Guest, file: &Scratch) -> Result<Figures> {
    let since = Instant::now();
    let mut machine = Machine::incoming(Host::First, guest, Memory::Anonymous)?;
    load(&mut machine, &FILE, file)?;
    let all = since.elapsed().as_secs_f64();
    let first = answer(guest, &mut machine, since)?;
    verify(guest, &mut machine)?;
    Ok(vec![
        found(FIRST_ANSWER, "s", FULL_LOAD, first),
        found(ALL_THERE, "s", FULL_LOAD, all),
    ])
}

/// Loads what this QEMU waits for, and continues the guest, which was saved while it stood still.
pub(super) fn load(machine: &mut Machine, capabilities: &[&str], from: &Scratch) -> Result<()> {
    set_capabilities(machine, capabilities, true)?;
    machine.execute("migrate-incoming", json!({ "uri": from.uri() }))?;
    wait_completed(machine)?;
    machine.execute("cont", json!({}))?;
    Ok(())
}

/// Seconds until the guest has answered.
pub(super) fn answer(guest: &Guest, machine: &mut Machine, since: Instant) -> Result<f64> {
    guest.mark().or_else(|error| machine.check().and(Err(error)))?;
    Ok(since.elapsed().as_secs_f64())
}

/// A wrong page is an error.
pub(super) fn verify(guest: &Guest, machine: &mut Machine) -> Result<()> {
    guest.work(Load::Idle)?;
    guest.verify().or_else(|error| machine.check().and(Err(error)))?;
    Ok(())
}
