// SPDX-License-Identifier: GPL-2.0-or-later
//! A page of a guest that is lost for good: the guest loses the process that touches it, and not itself.
//!
//! Without KVM these tests are left out: QEMU's own emulation touches the page itself, and dies of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vmem::{Control, Fill, PAGE_SIZE, PageIndex, PageRange, Region, RegionBuilder};

use super::stage::Stage;
use crate::guest::{Guest, Memory};
use crate::machine::Machine;
use crate::network::Host;
use crate::patience::wait_until;

super::tests![
    Short a_guest_loses_the_process_that_touches_a_lost_page_and_goes_on,
];

/// The page of the process that is lost.
const LOST: usize = 3;
/// SIGBUS.
const SIGNAL: &str = "signal 7";

fn a_guest_loses_the_process_that_touches_a_lost_page_and_goes_on(_: &Stage) -> Result<()> {
    let guest = Guest {
        number: 1,
        memory_mib: vec![128],
        work_mib: 16,
        ..Guest::default()
    };
    let mut source = Machine::boot(Host::First, &guest, Memory::Shared)?;
    let frames = guest.start_victim()?;
    ensure!(guest.touch(LOST)? == "ok", "the process cannot read its page");
    let lost = *frames.get(LOST).context("the process has too few pages")?;
    // The state of its devices into a file; its memory is one already.
    let state = source.slot.log("devices");
    let uri = json!({ "uri": format!("file:{}", state.display()) });
    source.execute("stop", json!({}))?;
    ignore_shared(&mut source)?;
    source.execute("migrate", uri.clone())?;
    wait_completed(&mut source)?;

    let memory = File::open(source.slot.shared_memory(0))?;
    let builder = RegionBuilder::new(memory.metadata()?.len()).name(guest.region(Host::Second, 0));
    let region = builder.poison_unreadable().create(&Control::open()?)?;
    region
        .mark_unreadable(&[PageRange::from(PageIndex::new(lost).context("a frame beyond all pages")?)])
        .complete()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let daemon = scope.spawn(|| serve(&region, &memory, &stop));
        let outcome = goes_on(&guest, uri);
        stop.store(true, Ordering::SeqCst);
        let served = daemon.join().map_err(|_| anyhow::anyhow!("the daemon panicked"))?;
        outcome.and(served)
    })
}

/// The guest comes, loses the process and lives.
fn goes_on(guest: &Guest, uri: Value) -> Result<()> {
    let mut machine = Machine::incoming(Host::Second, guest, Memory::Node)?;
    ignore_shared(&mut machine)?;
    machine.execute("migrate-incoming", uri)?;
    wait_completed(&mut machine)?;
    machine.execute("cont", json!({}))?;
    ensure!(guest.touch(LOST + 1)? == "ok", "a page that is not lost cannot be read");
    let end = guest.touch(LOST)?;
    ensure!(end == SIGNAL, "the process has ended with {end:?} and not with {SIGNAL:?}");
    machine.check()?;
    ensure!(machine.guest_runs()?, "the guest does not run");
    // All else is there, and new processes are.
    guest.verify()?;
    guest.start_victim()?;
    ensure!(guest.touch(LOST)? == "ok", "a new process cannot read its page");
    guest.report()?;
    machine.check()
}

fn ignore_shared(machine: &mut Machine) -> Result<()> {
    let capability = json!({ "capability": "x-ignore-shared", "state": true });
    let capabilities = json!({ "capabilities": [capability] });
    machine.execute("migrate-set-capabilities", capabilities).map(drop)
}

fn wait_completed(machine: &mut Machine) -> Result<()> {
    wait_until("the state is moved", || {
        machine.check()?;
        let status = machine.execute("query-migrate", json!({}))?["status"].clone();
        ensure!(status != json!("failed"), "QEMU cannot move the state");
        Ok(status == json!("completed"))
    })
}

/// Answers requests from the memory that the guest has left.
fn serve(region: &Region, memory: &File, stop: &AtomicBool) -> Result<()> {
    let mut contents = vec![0; PAGE_SIZE];
    while !stop.load(Ordering::SeqCst) {
        for page in region.next_requests_timeout(64, Duration::from_millis(20))? {
            memory.read_exact_at(&mut contents, page.get() * PAGE_SIZE as u64)?;
            region.fill(&[Fill::new(page, &contents)?]).complete()?;
        }
    }
    Ok(())
}
