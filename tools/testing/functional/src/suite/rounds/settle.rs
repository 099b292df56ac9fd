// SPDX-License-Identifier: GPL-2.0-or-later
//! The rounds end: the policy says when, whatever the program writes.

use super::memory::Memory;
use super::moves::{Move, Receiver, Sender};
use super::writer::{Writer, Writes};
use crate::failure::{Outcome, ensure, equal};
use crate::link::Link;

crate::tests![
    settled_comes_after_the_first_round_of_an_idle_program,
    settled_comes_for_a_program_that_writes_faster_than_the_link_in_auto_mode,
    settled_comes_for_a_program_that_writes_faster_than_the_link_in_hybrid_mode,
    settled_comes_at_a_limit_in_precopy_mode,
];

const PAGES: usize = 1024;

/// Xen's limit of rounds.
const ROUNDS: usize = 29;

fn settled_comes_after_the_first_round_of_an_idle_program() -> Outcome {
    for mode in ["precopy", "auto"] {
        let memories = [Memory::memfd(PAGES)?];
        let writers = [Writer::idle(&memories)?];
        let mut moved = Move::new(&memories, &writers, mode)?;
        let (reason, left) = moved.sender.settled()?;
        ensure!(reason.starts_with("switch after round 1: the 0 pages"), "{reason}");
        equal!((moved.sender.rounds.len(), left), (1, 0));
        equal!(moved.switch()?, 0);
    }
    Ok(())
}

/// A program that writes to all of its memory, several times as fast as the link.
fn settles(mode: &str, reasons: &[&str]) -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let writers = [Writer::new(&memories, 1, 4, Writes::anywhere)?];
    let sender = Sender::new(&memories, writers[0].pid(), &["--rounds", mode])?;
    let link = Link::new(&sender.source.address, 4 << 20)?;
    // A small window: what is in the buffers of the network is not taken for bandwidth.
    let receiver = Receiver::new(1, &link.address, &["--window", "1"])?;
    let mut moved = Move::of(&memories, &writers, sender, receiver);
    let (reason, left) = moved.sender.settled()?;
    ensure!(reasons.iter().any(|known| reason.contains(known)), "{mode}: {reason}");
    ensure!(left > PAGES as u64 / 4, "{mode}: {reason}");
    let sent: u64 = moved.sender.rounds.iter().map(|round| round.sent_pages).sum();
    // No more than the limit, and the round in which it was reached.
    ensure!(
        moved.sender.rounds.len() <= ROUNDS && sent <= 4 * PAGES as u64,
        "{:?}",
        moved.sender.rounds
    );
    let remainder = moved.finish()?;
    // How many depends on when the program ran last.
    ensure!(remainder > 0, "{mode}: nothing is left");
    link.set_rate(100 << 20);
    moved.start()
}

fn settled_comes_for_a_program_that_writes_faster_than_the_link_in_auto_mode() -> Outcome {
    settles("auto", &["four pages or more", "does not become less", "the limit of"])
}

fn settled_comes_for_a_program_that_writes_faster_than_the_link_in_hybrid_mode() -> Outcome {
    settles("hybrid", &["does not become less", "the limit of"])
}

fn settled_comes_at_a_limit_in_precopy_mode() -> Outcome {
    settles("precopy", &["the limit of"])
}
