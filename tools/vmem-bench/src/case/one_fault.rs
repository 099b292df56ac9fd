// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 1: one thread touches absent pages in random order; one thread of a daemon brings them.

use std::time::Instant;

use vmem_figures::quantile;

use super::{Bench, Round};
use crate::contents::verify;
use crate::cpu;
use crate::failure::Outcome;
use crate::order::shuffled;
use crate::peer::{Daemon, Kind, touch};

/// Faults in a round of each.
const FAULTS: u64 = 500;

const KINDS: [Kind; 6] = [
    Kind::Floor,
    Kind::Allocate,
    Kind::Vmem,
    Kind::Missing,
    Kind::Minor,
    Kind::MinorStore,
];

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    // Program and daemon each on a processor of its own, and both on one: the wake-up is another one.
    for (place, program, daemon) in [("two CPUs", 0, 1), ("one CPU", 0, 0)] {
        if daemon >= cpu::count() {
            continue;
        }
        for kind in bench.chosen(&KINDS) {
            let mut times = faults(bench, kind, number, program, daemon)?;
            times.sort_by(f64::total_cmp);
            for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                if let Some(time) = quantile(&times, part) {
                    round.add(format!("{place}, {name}"), "us", kind.name(), time);
                }
            }
        }
    }
    cpu::everywhere()
}

/// How long each fault took, in microseconds.
pub(super) fn faults(bench: &Bench, kind: Kind, seed: u64, program: usize, daemon: usize) -> Outcome<Vec<f64>> {
    let peer = kind.make(FAULTS + Daemon::THREADS, &bench.contents)?;
    cpu::only(daemon)?;
    // A thread has the processor of the one that makes it.
    let daemon = kind
        .is_served()
        .then(|| Daemon::start(kind, &peer, &bench.contents, FAULTS, 1));
    cpu::only(program)?;
    let mut times = Vec::with_capacity(FAULTS as usize);
    for page in shuffled(FAULTS, seed) {
        let since = Instant::now();
        let word = touch(&*peer, page);
        times.push(since.elapsed().as_nanos() as f64 / 1e3);
        if kind != Kind::Allocate {
            verify(kind.name(), page, word)?;
        }
    }
    daemon.map(Daemon::stop).transpose()?;
    Ok(times)
}
