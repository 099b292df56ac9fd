// SPDX-License-Identifier: GPL-2.0-or-later
//! Moves with rounds: the guest's memory is sent while the guest runs and writes, and what is left follows. In the middle of a round everything
//! can be given up.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use vmem::{Access, MapHandle, PAGE_SIZE, Sharing};

use super::stage::{Actor, Journey, Stage};
use super::write_log::{self, WriteLog};
use crate::guest::{Guest, Load, Memory};
use crate::identity;
use crate::machine::Machine;
use crate::network::Host;
use crate::patience::wait_until;
use crate::slot::Slot;
use crate::vmemctl::{Vmemctl, said};

super::tests![
    Short guest_moves_in_precopy_mode_and_needs_no_page_after_the_switch,
    Short guest_goes_back_and_forth_in_hybrid_mode,
    Long guest_goes_back_and_forth_thirty_times_in_hybrid_mode,
    Short guest_moves_in_the_mode_auto,
    Short guest_moves_in_hybrid_mode_over_a_protected_network,
    Long guest_with_two_memory_backends_moves_in_hybrid_mode,
    Long guest_that_writes_as_fast_as_it_can_moves_in_hybrid_mode,
    Long guest_whose_writes_cannot_be_logged_moves_without_rounds_if_the_mode_is_auto,
    Long guest_whose_writes_cannot_be_logged_stays_if_the_mode_is_hybrid,
    Long destinations_vmemd_that_dies_in_a_round_leaves_the_guest_at_its_source,
    Long sources_vmemd_that_dies_in_a_round_leaves_the_guest_at_its_source,
    Long destinations_vmemctl_that_dies_in_a_round_leaves_the_guest_at_its_source,
    Long network_that_is_gone_in_a_round_leaves_the_guest_at_its_source,
    Long sigint_in_a_round_leaves_the_guest_at_its_source,
    Short abort_in_a_round_leaves_the_guest_at_its_source,
    Short guest_moves_at_once_when_its_user_orders_it_in_a_limited_round,
    Short writing_guest_moves_in_hybrid_mode_after_all_its_memory_was_compared,
    Long guest_moves_in_postcopy_mode_after_all_its_memory_was_compared,
    Long page_that_differs_at_the_destination_leaves_the_guest_at_its_source,
];

/// vmemctl: the guest goes on at its source.
const AT_SOURCE: i32 = 2;
/// vmemctl: nothing has begun.
const LOCAL: i32 = 1;

/// How often a guest goes from host to host, if VMEM_MOVES does not say it: from a file, and then from a region that has become plain. Or from a region
/// each time.
const MOVES: usize = 3;
const MANY_MOVES: usize = 30;

/// A network on which a round takes seconds.
pub(super) const SLOW: &str = "100mbit";

pub(super) const HYBRID: [&str; 2] = ["--mode", "hybrid"];

/// All that vmemctl has said of this kind.
pub(super) fn all_said(log: &str, event: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["event"] == event).collect()
}

/// Whether pages have come to the destination in a round, as `migrate` has said.
pub(super) fn are_pages_staged(log: &str) -> bool {
    let staged = |line: &Value| line["vmemd"]["staged_bytes"].as_u64() > Some(0);
    all_said(log, "pages").iter().any(staged)
}

/// Moves the guest after rounds. Returns it, and what vmemctl has said.
fn moved(actor: &Actor, source: Machine, mode: &str) -> Result<(Machine, String)> {
    moved_with(actor, source, &[], &["--mode", mode])
}

/// As [`moved`], with these options of `receive` and `migrate`.
fn moved_with(actor: &Actor, source: Machine, receive: &[&str], migrate: &[&str]) -> Result<(Machine, String)> {
    let journey = actor.set_out(source, receive, migrate)?;
    let Journey { prepared, mut migrate } = journey;
    migrate.expect(&prepared.source.slot, 0)?;
    let log = prepared.source.slot.read_log("migrate");
    let machine = prepared.arrived()?;
    let rounds = all_said(&log, "round");
    ensure!(!rounds.is_empty(), "there were no rounds: {log}");
    let sent: u64 = rounds.iter().filter_map(|round| round["vmemd"]["sent_pages"].as_u64()).sum();
    let done = said(&log, "done").context("it is not done")?;
    ensure!(
        done["staged_bytes"].as_u64() > Some(0),
        "nothing was staged ({sent} pages were sent): {done}"
    );
    Ok((machine, log))
}

fn guest_moves_in_precopy_mode_and_needs_no_page_after_the_switch(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let (machine, log) = moved(&actor, source, "precopy")?;
    // The state of its devices comes after the last page, and QEMU touches memory when it loads that.
    let done = said(&log, "done").context("it is not done")?;
    ensure!(done["pages"]["faults"].as_u64() == Some(0), "pages were missing: {done}");
    stage.park(actor, machine)
}

/// Moves the guest to the other host so often. Each time the guest looks at each of its pages, and most of the memory has been sent before it stopped.
fn back_and_forth(stage: &Stage, moves: usize) -> Result<()> {
    let moves = match std::env::var("VMEM_MOVES") {
        Ok(text) => text.parse().context("VMEM_MOVES")?,
        Err(_) => moves,
    };
    let (actor, mut machine) = stage.guest()?;
    for number in 1..=moves {
        let log;
        (machine, log) = moved(&actor, machine, "hybrid").with_context(|| format!("move {number} of {moves}"))?;
        let remainder = said(&log, "remainder").context("the rounds have not ended")?;
        ensure!(
            remainder["bytes"].as_u64() < Some(100 << 20),
            "move {number} of {moves}: all of the memory is left: {remainder}"
        );
        actor.guest.verify().with_context(|| format!("move {number} of {moves}"))?;
    }
    stage.park(actor, machine)
}

/// From the second move on, the source's memory is a region that has become plain.
fn guest_goes_back_and_forth_in_hybrid_mode(stage: &Stage) -> Result<()> {
    back_and_forth(stage, MOVES)
}

fn guest_goes_back_and_forth_thirty_times_in_hybrid_mode(stage: &Stage) -> Result<()> {
    back_and_forth(stage, MANY_MOVES)
}

fn guest_moves_in_the_mode_auto(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let (machine, _) = moved(&actor, source, "auto")?;
    stage.park(actor, machine)
}

fn guest_moves_in_hybrid_mode_over_a_protected_network(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let identity = identity::write(&Host::BOTH.map(Host::address), Path::new("/tmp/identity-of-rounds"))?;
    let tls = ["--tls", &identity.to_string_lossy()];
    let (machine, _) = moved_with(&actor, source, &tls, &[&HYBRID[..], &tls].concat())?;
    stage.park(actor, machine)
}

/// Two NUMA nodes, on both of which the guest writes: it has to, as one of them has too little memory for it.
fn guest_with_two_memory_backends_moves_in_hybrid_mode(_: &Stage) -> Result<()> {
    let guest = Guest {
        number: 1,
        memory_mib: vec![104, 104],
        work_mib: 120,
        ..Guest::default()
    };
    let source = Machine::boot(Host::First, &guest, Memory::Shared)?;
    let actor = Actor::new(guest)?;
    let (machine, log) = moved_with(&actor, source, &[], &["--mode", "hybrid", "--verify"])?;
    ensure!(said(&log, "verified").is_some(), "nothing was compared: {log}");
    let ready = ready_line(&log).context("the destination's vmemd was never ready")?;
    let regions = ready["vmemd"]["regions"].as_array().map_or(0, Vec::len);
    ensure!(regions == 2, "the destination has {regions} regions: {ready}");
    actor.intact(machine).map(drop)
}

fn guest_that_writes_as_fast_as_it_can_moves_in_hybrid_mode(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    actor.guest.work(Load::Writing(0))?;
    let (machine, _) = moved(&actor, source, "hybrid")?;
    stage.park(actor, machine)
}

fn guest_whose_writes_cannot_be_logged_moves_without_rounds_if_the_mode_is_auto(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest_in_files()?;
    let log = WriteLog::begin(&source)?;
    let mut journey = actor.set_out(source, &[], &["--mode", "auto"])?;
    journey.wait_switched()?;
    let said = journey.prepared.source.slot.read_log("migrate");
    ensure!(all_said(&said, "round").is_empty(), "there were rounds: {said}");
    ensure!(
        said.contains("cannot be logged"),
        "it is not said why there are no rounds: {said}"
    );
    drop(log);
    stage.park(actor, journey.arrive()?)
}

fn guest_whose_writes_cannot_be_logged_stays_if_the_mode_is_hybrid(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest_in_files()?;
    let log = WriteLog::begin(&source)?;
    let mut journey = actor.set_out(source, &[], &HYBRID)?;
    journey.migrate.expect(&journey.prepared.source.slot, LOCAL)?;
    journey.prepared.receive.kill()?;
    drop(log);
    stage.park(actor, journey.prepared.source)
}

/// Does harm while the guest's memory is sent in rounds. The guest stays at its source, and its writes are not logged any more.
fn given_up(stage: &Stage, harm: impl FnOnce(&mut Journey) -> Result<()>) -> Result<()> {
    let (actor, source) = stage.guest_in_files()?;
    stage.rig.network.set_rate(SLOW)?;
    let mut journey = actor.set_out(source, &[], &HYBRID)?;
    wait_until("pages of a round come", || {
        let log = journey.prepared.source.slot.read_log("migrate");
        ensure!(journey.migrate.runs()?, "vmemctl migrate has ended: {log}");
        Ok(are_pages_staged(&log))
    })?;
    harm(&mut journey)?;
    journey.migrate.expect(&journey.prepared.source.slot, AT_SOURCE)?;
    stage.rig.network.set_wire(true)?;
    stage.rig.network.set_rate(super::RATE)?;
    let source = journey.prepared.source;
    write_log::wait_until_over(&source)?;
    let there = journey.prepared.slot.host;
    wait_until("the destination has no vmemd", || Ok(there.processes_of("vmemd")?.is_empty()))?;
    journey.prepared.receive.kill()?;
    // A vmemctl that was killed has left it.
    let _ = there.kill_all("qemu-system-x86");
    stage.park(actor, source)
}

fn destinations_vmemd_that_dies_in_a_round_leaves_the_guest_at_its_source(stage: &Stage) -> Result<()> {
    given_up(stage, |journey| journey.prepared.slot.host.kill_all("vmemd"))
}

fn sources_vmemd_that_dies_in_a_round_leaves_the_guest_at_its_source(stage: &Stage) -> Result<()> {
    given_up(stage, |journey| journey.prepared.source.slot.host.kill_all("vmemd"))
}

fn destinations_vmemctl_that_dies_in_a_round_leaves_the_guest_at_its_source(stage: &Stage) -> Result<()> {
    given_up(stage, |journey| journey.prepared.receive.kill())
}

fn network_that_is_gone_in_a_round_leaves_the_guest_at_its_source(stage: &Stage) -> Result<()> {
    given_up(stage, |_| stage.rig.network.set_wire(false))
}

fn sigint_in_a_round_leaves_the_guest_at_its_source(stage: &Stage) -> Result<()> {
    given_up(stage, |journey| journey.migrate.signal(Signal::INT))
}

/// Where the only migration of this slot stands; null as long as there is none.
fn status(slot: &Slot) -> Result<Value> {
    let mut all = Vmemctl::tell(slot, &["status"])?;
    ensure!(all.len() <= 1, "it is not one migration: {all:?}");
    Ok(all.pop().unwrap_or_default())
}

/// Waits until the migration of this slot stands so.
fn wait_status(slot: &Slot, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut found = Value::Null;
    wait_until(what, || {
        found = status(slot)?;
        Ok(is(&found))
    })
    .with_context(|| format!("the status was last {found}"))?;
    Ok(found)
}

/// The name of the guest whose migration this is.
fn guest_of(status: &Value) -> Result<String> {
    Ok(status["guest"].as_str().context("no guest")?.to_owned())
}

fn abort_in_a_round_leaves_the_guest_at_its_source(stage: &Stage) -> Result<()> {
    given_up(stage, |journey| {
        let slot = &journey.prepared.source.slot;
        let guest = guest_of(&wait_status(slot, "it is in a round", |status| status["phase"] == "rounds")?)?;
        let said = Vmemctl::tell(slot, &["abort", &guest])?;
        ensure!(
            said.iter().any(|line| line["event"] == "aborted"),
            "it is not given up: {said:?}"
        );
        Ok(())
    })
}

/// The first round would take longer than anybody waits.
fn guest_moves_at_once_when_its_user_orders_it_in_a_limited_round(stage: &Stage) -> Result<()> {
    const LIMIT: u64 = 4 << 20;
    let (actor, source) = stage.guest()?;
    let mut journey = actor.set_out(source, &[], &["--mode", "precopy", "--bandwidth", "4M"])?;
    let (here, there, migrate) = (&journey.prepared.source.slot, &journey.prepared.slot, &mut journey.migrate);
    let seen = wait_status(here, "the first round has a bandwidth", |status| {
        status["rounds"]["bytes_per_second"].is_u64() && status["rounds"]["round"] == 1
    })?;
    let guest = guest_of(&seen)?;
    let rounds = &seen["rounds"];
    ensure!(
        seen["phase"] == "rounds" && seen["direction"] == "out" && rounds["limit"] == LIMIT && rounds["mode"] == "precopy",
        "{seen}"
    );
    ensure!(
        rounds["bytes_per_second"].as_u64() <= Some(LIMIT),
        "it is faster than allowed: {seen}"
    );
    wait_status(there, "the destination has staged pages", |status| {
        status["direction"] == "in" && status["phase"] == "prepared" && status["staged_bytes"].as_u64() > Some(0)
    })?;
    let set = |options: &[&str]| Vmemctl::tell(here, &[&["set", guest.as_str()], options].concat());
    set(&["--bandwidth", "8M", "--max-downtime", "300", "--mode", "hybrid"])?;
    wait_status(here, "the change is made", |status| {
        let rounds = &status["rounds"];
        rounds["limit"] == 2 * LIMIT && rounds["max_downtime_ms"] == 300 && rounds["mode"] == "hybrid"
    })?;
    ensure!(migrate.runs()?, "vmemctl migrate has ended");
    set(&["--switch-now"])?;
    migrate.wait_for(here, "running")?;
    let log = here.read_log("migrate");
    ensure!(log.contains("the user asked for it"), "it has another reason: {log}");
    let remainder = said(&log, "remainder").context("the rounds have not ended")?;
    ensure!(
        remainder["bytes"].as_u64() > Some(LIMIT),
        "all of the memory was sent: {remainder}"
    );
    wait_status(here, "the rest follows", |status| {
        status["phase"] == "postcopy" && status["committed"] == true && status["left_bytes"].as_u64() > Some(0)
    })?;
    let refused = Vmemctl::run(here, &["abort", &guest])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(LOCAL) && text.contains("owns the guest already"),
        "the abort is not refused: {text}"
    );
    set(&["--bandwidth", "unlimited"])?;
    stage.park(actor, journey.arrive()?)
}

/// Moves a guest whose memory is compared before it runs at its destination. All of it was, and is the same.
fn moved_and_compared(stage: &Stage, mode: &str) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let mut journey = actor.set_out(source, &[], &["--mode", mode, "--verify"])?;
    journey.wait_switched()?;
    let log = journey.prepared.source.slot.read_log("migrate");
    let verified = said(&log, "verified").context("nothing was compared before the guest ran")?;
    let bytes = memory_of(&log)?;
    ensure!(
        verified["pages"].as_u64() == Some(bytes / PAGE_SIZE as u64) && verified["different"] == 0,
        "{verified}: the guest has {bytes} bytes"
    );
    stage.park(actor, journey.arrive()?)
}

/// The size of the guest's memory, as the destination's vmemd says.
fn memory_of(log: &str) -> Result<u64> {
    let ready = ready_line(log).context("the destination's vmemd was never ready")?;
    let regions = ready["vmemd"]["regions"].as_array().context("no regions")?;
    Ok(regions.iter().filter_map(|region| region["bytes"].as_u64()).sum())
}

fn ready_line(log: &str) -> Option<Value> {
    all_said(log, "pages")
        .into_iter()
        .find(|line| line["vmemd"]["event"] == "ready")
}

fn writing_guest_moves_in_hybrid_mode_after_all_its_memory_was_compared(stage: &Stage) -> Result<()> {
    moved_and_compared(stage, "hybrid")
}

fn guest_moves_in_postcopy_mode_after_all_its_memory_was_compared(stage: &Stage) -> Result<()> {
    moved_and_compared(stage, "postcopy")
}

/// The destination's vmemd has all of the region's pages, or asks for the last one, and has not compared that when this changes it.
fn page_that_differs_at_the_destination_leaves_the_guest_at_its_source(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let mut journey = actor.set_out(source, &[], &["--mode", "hybrid", "--verify"])?;
    let mut ready = None;
    wait_until("the destination's vmemd is ready", || {
        let log = journey.prepared.source.slot.read_log("migrate");
        ensure!(journey.migrate.runs()?, "vmemctl migrate has ended: {log}");
        ready = ready_line(&log);
        Ok(ready.is_some())
    })?;
    // The comparison takes seconds.
    stage.rig.network.set_rate(SLOW)?;
    let ready = ready.context("it is gone")?;
    let regions = ready["vmemd"]["regions"].as_array().context("no regions")?;
    let region = regions.last().context("no region")?;
    let (name, bytes) = (region["name"].as_str(), region["bytes"].as_u64());
    let (name, bytes) = (name.context("no name")?, bytes.context("no size")?);
    let memory = MapHandle::open(name, Access::ReadWrite)?.map(Access::ReadWrite, Sharing::Shared)?;
    let at = usize::try_from(bytes)?.checked_sub(1).context("no memory")?;
    let mut byte = [0];
    memory.read_at(at, &mut byte)?;
    memory.write_at(at, &[!byte[0]])?;
    drop(memory);
    journey.migrate.expect(&journey.prepared.source.slot, AT_SOURCE)?;
    let log = journey.prepared.source.slot.read_log("migrate");
    let verified = said(&log, "verified").context("nothing was compared")?;
    let page = bytes / PAGE_SIZE as u64 - 1;
    ensure!(
        verified["different"] == 1 && verified["first"][0]["page"] == page && verified["first"][0]["region"] == name,
        "it is another page than {page} of {name}: {verified}"
    );
    ensure!(
        log.contains(&format!("page {page} of region {name}")),
        "the error does not name the page: {log}"
    );
    stage.rig.network.set_rate(super::RATE)?;
    let source = journey.prepared.source;
    let there = journey.prepared.slot.host;
    wait_until("the destination has no vmemd", || Ok(there.processes_of("vmemd")?.is_empty()))?;
    journey.prepared.receive.kill()?;
    let _ = there.kill_all("qemu-system-x86");
    stage.park(actor, source)
}
