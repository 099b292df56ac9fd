// SPDX-License-Identifier: GPL-2.0-or-later
//! madvise, mlock, MAP_POPULATE and holes: what a program tells the kernel about the region's memory.

use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::process::Signal;
use vmem::{Access, MapHandle, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{AreaBuilder, MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, catch_signal_on, caught, ioctl, lock_all};
use vmem_sys::{VMEM_FILL_PAGES, vmem_fill, vmem_fill_range};

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Board, Setting, check_page, check_words, check_zero, contents, mapped_pages, pages};

const MADV_DONTNEED: i32 = 4;
const MADV_FREE: i32 = 8;
const MADV_REMOVE: i32 = 9;
const MADV_POPULATE_READ: i32 = 22;
const MADV_POPULATE_WRITE: i32 = 23;

crate::tests![
    dontneed_brings_pages_back_without_a_request,
    dontneed_of_an_absent_page_leaves_it_absent,
    removed_pages_are_zero,
    removed_absent_pages_are_zero_and_never_fetched,
    remove_wakes_waiters_of_the_page,
    a_removed_page_is_not_filled_any_more,
    a_removed_page_can_be_written,
    region_and_map_descriptors_cannot_be_truncated_or_punched,
    the_staging_file_cannot_be_truncated,
    free_is_refused_as_on_any_shared_memory,
    mlock_brings_every_page_in,
    mlock_on_fault_asks_for_nothing,
    mlockall_on_fault_asks_for_nothing,
    a_mapping_made_under_mlockall_on_fault_asks_for_nothing,
    a_signal_frame_is_written_though_a_lock_on_fault_was_interrupted,
    map_populate_brings_every_page_in,
    populate_read_and_write_bring_every_page_in,
    populate_of_an_unreadable_page_is_efault,
    willneed_and_cold_ask_for_nothing,
    msync_succeeds_and_asks_for_nothing,
    a_private_mapping_cannot_remove_and_says_eacces,
    advice_that_would_take_absent_pages_for_zeros_is_refused_with_einval,
    advice_for_huge_pages_and_ksm_is_taken_and_changes_nothing_before_conversion,
    a_fill_that_waits_for_its_contents_holds_up_neither_a_discard_nor_another_fill,
];

fn dontneed_brings_pages_back_without_a_request() -> Outcome {
    let setting = Setting::new(16)?;
    setting.fill_all()?;
    let area = setting.area()?;
    for pgoff in 0..16 {
        area.write_page(pgoff, &contents(pgoff as u64 + 100));
    }
    area.advise(0..16, MADV_DONTNEED)?;
    ensure!(mapped_pages(&area)?.iter().all(|mapped| !mapped));
    for pgoff in 0..16 {
        check_page(&area, pgoff, pgoff + 100)?;
    }
    setting.no_request()?;
    equal!(setting.region.info()?.faults, 0);
    // A private copy is given up: the region's contents are back.
    let private = setting.area_as(AreaBuilder::default().private())?;
    private.write_page(3, &contents(999));
    private.advise(0..16, MADV_DONTNEED)?;
    check_page(&private, 3, 103)
}

fn dontneed_of_an_absent_page_leaves_it_absent() -> Outcome {
    let setting = Setting::new(4)?;
    setting.area()?.advise(0..4, MADV_DONTNEED)?;
    equal!(setting.region.info()?.present, 0);
    let reader = setting.reader(1)?;
    equal!(setting.take_request()?, 1);
    setting.fill([1])?;
    check_words(&reader.join()?, 1)
}

fn removed_pages_are_zero() -> Outcome {
    let setting = Setting::new(16)?;
    setting.fill_all()?;
    let area = setting.area()?;
    let other = setting.area()?;
    check_page(&other, 4, 4)?;
    area.advise(4..6, MADV_REMOVE)?;
    for pgoff in [4, 5] {
        check_zero(&area, pgoff)?;
        check_zero(&other, pgoff)?;
    }
    check_page(&area, 3, 3)?;
    check_page(&area, 6, 6)?;
    setting.no_request()
}

fn removed_absent_pages_are_zero_and_never_fetched() -> Outcome {
    // More than the module does at a time.
    let setting = Setting::new(1200)?;
    let area = setting.area()?;
    area.advise(3..1100, MADV_REMOVE)?;
    equal!(setting.region.info()?.present, 1097);
    for pgoff in [3, 511, 512, 1099] {
        check_zero(&area, pgoff)?;
    }
    setting.no_request()?;
    let reader = setting.reader(1100)?;
    equal!(setting.take_request()?, 1100);
    setting.fill([1100])?;
    check_words(&reader.join()?, 1100)
}

fn remove_wakes_waiters_of_the_page() -> Outcome {
    let setting = Setting::new(8)?;
    let reader = setting.reader(5)?;
    setting.wait_waiters(1)?;
    setting.area()?.advise(0..8, MADV_REMOVE)?;
    ensure!(reader.join()?.iter().all(|word| *word == 0));
    setting.no_request()
}

fn a_removed_page_is_not_filled_any_more() -> Outcome {
    let setting = Setting::new(8)?;
    let area = setting.area()?;
    area.advise(2..3, MADV_REMOVE)?;
    let bytes = crate::setting::bytes_of(&contents(2));
    equal!(
        setting
            .region
            .fill(&[vmem::Fill::new(crate::setting::page(2), &bytes)?])
            .complete()?,
        0
    );
    check_zero(&area, 2)
}

fn a_removed_page_can_be_written() -> Outcome {
    let setting = Setting::new(8)?;
    let area = setting.area()?;
    area.advise(2..3, MADV_REMOVE)?;
    area.write_page(2, &contents(20));
    check_page(&setting.area()?, 2, 20)
}

/// The kernel asks no device for holes: MADV_REMOVE is the way.
fn region_and_map_descriptors_cannot_be_truncated_or_punched() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(4 * PAGE_SIZE as u64).name("whole"))?;
    let node = MapHandle::open("whole", Access::ReadWrite)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for fd in [setting.region.as_fd(), setting.map.as_fd(), node.as_fd()] {
        for flags in [punch, FallocateFlags::empty(), FallocateFlags::ZERO_RANGE] {
            refused!(fallocate(fd, flags, 0, PAGE_SIZE as u64), NODEV);
        }
        refused!(ftruncate(fd, 0), INVAL);
    }
    equal!(setting.region.info()?.present, 0);
    Ok(())
}

fn the_staging_file_cannot_be_truncated() -> Outcome {
    let setting = Setting::new(4)?;
    for size in [0, 1, 3 * PAGE_SIZE as u64, 5 * PAGE_SIZE as u64, 1 << 40] {
        refused!(ftruncate(setting.region.staging(), size), PERM);
    }
    equal!(setting.region.staging().metadata()?.len(), 4 * PAGE_SIZE as u64);
    // Nor made longer by a write.
    use std::os::unix::fs::FileExt;
    ensure!(setting.region.staging().write_at(&[1; 16], 4 * PAGE_SIZE as u64).is_err());
    Ok(())
}

fn free_is_refused_as_on_any_shared_memory() -> Outcome {
    let setting = Setting::new(4)?;
    refused!(setting.area()?.advise(0..4, MADV_FREE), INVAL);
    Ok(())
}

/// A program that does something to a mapping of 64 pages, which a daemon fills, and finds all pages mapped afterwards.
fn all_come_in(bring: impl FnOnce(&Setting) -> Outcome<vmem_functional_sys::Area>) -> Outcome {
    let setting = Setting::new(64)?;
    let program = Program::start(|| {
        let area = bring(&setting)?;
        let absent = mapped_pages(&area)?.iter().filter(|mapped| !**mapped).count();
        ensure!(absent == 0, "{absent} pages are not mapped");
        for pgoff in 0..64 {
            check_page(&area, pgoff, pgoff)?;
        }
        Ok(vec![])
    })?;
    let server = Server::start(&setting.region);
    program.join()?;
    let mut served = server.stop()?;
    served.sort_unstable();
    equal!(served, (0..64).collect::<Vec<_>>());
    Ok(())
}

fn mlock_brings_every_page_in() -> Outcome {
    all_come_in(|setting| {
        let area = setting.area()?;
        area.lock(0..64)?;
        Ok(area)
    })
}

/// A program that brings the mapping of a region without a server to be, and touches a page of it then.
fn none_come_in(bring: impl FnOnce(&Setting) -> Outcome<vmem_functional_sys::Area>) -> Outcome {
    let setting = Setting::new(64)?;
    setting.fill([3])?;
    let program = Program::start(|| {
        let area = bring(&setting)?;
        let info = setting.map.info()?;
        equal!((info.faults, info.requests), (0, 0));
        check_page(&area, 3, 3)?;
        check_page(&area, 40, 40)?;
        Ok(vec![])
    })?;
    equal!(setting.take_request()?, 40);
    setting.fill([40])?;
    program.join().map(drop)
}

fn mlock_on_fault_asks_for_nothing() -> Outcome {
    none_come_in(|setting| {
        let area = setting.area()?;
        area.lock_on_fault(0..64)?;
        area.lock_on_fault(8..16)?;
        Ok(area)
    })
}

fn mlockall_on_fault_asks_for_nothing() -> Outcome {
    none_come_in(|setting| {
        let area = setting.area()?;
        lock_all(MCL_CURRENT | MCL_ONFAULT)?;
        lock_all(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)?;
        Ok(area)
    })
}

fn a_mapping_made_under_mlockall_on_fault_asks_for_nothing() -> Outcome {
    none_come_in(|setting| {
        lock_all(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)?;
        setting.area()
    })
}

/// The touch by the kernel that follows such a call, on its way out, is one that needs its page.
fn a_signal_frame_is_written_though_a_lock_on_fault_was_interrupted() -> Outcome {
    let setting = Setting::new(64)?;
    let server = Server::start(&setting.region);
    // Most signals come while the program is in the call.
    for page in (8..64).step_by(8) {
        let board = Board::new()?;
        let program = Program::start(|| {
            let (area, other) = (setting.area()?, AreaBuilder::default().private().anonymous(64)?);
            catch_signal_on(Signal::USR1.as_raw(), &area, page)?;
            // The signal may come from here on.
            let before = caught();
            board.set(0, 1)?;
            while caught() == before {
                other.lock_on_fault(0..64)?;
            }
            Ok(vec![])
        })?;
        board.wait(0, 1)?;
        program.signal(Signal::USR1)?;
        program.join()?;
    }
    equal!(server.stop()?, (8..64).step_by(8).collect::<Vec<u64>>());
    Ok(())
}

fn map_populate_brings_every_page_in() -> Outcome {
    all_come_in(|setting| setting.area_as(AreaBuilder::default().populate()))
}

fn populate_read_and_write_bring_every_page_in() -> Outcome {
    for advice in [MADV_POPULATE_READ, MADV_POPULATE_WRITE] {
        all_come_in(|setting| {
            let area = setting.area()?;
            area.advise(0..64, advice)?;
            Ok(area)
        })?;
    }
    Ok(())
}

fn populate_of_an_unreadable_page_is_efault() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill([0, 1, 3])?;
    setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    refused!(setting.area()?.advise(0..4, MADV_POPULATE_READ), FAULT);
    Ok(())
}

fn willneed_and_cold_ask_for_nothing() -> Outcome {
    const MADV_WILLNEED: i32 = 3;
    const MADV_COLD: i32 = 20;
    const MADV_PAGEOUT: i32 = 21;
    let setting = Setting::new(64)?;
    setting.fill([3])?;
    let area = setting.area()?;
    for advice in [MADV_WILLNEED, MADV_COLD, MADV_PAGEOUT] {
        area.advise(0..64, advice)?;
    }
    setting.no_request()?;
    equal!((setting.region.info()?.faults, setting.region.info()?.present), (0, 1));
    check_page(&area, 3, 3)
}

fn msync_succeeds_and_asks_for_nothing() -> Outcome {
    const MS_ASYNC: i32 = 1;
    const MS_INVALIDATE: i32 = 2;
    const MS_SYNC: i32 = 4;
    let setting = Setting::new(64)?;
    setting.fill([3])?;
    let area = setting.area()?;
    area.write_page(3, &contents(30));
    for flags in [MS_ASYNC, MS_SYNC, MS_SYNC | MS_INVALIDATE] {
        area.sync(0..64, flags)?;
    }
    setting.no_request()?;
    equal!(setting.region.info()?.present, 1);
    check_page(&area, 3, 30)
}

fn a_private_mapping_cannot_remove_and_says_eacces() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill_all()?;
    refused!(
        setting.area_as(AreaBuilder::default().private())?.advise(0..4, MADV_REMOVE),
        ACCESS
    );
    check_page(&setting.area()?, 1, 1)
}

fn advice_that_would_take_absent_pages_for_zeros_is_refused_with_einval() -> Outcome {
    const MADV_DONTFORK: i32 = 10;
    const MADV_DOFORK: i32 = 11;
    const MADV_DONTDUMP: i32 = 16;
    const MADV_DODUMP: i32 = 17;
    const MADV_COLLAPSE: i32 = 25;
    const MADV_GUARD_INSTALL: i32 = 102;
    let setting = Setting::new(1024)?;
    setting.fill([0])?;
    let mut area = setting.area()?;
    for advice in [MADV_COLLAPSE, MADV_GUARD_INSTALL] {
        refused!(area.advise(0..1024, advice), INVAL);
    }
    // The one flag behind this has its price: these cannot be taken back before the conversion.
    for (taken, back) in [(MADV_DONTFORK, MADV_DOFORK), (MADV_DONTDUMP, MADV_DODUMP)] {
        area.advise(0..1024, taken)?;
        refused!(area.advise(0..1024, back), INVAL);
    }
    refused!(area.remap_and_keep(), INVAL);
    refused!(area.rearrange(0..1, 1), NODEV);
    setting.no_request()?;
    equal!(setting.region.info()?.present, 1);
    Ok(())
}

fn advice_for_huge_pages_and_ksm_is_taken_and_changes_nothing_before_conversion() -> Outcome {
    const MADV_MERGEABLE: i32 = 12;
    const MADV_HUGEPAGE: i32 = 14;
    let setting = Setting::new(1024)?;
    setting.fill([0])?;
    let area = setting.area()?;
    area.advise(0..1024, MADV_HUGEPAGE)?;
    // Shared memory is not merged; the advice does nothing, as for any.
    area.advise(0..1024, MADV_MERGEABLE)?;
    check_page(&area, 0, 0)?;
    equal!(setting.region.info()?.present, 1);
    let reader = setting.reader(1)?;
    equal!(setting.take_request()?, 1);
    setting.fill([1])?;
    check_words(&reader.join()?, 1)
}

fn a_fill_that_waits_for_its_contents_holds_up_neither_a_discard_nor_another_fill() -> Outcome {
    let (setting, slow) = (Setting::new(64)?, Setting::new(4)?);
    let filler = Program::start_with(|| {
        let contents = slow.area()?;
        let range = vmem_fill_range {
            pgoff: 3,
            nr_pages: 1,
            addr: (contents.address() + 3 * PAGE_SIZE) as u64,
        };
        let mut fill = vmem_fill {
            ranges: (&raw const range) as u64,
            nr: 1,
            ..Default::default()
        };
        ioctl(setting.region.as_fd(), VMEM_FILL_PAGES, &mut fill)?;
        Ok(vec![fill.changed])
    })?;
    slow.wait_waiters(1)?;
    let program = Program::start(|| {
        let area = setting.area()?;
        area.advise(8..16, MADV_REMOVE)?;
        check_zero(&area, 9)?;
        Ok(vec![])
    })?;
    program.join()?;
    setting.fill([1])?;
    slow.fill([3])?;
    equal!(filler.join()?, [1]);
    check_page(&setting.area()?, 3, 3)
}
