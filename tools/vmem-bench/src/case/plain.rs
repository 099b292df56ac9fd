// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 5: what a region costs when it has become plain memory, against shared anonymous memory that always was.

use std::time::Instant;

use vmem_bench_sys::{Memory, Sharing, fork};

use super::{Bench, Round};
use crate::contents::{POOL, stamp, verify};
use crate::failure::{During, Failure, Outcome};
use crate::peer::{Kind, RegionPeer, VMEM};

/// Pages in all: 16 MiB.
const PAGES: usize = 4096;

const PLAIN: &str = "anonymous";

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    // Who comes first finds other caches than who comes second.
    let converted = || measure_region(bench);
    let plain = || measure_anonymous(bench);
    let (converted, plain) = if number % 2 == 0 {
        let converted = converted()?;
        (converted, plain()?)
    } else {
        let plain = plain()?;
        (converted()?, plain)
    };
    for (by, times) in [(VMEM, converted), (PLAIN, plain)] {
        for (what, time) in times {
            round.add(what, "us/page", by, time);
        }
    }
    Ok(())
}

type Times = Vec<(&'static str, f64)>;

fn measure_region(bench: &Bench) -> Outcome<Times> {
    let peer = RegionPeer::new(PAGES as u64)?;
    peer.fill_all(&bench.contents)?;
    let RegionPeer { region, memory, .. } = peer;
    let handle = region.map_handle()?;
    region.make_vma_anonymous()?;
    // The daemon is gone, as it is after a migration.
    drop(region);
    if !handle.info()?.plain {
        return Err(Failure::Wrong("the region is not plain memory".into()));
    }
    // So that munmap frees the pages, as it does with the other one.
    drop(handle);
    measure(memory)
}

fn measure_anonymous(bench: &Bench) -> Outcome<Times> {
    let memory = Memory::anonymous(PAGES, Sharing::Shared).during("mmap")?;
    for first in (0..PAGES).step_by(POOL) {
        memory.write_pages(first, bench.contents.of(first as u64, POOL));
    }
    measure(memory)
}

/// What a program does with memory whose pages are all there.
fn measure(memory: Memory) -> Outcome<Times> {
    let mut times = Times::new();
    memory.forget().during("madvise(MADV_DONTNEED)")?;
    times.push(("first read after MADV_DONTNEED", timed(|| read_all(&memory))?));
    memory.forget().during("madvise(MADV_DONTNEED)")?;
    times.push(("first write after MADV_DONTNEED", timed(|| write_all(&memory))?));
    times.push(("write", timed(|| write_all(&memory))?));
    times.push(("fork, read in the child, exit", timed(|| child_reads(&memory))?));
    times.push((
        "munmap",
        timed(|| {
            drop(memory);
            Ok(())
        })?,
    ));
    Ok(times)
}

/// In microseconds per page.
fn timed(work: impl FnOnce() -> Outcome) -> Outcome<f64> {
    let since = Instant::now();
    work()?;
    Ok(since.elapsed().as_secs_f64() * 1e6 / PAGES as f64)
}

fn read_all(memory: &Memory) -> Outcome {
    (0..PAGES).try_for_each(|page| verify(Kind::Vmem.name(), page as u64, memory.read(page)))
}

/// Writes what is there: the contents stay what they are.
fn write_all(memory: &Memory) -> Outcome {
    for page in 0..PAGES {
        memory.write(page, stamp(page as u64));
    }
    Ok(())
}

fn child_reads(memory: &Memory) -> Outcome {
    let child = fork(|| u8::from(read_all(memory).is_err())).during("fork")?;
    match child.wait().during("waitpid")? {
        Some(0) => Ok(()),
        end => Err(Failure::Wrong(format!("the child ended with {end:?}"))),
    }
}
