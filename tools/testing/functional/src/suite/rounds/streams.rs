// SPDX-License-Identifier: GPL-2.0-or-later
//! Rounds over several connections: each page comes as it was written last, whichever connection it comes over.

use std::fs;

use super::memory::Memory;
use super::moves::{Move, Receiver, Sender};
use super::writer::{Writer, Writes};
use crate::failure::{Outcome, ensure};
use crate::world::wait_until;

crate::tests![
    writes_all_over_the_memory_arrive_over_three_streams,
    destination_with_three_streams_that_is_killed_in_a_round_ends_tracking,
];

const PAGES: usize = 8192;

/// Connections to the port of this address that are established, seen from the side that connected.
fn connections_to(address: &str) -> Outcome<usize> {
    let port: u16 = address.rsplit(':').next().ok_or("no port")?.parse()?;
    let remote = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp")?;
    let established = table.lines().skip(1).filter(|line| {
        let mut fields = line.split_whitespace().skip(2);
        let (address, state) = (fields.next(), fields.next());
        address.is_some_and(|address| address.ends_with(&remote)) && state == Some("01")
    });
    Ok(established.count())
}

fn moved<'a>(memories: &'a [Memory], writers: &'a [Writer], options: &[&str]) -> Outcome<Move<'a>> {
    let sender = Sender::new(memories, writers[0].pid(), &["--rounds", "hybrid"])?;
    let address = sender.source.address.clone();
    let receiver = Receiver::new(memories.len(), &address, options)?;
    // Three of the stream, and the urgent one.
    wait_until("all are connected", || Ok(connections_to(&address)? == 4))?;
    Ok(Move::of(memories, writers, sender, receiver))
}

fn writes_all_over_the_memory_arrive_over_three_streams() -> Outcome {
    for compression in ["none", "lz4"] {
        let memories = [Memory::named("rounds-streams", PAGES)?, Memory::memfd(700)?];
        let writers = [
            Writer::new(&memories, 3, 64, Writes::mixed)?,
            Writer::new(&memories, 8, 16, Writes::anywhere)?,
        ];
        let mut moved = moved(&memories, &writers, &["--streams", "3", "--compress", compression])?;
        for _ in 0..4 {
            moved.sender.round()?;
        }
        writers[0].wait_steps(200)?;
        let resent: u64 = moved.sender.rounds.iter().map(|round| round.resent_pages).sum();
        ensure!(resent > 0, "no page was sent twice: {:?}", moved.sender.rounds);
        moved.switch()?;
    }
    Ok(())
}

fn destination_with_three_streams_that_is_killed_in_a_round_ends_tracking() -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let writers = [Writer::new(&memories, 1, 64, Writes::hot_spot)?];
    let mut moved = moved(&memories, &writers, &["--streams", "3"])?;
    moved.sender.round()?;
    moved.receiver.daemon.process.kill()?;
    moved.sender.failed()?;
    memories[0].wait_untracked()?;
    writers[0].wait_steps(10)
}
