// SPDX-License-Identifier: GPL-2.0-or-later
//! Huge pages and merged pages: what the kernel joins never shows an absent page.

use std::fs;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use vmem::{PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder, MemoryAt, ioctl, read_at_into, write_at_from};
use vmem_sys::{VMEM_FILL_PAGES, vmem_fill, vmem_fill_range};

use crate::failure::{Outcome, ensure, equal, errno_of, refused};
use crate::kernel::Setting as KernelSetting;
use crate::program::Program;
use crate::setting::{Setting, check_page, check_words, contents, pages, smaps};
use crate::world::{field, wait_until};

const MADV_DONTNEED: i32 = 4;
const MADV_MERGEABLE: i32 = 12;
const MADV_HUGEPAGE: i32 = 14;
const MADV_COLLAPSE: i32 = 25;
/// Pages in a huge page.
pub(super) const HUGE: usize = 512;
pub(super) const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

crate::tests![
    a_huge_region_is_filled_with_huge_pages,
    a_fill_in_pieces_shows_no_absent_page,
    a_fill_whose_contents_end_within_a_huge_page_shows_no_absent_page,
    no_huge_pages_where_the_administrator_denies_them,
    a_converted_region_can_have_huge_pages,
    before_conversion_a_collapse_is_refused_and_absent_pages_stay_absent,
    a_collapse_by_the_daemon_shows_no_absent_page,
    fill_under_huge_pages_maps_no_absent_page,
    a_huge_page_of_present_pages_alone_can_be_filled_and_removed,
    copies_in_a_private_mapping_are_merged_after_conversion,
    page_table_freed_during_a_fault_is_no_failure,
];

/// A region of so many huge pages that asks for them.
fn huge_region(count: usize) -> Outcome<Setting> {
    Setting::create(RegionBuilder::new((count * HUGE * PAGE_SIZE) as u64).huge())
}

/// Maps all of it where huge pages fit.
fn aligned(setting: &Setting) -> Outcome<Area> {
    Ok(AreaBuilder::default().aligned(HUGE).map(&setting.map, 0, setting.pages())?)
}

/// KiB of the area that are mapped by huge pages of shmem.
pub(super) fn huge(area: &Area) -> Outcome<u64> {
    field(&smaps(std::process::id(), area.address())?, "ShmemPmdMapped")
}

fn compact() -> Outcome {
    Ok(fs::write("/proc/sys/vm/compact_memory", "1")?)
}

/// Makes huge pages of the first two. `EAGAIN` and `ENOMEM` are passing (madvise(2)): a page is in somebody's hands, or the memory is in pieces.
pub(super) fn collapse(area: &Area) -> Outcome {
    wait_until("two huge pages can be had", || {
        match area.advise(0..2 * HUGE, MADV_COLLAPSE) {
            Err(error) if matches!(errno_of(&error), Some(Errno::AGAIN | Errno::NOMEM)) => {
                compact()?;
                Ok(false)
            }
            outcome => Ok(outcome.map(|()| true)?),
        }
    })
}

/// Fails unless all pages of the region hold their contents in the area, which maps all of it.
fn check_all(setting: &Setting, area: &Area) -> Outcome {
    (0..setting.pages()).try_for_each(|pgoff| check_page(area, pgoff, pgoff))
}

/// A program waits for the page `wanted`, which is absent as others are; then all of these are filled.
fn fill_absent(setting: &Setting, area: &Area, wanted: usize, absent: impl Fn(usize) -> bool) -> Outcome {
    let reader = setting.reader(wanted)?;
    equal!(setting.take_request()?, wanted);
    setting.fill((0..setting.pages()).filter(|pgoff| absent(*pgoff)))?;
    check_words(&reader.join()?, wanted)?;
    check_all(setting, area)
}

/// On the settings that the system has: shmem_enabled is `never` there.
fn a_huge_region_is_filled_with_huge_pages() -> Outcome {
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "never")?;
    wait_until("two huge pages can be had", || {
        compact()?;
        let setting = huge_region(2)?;
        let area = aligned(&setting)?;
        setting.fill_all()?;
        check_all(&setting, &area)?;
        let before = huge(&area)?;
        setting.region.make_vma_anonymous()?;
        check_all(&setting, &area)?;
        Ok(before == 4096 && huge(&area)? == 4096)
    })
}

/// The first piece of a huge page brings memory for all of it, in which nothing but that piece shows.
fn a_fill_in_pieces_shows_no_absent_page() -> Outcome {
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "never")?;
    let setting = huge_region(2)?;
    let area = aligned(&setting)?;
    setting.fill((0..2 * HUGE).filter(|pgoff| pgoff % 3 == 1))?;
    for pgoff in (0..2 * HUGE).filter(|pgoff| pgoff % 3 == 1) {
        check_page(&area, pgoff, pgoff)?;
    }
    for (pgoff, mapped) in crate::setting::mapped_pages(&area)?.into_iter().enumerate() {
        ensure!(!mapped || pgoff % 3 == 1, "page {pgoff} is mapped");
    }
    fill_absent(&setting, &area, HUGE + 1, |pgoff| pgoff % 3 != 1)
}

fn a_fill_whose_contents_end_within_a_huge_page_shows_no_absent_page() -> Outcome {
    const READABLE: usize = 300;
    let setting = huge_region(1)?;
    let memory = AreaBuilder::default().private().anonymous(HUGE)?;
    (0..READABLE).for_each(|pgoff| memory.write_page(pgoff, &contents(pgoff as u64)));
    memory.protect(READABLE..HUGE, 0)?;
    let range = vmem_fill_range {
        pgoff: 0,
        nr_pages: HUGE as u64,
        addr: memory.address() as u64,
    };
    let mut fill = vmem_fill {
        ranges: std::ptr::from_ref(&range) as u64,
        nr: 1,
        ..Default::default()
    };
    refused!(ioctl(setting.region.as_fd(), VMEM_FILL_PAGES, &mut fill), FAULT);
    equal!((fill.done, setting.region.info()?.present), (0, fill.changed));
    let there = fill.changed as usize;
    ensure!(there <= READABLE, "{there} pages are present");
    let area = aligned(&setting)?;
    (0..there).try_for_each(|pgoff| check_page(&area, pgoff, pgoff))?;
    fill_absent(&setting, &area, READABLE + 1, |pgoff| pgoff >= there)
}

fn no_huge_pages_where_the_administrator_denies_them() -> Outcome {
    let _denied = KernelSetting::new(SHMEM_ENABLED, "deny")?;
    let setting = huge_region(1)?;
    let area = aligned(&setting)?;
    setting.fill_all()?;
    check_all(&setting, &area)?;
    equal!(huge(&area)?, 0);
    Ok(())
}

fn a_converted_region_can_have_huge_pages() -> Outcome {
    for enabled in ["advise", "always"] {
        let _enabled = KernelSetting::new(SHMEM_ENABLED, enabled)?;
        let setting = huge_region(2)?;
        setting.fill_all()?;
        let area = aligned(&setting)?;
        setting.region.make_vma_anonymous()?;
        collapse(&area)?;
        check_all(&setting, &area)?;
        equal!(huge(&area)?, 4096);
    }
    Ok(())
}

fn before_conversion_a_collapse_is_refused_and_absent_pages_stay_absent() -> Outcome {
    for enabled in ["advise", "always"] {
        let _enabled = KernelSetting::new(SHMEM_ENABLED, enabled)?;
        let setting = huge_region(2)?;
        setting.fill((0..2 * HUGE).filter(|pgoff| *pgoff != 77))?;
        let area = aligned(&setting)?;
        area.advise(0..2 * HUGE, MADV_HUGEPAGE)?;
        for pgoff in (0..2 * HUGE).filter(|pgoff| *pgoff != 77) {
            check_page(&area, pgoff, pgoff)?;
        }
        refused!(area.advise(0..2 * HUGE, MADV_COLLAPSE), INVAL);
        equal!(setting.region.info()?.present, 2 * HUGE as u64 - 1);
        fill_absent(&setting, &area, 77, |pgoff| pgoff == 77)?;
    }
    Ok(())
}

fn a_collapse_by_the_daemon_shows_no_absent_page() -> Outcome {
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "advise")?;
    let setting = huge_region(2)?;
    let absent = |pgoff: usize| pgoff % 5 == 3;
    setting.fill((0..2 * HUGE).filter(|pgoff| !absent(*pgoff)))?;
    // The staging file is plain shmem to the daemon: it can make huge pages of it, with zeros where pages are absent.
    let staging = AreaBuilder::default()
        .aligned(HUGE)
        .map(setting.region.staging(), 0, 2 * HUGE)?;
    staging.advise(0..2 * HUGE, MADV_HUGEPAGE)?;
    collapse(&staging)?;
    equal!(huge(&staging)?, 4096);
    equal!(
        setting.region.info()?.present,
        (0..2 * HUGE).filter(|pgoff| !absent(*pgoff)).count() as u64
    );

    let area = aligned(&setting)?;
    setting.region.make_pages_present(&[pages(0, 2 * HUGE)]).complete()?;
    for pgoff in (0..2 * HUGE).filter(|pgoff| !absent(*pgoff)) {
        check_page(&area, pgoff, pgoff)?;
    }
    for (pgoff, mapped) in crate::setting::mapped_pages(&area)?.into_iter().enumerate() {
        ensure!(mapped != absent(pgoff), "page {pgoff} is mapped: {mapped}");
    }
    fill_absent(&setting, &area, 518, absent)
}

fn fill_under_huge_pages_maps_no_absent_page() -> Outcome {
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "force")?;
    let setting = huge_region(2)?;
    let area = aligned(&setting)?;
    // Each fill may get a huge page for its one page.
    for pgoff in [5, 6, HUGE, 2 * HUGE - 1] {
        setting.fill([pgoff])?;
        check_page(&area, pgoff, pgoff)?;
    }
    setting.region.make_pages_present(&[pages(0, 2 * HUGE)]).complete()?;
    for (pgoff, mapped) in crate::setting::mapped_pages(&area)?.into_iter().enumerate() {
        ensure!(
            !mapped || [5, 6, HUGE, 2 * HUGE - 1].contains(&pgoff),
            "page {pgoff} is mapped"
        );
    }
    let reader = setting.reader(7)?;
    equal!(setting.take_request()?, 7);
    setting.region.mark_zero(&[pages(7, 1)]).complete()?;
    ensure!(reader.join()?.iter().all(|word| *word == 0));
    // Zero pages and what stood in the staging file, in the middle of a huge page.
    use std::os::unix::fs::FileExt;
    setting
        .region
        .staging()
        .write_all_at(&[0xff; PAGE_SIZE], 8 * PAGE_SIZE as u64)?;
    setting.region.mark_zero(&[pages(8, 1)]).complete()?;
    crate::setting::check_zero(&area, 8)?;
    let rest: Vec<usize> = (0..2 * HUGE)
        .filter(|pgoff| ![5, 6, 7, 8, HUGE, 2 * HUGE - 1].contains(pgoff))
        .collect();
    setting.fill(rest.iter().copied())?;
    setting.region.make_vma_anonymous()?;
    for pgoff in rest {
        check_page(&area, pgoff, pgoff)?;
    }
    Ok(())
}

fn a_huge_page_of_present_pages_alone_can_be_filled_and_removed() -> Outcome {
    const MADV_REMOVE: i32 = 9;
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "force")?;
    let setting = huge_region(1)?;
    setting.fill_all()?;
    let area = aligned(&setting)?;
    check_page(&area, 100, 100)?;
    area.advise(50..60, MADV_REMOVE)?;
    for pgoff in 0..HUGE {
        if (50..60).contains(&pgoff) {
            crate::setting::check_zero(&area, pgoff)?;
        } else {
            check_page(&area, pgoff, pgoff)?;
        }
    }
    setting.no_request()
}

fn copies_in_a_private_mapping_are_merged_after_conversion() -> Outcome {
    let setting = Setting::new(64)?;
    setting.fill_all()?;
    let _fast = KernelSetting::new("/sys/kernel/mm/ksm/sleep_millisecs", "1")?;
    let _far = KernelSetting::new("/sys/kernel/mm/ksm/pages_to_scan", "2000")?;
    let program = Program::start_with(|| {
        let area = setting.area_as(AreaBuilder::default().private())?;
        setting.region.make_vma_anonymous()?;
        for pgoff in 0..64 {
            area.write_page(pgoff, &contents(7));
        }
        area.advise(0..64, MADV_MERGEABLE)?;
        let _running = KernelSetting::new("/sys/kernel/mm/ksm/run", "1")?;
        wait_until("pages are merged", || {
            let merged: u64 = fs::read_to_string("/proc/self/ksm_merging_pages")?.trim().parse()?;
            Ok(merged >= 60)
        })?;
        // Merged pages are copied when they are written.
        area.write_page(10, &contents(8));
        check_page(&area, 10, 8)?;
        for pgoff in (0..64).filter(|pgoff| *pgoff != 10) {
            check_page(&area, pgoff, 7)?;
        }
        Ok(vec![])
    })?;
    program.join()?;
    let shared = setting.area()?;
    for pgoff in 0..64 {
        check_page(&shared, pgoff, pgoff)?;
    }
    Ok(())
}

/// KiB of shared memory in huge pages, mapped or not.
fn shmem_huge() -> Outcome<u64> {
    field(&fs::read_to_string("/proc/meminfo")?, "ShmemHugePages")
}

/// MADV_DONTNEED of all that a page table maps frees the table (CONFIG_PT_RECLAIM), also under a fault that is about to use it. The fault starts
/// again: no system call fails for it, no call of the daemon's, and the kernel does not complain.
fn page_table_freed_during_a_fault_is_no_failure() -> Outcome {
    const BLOCKS: usize = 2;
    const DURATION: Duration = Duration::from_secs(4);
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "never")?;
    let mut made = None;
    wait_until("two huge pages can be had", || {
        compact()?;
        let before = shmem_huge()?;
        let setting = huge_region(BLOCKS)?;
        // The last page of each stays absent, so that no huge page is mapped as a whole.
        setting.fill((0..BLOCKS * HUGE).filter(|pgoff| pgoff % HUGE != HUGE - 1))?;
        let huge = shmem_huge()? == before + (BLOCKS * 2048) as u64;
        made = Some(setting);
        Ok(huge)
    })?;
    let setting = made.ok_or("no region")?;
    let area = aligned(&setting)?;
    let file = memfd_create("page", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, PAGE_SIZE as u64)?;
    let whole = |page| MemoryAt {
        area: &area,
        offset: page * PAGE_SIZE,
        len: PAGE_SIZE,
    };

    // It fills the page tables as fast as can be, so that freeing one takes long.
    let populate = |first| {
        setting.region.make_pages_present(&[pages(first, HUGE)]).complete()?;
        Ok(())
    };
    while_dropped(&area, DURATION, &populate, &|_| Ok(()))?;
    let touch_and_call = |first| {
        check_page(&area, first + 1, first + 1)?;
        equal!(write_at_from(&file, whole(first + 2))?, PAGE_SIZE);
        equal!(read_at_into(&file, whole(first + 3))?, PAGE_SIZE);
        Ok(())
    };
    while_dropped(&area, DURATION, &populate, &touch_and_call)
}

/// What a thread does with the block that begins with this page.
pub(super) type OnBlock<'a> = &'a (dyn Fn(usize) -> Outcome + Sync);

/// Drops one block of the area after the other from the page tables, while a second thread does `first`, and then `second`, with each.
pub(super) fn while_dropped(area: &Area, duration: Duration, first: OnBlock<'_>, second: OnBlock<'_>) -> Outcome {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| -> Outcome {
            while !over.load(Ordering::Relaxed) {
                for block in (0..area.pages()).step_by(HUGE) {
                    first(block)?;
                    second(block)?;
                }
            }
            Ok(())
        });
        let since = Instant::now();
        let mut dropped = Ok(());
        while dropped.is_ok() && since.elapsed() < duration && !other.is_finished() {
            dropped = (0..area.pages())
                .step_by(HUGE)
                .try_for_each(|block| area.advise(block..block + HUGE, MADV_DONTNEED));
        }
        over.store(true, Ordering::Relaxed);
        other.join().map_err(|_| "a thread panicked")??;
        Ok(dropped?)
    })
}
