// SPDX-License-Identifier: GPL-2.0-or-later
//! MAKE_VMA_ANONYMOUS: the mappings become plain shared anonymous memory, and nothing of vmem is left.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use vmem::{Access, Control, Error, MapHandle, PAGE_SIZE, RegionBuilder, Sharing};
use vmem_functional_sys::{Area, AreaBuilder};
use vmem_sys::calls;

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::{Board, Setting, check_page, contents, mapped_pages, minor_faults, pages, smaps, vm_flags};
use crate::world::{insert_module, module_users, remove_module, wait_until};

const MADV_DONTNEED: i32 = 4;
const MADV_NOHUGEPAGE: i32 = 15;

use super::request::{joined, take_in_a_thread};

crate::tests![
    conversion_is_refused_with_ebusy_while_pages_are_absent,
    conversion_is_refused_with_ebusy_while_pages_are_unreadable,
    a_refused_conversion_changes_nothing,
    conversion_keeps_the_contents_in_every_process,
    a_second_conversion_does_nothing,
    conversion_equals_shared_anonymous_memory,
    a_converted_page_faults_as_often_as_shared_anonymous_memory,
    a_converted_private_mapping_keeps_its_copies,
    parts_of_a_mapping_are_converted_with_their_protection,
    a_converted_mapping_can_grow_as_shared_anonymous_memory_can,
    a_converted_mapping_can_be_locked,
    a_mapping_made_after_the_conversion_is_plain,
    a_region_converted_before_it_is_mapped_is_plain,
    conversion_gives_no_way_to_write_what_could_only_be_read,
    huge_regions_get_madv_hugepage,
    wait_ready_of_a_plain_region_returns,
    request_wait_on_a_plain_region_is_enodata,
    threads_that_read_and_write_meanwhile_notice_nothing,
    programs_that_fork_and_unmap_meanwhile_notice_nothing,
    a_converted_region_is_gone_when_its_descriptors_are_closed,
    rmmod_succeeds_while_the_converted_program_runs_on,
];

fn conversion_is_refused_with_ebusy_while_pages_are_absent() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill(0..7)?;
    ensure!(matches!(setting.region.make_vma_anonymous(), Err(Error::PagesAbsent)));
    setting.fill([7])?;
    setting.region.make_vma_anonymous()?;
    Ok(())
}

fn conversion_is_refused_with_ebusy_while_pages_are_unreadable() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill(0..7)?;
    setting.region.mark_unreadable(&[pages(7, 1)]).complete()?;
    ensure!(matches!(setting.region.make_vma_anonymous(), Err(Error::PagesAbsent)));
    setting.region.mark_zero(&[pages(7, 1)]).complete()?;
    setting.region.make_vma_anonymous()?;
    Ok(())
}

fn a_refused_conversion_changes_nothing() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill(0..7)?;
    let area = setting.area()?;
    ensure!(setting.region.make_vma_anonymous().is_err());
    let info = setting.region.info()?;
    equal!((info.plain, info.mappings), (false, 1));
    let reader = setting.reader(7)?;
    equal!(setting.take_request()?, 7);
    setting.fill([7])?;
    crate::setting::check_words(&reader.join()?, 7)?;
    check_page(&area, 7, 7)
}

fn conversion_keeps_the_contents_in_every_process() -> Outcome {
    let setting = Setting::new(64)?;
    setting.fill_all()?;
    let board = Board::new()?;
    let programs: Vec<_> = (0..3)
        .map(|slot| {
            Program::start(|| {
                let area = setting.area()?;
                // One has touched all of it, one a part, one nothing.
                for pgoff in 3..slot * 30 {
                    check_page(&area, pgoff, pgoff)?;
                }
                area.write_page(slot, &contents(1000 + slot as u64));
                board.set(slot, 1)?;
                board.wait(10, 1)?;
                for pgoff in 3..64 {
                    check_page(&area, pgoff, pgoff)?;
                }
                for written in 0..3 {
                    check_page(&area, written, 1000 + written)?;
                }
                // Still shared; each step begins when all have done the one before.
                let step = |step: u64| -> Outcome {
                    board.set(slot, step)?;
                    (0..3).try_for_each(|other| board.wait(other, step))
                };
                step(2)?;
                area.write_page(10 + slot, &contents(2000 + slot as u64));
                step(3)?;
                for other in 0..3 {
                    check_page(&area, 10 + other, 2000 + other)?;
                }
                Ok(vec![])
            })
        })
        .collect::<Outcome<_>>()?;
    for slot in 0..3 {
        board.wait(slot, 1)?;
    }
    setting.region.make_vma_anonymous()?;
    let info = setting.region.info()?;
    equal!((info.plain, info.mappings), (true, 0));
    board.set(10, 1)?;
    for program in programs {
        program.join()?;
    }
    Ok(())
}

fn a_second_conversion_does_nothing() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    let area = setting.area()?;
    setting.region.make_vma_anonymous()?;
    let before = smaps(std::process::id(), area.address())?;
    setting.region.make_vma_anonymous()?;
    equal!(smaps(std::process::id(), area.address())?, before);
    check_page(&area, 3, 3)
}

/// Touches all memory, so that the counters do not hang on what comes with a neighbour: one half is read, one is written.
fn use_memory(area: &Area) {
    for pgoff in 0..area.pages() {
        if pgoff % 2 == 0 {
            area.poke(pgoff * PAGE_SIZE, pgoff as u8);
        } else {
            area.peek(pgoff * PAGE_SIZE);
        }
    }
}

fn conversion_equals_shared_anonymous_memory() -> Outcome {
    const PAGES: usize = 256;
    let setting = Setting::new(PAGES)?;
    let entries = Program::start_with(|| {
        setting.fill_all()?;
        let converted = setting.area()?;
        setting.region.make_vma_anonymous()?;
        let plain = AreaBuilder::default().anonymous(PAGES)?;
        // All pages exist on both sides, no page table entry does.
        for pgoff in 0..PAGES {
            plain.write_page(pgoff, &contents(pgoff as u64));
        }
        for area in [&converted, &plain] {
            area.advise(0..PAGES, MADV_DONTNEED)?;
            use_memory(area);
        }
        let this = std::process::id();
        let [converted, plain] = [&converted, &plain].map(|area| smaps(this, area.address()));
        let (converted, plain) = (converted?, plain?);
        ensure!(converted == plain, "converted:\n{converted}\nshared anonymous:\n{plain}");
        ensure!(plain.contains("VmFlags:") && plain.contains("Rss:"), "not an entry: {plain}");
        Ok(vec![])
    })?;
    entries.join()?;
    Ok(())
}

fn a_converted_page_faults_as_often_as_shared_anonymous_memory() -> Outcome {
    const PAGES: usize = 1024;
    let setting = Setting::new(PAGES)?;
    setting.fill_all()?;
    let converted = setting.area()?;
    setting.region.make_vma_anonymous()?;
    let plain = AreaBuilder::default().anonymous(PAGES)?;
    for pgoff in 0..PAGES {
        plain.poke(pgoff * PAGE_SIZE, 1);
    }
    let faults = |area: &Area, step: usize, write: bool| -> Outcome<u64> {
        area.advise(0..PAGES, MADV_DONTNEED)?;
        let before = minor_faults()?;
        for at in 0..PAGES {
            let offset = at * step % PAGES * PAGE_SIZE;
            if write {
                area.poke(offset, 1);
            } else {
                area.peek(offset);
            }
        }
        Ok(minor_faults()? - before)
    };
    for (step, write) in [(1, false), (1, true), (7, false), (7, true)] {
        let (of_converted, of_plain) = (faults(&converted, step, write)?, faults(&plain, step, write)?);
        // Where the windows of the fault-around begin hangs on the address, and a page that is busy is left out of one.
        let tolerated = of_plain / 10 + 2;
        ensure!(
            of_converted.abs_diff(of_plain) <= tolerated,
            "step {step}, write {write}: {of_converted} and {of_plain} faults"
        );
        ensure!(of_plain > 16, "only {of_plain} faults: nothing was measured");
    }
    Ok(())
}

fn a_converted_private_mapping_keeps_its_copies() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    let private = setting.area_as(AreaBuilder::default().private())?;
    let shared = setting.area()?;
    private.write_page(1, &contents(100));
    setting.region.make_vma_anonymous()?;
    check_page(&private, 1, 100)?;
    check_page(&private, 2, 2)?;
    private.write_page(3, &contents(300));
    check_page(&shared, 1, 1)?;
    check_page(&shared, 3, 3)?;
    equal!(setting.region.info()?.mappings, 0);
    Ok(())
}

fn parts_of_a_mapping_are_converted_with_their_protection() -> Outcome {
    let setting = Setting::new(32)?;
    setting.fill_all()?;
    let area = setting.area()?;
    area.protect(8..16, 1)?;
    area.unmap(20..24)?;
    let part = AreaBuilder::default().read_only().map(&setting.map, 4, 4)?;
    setting.region.make_vma_anonymous()?;
    equal!(setting.region.info()?.mappings, 0);
    for pgoff in (0..20).chain(24..32) {
        check_page(&area, pgoff, pgoff)?;
    }
    check_page(&part, 1, 5)?;
    let writing = |pgoff: usize| {
        Program::start(|| {
            area.poke(pgoff * PAGE_SIZE, 1);
            Ok(vec![])
        })
    };
    writing(9)?.join_killed(Signal::SEGV)?;
    writing(21)?.join_killed(Signal::SEGV)?;
    writing(25)?.join()?;
    area.protect(8..16, 3)?;
    writing(9)?.join()?;
    equal!(area.peek(9 * PAGE_SIZE), 1);
    Ok(())
}

/// Growth works, and what is beyond the end is SIGBUS: for both.
fn a_converted_mapping_can_grow_as_shared_anonymous_memory_can() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    let mut converted = setting.area()?;
    setting.region.make_vma_anonymous()?;
    let mut plain = AreaBuilder::default().anonymous(8)?;
    for area in [&mut converted, &mut plain] {
        area.remap(16, true)?;
        let area = &*area;
        let beyond = Program::start(|| {
            area.peek(12 * PAGE_SIZE);
            Ok(vec![])
        })?;
        beyond.join_killed(Signal::BUS)?;
    }
    check_page(&converted, 7, 7)
}

fn a_converted_mapping_can_be_locked() -> Outcome {
    let setting = Setting::new(16)?;
    setting.fill_all()?;
    let (area, other) = (setting.area()?, setting.area()?);
    area.lock(0..16)?;
    other.lock_on_fault(0..16)?;
    setting.region.make_vma_anonymous()?;
    let pid = std::process::id();
    for area in [&area, &other] {
        // What was locked before is not locked any more, or not yet.
        ensure!(!vm_flags(pid, area.address())?.contains(&"lo".into()));
        area.advise(0..16, MADV_DONTNEED)?;
        area.lock(0..16)?;
        ensure!(vm_flags(pid, area.address())?.contains(&"lo".into()));
        ensure!(mapped_pages(area)?.iter().all(|mapped| *mapped));
    }
    Ok(())
}

fn a_mapping_made_after_the_conversion_is_plain() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    let before = setting.area()?;
    setting.region.make_vma_anonymous()?;
    let after = setting.area()?;
    equal!(setting.region.info()?.mappings, 0);
    let this = std::process::id();
    equal!(vm_flags(this, after.address())?, vm_flags(this, before.address())?);
    check_page(&after, 5, 5)?;
    after.write_page(5, &contents(50));
    check_page(&before, 5, 50)?;
    // A part of it, and none beyond.
    check_page(&AreaBuilder::default().map(&setting.map, 6, 2)?, 1, 7)?;
    ensure!(AreaBuilder::default().map(&setting.map, 6, 3).is_err());
    Ok(())
}

fn a_region_converted_before_it_is_mapped_is_plain() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    setting.region.make_vma_anonymous()?;
    let area = setting.area()?;
    for pgoff in 0..8 {
        check_page(&area, pgoff, pgoff)?;
    }
    equal!(setting.region.info()?.mappings, 0);
    Ok(())
}

fn conversion_gives_no_way_to_write_what_could_only_be_read() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(4 * PAGE_SIZE as u64).name("read-only"))?;
    setting.fill_all()?;
    let reader = MapHandle::open("read-only", Access::ReadOnly)?;
    let before = AreaBuilder::default().read_only().map(&reader, 0, 4)?;
    setting.region.make_vma_anonymous()?;
    refused!(before.protect(0..4, 3), ACCESS);
    check_page(&before, 2, 2)?;
    // Nor by mapping it now.
    refused!(AreaBuilder::default().map(&reader, 0, 4), ACCESS);
    let after = AreaBuilder::default().read_only().map(&reader, 0, 4)?;
    refused!(after.protect(0..4, 3), ACCESS);
    check_page(&after, 2, 2)
}

fn huge_regions_get_madv_hugepage() -> Outcome {
    for huge in [false, true] {
        let mut builder = RegionBuilder::new(8 * PAGE_SIZE as u64);
        if huge {
            builder = builder.huge();
        }
        let setting = Setting::create(builder)?;
        setting.fill_all()?;
        let (area, unwilling) = (setting.area()?, setting.area()?);
        unwilling.advise(0..8, MADV_NOHUGEPAGE)?;
        setting.region.make_vma_anonymous()?;
        let late = setting.area()?;
        let flagged =
            |area: &Area| -> Outcome<bool> { Ok(vm_flags(std::process::id(), area.address())?.iter().any(|flag| flag == "hg")) };
        equal!(flagged(&area)?, huge);
        equal!(flagged(&late)?, huge);
        equal!(flagged(&unwilling)?, false);
    }
    Ok(())
}

fn wait_ready_of_a_plain_region_returns() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(PAGE_SIZE as u64).name("plain"))?;
    setting.fill_all()?;
    setting.region.make_vma_anonymous()?;
    let map = setting.region.map_handle()?;
    drop(setting);
    // Without a daemon there is nothing to wait for.
    map.wait_ready()?;
    let late = MapHandle::open("plain", Access::ReadWrite)?;
    late.wait_ready()?;
    let memory = late.map(Access::ReadOnly, Sharing::Shared)?;
    let mut word = [0; 8];
    memory.read_at(0, &mut word)?;
    equal!(u64::from_le_bytes(word), contents(0)[0]);
    Ok(())
}

fn request_wait_on_a_plain_region_is_enodata() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill_all()?;
    let (_, waiting) = take_in_a_thread(&setting)?;
    setting.region.make_vma_anonymous()?;
    // One that waits, and one that comes.
    refused!(joined(waiting)?, NODATA);
    ensure!(matches!(setting.region.next_requests(8), Err(Error::Plain)));
    refused!(calls::get_page_request(setting.region.as_fd(), &mut [0; 8]), NODATA);
    let mut fds = [PollFd::new(&*setting.region, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    ensure!(fds[0].revents().contains(PollFlags::IN));
    Ok(())
}

fn threads_that_read_and_write_meanwhile_notice_nothing() -> Outcome {
    const PAGES: usize = 256;
    for _ in 0..5 {
        let setting = Setting::new(PAGES)?;
        setting.fill_all()?;
        let board = Arc::new(Board::new()?);
        let program = Program::start(|| {
            let area = Arc::new(setting.area()?);
            let threads: Vec<_> = (0..4usize)
                .map(|thread| {
                    let (area, board) = (area.clone(), board.clone());
                    thread::spawn(move || -> Outcome {
                        let mut round = 0;
                        while board.get(0)? == 0 || round < 2 {
                            round += 1;
                            for pgoff in (thread..PAGES).step_by(4) {
                                let expected = if round == 1 { pgoff } else { pgoff + 10_000 * (round - 1) };
                                check_page(&area, pgoff, expected)?;
                                area.write_page(pgoff, &contents((pgoff + 10_000 * round) as u64));
                            }
                            // Their entries go, so that they fault again and again.
                            area.advise(0..PAGES, MADV_DONTNEED)?;
                            board.set(1 + thread, round as u64)?;
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
        for thread in 0..4 {
            board.wait(1 + thread, 1)?;
        }
        setting.region.make_vma_anonymous()?;
        equal!(setting.region.info()?.mappings, 0);
        board.set(0, 1)?;
        program.join()?;
    }
    Ok(())
}

fn programs_that_fork_and_unmap_meanwhile_notice_nothing() -> Outcome {
    const PAGES: usize = 64;
    let setting = Setting::new(PAGES)?;
    setting.fill_all()?;
    let board = Board::new()?;
    let programs: Vec<_> = (0..3)
        .map(|slot| {
            Program::start(|| {
                let area = setting.area()?;
                let mut round = 0;
                while board.get(0)? == 0 || round < 3 {
                    round += 1;
                    let other = setting.area()?;
                    Program::start(|| {
                        check_page(&area, 5, 5)?;
                        check_page(&other, 6, 6)?;
                        Ok(vec![])
                    })?
                    .join()?;
                    other.unmap(10..20)?;
                    check_page(&other, 30, 30)?;
                    board.set(1 + slot, round)?;
                }
                Ok(vec![])
            })
        })
        .collect::<Outcome<_>>()?;
    for slot in 0..3 {
        board.wait(1 + slot, 1)?;
    }
    // A child may get its mapping while the parent's is converted: then a second call finds it.
    wait_until("no mapping is left", || {
        setting.region.make_vma_anonymous()?;
        Ok(setting.region.info()?.mappings == 0)
    })?;
    board.set(0, 1)?;
    for program in programs {
        program.join()?;
    }
    equal!(setting.region.info()?.mappings, 0);
    Ok(())
}

fn a_converted_region_is_gone_when_its_descriptors_are_closed() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(8 * PAGE_SIZE as u64).name("gone"))?;
    setting.fill_all()?;
    let area = setting.area()?;
    setting.region.make_vma_anonymous()?;
    let id = setting.region.id();
    drop(setting);
    let control = Control::open()?;
    wait_until("the region is gone", || {
        Ok(matches!(control.attach_id(id), Err(Error::NoSuchRegion)))
    })?;
    ensure!(matches!(control.attach("gone"), Err(Error::NoSuchRegion)));
    equal!(crate::world::nodes()?, Vec::<String>::new());
    wait_until("only the control descriptor uses the module", || Ok(module_users()? == 1))?;
    // Its memory is still there.
    for pgoff in 0..8 {
        check_page(&area, pgoff, pgoff)?;
    }
    Ok(())
}

fn rmmod_succeeds_while_the_converted_program_runs_on() -> Outcome {
    const PAGES: usize = 600;
    let builder = || RegionBuilder::new((PAGES * PAGE_SIZE) as u64);
    outlives_the_module(Setting::create(builder())?, PAGES)?;
    // Its memory is on the module's own mount.
    outlives_the_module(Setting::create(builder().huge())?, PAGES)
}

/// A program that has mapped all of the region goes on when it is converted and the module is gone.
fn outlives_the_module(setting: Setting, nr_pages: usize) -> Outcome {
    setting.fill_all()?;
    let board = Board::new()?;
    let program = Program::start(|| {
        let area = setting.area()?;
        vmem_functional_sys::close_descriptors(|target| target.contains("[vmem"))?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        for pgoff in 0..nr_pages {
            check_page(&area, pgoff, pgoff)?;
        }
        area.advise(0..nr_pages, MADV_DONTNEED)?;
        for pgoff in 0..nr_pages {
            check_page(&area, pgoff, pgoff)?;
            area.write_page(pgoff, &contents(pgoff as u64 + 500));
        }
        // All that touches the mapping still works.
        area.protect(0..4, 1)?;
        area.unmap(8..12)?;
        let child = Program::start(|| {
            check_page(&area, 20, 520)?;
            Ok(vec![])
        })?;
        child.join()?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    setting.region.make_vma_anonymous()?;
    drop(setting);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    remove_module()?;
    let outcome = board.set(1, 1).and_then(|()| program.join());
    insert_module()?;
    outcome?;
    Ok(())
}
