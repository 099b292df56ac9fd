// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints of a guest in which QEMU's own guest agent runs: its file system is frozen at the instant, and thawed whatever happens.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::stage::Stage;
use crate::agent_proxy::AgentProxy;
use crate::guest::{AGENT_EPOCH, Guest, Memory};
use crate::machine::Machine;
use crate::network::Host;
use crate::patience::wait_until;
use crate::scratch::Scratch;
use crate::slot::Slot;
use crate::vmemctl::{Vmemctl, said};

super::tests![
    Short checkpoint_of_a_guest_with_an_agent_thaws_its_file_system_however_it_ends,
    Short restored_guest_is_frozen_until_its_agent_is_asked_which_sets_the_clock,
];

const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";
/// A write takes milliseconds. One that takes longer than this by the guest's own clock is held.
const HELD: f64 = 2.0;
/// How far the clocks of the guest and its host may be from each other. Seconds; the guest's is years late unless it is set.
const APART: u64 = 120;

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

fn guest() -> Guest {
    Guest {
        number: 3,
        work_mib: 32,
        has_agent: true,
        ..Guest::default()
    }
}

/// Boots it, and has it write its file.
fn boot(guest: &Guest) -> Result<Machine> {
    let machine = Machine::boot(Host::First, guest, Memory::Shared)?;
    guest.start_log()?;
    wait_until_written(guest)?;
    Ok(machine)
}

fn create(slot: &Slot, store: &Scratch, agent: &Path, options: &[&str]) -> Result<Vmemctl> {
    let qmp = slot.qmp();
    let words = ["--store", store.path()?, "--qmp", text(&qmp)?, "--agent", text(agent)?];
    Vmemctl::checkpoint(slot, &[], "create", &[&words, options].concat())
}

/// Waits until the guest has written to its file system once more.
fn wait_until_written(guest: &Guest) -> Result<()> {
    let before = guest.written()?.writes;
    wait_until("the guest writes its file", || Ok(guest.written()?.writes > before))
}

/// Waits until a write of the guest does not come to its end.
fn wait_until_held(guest: &Guest) -> Result<()> {
    wait_until("a write of the guest is held", || Ok(guest.written()?.held > HELD))
}

fn checkpoint_of_a_guest_with_an_agent_thaws_its_file_system_however_it_ends(_: &Stage) -> Result<()> {
    let guest = guest();
    let mut machine = boot(&guest)?;
    let store = Scratch::store("agent", &machine.slot)?;
    let proxy = AgentProxy::start(&machine.slot.agent())?;
    let always = |options: &[&str]| {
        create(
            &machine.slot,
            &store,
            proxy.socket(),
            &[&["--freeze", "always"], options].concat(),
        )
    };

    always(&[])?.expect(&machine.slot, 0)?;
    let log = machine.slot.read_log("create");
    let made = said(&log, "checkpoint").with_context(|| format!("no checkpoint: {log}"))?;
    ensure!(made["frozen_file_systems"] == 1, "{made}");
    ensure!(proxy.take_commands() == [FREEZE, THAW], "another order of commands");
    wait_until_written(&guest)?;

    // QEMU does not save its devices in this time.
    always(&["--timeout", "0.001"])?.expect(&machine.slot, 1)?;
    ensure!(proxy.take_commands() == [FREEZE, THAW], "another order of commands");
    wait_until_written(&guest)?;

    // The agent freezes, and vmemctl does not hear of it. Its second process has a connection of its own.
    proxy.keep_answers(true);
    let mut lost = always(&["--agent-timeout", "10"])?;
    wait_until_held(&guest)?;
    lost.expect(&machine.slot, 1)?;
    wait_until_written(&guest)?;
    wait_until("the process that goes on with thawing has ended", || {
        Ok(machine.slot.host.processes_of("vmemctl")?.is_empty())
    })?;
    ensure!(proxy.take_commands() == [FREEZE, THAW], "another order of commands");

    let mut killed = always(&["--agent-timeout", "100"])?;
    wait_until_held(&guest)?;
    ensure!(proxy.take_commands() == [FREEZE], "it does not wait for the answer");
    proxy.keep_answers(false);
    killed.kill()?;
    wait_until_written(&guest)?;
    ensure!(proxy.take_commands() == [THAW], "nobody has thawed it, and it goes on");

    ensure!(machine.guest_runs()?, "the guest does not run");
    let mut listed = Vmemctl::checkpoint(&machine.slot, &[], "list", &["--store", store.path()?])?;
    listed.expect(&machine.slot, 0)?;
    let log = machine.slot.read_log("list");
    ensure!(log.lines().count() == 1, "there should be one checkpoint: {log}");
    machine.check()
}

/// Restores the guest on the other host, with or without its agent, and waits until it runs with all of its memory.
fn restore(guest: &Guest, store: &Scratch, with_agent: bool) -> Result<(Machine, String)> {
    let slot = guest.slot(Host::Second)?;
    let (qmp, agent) = (slot.qmp(), slot.agent());
    let mut words = vec!["--store", store.path()?, "guest3@latest", "--qmp", text(&qmp)?];
    if with_agent {
        words.extend(["--agent", text(&agent)?, "--agent-timeout", "60"]);
    }
    words.push("--");
    let qemu = guest.taker(&slot);
    words.extend(qemu.iter().map(String::as_str));
    Vmemctl::checkpoint(&slot, &[], "restore", &words)?.expect(&slot, 0)?;
    let log = slot.read_log("restore");
    Ok((Machine::adopt(slot)?, log))
}

fn restored_guest_is_frozen_until_its_agent_is_asked_which_sets_the_clock(_: &Stage) -> Result<()> {
    let guest = guest();
    let machine = boot(&guest)?;
    let store = Scratch::store("agent", &machine.slot)?;
    create(&machine.slot, &store, &machine.slot.agent(), &["--freeze", "always"])?.expect(&machine.slot, 0)?;
    wait_until_written(&guest)?;
    drop(machine);

    let (machine, log) = restore(&guest, &store, false)?;
    ensure!(
        log.contains("1 file systems of the guest are frozen"),
        "it is not said that they are frozen: {log}"
    );
    wait_until_held(&guest)?;
    let time = guest.time()?;
    ensure!(
        (AGENT_EPOCH..AGENT_EPOCH + 100_000).contains(&time),
        "somebody has set the clock of the guest to {time}"
    );
    drop(machine);

    let (mut machine, log) = restore(&guest, &store, true)?;
    wait_until_written(&guest)?;
    let (time, now) = (guest.time()?, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    ensure!(
        time.abs_diff(now) < APART,
        "the clock of the guest is at {time}, and that of its host at {now}: {log}"
    );
    ensure!(
        log.contains("its file systems are thawed, and its clock is set"),
        "another end: {log}"
    );
    machine.check()
}
