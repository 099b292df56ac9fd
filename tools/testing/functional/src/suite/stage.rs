// SPDX-License-Identifier: GPL-2.0-or-later
//! Staged pages: their contents are there, and no program sees them before they are marked.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::Signal;
use vmem::{Control, Error, Fill, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder, drain_page_lists, ioctl};
use vmem_sys::{VMEM_FILL_PAGES, VMEM_FILL_STAGE, VMEM_TRACK_FILLS, vmem_fill, vmem_fill_range};

use super::huge::{HUGE, SHMEM_ENABLED};
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal, refused};
use crate::image::Image;
use crate::kernel::{Cgroup, Setting as KernelSetting, Swap};
use crate::program::Program;
use crate::setting::{Board, Setting, bytes_of, check_page, check_words, check_zero, contents, mapped_pages, page, pages};
use crate::tracked::{Tracked, fill, memfd};
use crate::world::wait_until;

const MADV_REMOVE: i32 = 9;

crate::tests![
    module_and_library_have_staging,
    staged_page_is_absent_until_it_is_marked,
    staging_again_replaces_the_contents,
    staging_changes_no_present_page,
    staged_unreadable_page_is_unreadable_until_it_is_marked,
    staging_answers_no_request,
    mark_zero_drops_staged_contents,
    fill_replaces_staged_contents,
    each_page_is_staged_once_though_its_contents_must_be_brought_in,
    staging_that_fails_half_way_leaves_all_pages_absent,
    discard_drops_staged_contents_for_good,
    discard_that_races_with_staging_leaves_zeros,
    hole_in_the_staging_file_is_nothing_staged,
    fill_that_races_with_staging_wins,
    touch_that_races_with_staging_sees_marked_contents_alone,
    staged_page_of_a_huge_page_is_absent_until_it_is_marked,
    staged_pages_can_be_swapped_out_and_staged_again,
    staged_pages_are_charged_to_the_program_and_freed_with_the_region,
    staging_without_memory_is_enomem_and_can_be_repeated,
    staged_page_is_logged_when_it_is_marked,
    snapshot_has_the_contents_that_are_marked,
    region_with_staged_pages_is_not_converted,
    staged_pages_of_a_dead_daemon_are_absent,
];

/// Contents that no page of a test shall have in the end.
const STALE: u64 = 7000;

/// Stages these pages, each with the contents of the page that `which` names. Returns how many were staged.
fn stage_as(setting: &Setting, pages: impl IntoIterator<Item = usize>, which: impl Fn(u64) -> u64) -> Outcome<u64> {
    let staged: Vec<_> = pages
        .into_iter()
        .map(|pgoff| (page(pgoff), bytes_of(&contents(which(pgoff as u64)))))
        .collect();
    let fills: Vec<_> = staged
        .iter()
        .map(|(page, bytes)| Fill::new(*page, bytes))
        .collect::<Result<_, _>>()?;
    let progress = setting.region.stage(&fills);
    ensure!(progress.error.is_some() || progress.ranges == fills.len());
    Ok(progress.complete()?)
}

/// Stages these pages with their contents.
fn stage(setting: &Setting, pages: impl IntoIterator<Item = usize>) -> Outcome<u64> {
    stage_as(setting, pages, |pgoff| pgoff)
}

/// Fails unless page `at` of the area has one byte all over.
fn check_byte(area: &Area, at: usize, byte: u8) -> Outcome {
    let word = u64::from_le_bytes([byte; 8]);
    let words = area.page(at);
    ensure!(
        words.iter().all(|found| *found == word),
        "page {at} is {:#x} and not {word:#x}",
        words[0]
    );
    Ok(())
}

/// Ends the region's daemon.
fn orphan(setting: Setting) -> Outcome<Setting> {
    let Setting { region, map } = setting;
    let id = region.id();
    drop(region);
    Ok(Setting {
        region: Control::open()?.attach_id(id)?.into(),
        map,
    })
}

fn module_and_library_have_staging() -> Outcome {
    ensure!(Control::open()?.features()?.stage);
    let setting = Setting::new(1)?;
    equal!(setting.region.stage(&[]).complete()?, 0);
    let beyond = setting.region.stage(&[Fill::new(page(1), &[0; PAGE_SIZE])?]);
    ensure!(matches!(beyond.error, Some(Error::Invalid { .. })), "{beyond:?}");
    Ok(())
}

fn staged_page_is_absent_until_it_is_marked() -> Outcome {
    let setting = Setting::new(64)?;
    equal!(stage(&setting, 0..8)?, 8);
    let area = setting.area()?;
    equal!(setting.region.present_map()?.runs().count(), 0);
    equal!(setting.region.make_pages_present(&[pages(0, 8)]).complete()?, 0);
    // A present neighbour maps what is around it.
    setting.fill([8])?;
    check_page(&area, 8, 8)?;
    let reader = setting.reader(3)?;
    equal!(setting.take_request()?, 3);
    setting.wait_waiters(1)?;
    for (pgoff, mapped) in mapped_pages(&area)?.into_iter().enumerate() {
        ensure!(!mapped || pgoff == 8, "page {pgoff} is mapped");
    }
    equal!(setting.region.mark_cached(&[pages(0, 8)]).complete()?, 8);
    check_words(&reader.join()?, 3)?;
    setting.checker(0..9)?.join()?;
    setting.no_request()
}

fn staging_again_replaces_the_contents() -> Outcome {
    let setting = Setting::new(600)?;
    equal!(stage_as(&setting, 0..600, |_| STALE)?, 600);
    equal!(stage(&setting, 0..600)?, 600);
    equal!(setting.region.mark_cached(&[pages(0, 600)]).complete()?, 600);
    setting.checker(0..600)?.join()?;
    Ok(())
}

fn staging_changes_no_present_page() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill([2])?;
    setting.region.mark_zero(&[pages(3, 1)]).complete()?;
    equal!(stage(&setting, [5])?, 1);
    setting.region.mark_cached(&[pages(5, 1)]).complete()?;
    let area = setting.area()?;
    area.write_page(5, &contents(500));
    // One run with absent pages at both ends and in between.
    let bytes = vec![0x5a; 8 * PAGE_SIZE];
    equal!(setting.region.stage(&[Fill::new(page(0), &bytes)?]).complete()?, 5);
    check_page(&area, 2, 2)?;
    check_zero(&area, 3)?;
    check_page(&area, 5, 500)?;
    equal!(setting.region.mark_cached(&[pages(0, 8)]).complete()?, 5);
    for pgoff in [0, 1, 4, 6, 7] {
        check_byte(&area, pgoff, 0x5a)?;
    }
    check_page(&area, 2, 2)
}

fn staged_unreadable_page_is_unreadable_until_it_is_marked() -> Outcome {
    let setting = Setting::new(4)?;
    setting.region.mark_unreadable(&[pages(1, 1)]).complete()?;
    equal!(stage(&setting, [1])?, 1);
    setting.reader(1)?.join_killed(Signal::BUS)?;
    equal!(setting.region.info()?.unreadable, 1);
    equal!(setting.region.mark_cached(&[pages(1, 1)]).complete()?, 1);
    setting.checker([1])?.join()?;
    // And the other way round: what is marked so later was staged in vain.
    equal!(stage(&setting, [2])?, 1);
    setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    setting.reader(2)?.join_killed(Signal::BUS)
}

fn staging_answers_no_request() -> Outcome {
    let setting = Setting::new(8)?;
    let taken = setting.reader(1)?;
    equal!(setting.take_request()?, 1);
    let queued = setting.reader(2)?;
    setting.wait_waiters(2)?;
    equal!(stage_as(&setting, 0..4, |_| STALE)?, 4);
    equal!(stage(&setting, 0..4)?, 4);
    let info = setting.region.info()?;
    equal!((info.requested, info.queued, info.waiters, info.present), (2, 1, 2, 0));
    equal!(setting.take_request()?, 2);
    equal!(setting.region.mark_cached(&[pages(1, 2)]).complete()?, 2);
    check_words(&taken.join()?, 1)?;
    check_words(&queued.join()?, 2)
}

fn mark_zero_drops_staged_contents() -> Outcome {
    let setting = Setting::new(1200)?;
    equal!(stage_as(&setting, 0..1200, |_| STALE)?, 1200);
    equal!(setting.region.mark_zero(&[pages(1, 1)]).complete()?, 1);
    equal!(setting.region.mark_zero(&[pages(3, 1000)]).complete()?, 1000);
    // Zero is the last word: contents that are staged afterwards come too late.
    equal!(stage_as(&setting, 1..2, |_| STALE)?, 0);
    // Staged, zero, and staged again before it is marked.
    equal!(stage(&setting, 1003..1200)?, 197);
    equal!(setting.region.mark_cached(&[pages(0, 1200)]).complete()?, 199);
    let area = setting.area()?;
    check_zero(&area, 1)?;
    (3..1003).try_for_each(|pgoff| check_zero(&area, pgoff))?;
    (1003..1200).try_for_each(|pgoff| check_page(&area, pgoff, pgoff))
}

fn fill_replaces_staged_contents() -> Outcome {
    let setting = Setting::new(8)?;
    equal!(stage_as(&setting, 0..8, |_| STALE)?, 8);
    let reader = setting.reader(1)?;
    equal!(setting.take_request()?, 1);
    setting.fill(0..8)?;
    check_words(&reader.join()?, 1)?;
    equal!(setting.region.mark_cached(&[pages(0, 8)]).complete()?, 0);
    setting.checker(0..8)?.join()?;
    Ok(())
}

/// The contents are in a file, and in no page table: a copy stops at every page, or every few.
fn each_page_is_staged_once_though_its_contents_must_be_brought_in() -> Outcome {
    const PAGES: usize = 1500;
    let setting = Setting::new(PAGES)?;
    let source = memfd(PAGES)?;
    fill(&source, PAGES)?;
    let source = AreaBuilder::default().map(&source, 0, PAGES)?;
    let range = vmem_fill_range {
        pgoff: 0,
        nr_pages: PAGES as u64,
        addr: source.address() as u64,
    };
    let mut call = vmem_fill {
        ranges: std::ptr::from_ref(&range) as u64,
        nr: 1,
        flags: VMEM_FILL_STAGE,
        ..Default::default()
    };
    ioctl(&*setting.region, VMEM_FILL_PAGES, &mut call)?;
    equal!((call.done, call.changed), (1, PAGES as u64));
    equal!(setting.region.mark_cached(&[pages(0, PAGES)]).complete()?, PAGES as u64);
    setting.checker(0..PAGES)?.join()?;
    Ok(())
}

fn staging_that_fails_half_way_leaves_all_pages_absent() -> Outcome {
    let setting = Setting::new(8)?;
    let memory = AreaBuilder::default().private().anonymous(4)?;
    (0..2).for_each(|pgoff| memory.write_page(pgoff, &contents(pgoff as u64)));
    memory.protect(2..4, 0)?;
    let address = memory.address() as u64;
    let ranges = [(0, 1), (1, 3), (4, 1)].map(|(pgoff, nr_pages)| vmem_fill_range {
        pgoff,
        nr_pages,
        addr: address + pgoff % 4 * PAGE_SIZE as u64,
    });
    let mut call = vmem_fill {
        ranges: ranges.as_ptr() as u64,
        nr: 3,
        flags: VMEM_FILL_STAGE,
        ..Default::default()
    };
    refused!(ioctl(&*setting.region, VMEM_FILL_PAGES, &mut call), FAULT);
    equal!((call.done, call.changed), (1, 2));
    let info = setting.region.info()?;
    equal!((info.present, info.requested), (0, 0));
    equal!(stage(&setting, 1..8)?, 7);
    equal!(setting.region.mark_cached(&[pages(0, 8)]).complete()?, 8);
    setting.checker(0..8)?.join()?;
    Ok(())
}

fn discard_drops_staged_contents_for_good() -> Outcome {
    let setting = Setting::new(8)?;
    equal!(stage_as(&setting, 0..8, |_| STALE)?, 8);
    let area = setting.area()?;
    area.advise(2..4, MADV_REMOVE)?;
    equal!(setting.region.info()?.present, 2);
    equal!(stage_as(&setting, 2..4, |_| STALE)?, 0);
    equal!(setting.region.mark_cached(&[pages(2, 2)]).complete()?, 0);
    check_zero(&area, 2)?;
    check_zero(&area, 3)?;
    setting.no_request()
}

/// Stages wrong contents into the whole region, again and again, and meanwhile does something with a page, once in each round of the stager.
fn while_staging(setting: &Setting, each: impl IntoIterator<Item = usize>, mut act: impl FnMut(usize) -> Outcome) -> Outcome {
    let stale: Vec<u8> = (0..setting.pages()).flat_map(|_| bytes_of(&contents(STALE))).collect();
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| -> Outcome {
        let stager = scope.spawn(|| -> Outcome {
            // One run: the longer the copy, the more can come in between.
            let run = [Fill::new(page(0), &stale)?];
            while !over.load(Ordering::SeqCst) {
                setting.region.stage(&run).complete()?;
                rounds.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let acted = each.into_iter().try_for_each(|pgoff| {
            let round = rounds.load(Ordering::SeqCst);
            act(pgoff)?;
            wait_until("the stager is in another round", || {
                Ok(stager.is_finished() || rounds.load(Ordering::SeqCst) > round)
            })
        });
        over.store(true, Ordering::SeqCst);
        stager.join().map_err(|_| "the stager has panicked")??;
        acted
    })
}

/// A plain write to the staging file may come after the discard, and be seen.
fn discard_that_races_with_staging_leaves_zeros() -> Outcome {
    let setting = Setting::new(HUGE)?;
    let area = setting.area()?;
    let discarded = || (0..HUGE).rev().step_by(4);
    while_staging(&setting, discarded(), |pgoff| Ok(area.advise(pgoff..pgoff + 1, MADV_REMOVE)?))?;
    discarded().try_for_each(|pgoff| check_zero(&area, pgoff))
}

fn hole_in_the_staging_file_is_nothing_staged() -> Outcome {
    let setting = Setting::new(8)?;
    let blocks = || -> Outcome<u64> { Ok(rustix::fs::fstat(setting.region.staging())?.st_blocks as u64) };
    let before = blocks()?;
    equal!(stage(&setting, 0..8)?, 8);
    equal!(blocks()?, before + 8 * PAGE_SIZE as u64 / 512);
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(setting.region.staging(), flags, page(2).offset(), 2 * PAGE_SIZE as u64)?;
    equal!(blocks()?, before + 6 * PAGE_SIZE as u64 / 512);
    equal!(setting.region.info()?.present, 0);
    equal!(stage(&setting, [3])?, 1);
    equal!(setting.region.mark_cached(&[pages(0, 8)]).complete()?, 8);
    let area = setting.area()?;
    check_zero(&area, 2)?;
    [0, 1, 3, 4, 5, 6, 7]
        .into_iter()
        .try_for_each(|pgoff| check_page(&area, pgoff, pgoff))
}

fn fill_that_races_with_staging_wins() -> Outcome {
    let setting = Setting::new(HUGE)?;
    let filled = || (0..HUGE).rev().step_by(4);
    while_staging(&setting, filled(), |pgoff| setting.fill([pgoff]))?;
    setting.checker(filled())?.join()?;
    Ok(())
}

fn touch_that_races_with_staging_sees_marked_contents_alone() -> Outcome {
    const PAGES: usize = 1024;
    const BATCH: usize = 16;
    for round in 0..4 {
        let setting = Setting::new(PAGES)?;
        let programs: Vec<_> = (0..3)
            .map(|program| {
                Program::start(|| {
                    let area = setting.area()?;
                    (0..PAGES)
                        .map(|step| (step * (2 * program + 1) + round * 37) % PAGES)
                        .try_for_each(|pgoff| check_page(&area, pgoff, pgoff))?;
                    Ok(vec![])
                })
            })
            .collect::<Outcome<_>>()?;
        for first in (0..PAGES).step_by(BATCH) {
            stage_as(&setting, first..first + BATCH, |_| STALE)?;
            stage(&setting, first..first + BATCH)?;
            equal!(setting.region.mark_cached(&[pages(first, BATCH)]).complete()?, BATCH as u64);
        }
        for program in programs {
            program.join()?;
        }
    }
    Ok(())
}

fn staged_page_of_a_huge_page_is_absent_until_it_is_marked() -> Outcome {
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "never")?;
    let setting = Setting::create(RegionBuilder::new((HUGE * PAGE_SIZE) as u64).huge())?;
    let area = AreaBuilder::default().aligned(HUGE).map(&setting.map, 0, HUGE)?;
    let staged = |pgoff: &usize| pgoff % 3 == 1;
    stage_as(&setting, (0..HUGE).filter(staged), |_| STALE)?;
    setting.fill((0..HUGE).filter(|pgoff| pgoff % 3 == 0))?;
    (0..HUGE).step_by(3).try_for_each(|pgoff| check_page(&area, pgoff, pgoff))?;
    for (pgoff, mapped) in mapped_pages(&area)?.into_iter().enumerate() {
        ensure!(!mapped || pgoff % 3 == 0, "page {pgoff} is mapped");
    }
    stage(&setting, (0..HUGE).filter(staged))?;
    let reader = setting.reader(HUGE - 1)?;
    equal!(setting.take_request()?, HUGE - 1);
    equal!(setting.region.info()?.present, HUGE.div_ceil(3) as u64);
    // Of the rest, some were never staged: they are zeros.
    setting.region.mark_zero(&[pages(2, 1)]).complete()?;
    setting.region.mark_cached(&[pages(0, HUGE)]).complete()?;
    check_words(&reader.join()?, HUGE - 1)?;
    (0..HUGE).try_for_each(|pgoff| match pgoff % 3 {
        2 => check_zero(&area, pgoff),
        _ => check_page(&area, pgoff, pgoff),
    })
}

/// A program in a group of its own that maps the region, until the board says so.
fn mapper(setting: &Setting, group: &Cgroup, board: &Board) -> Outcome<Program> {
    let program = Program::start(|| {
        group.enter()?;
        let area = setting.area()?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        for pgoff in 0..area.pages() {
            check_page(&area, pgoff, pgoff)?;
        }
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    Ok(program)
}

fn staged_pages_can_be_swapped_out_and_staged_again() -> Outcome {
    const PAGES: usize = 2048;
    let _swap = Swap::new()?;
    let (setting, board) = (Setting::new(PAGES)?, Board::new()?);
    let group = Cgroup::new("vmem-staged")?;
    let program = mapper(&setting, &group, &board)?;
    stage_as(&setting, 0..PAGES, |pgoff| if pgoff % 2 == 0 { STALE } else { pgoff })?;
    wait_until("staged pages are in swap", || {
        drain_page_lists()?;
        // EAGAIN if it is less than that.
        let _ = group.set("memory.reclaim", "6M");
        Ok(group.stat("shmem")? < 4 << 20)
    })?;
    equal!(setting.region.info()?.present, 0);
    equal!(stage(&setting, (0..PAGES).step_by(2))?, PAGES as u64 / 2);
    setting.region.mark_cached(&[pages(0, PAGES)]).complete()?;
    board.set(1, 1)?;
    program.join()?;
    Ok(())
}

fn staged_pages_are_charged_to_the_program_and_freed_with_the_region() -> Outcome {
    const PAGES: usize = 2048;
    let (setting, board) = (Setting::new(PAGES)?, Board::new()?);
    let (group, daemon) = (Cgroup::new("vmem-program")?, Cgroup::new("vmem-daemon")?);
    let program = mapper(&setting, &group, &board)?;
    let stager = Program::start_with(|| {
        daemon.enter()?;
        for _ in 0..2 {
            stage(&setting, 0..PAGES)?;
        }
        Ok(vec![daemon.stat("shmem")?])
    })?;
    let charged = stager.join()?[0];
    ensure!(charged < 1 << 20, "the daemon's group has {charged} bytes");
    let charged = group.stat("shmem")?;
    ensure!(
        // The figure of the kernel may be late by some pages.
        (7 << 20..9 << 20).contains(&charged),
        "the program's group has {charged} bytes"
    );
    program.signal(Signal::KILL)?;
    program.join_killed(Signal::KILL)?;
    drop(setting);
    wait_until("the staged pages are freed", || Ok(group.stat("shmem")? < 1 << 20))
}

fn staging_without_memory_is_enomem_and_can_be_repeated() -> Outcome {
    const PAGES: usize = 2560;
    let (setting, board) = (Setting::new(PAGES)?, Board::new()?);
    let group = Cgroup::new("vmem-small")?;
    group.set("memory.max", "8M")?;
    group.set("memory.swap.max", "0")?;
    // Nobody is left whom the kernel could kill for what the group is short of.
    let program = mapper(&setting, &group, &board)?;
    program.signal(Signal::KILL)?;
    program.join_killed(Signal::KILL)?;
    let bytes: Vec<u8> = (0..PAGES as u64).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect();
    let fills: Vec<_> = bytes
        .chunks(PAGE_SIZE)
        .enumerate()
        .map(|(pgoff, bytes)| Fill::new(page(pgoff), bytes))
        .collect::<Result<_, _>>()?;
    let progress = setting.region.stage(&fills);
    ensure!(matches!(progress.error, Some(Error::NoMemory { .. })), "{progress:?}");
    ensure!((1..2048).contains(&progress.ranges), "{progress:?}");
    equal!(progress.pages, progress.ranges as u64);
    equal!(setting.region.info()?.present, 0);
    group.set("memory.max", "max")?;
    let rest = setting.region.stage(&fills[progress.ranges..]);
    equal!(rest.complete()?, (PAGES - progress.ranges) as u64);
    setting.region.mark_cached(&[pages(0, PAGES)]).complete()?;
    setting.checker(0..PAGES)?.join()?;
    Ok(())
}

/// A region whose first half is present, tracked with these flags.
fn tracked(flags: u32) -> Outcome<(Setting, Tracked)> {
    let setting = Setting::new(64)?;
    setting.fill(0..32)?;
    let memory = Tracked {
        file: setting.region.staging().try_clone()?,
        area: setting.area()?,
        log: Adopted::new(&setting.map)?,
    };
    memory.log.track_with(flags)?;
    memory.settle()?;
    Ok((setting, memory))
}

fn staged_page_is_logged_when_it_is_marked() -> Outcome {
    for flags in [0, VMEM_TRACK_FILLS] {
        let (setting, memory) = tracked(flags)?;
        stage_as(&setting, 30..44, |_| STALE)?;
        stage(&setting, 40..44)?;
        memory.check_log([])?;
        setting.region.mark_cached(&[pages(40, 2)]).complete()?;
        setting.region.mark_zero(&[pages(50, 1)]).complete()?;
        let marked: &[usize] = if flags == 0 { &[] } else { &[40, 41, 50] };
        memory.check_log(marked.iter().copied())?;
        memory.settle()?;
        memory.area.poke(40 * PAGE_SIZE, 1);
        memory.check_log([40])?;
        // What the daemon writes to the file by itself is a write, as ever.
        memory.file.write_all_at(&[1], 45 * PAGE_SIZE as u64)?;
        memory.check_log([40, 45])?;
    }
    Ok(())
}

fn snapshot_has_the_contents_that_are_marked() -> Outcome {
    let (setting, memory) = tracked(0)?;
    // Fresh pages of the staging file have references of the kernel's: were they present, they would be copied at the instant.
    stage_as(&setting, 32..48, |_| STALE)?;
    let image = Image::take(&memory.log, 0, 0)?;
    let reader = Program::start(|| {
        ensure!(
            image.page(40)? == bytes_of(&contents(40)),
            "page 40 of the image is not what was marked"
        );
        Ok(vec![])
    })?;
    equal!(setting.take_request()?, 40);
    setting.wait_waiters(1)?;
    stage(&setting, 32..48)?;
    equal!(setting.region.info()?.waiters, 1);
    setting.region.mark_cached(&[pages(32, 16)]).complete()?;
    memory.area.write_page(41, &contents(500));
    reader.join()?;
    for pgoff in 32..48 {
        ensure!(
            image.page(pgoff)? == bytes_of(&contents(pgoff as u64)),
            "page {pgoff} of the image is not what was marked"
        );
    }
    check_page(&memory.area, 41, 500)
}

fn region_with_staged_pages_is_not_converted() -> Outcome {
    let setting = Setting::new(600)?;
    setting.fill(0..300)?;
    let area = setting.area()?;
    stage(&setting, 300..600)?;
    ensure!(matches!(setting.region.make_vma_anonymous(), Err(Error::PagesAbsent)));
    equal!(setting.region.mark_cached(&[pages(300, 300)]).complete()?, 300);
    setting.region.make_vma_anonymous()?;
    equal!(stage_as(&setting, 0..600, |_| STALE)?, 0);
    (0..600).try_for_each(|pgoff| check_page(&area, pgoff, pgoff))
}

fn staged_pages_of_a_dead_daemon_are_absent() -> Outcome {
    let setting = Setting::new(8)?;
    let waiting = setting.reader(1)?;
    equal!(setting.take_request()?, 1);
    equal!(stage_as(&setting, 0..4, |_| STALE)?, 4);
    equal!(stage(&setting, 4..8)?, 4);
    let next = orphan(setting)?;
    equal!(next.region.present_map()?.runs().count(), 0);
    equal!(next.take_request()?, 1);
    // What the dead daemon has staged is in the way of nothing that the next one does.
    next.fill(0..2)?;
    check_words(&waiting.join()?, 1)?;
    next.region.mark_zero(&[pages(2, 1)]).complete()?;
    stage(&next, [3])?;
    // And it is there, if the next daemon knows that it is right.
    equal!(next.region.mark_cached(&[pages(3, 5)]).complete()?, 5);
    next.checker([0, 1, 3, 4, 5, 6, 7])?.join()?;
    check_zero(&next.area()?, 2)
}
