// SPDX-License-Identifier: GPL-2.0-or-later
//! After the switch each page is that of the source, however it was written.

use vmem_control::Round;

use super::memory::Memory;
use super::moves::Move;
use super::writer::{Writer, Writes};
use crate::failure::{Outcome, ensure};

crate::tests![
    idle_memory_arrives_in_one_round,
    a_hot_spot_arrives_as_it_was_written_last,
    writes_all_over_the_memory_arrive,
    pages_that_become_holes_or_data_between_rounds_arrive,
    holes_that_are_written_after_the_map_arrive,
    writes_by_write_arrive,
    writes_of_several_processes_and_into_another_one_arrive,
    several_memories_at_once_arrive,
    a_region_that_is_plain_memory_arrives,
];

const PAGES: usize = 1024;

/// A program with this memory writes like this while three rounds pass.
fn arrives(memories: &[Memory], burst: u64, write: impl Fn(&mut Writes) -> Outcome) -> Outcome {
    let writers = [Writer::new(memories, 1, burst, write)?];
    let mut moved = Move::new(memories, &writers, "hybrid")?;
    for _ in 0..3 {
        moved.sender.round()?;
    }
    writers[0].wait_steps(200)?;
    // Pages that are written all the time are sent again, or wait for their turn.
    let is_written = |round: &Round| round.resent_pages > 0 || round.skipped_pages > 0;
    ensure!(
        moved.sender.rounds.iter().any(is_written),
        "no page was sent twice or had to wait: {:?}",
        moved.sender.rounds
    );
    moved.switch().map(drop)
}

fn idle_memory_arrives_in_one_round() -> Outcome {
    let memories = [Memory::named("rounds-idle", PAGES)?];
    let writers = [Writer::idle(&memories)?];
    let mut moved = Move::new(&memories, &writers, "precopy")?;
    let round = moved.sender.round()?;
    ensure!(round.sent_pages == PAGES as u64 && round.left_pages == 0, "{round:?}");
    // The part that is a hole costs nothing.
    ensure!(round.zero_pages >= PAGES as u64 / 4, "{round:?}");
    let remainder = moved.switch()?;
    ensure!(remainder == 0, "{remainder} pages of idle memory were left");
    Ok(())
}

fn a_hot_spot_arrives_as_it_was_written_last() -> Outcome {
    arrives(&[Memory::memfd(PAGES)?], 64, Writes::hot_spot)
}

fn writes_all_over_the_memory_arrive() -> Outcome {
    arrives(&[Memory::named("rounds-all", PAGES)?], 16, Writes::anywhere)
}

fn pages_that_become_holes_or_data_between_rounds_arrive() -> Outcome {
    arrives(&[Memory::memfd(PAGES)?], 16, Writes::holes)
}

/// The last quarter of the memory is a hole when the destination asks for its map, or has just been written.
fn holes_that_are_written_after_the_map_arrive() -> Outcome {
    arrives(&[Memory::memfd(PAGES)?], 16, Writes::last_quarter)
}

fn writes_by_write_arrive() -> Outcome {
    arrives(&[Memory::named("rounds-write", PAGES)?], 16, Writes::by_write)
}

fn writes_of_several_processes_and_into_another_one_arrive() -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let idle = Writer::idle(&memories)?;
    let writers = [
        Writer::of_other(&idle, PAGES)?,
        Writer::new(&memories, 5, 64, Writes::hot_spot)?,
        Writer::new(&memories, 9, 16, Writes::anywhere)?,
        idle,
    ];
    let sender = super::moves::Sender::new(&memories, writers[3].pid(), &["--rounds", "auto"])?;
    let address = sender.source.address.clone();
    let mut moved = Move::to(&memories, &writers, sender, &address)?;
    for _ in 0..3 {
        moved.sender.round()?;
    }
    writers[0].wait_steps(200)?;
    moved.switch().map(drop)
}

fn several_memories_at_once_arrive() -> Outcome {
    let memories = [
        Memory::memfd(PAGES / 2)?,
        Memory::named("rounds-several", PAGES)?,
        Memory::memfd(3)?,
        Memory::memfd(65)?,
    ];
    arrives(&memories, 16, Writes::mixed)
}

fn a_region_that_is_plain_memory_arrives() -> Outcome {
    arrives(&[Memory::region("rounds-region", PAGES)?], 16, Writes::anywhere)
}
