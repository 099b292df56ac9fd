// SPDX-License-Identifier: GPL-2.0-or-later
//! Backing: absent pages that the module itself reads from a file.

pub(super) mod refusal;
pub(super) mod slow;
pub(super) mod truncated;

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::Signal;
use vmem::{Backing, Control, Error, Fill, PAGE_SIZE, RegionBuilder, SnapshotOptions};
use vmem_functional_sys::{AreaBuilder, ioctl};
use vmem_sys::{VMEM_SET_BACKING, VMEM_TRACK_FILLS, calls, vmem_backing};

use super::files::{Mount, region};
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal, refused};
use crate::kernel::Cgroup;
use crate::program::Program;
use crate::setting::{Board, Setting, bytes_of, check_page, check_words, check_zero, contents, mapped_pages, page, pages};
use crate::world::wait_until;

const MADV_REMOVE: i32 = 9;

crate::tests![
    module_and_library_have_backing,
    touch_reads_the_file_without_a_request,
    stores_do_not_reach_the_file,
    private_mapping_reads_the_file,
    one_touch_reads_the_pages_around,
    file_at_an_offset_backs_a_part,
    read_and_write_of_the_regions_file_use_backing,
    snapshot_has_absent_pages_from_backing,
    page_that_the_file_does_not_have_is_requested_or_unreadable,
    last_page_needs_as_much_as_the_region_has,
    what_comes_first_stays,
    requested_pages_are_read_when_backing_comes,
    backing_that_is_withdrawn_is_not_read,
    withdrawal_races_with_touches,
    many_threads_read_each_page_once,
    backing_outlives_its_daemon_and_ends_with_the_region,
    pages_are_charged_to_the_program_that_touches_them,
    child_of_a_fork_reads_the_file,
    log_with_fills_has_what_is_read,
    conversion_lets_go_of_the_file,
];

/// Contents that differ from those of the page's own.
const OTHER: u64 = 5000;

/// A file in memory whose page N has the contents of page `first + N`.
pub(super) fn source(first: u64, pages: usize) -> Outcome<File> {
    let mut file = File::from(memfd_create("source", MemfdFlags::CLOEXEC)?);
    for pgoff in first..first + pages as u64 {
        file.write_all(&bytes_of(&contents(pgoff)))?;
    }
    file.rewind()?;
    Ok(file)
}

/// `file` from its beginning, with so many pages a touch.
pub(super) fn all_of(file: &File, around: u32) -> Backing<'_> {
    Backing {
        file: file.as_fd(),
        offset: 0,
        around,
    }
}

/// A region of so many pages that all lie in a file.
fn backed(pages: usize, around: u32) -> Outcome<Setting> {
    let setting = Setting::new(pages)?;
    let file = source(0, pages)?;
    setting.region.set_backing(setting.region.pages(), all_of(&file, around))?;
    Ok(setting)
}

fn module_and_library_have_backing() -> Outcome {
    ensure!(Control::open()?.features()?.backing);
    let setting = backed(4, 0)?;
    let map_only = Control::open()?;
    refused!(ioctl(map_only.as_fd(), VMEM_SET_BACKING, &mut vmem_backing::default()), NOTTY);
    refused!(
        ioctl(setting.map.as_fd(), VMEM_SET_BACKING, &mut vmem_backing::default()),
        PERM
    );
    Ok(())
}

fn touch_reads_the_file_without_a_request() -> Outcome {
    let setting = backed(3000, 1)?;
    // All over, each once, in an order that is none.
    let order = || (0..3000).map(|step| step * 1009 % 3000);
    setting.checker(order())?.join()?;
    setting.no_request()?;
    let info = setting.region.info()?;
    equal!((info.present, info.backed, info.requests, info.faults), (3000, 3000, 0, 3000));
    // Pages that are here are as they were.
    setting.checker(order())?.join()?;
    equal!(setting.region.info()?.faults, 3000);
    Ok(())
}

fn stores_do_not_reach_the_file() -> Outcome {
    let setting = Setting::new(64)?;
    let file = source(0, 64)?;
    setting.region.set_backing(setting.region.pages(), all_of(&file, 4))?;
    let area = setting.area()?;
    for pgoff in (0..64).rev() {
        area.store(pgoff * PAGE_SIZE + 8, 7);
    }
    let other = setting.area()?;
    for pgoff in 0..64 {
        let mut expected = contents(pgoff as u64);
        check_words(&file_page(&file, pgoff)?, pgoff)?;
        expected[1] = 7;
        equal!(other.page(pgoff), expected);
    }
    Ok(())
}

fn file_page(file: &File, at: usize) -> Outcome<Vec<u64>> {
    let mut bytes = vec![0; PAGE_SIZE];
    file.read_exact_at(&mut bytes, (at * PAGE_SIZE) as u64)?;
    Ok(bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
        .collect())
}

fn private_mapping_reads_the_file() -> Outcome {
    let setting = backed(64, 1)?;
    let area = setting.area_as(AreaBuilder::default().private())?;
    area.store(PAGE_SIZE, 9);
    check_page(&area, 2, 2)?;
    let mut own = contents(1);
    own[0] = 9;
    equal!(area.page(1), own);
    setting.checker(0..3)?.join()?;
    equal!(setting.region.info()?.backed, 3);
    Ok(())
}

fn one_touch_reads_the_pages_around() -> Outcome {
    let setting = backed(600, 16)?;
    setting.fill([37])?;
    let area = setting.area()?;
    check_page(&area, 40, 40)?;
    // Those of the group of 16 that are absent, up to the one that is present.
    let present = |first: usize, count: usize| pages(first, count);
    let runs = || -> Outcome<Vec<_>> { Ok(setting.region.present_map()?.runs().collect()) };
    equal!(runs()?, [present(37, 11)]);
    // Those that were read are mapped, too.
    let mapped = mapped_pages(&area)?;
    ensure!((38..48).all(|pgoff| mapped[pgoff]), "{mapped:?}");
    // Not beyond the end.
    check_page(&area, 599, 599)?;
    equal!(runs()?, [present(37, 11), present(592, 8)]);
    equal!(setting.region.info()?.backed, 10 + 8);
    setting
        .region
        .set_backing(setting.region.pages(), all_of(&source(0, 600)?, 512))?;
    check_page(&area, 60, 60)?;
    equal!(runs()?, [present(37, 512 - 37), present(592, 8)]);
    check_page(&area, 3, 3)?;
    equal!(runs()?, [present(0, 512), present(592, 8)]);
    setting.checker(0..600)?.join()?;
    Ok(())
}

fn file_at_an_offset_backs_a_part() -> Outcome {
    let setting = Setting::new(2000)?;
    let file = source(990, 30)?;
    let backing = Backing {
        offset: 10 * PAGE_SIZE as u64,
        ..all_of(&file, 512)
    };
    setting.region.set_backing(pages(1000, 20), backing)?;
    setting.checker((1000..1020).rev())?.join()?;
    setting.no_request()?;
    equal!(setting.region.info()?.present, 20);
    for pgoff in [999, 1020] {
        let reader = setting.reader(pgoff)?;
        equal!(setting.take_request()?, pgoff);
        setting.fill([pgoff])?;
        check_words(&reader.join()?, pgoff)?;
    }
    Ok(())
}

fn read_and_write_of_the_regions_file_use_backing() -> Outcome {
    const PAGES: usize = 700;
    let mount = Mount::new("a")?;
    let setting = Setting::create(region("one", PAGES))?;
    let source = source(0, PAGES)?;
    setting.region.set_backing(pages(0, 600), all_of(&source, 0))?;
    let file = mount.open("one")?;
    let mut bytes = vec![0; 600 * PAGE_SIZE];
    file.read_exact_at(&mut bytes, 0)?;
    for (pgoff, bytes) in bytes.chunks_exact(PAGE_SIZE).enumerate() {
        equal!(bytes, bytes_of(&contents(pgoff as u64)));
    }
    setting.no_request()?;
    // A read that comes to pages without backing requests those, together.
    let reader = Program::start(|| {
        let mut bytes = vec![0; 110 * PAGE_SIZE];
        file.read_exact_at(&mut bytes[..], 590 * PAGE_SIZE as u64)?;
        Ok(vec![])
    })?;
    setting.wait_waiters(1)?;
    let mut taken: Vec<_> = (0..2)
        .map(|_| setting.region.next_requests(64))
        .collect::<Result<Vec<_>, _>>()?
        .concat();
    taken.sort();
    equal!(taken, (600..700).map(page).collect::<Vec<_>>());
    setting.fill(600..700)?;
    reader.join()?;
    setting.region.set_backing(pages(0, 600), all_of(&source, 0))?;

    let setting = Setting::create(region("two", 8))?;
    setting.region.set_backing(pages(0, 8), all_of(&source, 1))?;
    let file = mount.open("two")?;
    file.write_all_at(&7u64.to_le_bytes(), 3 * PAGE_SIZE as u64 + 16)?;
    let mut expected = contents(3);
    expected[2] = 7;
    equal!(setting.area()?.page(3), expected);
    equal!(setting.region.info()?.backed, 1);
    Ok(())
}

fn snapshot_has_absent_pages_from_backing() -> Outcome {
    let setting = backed(32, 1)?;
    let tracking = Control::open()?.adopt(&setting.map)?.track()?;
    let snapshot = tracking.snapshot(SnapshotOptions::default())?;
    let area = setting.area()?;
    area.store(4 * PAGE_SIZE, 9);
    let mut bytes = vec![0; PAGE_SIZE];
    for pgoff in [4, 5] {
        snapshot.read_exact_at(&mut bytes, (pgoff * PAGE_SIZE) as u64)?;
        equal!(bytes, bytes_of(&contents(pgoff as u64)));
    }
    setting.no_request()
}

fn page_that_the_file_does_not_have_is_requested_or_unreadable() -> Outcome {
    let setting = Setting::new(64)?;
    let file = source(0, 64)?;
    setting.region.set_backing(setting.region.pages(), all_of(&file, 16))?;
    ftruncate(&file, 20 * PAGE_SIZE as u64 + 100)?;
    setting.checker(16..20)?.join()?;
    equal!(setting.region.info()?.present, 20 - 16);
    // With a daemon, it is a request.
    let reader = setting.reader(20)?;
    equal!(setting.take_request()?, 20);
    setting.fill([20])?;
    check_words(&reader.join()?, 20)?;
    // Neighbours are left alone.
    equal!(setting.region.info()?.present, 5);
    equal!(setting.region.info()?.requested, 0);
    // Without one, it is unreadable, until it is filled.
    let id = setting.region.id();
    let map = setting.region.map_handle()?;
    let reader = |pgoff: usize| Program::start(|| Ok(AreaBuilder::default().map(&map, 0, 64)?.page(pgoff)));
    drop(setting);
    reader(30)?.join_killed(Signal::BUS)?;
    check_words(&reader(17)?.join()?, 17)?;
    let setting = Setting {
        region: Control::open()?.attach_id(id)?.into(),
        map,
    };
    equal!(setting.region.info()?.unreadable, 1);
    setting.fill([30])?;
    setting.checker([30])?.join()?;
    Ok(())
}

fn last_page_needs_as_much_as_the_region_has() -> Outcome {
    for (missing, cold) in [(0, false), (1, false), (0, true), (1, true)] {
        let setting = Setting::create(RegionBuilder::new(2 * PAGE_SIZE as u64 + 100))?;
        let file = source(0, 3)?;
        // Behind the region's end, and behind the file's.
        ftruncate(&file, 2 * PAGE_SIZE as u64 + 100 - missing)?;
        if cold {
            // A hole is not in the page cache.
            ftruncate(&file, 0)?;
            ftruncate(&file, 2 * PAGE_SIZE as u64 + 100 - missing)?;
        }
        setting.region.set_backing(setting.region.pages(), all_of(&file, 1))?;
        let reader = setting.reader(2)?;
        if missing == 0 {
            let words = reader.join()?;
            let mut bytes = if cold { vec![0; PAGE_SIZE] } else { bytes_of(&contents(2)) };
            bytes[100..].fill(0);
            equal!(bytes_of(&words), bytes);
            setting.no_request()?;
        } else {
            equal!(setting.take_request()?, 2);
            reader.signal(Signal::KILL)?;
            reader.join_killed(Signal::KILL)?;
        }
    }
    Ok(())
}

fn what_comes_first_stays() -> Outcome {
    let setting = backed(64, 1)?;
    let area = setting.area()?;
    let bytes = bytes_of(&contents(OTHER));
    setting.region.fill(&[Fill::new(page(1), &bytes)?]).complete()?;
    setting.region.mark_zero(&[pages(2, 1)]).complete()?;
    setting.region.mark_unreadable(&[pages(3, 1)]).complete()?;
    area.advise(4..5, MADV_REMOVE)?;
    setting.region.stage(&[Fill::new(page(5), &bytes)?]).complete()?;
    check_words(&area.page(1), OTHER as usize)?;
    check_zero(&area, 2)?;
    setting.reader(3)?.join_killed(Signal::BUS)?;
    check_zero(&area, 4)?;
    // What was staged was never marked.
    check_page(&area, 5, 5)?;
    equal!(setting.region.info()?.backed, 1);
    // The other way round.
    check_page(&area, 6, 6)?;
    equal!(setting.region.fill(&[Fill::new(page(6), &bytes)?]).complete()?, 0);
    check_page(&area, 6, 6)?;
    area.advise(6..7, MADV_REMOVE)?;
    check_zero(&area, 6)?;
    // The daemon cures a page that is not read.
    setting.fill([3])?;
    check_page(&area, 3, 3)
}

fn requested_pages_are_read_when_backing_comes() -> Outcome {
    let setting = Setting::new(1024)?;
    let readers = [3, 4, 900].map(|pgoff| setting.reader(pgoff));
    setting.wait_waiters(3)?;
    // One is taken, and never answered.
    setting.region.next_requests(1)?;
    let file = source(0, 1024)?;
    setting.region.set_backing(setting.region.pages(), all_of(&file, 1))?;
    for (reader, pgoff) in readers.into_iter().zip([3, 4, 900]) {
        check_words(&reader?.join()?, pgoff)?;
    }
    setting.no_request()?;
    let info = setting.region.info()?;
    equal!((info.requested, info.queued, info.waiters, info.present), (0, 0, 0, 3));
    Ok(())
}

fn backing_that_is_withdrawn_is_not_read() -> Outcome {
    let setting = backed(1024, 1)?;
    setting.region.withdraw_backing(pages(10, 600))?;
    setting.checker((0..10).chain(610..1024))?.join()?;
    setting.no_request()?;
    let reader = setting.reader(10)?;
    equal!(setting.take_request()?, 10);
    // Another one takes its place, in a part.
    setting.region.set_backing(pages(10, 2), all_of(&source(OTHER, 2)?, 1))?;
    check_words(&reader.join()?, OTHER as usize)?;
    check_words(&setting.reader(11)?.join()?, OTHER as usize + 1)?;
    let reader = setting.reader(12)?;
    equal!(setting.take_request()?, 12);
    setting.fill([12])?;
    check_words(&reader.join()?, 12)?;
    setting.region.withdraw_backing(setting.region.pages())?;
    setting.region.withdraw_backing(setting.region.pages())?;
    let reader = setting.reader(13)?;
    equal!(setting.take_request()?, 13);
    setting.fill([13])?;
    check_words(&reader.join()?, 13)
}

/// Each page is of the file that backed it at that time: once the call has returned, no page comes from the one before.
fn withdrawal_races_with_touches() -> Outcome {
    const PAGES: usize = 8192;
    let setting = Setting::new(PAGES)?;
    let files = [source(0, PAGES)?, source(OTHER * 10, PAGES)?];
    let all = setting.region.pages();
    let over = AtomicBool::new(false);
    setting.region.set_backing(all, all_of(&files[0], 1))?;
    thread::scope(|scope| -> Outcome {
        let toucher = scope.spawn(|| -> Outcome {
            let area = setting.area()?;
            for step in 0..PAGES / 2 {
                let pgoff = step * 1009 % (PAGES / 2);
                let word = area.load(pgoff * PAGE_SIZE) >> 32;
                let own = [pgoff as u64 + 1, OTHER * 10 + pgoff as u64 + 1];
                ensure!(own.contains(&word), "page {pgoff} has {word:#x}");
            }
            over.store(true, Ordering::Release);
            Ok(())
        });
        let mut changes = 0usize;
        let area = setting.area()?;
        // The upper half is this thread's: a touch after a change is of the file that is backing then.
        let mut probes = PAGES / 2..PAGES;
        while !over.load(Ordering::Acquire) && !toucher.is_finished() {
            changes += 1;
            setting.region.set_backing(all, all_of(&files[changes % 2], 1))?;
            let Some(probe) = probes.next() else { break };
            check_page(&area, probe, probe + (changes % 2) * OTHER as usize * 10)?;
        }
        toucher.join().map_err(|_| "the thread has panicked")??;
        ensure!(changes > 1, "nothing was changed meanwhile");
        Ok(())
    })?;
    setting.region.withdraw_backing(all)?;
    setting.no_request()
}

fn many_threads_read_each_page_once() -> Outcome {
    const PAGES: usize = 2048;
    let setting = backed(PAGES, 4)?;
    let programs = (0..3).map(|_| {
        Program::start(|| {
            let area = setting.area()?;
            thread::scope(|scope| -> Outcome {
                let check = |thread: usize| {
                    let area = &area;
                    move || {
                        (0..PAGES).try_for_each(|step| {
                            let pgoff = (step * 517 + thread) % PAGES;
                            check_page(area, pgoff, pgoff)
                        })
                    }
                };
                let threads: Vec<_> = (0..4).map(|thread| scope.spawn(check(thread))).collect();
                for thread in threads {
                    thread.join().map_err(|_| "a thread has panicked")??;
                }
                Ok(())
            })?;
            Ok(vec![])
        })
    });
    for program in programs.collect::<Outcome<Vec<_>>>()? {
        program.join()?;
    }
    setting.no_request()?;
    let info = setting.region.info()?;
    equal!((info.present, info.backed, info.unreadable), (PAGES as u64, PAGES as u64, 0));
    Ok(())
}

fn backing_outlives_its_daemon_and_ends_with_the_region() -> Outcome {
    let path = "/dev/shm/vmem-backing";
    fs::write(path, (0..64).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect::<Vec<_>>())?;
    let setting = Setting::create(RegionBuilder::new(64 * PAGE_SIZE as u64).sigbus_without_daemon())?;
    setting
        .region
        .set_backing(setting.region.pages(), all_of(&File::open(path)?, 1))?;
    let Setting { region, map } = setting;
    drop(region);
    // A touch does not fail, since no daemon is needed.
    let checker = Program::start(|| {
        let area = AreaBuilder::default().map(&map, 0, 64)?;
        (0..64).try_for_each(|pgoff| check_page(&area, pgoff, pgoff))?;
        Ok(vec![])
    })?;
    checker.join()?;
    // The file's memory goes with the region, as it is removed meanwhile.
    let blocks = || -> Outcome<u64> { Ok(rustix::fs::statvfs("/dev/shm")?.f_bfree) };
    let before = blocks()?;
    fs::remove_file(path)?;
    equal!(blocks()?, before);
    drop(map);
    wait_until("the file is released", || Ok(blocks()? >= before + 64))
}

fn pages_are_charged_to_the_program_that_touches_them() -> Outcome {
    const PAGES: usize = 2048;
    let setting = backed(PAGES, 16)?;
    let (group, board) = (Cgroup::new("vmem-program")?, Board::new()?);
    let program = Program::start(|| {
        group.enter()?;
        let area = setting.area()?;
        (0..PAGES).try_for_each(|pgoff| check_page(&area, pgoff, pgoff))?;
        board.set(0, 1)?;
        // Until the signal: a return without a reason is allowed.
        loop {
            thread::park();
        }
    })?;
    board.wait(0, 1)?;
    let charged = group.stat("shmem")?;
    ensure!(
        (7 << 20..9 << 20).contains(&charged),
        "the program's group has {charged} bytes"
    );
    program.signal(Signal::KILL)?;
    program.join_killed(Signal::KILL)?;
    drop(setting);
    wait_until("the pages are freed", || Ok(group.stat("shmem")? < 1 << 20))
}

fn child_of_a_fork_reads_the_file() -> Outcome {
    let setting = backed(64, 1)?;
    let area = setting.area()?;
    check_page(&area, 3, 3)?;
    let child = Program::start(|| {
        (0..64).try_for_each(|pgoff| check_page(&area, pgoff, pgoff))?;
        area.store(5 * PAGE_SIZE, 1);
        Ok(vec![])
    })?;
    child.join()?;
    equal!(area.load(5 * PAGE_SIZE), 1);
    equal!(setting.region.info()?.backed, 64);
    Ok(())
}

fn log_with_fills_has_what_is_read() -> Outcome {
    for flags in [0, VMEM_TRACK_FILLS] {
        let setting = backed(64, 4)?;
        let adopted = Adopted::new(&setting.map)?;
        adopted.track_with(flags)?;
        let area = setting.area()?;
        let dirty = || -> Outcome<u64> {
            let mut bitmap = [0];
            let logged = calls::dirty_bitmap(adopted.as_fd(), 0, 64, true, &mut bitmap);
            ensure!(logged.error.is_none(), "the log cannot be read");
            Ok(bitmap[0])
        };
        check_page(&area, 9, 9)?;
        equal!(dirty()?, if flags == 0 { 0 } else { 0xf00 });
        area.store(9 * PAGE_SIZE, 1);
        equal!(dirty()?, 0x200);
    }
    Ok(())
}

fn conversion_lets_go_of_the_file() -> Outcome {
    let setting = Setting::new(64)?;
    let file = source(0, 64)?;
    setting.region.set_backing(setting.region.pages(), all_of(&file, 16))?;
    setting.checker(0..64)?.join()?;
    setting.region.make_vma_anonymous()?;
    let again = setting.region.set_backing(setting.region.pages(), all_of(&file, 16));
    ensure!(matches!(again, Err(Error::Plain)), "{again:?}");
    setting.checker(0..64)?.join()?;
    Ok(())
}
