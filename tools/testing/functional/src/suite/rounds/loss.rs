// SPDX-License-Identifier: GPL-2.0-or-later
//! Everything can be given up before the switch: the program at the source goes on, its memory is not tracked, and no page is present at the
//! destination.

use super::memory::Memory;
use super::moves::{Move, Receiver, Sender, still_waits};
use super::writer::{Writer, Writes};
use crate::failure::{Outcome, ensure};
use crate::link::Link;

crate::tests![
    killed_source_in_a_round_ends_the_destination_without_a_page,
    killed_destination_in_a_round_ends_tracking,
    cut_connection_in_a_round_ends_both_sides,
    killed_source_after_finish_ends_the_destination_without_a_page,
    killed_destination_after_finish_leaves_the_program_alone,
    cut_connection_after_finish_ends_the_destination_without_a_page,
    stop_in_a_round_ends_the_destination_without_a_page,
    client_that_goes_away_in_a_round_ends_the_destination_without_a_page,
];

const PAGES: usize = 1024;

/// Of the first round, so much has passed when it breaks.
const PASSED: u64 = 1 << 20;

/// vmemd's exit codes.
const LOST: i32 = 2;
const STOPPED: i32 = 6;

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    InARound,
    AfterFinish,
}

/// What breaks a move, with its two vmemds; returns the source's if that still runs.
type Break = fn(Sender, Receiver, &Link, When) -> Outcome<Option<Sender>>;

/// A move in a slow round, or after the last take, with a program at the destination that waits for a page. Then `act` breaks it, and fails
/// unless the two vmemds say what they shall.
fn breaks(when: When, act: Break) -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let writers = [Writer::new(&memories, 1, 16, Writes::anywhere)?];
    let sender = Sender::new(&memories, writers[0].pid(), &["--rounds", "auto"])?;
    let link = Link::new(&sender.source.address, 4 << 20)?;
    let mut moved = Move::to(&memories, &writers, sender, &link.address)?;
    link.wait_passed(PASSED)?;
    let waits = moved.receiver.reader(3)?;
    moved.receiver.check_absent()?;
    if when == When::AfterFinish {
        link.set_rate(100 << 20);
        let remainder = moved.finish()?;
        ensure!((1..=PAGES as u64).contains(&remainder), "{remainder}");
        // The list has arrived.
        link.wait_quiet()?;
    } else {
        ensure!(memories[0].is_adopted(), "it is not tracked");
        ensure!(moved.sender.rounds.is_empty(), "the round is over");
    }
    let Move { sender, receiver, .. } = moved;
    let sender = act(sender, receiver, &link, when)?;
    writers[0].goes_on()?;
    // Also while the source's vmemd still runs.
    memories[0].wait_untracked()?;
    drop(sender);
    writers[0].goes_on()?;
    still_waits(waits)
}

fn source_dies(mut sender: Sender, receiver: Receiver, _: &Link, _: When) -> Outcome<Option<Sender>> {
    sender.source.process.kill()?;
    receiver.ends_without_pages(LOST, "cannot use the source")?;
    Ok(None)
}

fn destination_dies(mut sender: Sender, mut receiver: Receiver, _: &Link, when: When) -> Outcome<Option<Sender>> {
    receiver.daemon.process.kill()?;
    receiver.check_absent()?;
    if when == When::InARound {
        let error = sender.failed()?;
        ensure!(error.contains("was lost"), "{error}");
    }
    Ok(Some(sender))
}

fn connection_breaks(mut sender: Sender, receiver: Receiver, link: &Link, when: When) -> Outcome<Option<Sender>> {
    link.cut();
    if when == When::InARound {
        sender.failed()?;
    }
    receiver.ends_without_pages(LOST, "cannot use the source")?;
    Ok(Some(sender))
}

fn killed_source_in_a_round_ends_the_destination_without_a_page() -> Outcome {
    breaks(When::InARound, source_dies)
}

fn killed_destination_in_a_round_ends_tracking() -> Outcome {
    breaks(When::InARound, destination_dies)
}

fn cut_connection_in_a_round_ends_both_sides() -> Outcome {
    breaks(When::InARound, connection_breaks)
}

fn killed_source_after_finish_ends_the_destination_without_a_page() -> Outcome {
    breaks(When::AfterFinish, source_dies)
}

fn killed_destination_after_finish_leaves_the_program_alone() -> Outcome {
    breaks(When::AfterFinish, destination_dies)
}

fn cut_connection_after_finish_ends_the_destination_without_a_page() -> Outcome {
    breaks(When::AfterFinish, connection_breaks)
}

fn stop_in_a_round_ends_the_destination_without_a_page() -> Outcome {
    breaks(When::InARound, |mut sender, mut receiver, _, _| {
        receiver.stop()?;
        receiver.ends_without_pages(STOPPED, "stopped")?;
        sender.failed()?;
        Ok(Some(sender))
    })
}

fn client_that_goes_away_in_a_round_ends_the_destination_without_a_page() -> Outcome {
    breaks(When::InARound, |mut sender, mut receiver, _, _| {
        receiver.control = None;
        receiver.ends_without_pages(STOPPED, "stopped")?;
        sender.failed()?;
        Ok(Some(sender))
    })
}
