// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 3: a daemon brings all pages while nobody touches them; then a program touches them one after the other.

use std::time::Instant;

use super::{Bench, Round};
use crate::contents::verify;
use crate::cpu;
use crate::failure::Outcome;
use crate::order::shuffled;
use crate::peer::{Kind, Peer, touch};

/// Pages in all: 16 MiB.
const PAGES: u64 = 4096;
/// Scattered pages that are given to the peer at once.
const BATCH: usize = 512;

const KINDS: [Kind; 6] = [
    Kind::Vmem,
    Kind::VmemMapped,
    Kind::VmemHuge,
    Kind::Missing,
    Kind::Minor,
    Kind::MinorHuge,
];

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    for (name, run) in [("4 KiB scattered", 1), ("64 KiB", 16), ("2 MiB", 512)] {
        for kind in bench.chosen(&KINDS) {
            let _prepared = kind.prepare()?;
            let peer = kind.make(PAGES, &bench.contents)?;
            let (fill_wall, fill_cpu) = timed(|| fill(bench, &*peer, run, number))?;
            let (touch_wall, touch_cpu) = timed(|| touch_all(kind, &*peer))?;
            let mut add = |what: &str, value| round.add(format!("{name}, {what}"), "us/page", kind.name(), value);
            add("fill", fill_wall);
            add("touch", touch_wall);
            add("fill + touch", fill_wall + touch_wall);
            add("fill + touch, CPU", fill_cpu + touch_cpu);
        }
    }
    Ok(())
}

/// Time on the wall and of the processor, in microseconds per page.
fn timed(work: impl FnOnce() -> Outcome) -> Outcome<(f64, f64)> {
    let (since, cpu) = (Instant::now(), cpu::time());
    work()?;
    let (wall, cpu) = (since.elapsed(), cpu::time().saturating_sub(cpu));
    let per_page = |time: std::time::Duration| time.as_secs_f64() * 1e6 / PAGES as f64;
    Ok((per_page(wall), per_page(cpu)))
}

fn fill(bench: &Bench, peer: &dyn Peer, run: u64, seed: u64) -> Outcome {
    let order = shuffled(PAGES / run, seed);
    if run == 1 {
        order
            .chunks(BATCH)
            .try_for_each(|pages| peer.bring_unasked(pages, &bench.contents))?;
    } else {
        let mut order = order.into_iter();
        order.try_for_each(|piece| peer.bring_run(piece * run, run as usize, &bench.contents))?;
    }
    peer.finish()
}

fn touch_all(kind: Kind, peer: &dyn Peer) -> Outcome {
    (0..PAGES).try_for_each(|page| verify(kind.name(), page, touch(peer, page)))
}
