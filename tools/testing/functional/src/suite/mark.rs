// SPDX-License-Identifier: GPL-2.0-or-later
//! What becomes of a page: filled, cached, zero, unreadable. An absent page never reads as zeros.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::pipe::pipe;
use rustix::process::Signal;
use vmem::{Fill, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{AreaBuilder, BUS_ADRERR, BUS_MCEERR_AR, End, MemoryAt, exit_with_bus_code, write_from};

use crate::failure::{Outcome, ensure, equal, refused};
use crate::kernel::handles_broken_memory;
use crate::program::Program;
use crate::setting::{Setting, bytes_of, check_page, check_words, check_zero, contents, page, pages};

const MADV_POPULATE_READ: i32 = 22;

crate::tests![
    fill_puts_contents_into_absent_pages,
    fill_leaves_present_pages_alone,
    fill_of_a_run_fills_only_what_is_absent,
    fill_takes_scattered_runs_in_one_call,
    fill_can_copy_from_present_pages_of_the_region,
    mark_cached_shows_what_the_staging_file_holds,
    mark_counts_only_pages_that_it_changed,
    mark_leaves_present_pages_alone,
    mark_zero_needs_no_bytes,
    mark_zero_drops_what_the_staging_file_held,
    a_touch_of_an_unreadable_page_is_sigbus,
    a_waiter_gets_sigbus_when_its_page_is_marked_unreadable,
    a_system_call_on_an_unreadable_page_is_efault,
    an_unreadable_page_that_is_filled_is_present,
    an_unreadable_page_does_not_spoil_its_neighbours,
    an_unreadable_page_of_a_region_that_asks_for_it_is_broken_memory,
    a_page_never_reads_as_zeros_however_touch_and_fill_race,
    a_page_is_filled_whole_before_it_is_seen,
    racing_fills_do_not_mix_within_a_page,
    fill_does_not_overwrite_what_the_program_wrote,
];

fn fill_puts_contents_into_absent_pages() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill([0, 3, 7])?;
    let map = setting.region.present_map()?;
    for pgoff in 0..8 {
        equal!(map.contains(page(pgoff)), [0, 3, 7].contains(&pgoff));
    }
    setting.checker([0, 3, 7])?.join()?;
    Ok(())
}

fn fill_leaves_present_pages_alone() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill([2])?;
    let other = vec![0x5a; PAGE_SIZE];
    equal!(setting.region.fill(&[Fill::new(page(2), &other)?]).complete()?, 0);
    setting.checker([2])?.join()?;
    Ok(())
}

fn fill_of_a_run_fills_only_what_is_absent() -> Outcome {
    // Longer than what the module does at a time.
    let setting = Setting::new(1500)?;
    let early = [0, 1, 63, 64, 511, 512, 513, 1023, 1024, 1499];
    let other = vec![0x5a; PAGE_SIZE];
    for pgoff in early {
        equal!(setting.region.fill(&[Fill::new(page(pgoff), &other)?]).complete()?, 1);
    }
    let bytes: Vec<u8> = (0..1500).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect();
    let changed = setting.region.fill(&[Fill::new(page(0), &bytes)?]).complete()?;
    equal!(changed, 1500 - early.len() as u64);
    let area = setting.area()?;
    for pgoff in 0..1500 {
        if early.contains(&pgoff) {
            ensure!(
                area.page(pgoff).iter().all(|word| *word == 0x5a5a_5a5a_5a5a_5a5a),
                "page {pgoff} was filled over"
            );
        } else {
            check_page(&area, pgoff, pgoff)?;
        }
    }
    Ok(())
}

fn fill_takes_scattered_runs_in_one_call() -> Outcome {
    let setting = Setting::new(4096)?;
    let wanted: Vec<usize> = (0..500).map(|at| at * 8 + at % 5).collect();
    let bytes: Vec<Vec<u8>> = wanted
        .iter()
        .map(|&pgoff| {
            (0..1 + pgoff % 3)
                .flat_map(|next| bytes_of(&contents((pgoff + next) as u64)))
                .collect()
        })
        .collect();
    let fills: Vec<Fill<'_>> = wanted
        .iter()
        .zip(&bytes)
        .map(|(&pgoff, bytes)| Fill::new(page(pgoff), bytes))
        .collect::<Result<_, _>>()?;
    let progress = setting.region.fill(&fills);
    equal!(progress.ranges, 500);
    let expected: u64 = wanted.iter().map(|pgoff| 1 + (pgoff % 3) as u64).sum();
    equal!(progress.complete()?, expected);
    let area = setting.area()?;
    for pgoff in wanted {
        for next in 0..1 + pgoff % 3 {
            check_page(&area, pgoff + next, pgoff + next)?;
        }
    }
    equal!(setting.region.info()?.present, expected);
    Ok(())
}

fn fill_can_copy_from_present_pages_of_the_region() -> Outcome {
    let setting = Setting::new(1024)?;
    setting.fill(0..4)?;
    let area = setting.area()?;
    let ranges = [(4, 0, 4), (600, 1, 2)].map(|(pgoff, from, nr_pages)| vmem_sys::vmem_fill_range {
        pgoff,
        nr_pages,
        addr: (area.address() + from * PAGE_SIZE) as u64,
    });
    let mut fill = vmem_sys::vmem_fill {
        ranges: ranges.as_ptr() as u64,
        nr: 2,
        ..Default::default()
    };
    vmem_functional_sys::ioctl(&*setting.region, vmem_sys::VMEM_FILL_PAGES, &mut fill)?;
    equal!((fill.done, fill.changed), (2, 6));
    for (at, pgoff) in [(4, 0), (7, 3), (600, 1), (601, 2)] {
        check_page(&area, at, pgoff)?;
    }
    Ok(())
}

fn mark_cached_shows_what_the_staging_file_holds() -> Outcome {
    let setting = Setting::new(8)?;
    for pgoff in [1, 2, 6] {
        setting
            .region
            .staging()
            .write_all_at(&bytes_of(&contents(pgoff as u64)), page(pgoff).offset())?;
    }
    let progress = setting.region.mark_cached(&[pages(1, 2), pages(6, 1)]);
    equal!(progress.ranges, 2);
    equal!(progress.complete()?, 3);
    setting.checker([1, 2, 6])?.join()?;
    Ok(())
}

fn mark_counts_only_pages_that_it_changed() -> Outcome {
    let setting = Setting::new(16)?;
    equal!(setting.region.mark_zero(&[pages(2, 4)]).complete()?, 4);
    equal!(setting.region.mark_zero(&[pages(0, 8)]).complete()?, 4);
    equal!(setting.region.mark_cached(&[pages(0, 8), pages(0, 8)]).complete()?, 0);
    equal!(setting.region.mark_unreadable(&[pages(6, 6)]).complete()?, 4);
    equal!(setting.region.mark_unreadable(&[pages(6, 6)]).complete()?, 0);
    let info = setting.region.info()?;
    equal!((info.present, info.unreadable), (8, 4));
    equal!(setting.region.mark_zero(&[pages(0, 16)]).complete()?, 8);
    let info = setting.region.info()?;
    equal!((info.present, info.unreadable), (16, 0));
    Ok(())
}

fn mark_leaves_present_pages_alone() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill([1])?;
    equal!(setting.region.mark_zero(&[pages(1, 1)]).complete()?, 0);
    equal!(setting.region.mark_unreadable(&[pages(1, 1)]).complete()?, 0);
    setting.checker([1])?.join()?;
    equal!(setting.region.info()?.unreadable, 0);
    Ok(())
}

fn mark_zero_needs_no_bytes() -> Outcome {
    let setting = Setting::new(8)?;
    let blocks = || -> Outcome<u64> { Ok(rustix::fs::fstat(setting.region.staging())?.st_blocks as u64) };
    let before = blocks()?;
    equal!(setting.region.mark_zero(&[pages(0, 3), pages(4, 4)]).complete()?, 7);
    equal!(blocks()?, before);
    let reader = setting.reader(3)?;
    equal!(setting.take_request()?, 3);
    equal!(setting.region.mark_zero(&[pages(3, 1)]).complete()?, 1);
    ensure!(reader.join()?.iter().all(|word| *word == 0));
    // The pages are memory like any other: they can be written.
    let area = setting.area()?;
    for pgoff in 0..8 {
        check_zero(&area, pgoff)?;
        area.write_page(pgoff, &contents(pgoff as u64));
    }
    setting.checker(0..8)?.join()?;
    Ok(())
}

fn mark_zero_drops_what_the_staging_file_held() -> Outcome {
    let setting = Setting::new(4)?;
    setting.region.staging().write_all_at(&[0xff; 2 * PAGE_SIZE], 0)?;
    setting.region.mark_zero(&[pages(0, 1)]).complete()?;
    let area = setting.area()?;
    check_zero(&area, 0)?;
    // Its neighbour was not told to be zero.
    setting.region.mark_cached(&[pages(1, 1)]).complete()?;
    ensure!(area.page(1).iter().all(|word| *word == u64::MAX));
    Ok(())
}

fn a_touch_of_an_unreadable_page_is_sigbus() -> Outcome {
    let setting = Setting::new(4)?;
    setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    setting.reader(2)?.join_killed(Signal::BUS)?;
    let writer = Program::start(|| {
        setting.area()?.poke(2 * PAGE_SIZE, 1);
        Ok(vec![])
    })?;
    writer.join_killed(Signal::BUS)?;
    let info = setting.region.info()?;
    equal!(info.sigbus, 2);
    equal!(info.requests, 0);
    Ok(())
}

fn a_waiter_gets_sigbus_when_its_page_is_marked_unreadable() -> Outcome {
    let setting = Setting::new(4)?;
    let reader = setting.reader(2)?;
    equal!(setting.take_request()?, 2);
    setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    reader.join_killed(Signal::BUS)?;
    equal!(setting.region.info()?.requested, 0);
    Ok(())
}

fn a_system_call_on_an_unreadable_page_is_efault() -> Outcome {
    let setting = Setting::new(4)?;
    setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    let area = setting.area()?;
    let (_reader, writer) = pipe()?;
    let memory = MemoryAt {
        area: &area,
        offset: 2 * PAGE_SIZE,
        len: 100,
    };
    refused!(write_from(&writer, memory), FAULT);
    Ok(())
}

/// The code of a SIGBUS for broken memory. A kernel that does not handle that has no word for it.
pub(super) fn broken() -> i32 {
    if handles_broken_memory() { BUS_MCEERR_AR } else { BUS_ADRERR }
}

/// The code of the SIGBUS that a touch of page 2 gets.
pub(super) fn bus_code(setting: &Setting) -> Outcome<i32> {
    let toucher = Program::start(|| {
        exit_with_bus_code()?;
        setting.area()?.poke(2 * PAGE_SIZE, 1);
        Ok(vec![])
    })?;
    match toucher.end()? {
        End::Exited(code) => Ok(code),
        End::Killed(signal) => Err(format!("the program was killed by {signal}").into()),
    }
}

fn an_unreadable_page_of_a_region_that_asks_for_it_is_broken_memory() -> Outcome {
    let setting = Setting::new(4)?;
    setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    equal!(bus_code(&setting)?, BUS_ADRERR);

    let builder = RegionBuilder::new(4 * PAGE_SIZE as u64);
    let setting = Setting::create(builder.clone().poison_unreadable())?;
    setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    equal!(bus_code(&setting)?, broken());
    equal!(setting.region.info()?.sigbus, 1);
    // A system call fails as before, but for one that has an errno for it.
    let area = setting.area()?;
    let (_reader, writer) = pipe()?;
    let memory = MemoryAt {
        area: &area,
        offset: 2 * PAGE_SIZE,
        len: 100,
    };
    refused!(write_from(&writer, memory), FAULT);
    refused!(area.advise(2..3, MADV_POPULATE_READ), HWPOISON);
    setting.fill([2])?;
    check_page(&area, 2, 2)?;

    // So is one that has not come in time, and not one that nobody serves.
    let builder = builder.poison_unreadable().sigbus_without_daemon();
    let setting = Setting::create(builder.fault_timeout(Duration::from_millis(50)))?;
    equal!(bus_code(&setting)?, broken());
    let Setting { region, map } = setting;
    drop(region);
    let orphan = Program::start(|| {
        exit_with_bus_code()?;
        AreaBuilder::default().map(&map, 0, 4)?.peek(0);
        Ok(vec![])
    })?;
    equal!(orphan.end()?, End::Exited(BUS_ADRERR));
    Ok(())
}

fn an_unreadable_page_that_is_filled_is_present() -> Outcome {
    let setting = Setting::new(4)?;
    setting.region.mark_unreadable(&[pages(0, 4)]).complete()?;
    setting.reader(1)?.join_killed(Signal::BUS)?;
    setting.fill([1])?;
    setting.checker([1])?.join()?;
    equal!(setting.region.info()?.unreadable, 3);
    setting.reader(2)?.join_killed(Signal::BUS)
}

fn an_unreadable_page_does_not_spoil_its_neighbours() -> Outcome {
    let setting = Setting::new(64)?;
    setting.region.mark_unreadable(&[pages(20, 1)]).complete()?;
    setting.fill((0..64).filter(|pgoff| *pgoff != 20))?;
    setting.checker((0..64).filter(|pgoff| *pgoff != 20))?.join()?;
    setting.reader(20)?.join_killed(Signal::BUS)
}

fn a_page_never_reads_as_zeros_however_touch_and_fill_race() -> Outcome {
    const PAGES: usize = 1024;
    for round in 0..4 {
        let setting = Setting::new(PAGES)?;
        let program = Program::start(|| {
            let area = Arc::new(setting.area()?);
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let area = area.clone();
                    thread::spawn(move || -> Outcome {
                        for step in 0..PAGES {
                            let pgoff = (step * (2 * thread + 1) + round * 37) % PAGES;
                            check_page(&area, pgoff, pgoff)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            for thread in threads {
                thread.join().map_err(|_| "a thread panicked")??;
            }
            Ok(vec![])
        })?;
        // Not by request: the fills cross the touches wherever those are.
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let fillers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| -> Outcome {
                        loop {
                            let step = next.fetch_add(1, Ordering::SeqCst);
                            if step >= PAGES {
                                return Ok(());
                            }
                            let pgoff = step * 5 % PAGES;
                            let bytes = bytes_of(&contents(pgoff as u64));
                            if pgoff % 2 == 0 {
                                setting.region.fill(&[Fill::new(page(pgoff), &bytes)?]).complete()?;
                            } else {
                                setting.region.staging().write_all_at(&bytes, page(pgoff).offset())?;
                                setting.region.mark_cached(&[pages(pgoff, 1)]).complete()?;
                            }
                        }
                    })
                })
                .collect();
            for filler in fillers {
                filler.join().map_err(|_| "a filler panicked")??;
            }
            Outcome::Ok(())
        })?;
        equal!(setting.region.info()?.present, PAGES as u64);
        program.join()?;
    }
    Ok(())
}

fn a_page_is_filled_whole_before_it_is_seen() -> Outcome {
    let setting = Setting::new(512)?;
    let program = Program::start(|| {
        let area = setting.area()?;
        for pgoff in 0..512 {
            // The last byte of a page is written last, and touched first.
            let last = area.peek((pgoff + 1) * PAGE_SIZE - 8);
            ensure!(last == 0xff, "page {pgoff} was seen before it was whole");
            let words = area.page(pgoff);
            check_words(&words, pgoff)?;
        }
        Ok(vec![])
    })?;
    for chunk in 0..16 {
        let bytes: Vec<u8> = (chunk * 32..chunk * 32 + 32)
            .flat_map(|pgoff| bytes_of(&contents(pgoff as u64)))
            .collect();
        equal!(setting.region.fill(&[Fill::new(page(chunk * 32), &bytes)?]).complete()?, 32);
    }
    program.join()?;
    Ok(())
}

fn racing_fills_do_not_mix_within_a_page() -> Outcome {
    const PAGES: usize = 512;
    let setting = Setting::new(PAGES)?;
    let fill = |byte: u8| -> Outcome<u64> {
        let bytes = vec![byte; PAGE_SIZE];
        let mut changed = 0;
        for pgoff in 0..PAGES {
            changed += setting.region.fill(&[Fill::new(page(pgoff), &bytes)?]).complete()?;
        }
        Ok(changed)
    };
    let changed = thread::scope(|scope| {
        let fillers: Vec<_> = (1..=3).map(|byte| scope.spawn(move || fill(byte))).collect();
        fillers
            .into_iter()
            .map(|filler| filler.join().map_err(|_| "a filler panicked")?)
            .sum::<Outcome<u64>>()
    })?;
    equal!(changed, PAGES as u64);
    let area = setting.area()?;
    for pgoff in 0..PAGES {
        let words = area.page(pgoff);
        let whole = |byte: u64| words.iter().all(|word| *word == byte * 0x0101_0101_0101_0101);
        ensure!((1..=3).any(whole), "page {pgoff} is a mixture");
    }
    Ok(())
}

fn fill_does_not_overwrite_what_the_program_wrote() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill([0])?;
    let area = setting.area()?;
    area.poke(100, 0x99);
    equal!(setting.region.fill(&[Fill::new(page(0), &[1; PAGE_SIZE])?]).complete()?, 0);
    equal!(setting.region.mark_zero(&[pages(0, 1)]).complete()?, 0);
    equal!(area.peek(100), 0x99);
    Ok(())
}
