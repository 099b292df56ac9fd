// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 11: what memory costs that was tracked and is not any more, against memory that never was.

use std::time::Duration;

use vmem_bench_sys::Memory;

use super::tracking::{PAGES, read, timed, write};
use super::{Bench, Round};
use crate::failure::{During, Outcome};
use crate::order::shuffled;
use crate::tracker::{AdoptedMemory, Plain, Tracker, TrackerKind};

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    let order = shuffled(PAGES, number);
    // Who comes first finds other caches than who comes second.
    let (tracked, plain) = if number % 2 == 0 {
        let tracked = measure_tracked(bench, &order)?;
        (tracked, measure_plain(bench, &order)?)
    } else {
        let plain = measure_plain(bench, &order)?;
        (measure_tracked(bench, &order)?, plain)
    };
    for (kind, times) in [(TrackerKind::Vmem, tracked), (TrackerKind::Plain, plain)] {
        for (what, time) in times {
            round.add(what, "us/page", kind.name(), time.as_secs_f64() * 1e6 / PAGES as f64);
        }
    }
    Ok(())
}

type Times = Vec<(&'static str, Duration)>;

fn measure_tracked(bench: &Bench, order: &[u64]) -> Outcome<Times> {
    let mut tracked = AdoptedMemory::new(PAGES, &bench.contents)?;
    write(tracked.memory(), order)?;
    tracked.begin()?;
    write(tracked.memory(), order)?;
    // All pages are out of the page tables.
    tracked.clean()?;
    tracked.end()?;
    let mut times = measure(TrackerKind::Vmem, tracked.memory(), order)?;

    // What is not gone at once: a page that was read while it was protected is so until it is written to.
    tracked.begin()?;
    read(TrackerKind::Vmem, tracked.memory())?;
    tracked.end()?;
    times.push((
        "first write, page read while tracked",
        timed(|| write(tracked.memory(), order))?,
    ));
    Ok(times)
}

fn measure_plain(bench: &Bench, order: &[u64]) -> Outcome<Times> {
    let mut plain = Plain::new(PAGES, &bench.contents)?;
    write(plain.memory(), order)?;
    plain.clean()?;
    measure(TrackerKind::Plain, plain.memory(), order)
}

/// What a program does with memory whose pages are all there, and in no page table.
fn measure(kind: TrackerKind, memory: &Memory, order: &[u64]) -> Outcome<Times> {
    let mut times = vec![
        ("first write", timed(|| write(memory, order))?),
        ("later write", timed(|| write(memory, order))?),
    ];
    memory.forget().during("madvise(MADV_DONTNEED)")?;
    times.push(("first read", timed(|| read(kind, memory))?));
    times.push(("write after a read", timed(|| write(memory, order))?));
    Ok(times)
}
