// SPDX-License-Identifier: GPL-2.0-or-later
//! VMEM_DIRTY and VMEM_GET_TRACKING: what they answer, what they refuse, and that no page is lost on the way.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::thread;

use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, AreaBuilder, ioctl, ioctl_at};
use vmem_sys::{VMEM_DIRTY, VMEM_DIRTY_CLEAN, VMEM_DIRTY_RANGES, VMEM_MAX_BATCH, vmem_dirty, vmem_range};

use crate::adopted::{Adopted, runs};
use crate::failure::{Outcome, ensure, equal, refused};
use crate::tracked::{Tracked, memfd};
use crate::world::field;

crate::tests![
    ranges_and_bitmaps_tell_the_same,
    read_without_clean_leaves_the_log,
    clean_is_for_the_pages_of_its_range_alone,
    the_call_stops_when_the_array_of_ranges_is_full,
    each_page_is_reported_to_one_caller,
    an_answer_that_cannot_be_written_loses_no_page,
    an_argument_that_cannot_be_written_loses_no_page,
    a_wrong_argument_is_einval_and_loses_no_page,
    a_size_that_is_no_whole_page_is_rounded_up,
    figures_count_what_was_written_and_cleaned,
    fdinfo_shows_the_figures,
];

const PAGES: usize = 300;

/// Pages that begin and end words of the bitmap, lie alone, and lie side by side over the end of one.
const WRITTEN: [usize; 14] = [0, 1, 5, 62, 63, 64, 65, 100, 127, 192, 250, 251, 255, 299];

/// Memory with these pages in its log.
fn written() -> Outcome<Tracked> {
    let memory = Tracked::new(PAGES)?;
    write(&memory)?;
    Ok(memory)
}

fn write(memory: &Tracked) -> Outcome {
    memory.settle()?;
    for page in WRITTEN {
        memory.area.poke(page * PAGE_SIZE, 1);
    }
    Ok(())
}

fn ranges_and_bitmaps_tell_the_same() -> Outcome {
    let memory = written()?;
    for (begin, end) in [
        (0, PAGES),
        (0, 1),
        (0, 64),
        (64, 66),
        (64, 128),
        (128, 192),
        (192, 251),
        (256, PAGES),
        (0, 63),
    ] {
        let expected: Vec<_> = WRITTEN.into_iter().filter(|page| (begin..end).contains(page)).collect();
        equal!(memory.log.bitmap(begin..end, false)?.pages, expected);
        for room in [1, 2, 3, VMEM_MAX_BATCH as usize] {
            equal!(memory.log.ranges(begin..end, false, room)?.pages, expected);
        }
    }
    // Ranges begin anywhere.
    for (begin, end) in [(1, 2), (63, 65), (5, 6), (6, 62), (251, 252), (299, 300)] {
        let expected: Vec<_> = WRITTEN.into_iter().filter(|page| (begin..end).contains(page)).collect();
        equal!(memory.log.ranges(begin..end, false, 4)?.pages, expected);
    }
    // Neighbours are one range.
    let mut ranges = [vmem_range::default(); 16];
    let logged = vmem_sys::calls::dirty_ranges(memory.log.as_fd(), 0, PAGES as u64, false, &mut ranges);
    let found: Vec<_> = ranges[..logged.ranges]
        .iter()
        .map(|range| (range.pgoff, range.nr_pages))
        .collect();
    let expected = [
        (0, 2),
        (5, 1),
        (62, 4),
        (100, 1),
        (127, 1),
        (192, 1),
        (250, 2),
        (255, 1),
        (299, 1),
    ];
    equal!(found, expected);
    Ok(())
}

fn read_without_clean_leaves_the_log() -> Outcome {
    let memory = written()?;
    for _ in 0..3 {
        equal!(memory.log.bitmap(0..PAGES, false)?.pages, WRITTEN);
        let ranges = memory.log.ranges(0..PAGES, false, 2)?;
        equal!(ranges.pages, WRITTEN);
        equal!(ranges.held, 0);
    }
    equal!(memory.log.ranges(0..PAGES, true, 2)?.pages, WRITTEN);
    memory.check_log([])
}

fn clean_is_for_the_pages_of_its_range_alone() -> Outcome {
    let memory = written()?;
    equal!(memory.log.ranges(63..101, true, 2)?.pages, [63, 64, 65, 100]);
    memory.check_log([0, 1, 5, 62, 127, 192, 250, 251, 255, 299])?;
    equal!(memory.log.bitmap(192..251, true)?.pages, [192, 250]);
    memory.check_log([0, 1, 5, 62, 127, 251, 255, 299])
}

fn the_call_stops_when_the_array_of_ranges_is_full() -> Outcome {
    let memory = written()?;
    let mut ranges = [vmem_range::default(); 2];
    let mut call = vmem_dirty {
        nr_pages: PAGES as u64,
        out: ranges.as_mut_ptr() as u64,
        nr: 2,
        flags: VMEM_DIRTY_RANGES | VMEM_DIRTY_CLEAN,
        ..Default::default()
    };
    ioctl(memory.log.as_fd(), VMEM_DIRTY, &mut call)?;
    equal!((call.nr, call.dirty, call.held), (2, 3, 0));
    equal!(ranges.map(|range| (range.pgoff, range.nr_pages)), [(0, 2), (5, 1)]);
    ensure!((6..=62).contains(&call.done), "{call:?}");
    memory.check_log(WRITTEN.into_iter().skip(3))?;
    // With room in the array it goes to the end.
    write(&memory)?;
    for room in [1, 3, 8] {
        equal!(memory.log.ranges(0..PAGES, true, room)?.pages, WRITTEN);
        memory.check_log([])?;
        write(&memory)?;
    }
    Ok(())
}

fn each_page_is_reported_to_one_caller() -> Outcome {
    const PAGES: usize = 2048;
    let memory = Tracked::new(PAGES)?;
    for _ in 0..5 {
        memory.settle()?;
        for page in 0..PAGES {
            memory.area.poke(page * PAGE_SIZE, 1);
        }
        let clean = || memory.log.ranges(0..PAGES, true, 16);
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(clean);
            (clean(), other.join())
        });
        let (one, other) = (one?, other.map_err(|_| "a thread panicked")??);
        equal!((one.held, other.held), (0, 0));
        let mut pages = [one.pages, other.pages].concat();
        pages.sort();
        ensure!(pages.into_iter().eq(0..PAGES), "a page was reported twice or never");
        memory.check_log([])?;
    }
    Ok(())
}

/// Two pages, of which the second cannot be touched.
fn half_accessible() -> Outcome<Area> {
    let area = AreaBuilder::default().private().anonymous(2)?;
    area.protect(1..2, 0)?;
    Ok(area)
}

fn an_answer_that_cannot_be_written_loses_no_page() -> Outcome {
    let memory = written()?;
    let half = half_accessible()?;
    let edge = (half.address() + PAGE_SIZE) as u64;
    // Nothing of it, and a part.
    for out in [0, edge, edge - 8, edge - 16, edge - 32, 1 << 63, u64::MAX - 7] {
        for flags in [0, VMEM_DIRTY_CLEAN, VMEM_DIRTY_RANGES, VMEM_DIRTY_RANGES | VMEM_DIRTY_CLEAN] {
            let mut call = vmem_dirty {
                nr_pages: PAGES as u64,
                out,
                nr: if flags & VMEM_DIRTY_RANGES == 0 { 0 } else { 16 },
                flags,
                ..Default::default()
            };
            refused!(ioctl(memory.log.as_fd(), VMEM_DIRTY, &mut call), FAULT);
            // A page too many may be there then.
            let left = memory.log.bitmap(0..PAGES, false)?.pages;
            ensure!(
                WRITTEN.iter().all(|page| left.contains(page)),
                "flags {flags}, {} bytes: the log has the pages {} alone",
                edge.wrapping_sub(out),
                runs(&left)
            );
            write(&memory)?;
        }
    }
    // What stayed is protected when it is cleaned at last.
    equal!(memory.log.bitmap(0..PAGES, true)?.pages, WRITTEN);
    memory.logs(WRITTEN, |time| {
        for page in WRITTEN {
            memory.area.poke(page * PAGE_SIZE, time + 1);
        }
        Ok(())
    })
}

fn an_argument_that_cannot_be_written_loses_no_page() -> Outcome {
    let memory = written()?;
    let mut bitmap = [0u64; PAGES.div_ceil(64)];
    let words = [0, PAGES as u64, bitmap.as_mut_ptr() as u64, u64::from(VMEM_DIRTY_CLEAN) << 32];
    let argument = AreaBuilder::default().private().anonymous(1)?;
    for (word, value) in words.into_iter().enumerate() {
        argument.store(8 * word, value);
    }
    argument.protect(0..1, 1)?;
    refused!(ioctl_at(memory.log.as_fd(), VMEM_DIRTY, argument.address()), FAULT);
    memory.check_log(WRITTEN)?;
    argument.protect(0..1, 0)?;
    refused!(ioctl_at(memory.log.as_fd(), VMEM_DIRTY, argument.address()), FAULT);
    memory.check_log(WRITTEN)?;
    // It was refused for that alone.
    argument.protect(0..1, 3)?;
    ioctl_at(memory.log.as_fd(), VMEM_DIRTY, argument.address())?;
    memory.check_log([])
}

fn a_wrong_argument_is_einval_and_loses_no_page() -> Outcome {
    let memory = written()?;
    let mut room = vec![0u64; 2 * (VMEM_MAX_BATCH as usize + 1)];
    let right = vmem_dirty {
        nr_pages: PAGES as u64,
        out: room.as_mut_ptr() as u64,
        flags: VMEM_DIRTY_CLEAN,
        ..Default::default()
    };
    let ranges = vmem_dirty {
        nr: 16,
        flags: VMEM_DIRTY_CLEAN | VMEM_DIRTY_RANGES,
        ..right
    };
    let mut wrong = Vec::new();
    for right in [right, ranges] {
        let (pages, rest) = (PAGES as u64, u64::MAX - 63);
        wrong.extend((2..32).map(|bit| vmem_dirty {
            flags: right.flags | (1 << bit),
            ..right
        }));
        wrong.extend([1, u64::MAX].map(|reserved| vmem_dirty { reserved, ..right }));
        wrong.extend([0, pages + 1, 1 << 32, u64::MAX].map(|nr_pages| vmem_dirty { nr_pages, ..right }));
        // Outside, over the end, and so far out that the sum is inside again.
        wrong.extend(
            [(320, 1), (256, 45), (64, pages), (rest, 1), (rest, 64), (rest, 128)].map(|(pgoff, nr_pages)| vmem_dirty {
                pgoff,
                nr_pages,
                ..right
            }),
        );
    }
    wrong.extend([1, 63, 65, 299].map(|pgoff| vmem_dirty {
        pgoff,
        nr_pages: 1,
        ..right
    }));
    wrong.extend([1, VMEM_MAX_BATCH].map(|nr| vmem_dirty { nr, ..right }));
    wrong.extend([0, VMEM_MAX_BATCH + 1, u32::MAX].map(|nr| vmem_dirty { nr, ..ranges }));
    for call in wrong {
        let result: io::Result<()> = ioctl(memory.log.as_fd(), VMEM_DIRTY, &mut call.clone());
        match result {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => (),
            result => return Err(format!("{call:?}: {result:?}").into()),
        }
    }
    memory.check_log(WRITTEN)?;
    for mut call in [right, ranges] {
        write(&memory)?;
        ioctl(memory.log.as_fd(), VMEM_DIRTY, &mut call)?;
        equal!((call.done, call.dirty), (PAGES as u64, WRITTEN.len() as u64));
        memory.check_log([])?;
    }
    Ok(())
}

fn a_size_that_is_no_whole_page_is_rounded_up() -> Outcome {
    let file = memfd(3)?;
    file.set_len(2 * PAGE_SIZE as u64 + 1)?;
    let area = AreaBuilder::default().map(&file, 0, 3)?;
    let memory = Tracked::begin(file, area)?;
    equal!(memory.log.size, 3 * PAGE_SIZE as u64);
    for page in 0..3 {
        memory.settle()?;
        memory.area.poke(page * PAGE_SIZE, 1);
        memory.check_log([page])?;
    }
    refused!(memory.file.write_all_at(&[1; PAGE_SIZE], 2 * PAGE_SIZE as u64), PERM);
    Ok(())
}

fn figures_count_what_was_written_and_cleaned() -> Outcome {
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    let before = memory.log.tracking()?;
    equal!((before.tracked, before.mappings, before.dirty, before.reserved), (1, 1, 0, 0));
    for page in [1, 2, 3] {
        // The second store is no fault.
        memory.area.poke(page * PAGE_SIZE, 1);
        memory.area.poke(page * PAGE_SIZE, 2);
    }
    memory.file.write_all_at(&[1; 2], (11 * PAGE_SIZE - 1) as u64)?;
    memory.file.write_all_at(&[1; 2], (11 * PAGE_SIZE - 1) as u64)?;
    let written = memory.log.tracking()?;
    equal!(written.dirty, 5);
    equal!(written.faults - before.faults, 3);
    equal!(written.written - before.written, 2);
    equal!((written.cleaned, written.held), (before.cleaned, before.held));
    equal!(memory.log.ranges(0..PAGES, true, 2)?.pages, [1, 2, 3, 10, 11]);
    let cleaned = memory.log.tracking()?;
    equal!((cleaned.dirty, cleaned.cleaned - before.cleaned), (0, 5));
    equal!(
        (cleaned.faults, cleaned.written, cleaned.held),
        (written.faults, written.written, before.held)
    );
    // They are those of one log.
    memory.log.untrack()?;
    let none = memory.log.tracking()?;
    equal!([none.tracked, none.mappings, none.dirty, none.faults], [0; 4]);
    equal!([none.written, none.cleaned, none.held, none.reserved], [0; 4]);
    memory.log.track()?;
    let fresh = memory.log.tracking()?;
    equal!((fresh.tracked, fresh.faults, fresh.written, fresh.cleaned), (1, 0, 0, 0));
    Ok(())
}

fn fdinfo_shows_the_figures() -> Outcome {
    let memory = written()?;
    memory.log.bitmap(0..64, true)?;
    memory.file.write_all_at(&[1], 0)?;
    let same = |log: &Adopted| -> Outcome {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", log.as_fd().as_raw_fd()))?;
        let figures = log.tracking()?;
        for (name, value) in [
            ("id", log.id),
            ("size", log.size),
            ("tracked", figures.tracked),
            ("mappings", figures.mappings),
            ("dirty", figures.dirty),
            ("faults", figures.faults),
            ("written", figures.written),
            ("cleaned", figures.cleaned),
            ("held", figures.held),
        ] {
            equal!((name, field(&text, &format!("vmem-{name}"))?), (name, value));
        }
        Ok(())
    };
    same(&memory.log)?;
    memory.log.untrack()?;
    same(&memory.log)
}
