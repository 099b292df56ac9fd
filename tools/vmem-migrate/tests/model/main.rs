// SPDX-License-Identifier: GPL-2.0-or-later
//! Both machines, both QEMUs, the network and deaths, in every order.
//!
//! What is tried: each process is killed between any two actions and begun again; each QEMU is killed; the network loses the connection
//! with what is on its way; records cannot be written; QEMU refuses, or does not answer and carries a command out later; signals come. So
//! many of these happen in one run as the test says, at any moment.

mod explore;
mod link;
mod process;
mod world;

use explore::Reached;
use world::World;

const DOCUMENTATION: &str = include_str!("../../../../Documentation/migration.rst");

/// The documentation says how many states were looked at.
fn expect_documented(states: usize) {
    let (thousands, rest) = (states / 1000, states % 1000);
    let said = format!("({thousands},{rest:03} states)");
    assert!(
        DOCUMENTATION.contains(&said),
        "Documentation/migration.rst does not say {said}"
    );
}

/// Explores all runs with at most so many faults, among them the deaths of a QEMU or not.
fn reached(faults: u8, qemus_die: bool) -> Reached<World> {
    let reached = Reached::from(World::initial(faults, qemus_die));
    println!("{faults} faults, QEMU may die: {qemus_die}: {} states", reached.states.len());
    reached
}

#[test]
fn guest_has_a_good_end_without_faults() {
    reached(0, true).expect_good_end();
}

/// A guest ends with the QEMU that has it; nothing else ends it.
#[test]
fn guest_survives_any_single_fault() {
    let reached = reached(1, true);
    reached.expect_good_end();
    expect_documented(reached.states.len());
}

#[test]
fn guest_survives_any_three_faults_of_all_but_qemu() {
    let reached = reached(3, false);
    reached.expect_good_end();
    expect_documented(reached.states.len());
}

#[test]
fn guest_never_runs_on_both_sides_after_four_faults() {
    expect_documented(reached(4, true).states.len());
}
