// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 10: what it costs the program, and whoever reads the log, that the writes to memory are logged.

use std::time::{Duration, Instant};

use vmem_bench_sys::Memory;

use super::{Bench, Round};
use crate::contents::{stamp, verify};
use crate::cpu;
use crate::failure::{Failure, Outcome};
use crate::order::shuffled;
use crate::tracker::{Tracker, TrackerKind};

/// Pages in all: 16 MiB.
pub(super) const PAGES: u64 = 4096;
/// Pages that are written to where few are.
pub(super) const FEW: u64 = PAGES / 8;

const KINDS: [TrackerKind; 5] = [
    TrackerKind::Vmem,
    TrackerKind::WpAsync,
    TrackerKind::WpDaemon,
    TrackerKind::SoftDirty,
    TrackerKind::Plain,
];

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    for kind in KINDS.into_iter().filter(|kind| bench.wants(kind.name())) {
        let mut tracker = cpu::apart(kind == TrackerKind::WpDaemon, || kind.make(PAGES, &bench.contents))?;
        measure(kind, &mut *tracker, number, round)?;
    }
    cpu::everywhere()
}

fn measure(kind: TrackerKind, tracker: &mut dyn Tracker, seed: u64, round: &mut Round) -> Outcome {
    let logs = kind != TrackerKind::Plain;
    let mut add = |what: &str, time: Duration, pages| {
        let per_page = time.as_secs_f64() * 1e6 / pages as f64;
        round.add(what, "us/page", kind.name(), per_page);
    };
    let (all, again) = (shuffled(PAGES, seed), shuffled(PAGES, seed + 1));
    let few = shuffled(PAGES, seed + 2).split_off((PAGES - FEW) as usize);

    write(tracker.memory(), &all)?;
    // TRACK sleeps most of its time, in which others work.
    let (until, cpu) = (Instant::now(), cpu::time());
    tracker.begin()?;
    let (until, cpu) = (until.elapsed(), cpu::time().saturating_sub(cpu));
    if logs {
        add("arming, CPU", cpu, PAGES);
    }
    add("first read after arming", timed(|| read(kind, tracker.memory()))?, PAGES);
    let time = timed(|| write(tracker.memory(), &all))?;
    if logs {
        add("first write, page read before", time, PAGES);
    }
    let time = timed(|| tracker.clean())?;
    includes(kind.name(), tracker.written(), &all)?;
    if logs {
        add("cleaning, all dirty", time, PAGES);
    }
    let first_write = timed(|| write(tracker.memory(), &again))?;
    add("first write", first_write, PAGES);
    let time = timed(|| tracker.clean())?;
    includes(kind.name(), tracker.written(), &again)?;
    if !logs {
        return Ok(());
    }
    add("write and clean, all dirty", first_write + time, PAGES);

    // Pages that are clean are in the page tables.
    read(kind, tracker.memory())?;
    write(tracker.memory(), &few)?;
    let time = timed(|| tracker.clean())?;
    includes(kind.name(), tracker.written(), &few)?;
    add("cleaning, 1/8 dirty, per dirty page", time, FEW);
    // Next to nothing a page: in whole.
    let time = timed(|| tracker.clean())?;
    round.add("cleaning, none dirty, in whole", "us", kind.name(), time.as_secs_f64() * 1e6);
    round.add("arming, until it returns", "ms", kind.name(), until.as_secs_f64() * 1e3);
    Ok(())
}

/// Writes what is there: the contents stay what they are.
pub(super) fn write(memory: &Memory, pages: &[u64]) -> Outcome {
    for page in pages {
        memory.write(*page as usize, stamp(*page));
    }
    Ok(())
}

/// Reads all pages in their order.
pub(super) fn read(kind: TrackerKind, memory: &Memory) -> Outcome {
    (0..PAGES).try_for_each(|page| verify(kind.name(), page, memory.read(page as usize)))
}

pub(super) fn timed(work: impl FnOnce() -> Outcome) -> Outcome<Duration> {
    let since = Instant::now();
    work()?;
    Ok(since.elapsed())
}

/// Whether the log, if there is one, has all these pages. It may have more: those that somebody has in hand.
pub(super) fn includes(by: &str, written: Option<Vec<u64>>, pages: &[u64]) -> Outcome {
    let Some(mut written) = written else {
        return Ok(());
    };
    written.sort_unstable();
    match pages.iter().find(|page| written.binary_search(page).is_err()) {
        None => Ok(()),
        Some(page) => Err(Failure::Wrong(format!("{by}: page {page} is not in the log"))),
    }
}
