// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest whose memory is a file of the file system `vmem`, and whose balloon gives memory back.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vmem::{Control, Error, Fill, MAX_BATCH, PAGE_SIZE, PageIndex, PageRange, Region, RegionBuilder};

use super::stage::{Actor, Stage};
use crate::guest::{Guest, Memory};
use crate::machine::Machine;
use crate::network::Host;
use crate::patience::wait_until;

super::tests![Long balloon_gives_memory_of_a_file_back_before_and_after_conversion];

const GUEST_MIB: u32 = 192;
/// What the balloon takes: less than the guest has free.
const BALLOON_MIB: u64 = 40;
/// Pages that come at once.
const RUN: u64 = 512;

/// What comes where the guest has touched nothing: zeros would take no memory of the host, so there would be nothing to give back.
static GARBAGE: [u8; PAGE_SIZE * RUN as usize] = [0xa5; PAGE_SIZE * RUN as usize];

/// Answers requests, as the memory of a machine is that has just been switched on: with zeros.
fn serve(region: &Region, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::SeqCst) {
        let wanted = match region.next_requests_timeout(MAX_BATCH, Duration::from_millis(20)) {
            // Nothing is asked for any more.
            Err(Error::Plain) => return Ok(()),
            wanted => wanted?,
        };
        let ranges: Vec<_> = wanted.into_iter().map(PageRange::from).collect();
        region.mark_zero(&ranges).complete()?;
    }
    Ok(())
}

/// Fills a part of the region's blocks: one of `step` of them.
fn fill(region: &Region, step: usize) -> Result<()> {
    for first in (0..region.pages().count()).step_by(step * RUN as usize) {
        let first = PageIndex::new(first).context("a page number")?;
        region.fill(&[Fill::new(first, &GARBAGE)?]).complete()?;
    }
    Ok(())
}

/// MiB of the host's memory that the region has.
fn memory_mib(region: &Region) -> Result<u64> {
    Ok((region.staging().metadata()?.blocks() * 512) >> 20)
}

fn present_mib(region: &Region) -> Result<u64> {
    Ok((region.info()?.present * PAGE_SIZE as u64) >> 20)
}

/// Has the guest's balloon leave it so much memory.
fn balloon(machine: &mut Machine, mib: u64) -> Result<()> {
    let bytes = mib << 20;
    machine.execute("balloon", json!({ "value": bytes }))?;
    wait_until("the balloon has its size", || {
        Ok(machine.execute("query-balloon", json!({}))?["actual"] == json!(bytes))
    })
}

fn balloon_gives_memory_of_a_file_back_before_and_after_conversion(_: &Stage) -> Result<()> {
    let guest = Guest {
        number: 4,
        memory_mib: vec![GUEST_MIB],
        work_mib: 32,
        has_balloon: true,
        ..Guest::default()
    };
    [false, true].into_iter().try_for_each(|is_plain| served(&guest, is_plain))
}

/// A guest on a region of its own, which is incomplete or plain when the balloon grows.
fn served(guest: &Guest, is_plain: bool) -> Result<()> {
    let name = guest.region(Host::First, 0);
    let region = RegionBuilder::new(guest.memory()).name(&name).create(&Control::open()?)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let daemon = scope.spawn(|| serve(&region, &stop));
        let outcome = ballooned(guest, &region, is_plain);
        stop.store(true, Ordering::SeqCst);
        let served = daemon.join().ok().context("the daemon panicked")?;
        outcome.and(served)
    })
}

fn ballooned(guest: &Guest, region: &Region, is_plain: bool) -> Result<()> {
    let whole = u64::from(GUEST_MIB);
    let mut machine = Machine::boot(Host::First, guest, Memory::Region)?;
    let actor = Actor::new(guest.clone())?;
    if is_plain {
        fill(region, 1)?;
        region.make_vma_anonymous()?;
    } else {
        // Half of what the guest has not touched has come, and the other half is absent.
        fill(region, 2)?;
    }
    let before = (memory_mib(region)?, present_mib(region)?);
    balloon(&mut machine, whole - BALLOON_MIB)?;
    let after = (memory_mib(region)?, present_mib(region)?);
    println!("  plain: {is_plain}: MiB in memory and present: {before:?} before the balloon, {after:?} after it");
    // What is present stays present, without memory; what was absent is present without any, and needs not come any more.
    ensure!(after.1 >= before.1, "{} MiB are present instead of {}", after.1, before.1);
    let given = before.0.saturating_sub(after.0);
    ensure!(
        given + (after.1 - before.1) >= BALLOON_MIB * 3 / 4,
        "the balloon took {BALLOON_MIB} MiB of the guest: before and after it, {before:?} and {after:?} MiB are in memory and present"
    );
    ensure!(given > 0, "the balloon gave no memory back");
    guest.verify()?;
    balloon(&mut machine, whole)?;
    ensure!(region.info()?.plain == is_plain, "the region is plain, or not");
    drop(actor.intact(machine)?);
    Ok(())
}
