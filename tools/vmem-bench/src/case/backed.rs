// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 14: absent pages that lie in a file in memory, and that the module reads itself, beside daemons that have the contents in memory.

use std::time::Instant;

use vmem_figures::quantile;

use super::one_fault::faults;
use super::threads::{race_for_distinct, race_for_same};
use super::{Bench, Round};
use crate::contents::verify;
use crate::cpu;
use crate::failure::Outcome;
use crate::order::shuffled;
use crate::peer::{BLOCK, Daemon, Kind, touch};

/// Blocks in a round of each.
const BLOCKS: u64 = 128;
/// Threads that touch pages at once.
const THREADS: u64 = 64;

const SINGLE: [Kind; 5] = [Kind::Floor, Kind::Vmem, Kind::Backed, Kind::Missing, Kind::Minor];
const BLOCKWISE: [Kind; 4] = [Kind::Vmem, Kind::BackedAround, Kind::Missing, Kind::Minor];
const MANY: [Kind; 4] = [Kind::Vmem, Kind::Backed, Kind::Missing, Kind::Minor];

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    let daemon = cpu::count() - 1;
    for kind in bench.chosen(&SINGLE) {
        let mut times = faults(bench, kind, number, 0, daemon)?;
        times.sort_by(f64::total_cmp);
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            if let Some(time) = quantile(&times, part) {
                round.add(format!("one page a fault, {name}"), "us", kind.name(), time);
            }
        }
    }
    for kind in bench.chosen(&BLOCKWISE) {
        let time = blocks(bench, kind, number, daemon)?;
        round.add(format!("{BLOCK} pages a fault, all touched"), "us/fault", kind.name(), time);
    }
    cpu::everywhere()?;
    for kind in bench.chosen(&MANY) {
        let rate = race_for_distinct(bench, kind, THREADS, 1, number)?;
        round.add(format!("{THREADS} threads, distinct pages"), "faults/s", kind.name(), rate);
    }
    for kind in bench.chosen(&MANY) {
        let (rate, _) = race_for_same(bench, kind, THREADS, 1, number)?;
        round.add(format!("{THREADS} threads, same pages"), "pages/s", kind.name(), rate);
    }
    Ok(())
}

/// How long a touch of all pages of a block takes, in microseconds. The first one brings them; blocks are in random order.
fn blocks(bench: &Bench, kind: Kind, seed: u64, daemon: usize) -> Outcome<f64> {
    let end = BLOCKS * BLOCK;
    let peer = kind.make(end + Daemon::THREADS, &bench.contents)?;
    cpu::only(daemon)?;
    let daemon = kind
        .is_served()
        .then(|| Daemon::start_with_blocks(kind, &peer, &bench.contents, end, 1, BLOCK));
    cpu::only(0)?;
    let since = Instant::now();
    for block in shuffled(BLOCKS, seed) {
        for page in block * BLOCK..(block + 1) * BLOCK {
            verify(kind.name(), page, touch(&*peer, page))?;
        }
    }
    let time = since.elapsed().as_nanos() as f64 / 1e3 / BLOCKS as f64;
    daemon.map(Daemon::stop).transpose()?;
    Ok(time)
}
