// SPDX-License-Identifier: GPL-2.0-or-later
//! Guests that are moved by vmemctl, and nothing goes wrong.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use vmem::PAGE_SIZE;

use super::stage::{Actor, Stage};
use crate::command::run;
use crate::guest::{Guest, Memory};
use crate::identity;
use crate::machine::Machine;
use crate::network::Host;
use crate::vmemctl::{Vmemctl, said};

super::tests![
    Short a_running_guest_is_moved,
    Long a_guest_is_moved_over_a_protected_network,
    Long a_guest_comes_over_protected_ipv6_to_all_addresses,
    Long a_guest_comes_over_protected_ipv4_to_all_addresses_of_ipv6,
    Long a_guest_goes_back_and_forth,
    Long a_guest_with_two_memory_backends_is_moved_and_its_source_freed,
    Long two_guests_are_moved_at_once,
    Short a_guest_is_moved_whose_memory_a_second_process_maps,
];

/// vmemctl: nothing has begun.
const LOCAL: i32 = 1;

/// How often a guest goes from host to host, if VMEM_MOVES does not say it: there and back.
const MOVES: usize = 2;

fn a_running_guest_is_moved(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let bytes = stage.rig.network.wire_bytes()?;
    let mut journey = actor.set_out(source, &[], &[])?;
    journey.migrate.expect(&journey.prepared.source.slot, 0)?;
    let bytes = stage.rig.network.wire_bytes()? - bytes;
    let done = said(&journey.prepared.source.slot.read_log("migrate"), "done").context("it is not done")?;
    let data = done["pages"]["data"].as_u64().unwrap_or_default() * PAGE_SIZE as u64;
    ensure!(
        data > 0 && bytes > data,
        "{bytes} bytes on the wire, {data} bytes of memory that is not zero"
    );
    stage.park(actor, journey.prepared.arrived()?)
}

fn a_guest_is_moved_over_a_protected_network(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let hosts = [Host::First.address(), Host::Second.address()];
    let good = identity::write(&hosts, Path::new("/tmp/identity"))?;
    let other = identity::write(&hosts, Path::new("/tmp/other-identity"))?;
    let (good, other) = (good.to_string_lossy(), other.to_string_lossy());
    let good = ["--tls", good.as_ref()];
    // Somebody whom another authority has certified gets no guest.
    let slot = actor.guest.slot(source.slot.host.other())?;
    let options = ["--tls", other.as_ref(), "--region", "stranger=1M"];
    let mut stranger = Vmemctl::receive_as(&slot, &actor.guest, &options)?;
    Vmemctl::migrate(&source.slot, &actor.guest, &good)?.expect(&source.slot, LOCAL)?;
    stranger.kill()?;
    drop(slot);
    let moved = actor.set_out(source, &good, &good)?.arrive()?;
    stage.park(actor, moved)
}

/// The destination listens on all of its addresses, the source connects to this one of them, and both look at certificates.
fn moved_to_all_addresses(stage: &Stage, address: fn(Host) -> &'static str) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let identity = identity::write(&Host::BOTH.map(address), Path::new("/tmp/identity-of-all"))?;
    let identity = identity.to_string_lossy();
    let to = SocketAddr::new(address(source.slot.host.other()).parse()?, actor.guest.port()).to_string();
    let listen = format!("[::]:{}", actor.guest.port());
    let receive = ["--listen", &listen, "--tls", identity.as_ref()];
    let migrate = ["--to", &to, "--tls", identity.as_ref()];
    let moved = actor.set_out(source, &receive, &migrate)?.arrive()?;
    stage.park(actor, moved)
}

fn a_guest_comes_over_protected_ipv6_to_all_addresses(stage: &Stage) -> Result<()> {
    moved_to_all_addresses(stage, Host::address_v6)
}

/// The destination's socket calls the source `::ffff:198.51.100.1`, for which no certificate is: its vmemd has to look for the source
/// by the address of IPv4.
fn a_guest_comes_over_protected_ipv4_to_all_addresses_of_ipv6(stage: &Stage) -> Result<()> {
    moved_to_all_addresses(stage, Host::address)
}

fn a_guest_goes_back_and_forth(stage: &Stage) -> Result<()> {
    let (actor, mut machine) = stage.guest()?;
    let moves = std::env::var("VMEM_MOVES").ok().and_then(|moves| moves.parse().ok());
    for _ in 0..moves.unwrap_or(MOVES) {
        let to = machine.slot.host.other();
        machine = actor.move_over(machine)?;
        ensure!(machine.slot.host == to, "the guest is on the wrong host");
        actor.guest.report()?;
    }
    stage.park(actor, machine)
}

fn a_guest_with_two_memory_backends_is_moved_and_its_source_freed(_: &Stage) -> Result<()> {
    let guest = Guest {
        number: 1,
        memory_mib: vec![128, 64],
        ..Guest::default()
    };
    let source = Machine::boot(Host::First, &guest, Memory::Shared)?;
    let memory: io::Result<Vec<_>> = (0..2).map(|backend| File::open(source.slot.shared_memory(backend))).collect();
    let memory = memory.context("the source's memory")?;
    let in_use = || {
        memory
            .iter()
            .map(|file| Ok(file.metadata()?.blocks()))
            .sum::<io::Result<u64>>()
    };
    let before = in_use()?;
    let actor = Actor::new(guest)?;
    let moved = actor.set_out(source, &[], &["--free-source"])?.arrive()?;
    let after = in_use()?;
    ensure!(
        after < before / 10,
        "{after} of {before} blocks of the source's memory are left"
    );
    actor.intact(moved).map(drop)
}

fn two_guests_are_moved_at_once(stage: &Stage) -> Result<()> {
    let guest = Guest {
        number: 1,
        ..Guest::default()
    };
    let other_source = Machine::boot(Host::First, &guest, Memory::Shared)?;
    let other = Actor::new(guest)?;
    let (actor, source) = stage.guest()?;
    let journey = actor.set_out(source, &[], &[])?;
    let other_journey = other.set_out(other_source, &[], &[])?;
    let moved = journey.arrive()?;
    other.intact(other_journey.arrive()?)?;
    stage.park(actor, moved)
}

/// As a vhost-user back end does: it maps the memory at the destination, and touches pages that have not come.
fn a_guest_is_moved_whose_memory_a_second_process_maps(stage: &Stage) -> Result<()> {
    let (actor, source) = stage.guest()?;
    let regions = || -> Result<Vec<String>> {
        let entries = fs::read_dir("/dev/vmem")?.flatten();
        Ok(entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect())
    };
    let before = regions()?;
    let mut journey = actor.set_out(source, &[], &[])?;
    journey.wait_switched()?;
    let region = regions()?.into_iter().find(|region| !before.contains(region));
    let region = region.context("there is no new region")?;
    let output = run("build/target/release/checksum", &[&region, "--random", "1"])?;
    ensure!(!output.is_empty(), "the second process has seen nothing");
    stage.park(actor, journey.arrive()?)
}
