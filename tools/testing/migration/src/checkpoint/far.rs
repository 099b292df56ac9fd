// SPDX-License-Identifier: GPL-2.0-or-later
//! How soon a guest answers that is restored from a store that is far away, with the order in which a restore before touched its pages, and without it.

use std::time::Instant;

use anyhow::{Context, Result};

use super::names::{FIRST_ANSWER_FAR, WITH_ORDER, WITHOUT_ORDER};
use super::restores::{answer, verify};
use super::results::{Figures, found};
use crate::bucket::{Bucket, STORE};
use crate::guest::{Guest, Load, Memory};
use crate::machine::Machine;
use crate::network::Host;
use crate::slot::Slot;
use crate::vmemctl::Vmemctl;

/// From a request to the first byte of its answer, on top of what the server takes: milliseconds.
const FIRST_BYTE: u32 = 25;

/// Keeps a guest of a host that has joined the LAN in a bucket there, and restores it three times: without an order and without recording one, then recording it, then with it.
pub(super) fn measure(guest: &Guest, load: Load) -> Result<Figures> {
    let bucket = Bucket::new()?;
    let checkpoint = keep(guest, load)?;
    bucket.delay(FIRST_BYTE)?;
    let without = restore(guest, &checkpoint, &["--no-record"])?;
    restore(guest, &checkpoint, &[])?;
    let with = restore(guest, &checkpoint, &["--no-record"])?;
    Ok(vec![
        found(FIRST_ANSWER_FAR, "s", WITHOUT_ORDER, without),
        found(FIRST_ANSWER_FAR, "s", WITH_ORDER, with),
    ])
}

/// Makes a checkpoint of a guest that works, and ends the guest. Its name.
fn keep(guest: &Guest, load: Load) -> Result<String> {
    let machine = Machine::boot(Host::First, guest, Memory::Shared)?;
    guest.work(load)?;
    let qmp = machine.slot.qmp();
    let qmp = qmp.to_str().context("a path that is no text")?;
    in_bucket(&machine.slot, "init", &[])?.expect(&machine.slot, 0)?;
    in_bucket(&machine.slot, "create", &["--qmp", qmp])?.expect(&machine.slot, 0)?;
    Ok(format!("guest{}@1", guest.number))
}

/// Restores the guest, and ends it when all of its memory is there and right. Seconds until its first answer.
fn restore(guest: &Guest, checkpoint: &str, options: &[&str]) -> Result<f64> {
    let slot = guest.slot(Host::First)?;
    let qmp = slot.qmp();
    let qmp = qmp.to_str().context("a path that is no text")?;
    let qemu = guest.taker(&slot);
    let mut words = options.to_vec();
    words.extend(["--qmp", qmp, checkpoint, "--"]);
    words.extend(qemu.iter().map(String::as_str));
    let since = Instant::now();
    let mut restore = in_bucket(&slot, "restore", &words)?;
    restore.wait_for(&slot, "restored")?;
    let mut machine = Machine::adopt(slot)?;
    let first = answer(guest, &mut machine, since)?;
    restore.expect(&machine.slot, 0)?;
    verify(guest, &mut machine)?;
    Ok(first)
}

fn in_bucket(slot: &Slot, command: &str, words: &[&str]) -> Result<Vmemctl> {
    let words = [&["--store", STORE], words].concat();
    Vmemctl::checkpoint(slot, &Bucket::environment(), command, &words)
}
