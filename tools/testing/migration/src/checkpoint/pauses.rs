// SPDX-License-Identifier: GPL-2.0-or-later
//! How long a guest stands still for a checkpoint that vmem makes, and for QEMU's ways to write its memory to a file.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::names::{BACKGROUND, GAP, STOP_FILE_CONT, STOP_TO_RESUME, VMEM};
use super::results::{Figures, found};
use crate::client::Client;
use crate::command::run;
use crate::guest::{Guest, Load, Memory};
use crate::machine::Machine;
use crate::network::Host;
use crate::patience::wait_until;
use crate::scratch::Scratch;
use crate::vmemctl::Vmemctl;

/// How long the guest works before it is measured, and is watched after it: what is late comes then.
const AROUND: Duration = Duration::from_secs(1);
/// Checkpoints that are made: a full one, and two increments.
const CHECKPOINTS: usize = 3;
/// Bytes per second: no bound, where QEMU would have one.
const UNBOUNDED: u64 = 1 << 40;

/// What a guest can be restored from.
pub(super) struct Image {
    pub(super) store: Scratch,
    pub(super) checkpoint: String,
    /// Its memory in a file, and the state of its devices without memory, both of one instant, a moment after the checkpoint.
    pub(super) memory: Scratch,
    pub(super) devices: Scratch,
}

/// A guest that writes, and its client.
struct Writing {
    machine: Machine,
    client: Client,
}

impl Writing {
    fn boot(guest: &Guest, load: Load, memory: Memory) -> Result<Self> {
        let machine = Machine::boot(Host::First, guest, memory)?;
        guest.work(load)?;
        let client = Client::start(guest.service()?)?;
        sleep(AROUND);
        Ok(Self { machine, client })
    }

    /// The pause for what this does.
    fn watch(&mut self, guest: &Guest, by: &'static str, act: impl FnOnce(&mut Machine) -> Result<()>) -> Result<Figures> {
        // What was said before.
        let _ = self.machine.events();
        guest.mark()?;
        self.client.mark();
        act(&mut self.machine)?;
        sleep(AROUND);
        let report = guest.report().or_else(|error| self.machine.check().and(Err(error)))?;
        // A guest that QEMU emulates cannot read its host's clock, and its own stands still with it. Its client sees the pause all the same.
        let gap = report.ticker.host_gap.unwrap_or(self.client.waits().longest.as_secs_f64());
        let mut figures = vec![found(GAP, "s", by, gap)];
        if let Some(stopped) = stop_to_resume(&mut self.machine) {
            figures.push(found(STOP_TO_RESUME, "s", by, stopped));
        }
        Ok(figures)
    }
}

/// The longest time that QEMU had the guest stopped, by its events.
fn stop_to_resume(machine: &mut Machine) -> Option<f64> {
    let (mut stopped, mut longest) = (None, None);
    for event in machine.events() {
        match event.name.as_str() {
            "STOP" => stopped = event.time,
            "RESUME" => {
                let time = event.time.zip(stopped.take());
                let time = time.map(|(resumed, stopped)| resumed.saturating_sub(stopped).as_secs_f64());
                longest = time.into_iter().chain(longest).reduce(f64::max);
            }
            _ => (),
        }
    }
    longest
}

/// Sets capabilities of a QEMU's migration.
pub(super) fn set_capabilities(machine: &mut Machine, names: &[&str], state: bool) -> Result<()> {
    let capabilities: Vec<_> = names
        .iter()
        .map(|name| json!({ "capability": name, "state": state }))
        .collect();
    machine.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
    Ok(())
}

/// Waits until a QEMU has saved or loaded.
pub(super) fn wait_completed(machine: &mut Machine) -> Result<()> {
    wait_until("QEMU's migration is complete", || {
        let answer = machine.execute("query-migrate", json!({}))?;
        match answer["status"].as_str() {
            Some("completed") => Ok(true),
            Some(status @ ("failed" | "cancelled")) => bail!("QEMU's migration is {status}: {}", answer["error-desc"]),
            _ => Ok(false),
        }
    })
}

fn migrate(machine: &mut Machine, capabilities: &[&str], to: &Scratch) -> Result<()> {
    set_capabilities(machine, capabilities, true)?;
    machine.execute("migrate-set-parameters", json!({ "max-bandwidth": UNBOUNDED }))?;
    machine.execute("migrate", json!({ "uri": to.uri() }))?;
    wait_completed(machine)?;
    set_capabilities(machine, capabilities, false)
}

/// The capabilities with which QEMU writes a file for a full load, and loads it: several threads, and each page at its place.
pub(super) const FILE: [&str; 2] = ["mapped-ram", "multifd"];

/// The pauses for QEMU's ways, and the file for a full load. QEMU's own anonymous memory suits both best.
pub(super) fn of_qemu(guest: &Guest, load: Load) -> Result<(Figures, Scratch)> {
    let mut writing = Writing::boot(guest, load, Memory::Anonymous)?;
    let background = Scratch::new("background");
    let mut figures = writing.watch(guest, BACKGROUND, |machine| {
        migrate(machine, &["background-snapshot"], &background)
    })?;
    drop(background);
    let file = Scratch::new("mapped-ram");
    figures.extend(writing.watch(guest, STOP_FILE_CONT, |machine| {
        machine.execute("stop", json!({}))?;
        migrate(machine, &FILE, &file)?;
        machine.execute("cont", json!({}))?;
        Ok(())
    })?);
    writing.client.stop()?;
    Ok((figures, file))
}

/// The pause for an incremental checkpoint, and what the guest can be restored from.
pub(super) fn of_vmem(guest: &Guest, load: Load) -> Result<(Figures, Image)> {
    let mut writing = Writing::boot(guest, load, Memory::Shared)?;
    let store = Scratch::store("store", &writing.machine.slot)?;
    let made = |machine: &Machine| {
        let log = machine.slot.read_log("create");
        log.lines().filter(|line| line.contains(r#""event":"checkpoint""#)).count()
    };
    let qmp = writing.machine.slot.qmp();
    let qmp = qmp.to_str().context("a path that is no text")?;
    let count = CHECKPOINTS.to_string();
    let words = ["--store", store.path()?, "--qmp", qmp, "--every", "1", "--count", &count];
    let mut create = Vmemctl::checkpoint(&writing.machine.slot, &[], "create", &words)?;
    wait_until("the full checkpoint is there", || {
        ensure!(
            create.runs()? || made(&writing.machine) == CHECKPOINTS,
            "vmemctl has ended: {}",
            writing.machine.slot.read_log("create")
        );
        Ok(made(&writing.machine) > 0)
    })?;
    // The second one may begin before the guest is watched; the third does not.
    let figures = writing.watch(guest, VMEM, |machine| {
        create.expect(&machine.slot, 0)?;
        ensure!(made(machine) == CHECKPOINTS, "vmemctl has made {} checkpoints", made(machine));
        Ok(())
    })?;
    writing.client.stop()?;
    let image = Image {
        store,
        checkpoint: format!("guest{}@{CHECKPOINTS}", guest.number),
        memory: Scratch::new("memory"),
        devices: Scratch::new("devices"),
    };
    let mut machine = writing.machine;
    machine.execute("stop", json!({}))?;
    migrate(&mut machine, &["x-ignore-shared"], &image.devices)?;
    run(
        "cp",
        &["--sparse=always", &machine.slot.shared_memory(0), image.memory.path()?],
    )?;
    Ok((figures, image))
}
