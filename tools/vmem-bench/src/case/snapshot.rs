// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 12: what it costs that memory is kept as it was at one instant.

use std::time::Duration;

use vmem::PAGE_SIZE;
use vmem_bench_sys::Memory;

use super::tracking::{PAGES, timed, write};
use super::{Bench, Round};
use crate::contents::{stamp, verify};
use crate::cpu;
use crate::failure::Outcome;
use crate::keeper::{Keeper, KeeperKind};
use crate::order::shuffled;

const KINDS: [KeeperKind; 3] = [KeeperKind::Vmem, KeeperKind::WpDaemon, KeeperKind::Plain];

/// Pages that one call reads.
const AT_ONCE: u64 = 64;

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    for kind in KINDS.into_iter().filter(|kind| bench.wants(kind.name())) {
        let mut keeper = cpu::apart(kind == KeeperKind::WpDaemon, || kind.make(PAGES, &bench.contents))?;
        measure(kind, &mut *keeper, number, round)?;
    }
    cpu::everywhere()
}

fn measure(kind: KeeperKind, keeper: &mut dyn Keeper, seed: u64, round: &mut Round) -> Outcome {
    let keeps = kind != KeeperKind::Plain;
    let (all, again) = (shuffled(PAGES, seed), shuffled(PAGES, seed + 1));
    let mut held_up = None;
    let mut add = |what: &str, time: Duration| {
        let per_page = time.as_secs_f64() * 1e6 / PAGES as f64;
        round.add(what, "us/page", kind.name(), per_page);
    };

    write(keeper.memory(), &all)?;
    let taking = timed(|| {
        held_up = keeper.take()?;
        Ok(())
    })?;
    if keeps {
        add("snapshot, all written before", taking);
        add("reading it, nothing written since", timed(|| read(kind, keeper))?);
    }
    let time = timed(|| change(keeper.memory(), &again))?;
    add("first write after it", time);
    if keeps {
        add("reading it, all written since", timed(|| read(kind, keeper))?);
    }
    add("second write after it", timed(|| change(keeper.memory(), &all))?);
    keeper.end()?;
    if let Some(held_up) = held_up {
        round.add("writers held up, in whole", "us", kind.name(), held_up.as_secs_f64() * 1e6);
    }
    Ok(())
}

/// Writes what is not there.
fn change(memory: &Memory, pages: &[u64]) -> Outcome {
    for page in pages {
        memory.write(*page as usize, !stamp(*page));
    }
    Ok(())
}

/// Reads what was kept, all of it, in its order.
fn read(kind: KeeperKind, keeper: &mut dyn Keeper) -> Outcome {
    let mut bytes = vec![0; AT_ONCE as usize * PAGE_SIZE];
    for first in (0..PAGES).step_by(AT_ONCE as usize) {
        keeper.read(first, &mut bytes)?;
        for (page, contents) in (first..).zip(bytes.chunks_exact(PAGE_SIZE)) {
            let word = contents.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word));
            verify(kind.name(), page, word)?;
        }
    }
    Ok(())
}
