// SPDX-License-Identifier: GPL-2.0-or-later
//! Moves that are all different.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use super::super::stress::Numbers;
use super::memory::Memory;
use super::moves::Move;
use super::writer::{Writer, Writes};
use crate::failure::Outcome;
use crate::watchdog::still_moving;

crate::tests![moves_that_end_at_any_moment_bring_every_page];

const TURNS: u64 = 20;

/// No turn begins later than this.
const LIMIT: Duration = Duration::from_secs(8);

fn moves_that_end_at_any_moment_bring_every_page() -> Outcome {
    let seed = match std::env::var("VMEM_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64,
    };
    println!("VMEM_SEED={seed}");
    let since = Instant::now();
    for turn in 0..TURNS {
        if since.elapsed() > LIMIT {
            println!("{turn} turns");
            break;
        }
        still_moving();
        one_turn(seed.wrapping_add(turn)).map_err(|failure| format!("VMEM_SEED={seed}, turn {turn}: {}", failure.text()))?;
    }
    Ok(())
}

fn one_turn(seed: u64) -> Outcome {
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    numbers.below(2);
    let memories: Vec<Memory> = (0..1 + numbers.below(2))
        .map(|_| Memory::memfd(1 + numbers.below(1500)))
        .collect::<Outcome<_>>()?;
    let burst = 1 << numbers.below(9);
    let write: fn(&mut Writes) -> Outcome = match numbers.below(4) {
        0 => Writes::anywhere,
        1 => Writes::holes,
        2 => Writes::hot_spot,
        _ => Writes::mixed,
    };
    let writers: Vec<Writer> = (0..1 + numbers.below(2) as u64)
        .map(|number| Writer::new(&memories, seed.wrapping_add(number), burst, write))
        .collect::<Outcome<_>>()?;
    let mode = ["precopy", "hybrid", "auto"][numbers.below(3)];
    let mut moved = Move::new(&memories, &writers, mode)?;
    match numbers.below(4) {
        0 => drop(moved.sender.settled()?),
        1 => {
            moved.sender.round()?;
        }
        _ => sleep(Duration::from_millis(numbers.below(300) as u64)),
    }
    moved.switch().map(drop)
}
