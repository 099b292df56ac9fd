// SPDX-License-Identifier: GPL-2.0-or-later
//! Each step of the calls of the dirty log fails once. No write is lost, and nothing of ours is left in the memory.

use std::os::fd::AsFd;

use rustix::io::Errno;
use vmem::{Control, PAGE_SIZE};
use vmem_functional_sys::AreaBuilder;
use vmem_sys::{calls, vmem_range};

use super::{MEMORY, NO_COPY, errno, sweep};
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal};
use crate::tracked::{Tracked, fill, maps_line, memfd};

crate::tests![
    adopt_fails_cleanly_at_every_step,
    track_fails_cleanly_at_every_step,
    dirty_loses_no_page_at_any_step,
    untrack_ends_the_log_whatever_fails,
    mmap_of_tracked_memory_fails_cleanly_at_every_step,
    writes_to_tracked_memory_are_logged_whatever_fails,
];

const PAGES: usize = 200;
/// Pages that are written, in different words of the log.
const WRITTEN: [usize; 4] = [3, 64, 65, 190];

fn write_some(tracked: &Tracked) {
    for page in WRITTEN {
        tracked.area.poke(page * PAGE_SIZE, 7);
    }
}

fn contains_written(found: &[usize]) -> Outcome {
    ensure!(
        WRITTEN.iter().all(|page| found.contains(page)),
        "the log has {found:?}, and {WRITTEN:?} were written"
    );
    Ok(())
}

fn adopt_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "adopt",
        || Ok((memfd(PAGES)?, Control::open()?, None)),
        &MEMORY,
        |(memory, control, adopted)| {
            *adopted = Some(calls::adopt(control.as_fd(), memory.as_fd())?);
            Ok(())
        },
        |(_, _, adopted)| {
            equal!(adopted.ok_or("it was adopted")?.size, (PAGES * PAGE_SIZE) as u64);
            Ok(())
        },
    )
}

fn track_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "track",
        || {
            let file = memfd(PAGES)?;
            fill(&file, PAGES)?;
            let area = AreaBuilder::default().map(&file, 0, PAGES)?;
            let log = Adopted::new(&file)?;
            Ok(Tracked { file, area, log })
        },
        &MEMORY,
        |tracked| tracked.log.track_anew(),
        |tracked| {
            write_some(&tracked);
            contains_written(&tracked.log.bitmap(0..PAGES, true)?.pages)
        },
    )
}

fn dirty_loses_no_page_at_any_step() -> Outcome {
    for (what, clean) in [("peek", false), ("clean", true)] {
        sweep(
            &format!("dirty, bitmap, {what}"),
            prepare,
            &MEMORY,
            |(tracked, found)| {
                let mut bitmap = [0; PAGES.div_ceil(64)];
                let logged = calls::dirty_bitmap(tracked.log.as_fd(), 0, PAGES as u64, clean, &mut bitmap);
                // What was reported before an error counts, if the call says how far it has come.
                let done = logged.done as usize;
                found.extend((0..done).filter(|page| (bitmap[page / 64] >> (page % 64)) & 1 == 1));
                logged.error.map_or(Ok(()), Err)
            },
            |(_, found)| contains_written(&found),
        )?;
        sweep(
            &format!("dirty, ranges, {what}"),
            prepare,
            &MEMORY,
            |(tracked, found)| {
                let mut ranges = [vmem_range::default(); PAGES];
                let logged = calls::dirty_ranges(tracked.log.as_fd(), 0, PAGES as u64, clean, &mut ranges);
                for range in &ranges[..logged.ranges] {
                    found.extend(range.pgoff as usize..(range.pgoff + range.nr_pages) as usize);
                }
                logged.error.map_or(Ok(()), Err)
            },
            |(_, found)| contains_written(&found),
        )?;
    }
    Ok(())
}

/// Memory with a few writes in its log, and the pages that were reported so far.
fn prepare() -> Outcome<(Tracked, Vec<usize>)> {
    let tracked = Tracked::new(PAGES)?;
    tracked.settle()?;
    write_some(&tracked);
    Ok((tracked, Vec::new()))
}

fn untrack_ends_the_log_whatever_fails() -> Outcome {
    sweep(
        "untrack",
        || Tracked::new(PAGES),
        &MEMORY,
        |tracked| tracked.log.untrack(),
        |tracked| {
            tracked.log.track_anew()?;
            write_some(&tracked);
            contains_written(&tracked.log.bitmap(0..PAGES, true)?.pages)
        },
    )
}

fn mmap_of_tracked_memory_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "mmap of tracked memory",
        || Ok((Tracked::new(PAGES)?, None)),
        &NO_COPY,
        |(tracked, area)| {
            *area = Some(
                AreaBuilder::default()
                    .map(&tracked.file, 0, PAGES)
                    .map_err(|error| errno(&error))?,
            );
            Ok(())
        },
        |(tracked, area)| {
            let area = area.ok_or("it was mapped")?;
            ensure!(
                maps_line(std::process::id() as i32, area.address())?.contains("tracked"),
                "it has another name"
            );
            tracked.settle()?;
            area.poke(5 * PAGE_SIZE, 9);
            tracked.check_log([5])
        },
    )
}

fn writes_to_tracked_memory_are_logged_whatever_fails() -> Outcome {
    sweep(
        "pwrite to tracked memory",
        || {
            let tracked = Tracked::new(PAGES)?;
            tracked.settle()?;
            Ok(tracked)
        },
        &[Errno::NOMEM, Errno::FAULT, Errno::NOSPC],
        |tracked| {
            let bytes = [9; 3 * PAGE_SIZE];
            match rustix::io::pwrite(&tracked.file, &bytes, 7 * PAGE_SIZE as u64)? {
                // A part of it is no failure.
                0 => Err(Errno::NOSPC),
                _ => Ok(()),
            }
        },
        |tracked| {
            let found = tracked.log.bitmap(0..PAGES, false)?.pages;
            ensure!(found.contains(&7), "the log has {found:?}");
            Ok(())
        },
    )
}
