// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions that are tracked, while they are incomplete and when they are not any more.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::process::Signal;
use vmem::{Access, Control, MapHandle, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder, register_buffer, wake_op, write_other};
use vmem_sys::{VMEM_STATE_PLAIN, VMEM_TRACK_FILLS, calls};

use super::super::huge::{HUGE, SHMEM_ENABLED};
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal, refused};
use crate::kernel::Setting as KernelSetting;
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Board, Setting, check_page, check_words, check_zero, contents, minor_faults, pages};
use crate::tracked::{Tracked, maps_line};
use crate::world::{module_users, wait_until};

crate::tests![
    a_region_is_adopted_by_any_descriptor_of_it_that_can_read_and_write,
    an_adopted_region_tells_what_is_present,
    writes_to_a_region_are_logged,
    writes_to_pages_that_come_while_it_is_tracked_are_logged,
    pages_that_are_filled_are_not_logged,
    pages_that_are_filled_are_logged_if_that_is_wanted,
    a_page_that_is_discarded_is_logged,
    mappings_that_are_made_later_are_tracked,
    pages_of_a_huge_region_are_logged_one_by_one,
    a_region_that_becomes_plain_memory_is_tracked_on,
    a_region_that_was_plain_memory_is_tracked_by_its_node,
    mappings_are_the_regions_again_after_the_log,
    a_region_outlives_its_tracker,
    a_daemon_that_tracks_and_dies_holds_nobody_up,
    a_tracked_region_outlives_its_daemon_and_its_descriptors,
];

const PAGES: usize = 64;
const MADV_REMOVE: i32 = 9;

/// A region, some of whose pages are present, and a mapping of it.
struct Incomplete {
    setting: Setting,
    memory: Tracked,
}

impl Incomplete {
    /// Of so many pages, of which the first half is present, and in the page table; the log is not there yet.
    fn new(builder: RegionBuilder) -> Outcome<Self> {
        let setting = Setting::create(builder)?;
        let half = setting.pages() / 2;
        setting.fill(0..half)?;
        let area = setting.area_as(AreaBuilder::default().aligned(HUGE))?;
        for page in 0..half {
            area.write_page(page, &contents(page as u64));
        }
        let memory = Tracked {
            file: setting.region.staging().try_clone()?,
            area,
            log: Adopted::new(&setting.map)?,
        };
        Ok(Self { setting, memory })
    }

    fn tracked(flags: u32) -> Outcome<Self> {
        let region = Self::new(RegionBuilder::new((PAGES * PAGE_SIZE) as u64))?;
        let call = region.memory.log.track_with(flags)?;
        equal!(call.mappings, 1);
        region.memory.settle()?;
        Ok(region)
    }
}

fn a_region_is_adopted_by_any_descriptor_of_it_that_can_read_and_write() -> Outcome {
    let setting = Setting::create(RegionBuilder::new((PAGES * PAGE_SIZE) as u64).name("adopted").mode(0o600))?;
    let node = |access| MapHandle::open("adopted", access);
    refused!(Adopted::new(node(Access::ReadOnly)?), ACCESS);
    refused!(
        Adopted::new(OpenOptions::new().write(true).open("/dev/vmem/adopted")?),
        ACCESS
    );
    let id = setting.region.id();
    for fd in [&*setting.region as &dyn AsFd, &setting.map, &node(Access::ReadWrite)?] {
        let adopted = Adopted::new(fd.as_fd())?;
        equal!(adopted.id, id);
        equal!(adopted.size, (PAGES * PAGE_SIZE) as u64);
        refused!(Adopted::new(&setting.map), BUSY);
    }
    // The file that holds its pages is the daemon's.
    refused!(Adopted::new(setting.region.staging()), OPNOTSUPP);
    Ok(())
}

fn an_adopted_region_tells_what_is_present() -> Outcome {
    let region = Incomplete::new(RegionBuilder::new((PAGES * PAGE_SIZE) as u64))?;
    let present = || -> Outcome<(u64, u64)> {
        let mut bits = [0];
        let nr = calls::get_present(region.memory.log.as_fd(), 0, PAGES as u64, &mut bits)?;
        Ok((nr, bits[0]))
    };
    equal!(present()?, (PAGES as u64 / 2, u64::from(u32::MAX)));
    equal!(calls::get_info(region.memory.log.as_fd())?.present, PAGES as u64 / 2);
    region.setting.fill([40])?;
    equal!(present()?, (PAGES as u64 / 2 + 1, u64::from(u32::MAX) | (1 << 40)));
    // Of other memory all is.
    let other = Tracked::new(70)?;
    let mut bits = [0; 2];
    equal!(calls::get_present(other.log.as_fd(), 0, 70, &mut bits)?, 70);
    equal!(bits, [u64::MAX, 0x3f]);
    Ok(())
}

fn writes_to_a_region_are_logged() -> Outcome {
    let Incomplete { setting, memory } = Incomplete::tracked(0)?;
    let board = Board::new()?;
    let target = Program::start(|| {
        board.wait(0, 1)?;
        Ok(vec![])
    })?;
    for time in 1..4 {
        memory.settle()?;
        // Reading is no write, of any of them.
        (0..PAGES / 2).for_each(|page| drop(memory.area.page(page)));
        memory.check_log([])?;
        memory.area.poke(3 * PAGE_SIZE, time);
        equal!(write_other(target.pid(), memory.area.address() + 5 * PAGE_SIZE, &[time])?, 1);
        setting.area()?.poke(9 * PAGE_SIZE, time);
        setting.area_as(AreaBuilder::default().private())?.poke(11 * PAGE_SIZE, time);
        memory.check_log([3, 5, 9])?;
        equal!(memory.log.bitmap(0..PAGES, true)?.pages, [3, 5, 9]);
    }
    board.set(0, 1)?;
    target.join().map(drop)
}

fn writes_to_pages_that_come_while_it_is_tracked_are_logged() -> Outcome {
    let Incomplete { setting, memory } = Incomplete::tracked(0)?;
    for at in [40, 41] {
        let program = Program::start(|| {
            memory.area.poke(at * PAGE_SIZE, 1);
            Ok(vec![])
        })?;
        equal!(setting.take_request()?, at);
        setting.wait_waiters(1)?;
        setting.fill([at])?;
        program.join()?;
        memory.check_log([at])?;
        memory.log.bitmap(0..PAGES, true)?;
    }
    let reader = setting.reader(42)?;
    equal!(setting.take_request()?, 42);
    setting.wait_waiters(1)?;
    setting.fill([42])?;
    check_words(&reader.join()?, 42)?;
    memory.settle()
}

fn pages_that_are_filled_are_not_logged() -> Outcome {
    let Incomplete { setting, memory } = Incomplete::tracked(0)?;
    setting.fill(32..40)?;
    setting.region.mark_zero(&[pages(40, 8)]).complete()?;
    check_page(&memory.area, 33, 33)?;
    check_zero(&memory.area, 41)?;
    memory.check_log([])?;
    memory.area.poke(33 * PAGE_SIZE, 1);
    memory.area.poke(41 * PAGE_SIZE, 1);
    memory.check_log([33, 41])
}

fn pages_that_are_filled_are_logged_if_that_is_wanted() -> Outcome {
    let Incomplete { setting, memory } = Incomplete::tracked(VMEM_TRACK_FILLS)?;
    setting.fill([32, 34])?;
    setting.region.mark_zero(&[pages(40, 2)]).complete()?;
    setting.region.mark_unreadable(&[pages(50, 1)]).complete()?;
    let reader = setting.reader(60)?;
    equal!(setting.take_request()?, 60);
    setting.wait_waiters(1)?;
    setting.fill([60])?;
    reader.join()?;
    memory.check_log([32, 34, 40, 41, 60])
}

fn a_page_that_is_discarded_is_logged() -> Outcome {
    let Incomplete {
        setting: _served,
        memory,
    } = Incomplete::tracked(0)?;
    memory.area.advise(3..5, MADV_REMOVE)?;
    // One that was absent is zeros from now on, too.
    memory.area.advise(40..41, MADV_REMOVE)?;
    memory.check_log([3, 4, 40])?;
    [3, 4, 40].into_iter().try_for_each(|page| check_zero(&memory.area, page))
}

fn mappings_that_are_made_later_are_tracked() -> Outcome {
    let Incomplete { setting, memory } = Incomplete::tracked(0)?;
    let mut later = setting.area()?;
    equal!(memory.log.tracking()?.mappings, 2);
    for time in 1..4 {
        memory.settle()?;
        later.poke(3 * PAGE_SIZE, time);
        Program::start(|| {
            later.poke(4 * PAGE_SIZE, time);
            later.protect(5..6, 1)?;
            later.protect(5..6, 3)?;
            later.poke(5 * PAGE_SIZE, time);
            Ok(vec![])
        })?
        .join()?;
        // To another address.
        later.replace(AreaBuilder::default().private().anonymous(PAGES)?)?;
        later.poke(7 * PAGE_SIZE, time);
        memory.check_log([3, 4, 5, 7])?;
    }
    Ok(())
}

fn pages_of_a_huge_region_are_logged_one_by_one() -> Outcome {
    let _enabled = KernelSetting::new(SHMEM_ENABLED, "advise")?;
    let Incomplete { setting, memory } = Incomplete::new(RegionBuilder::new((4 * HUGE * PAGE_SIZE) as u64).huge())?;
    memory.log.track()?;
    let all = 0..setting.pages();
    let log = |clean| memory.log.bitmap(all.clone(), clean);
    for time in 1..4 {
        wait_until("no page is held", || Ok(log(true)?.held == 0))?;
        // Mapped as a whole, for reading, or not at all.
        memory.area.peek(0);
        for page in [5, 6, HUGE + 7, HUGE + 8] {
            memory.area.poke(page * PAGE_SIZE, time);
        }
        equal!(log(false)?.pages, [5, 6, HUGE + 7, HUGE + 8]);
    }
    // A block that is not whole.
    setting.fill([3 * HUGE])?;
    memory.area.poke(3 * HUGE * PAGE_SIZE, 1);
    equal!(log(false)?.pages, [5, 6, HUGE + 7, HUGE + 8, 3 * HUGE]);
    setting.no_request()
}

fn a_region_that_becomes_plain_memory_is_tracked_on() -> Outcome {
    let Incomplete { setting, memory } = Incomplete::tracked(0)?;
    setting.fill(PAGES / 2..PAGES)?;
    memory.settle()?;
    memory.area.poke(3 * PAGE_SIZE, 7);
    setting.region.make_vma_anonymous()?;
    memory.check_log([3])?;
    equal!(
        calls::get_info(memory.log.as_fd())?.state & VMEM_STATE_PLAIN,
        VMEM_STATE_PLAIN
    );
    equal!(memory.log.tracking()?.mappings, 1);
    memory.logs([5, 11, 12], |time| {
        memory.area.poke(11 * PAGE_SIZE, time);
        setting.area()?.poke(12 * PAGE_SIZE, time);
        Ok(memory.file.write_all_at(&[time], 5 * PAGE_SIZE as u64)?)
    })?;
    memory.log.untrack()?;
    let (Setting { region, map }, Tracked { area, log, .. }) = (setting, memory);
    // Nothing of the module is left in it: the mapping is what a new one is.
    let new = AreaBuilder::default().map(&map, 0, PAGES)?;
    let line = |area: &Area| -> Outcome<String> {
        let line = maps_line(std::process::id() as i32, area.address())?;
        Ok(line.split_once(' ').ok_or("no line")?.1.to_owned())
    };
    equal!(line(&area)?, line(&new)?);
    check_page(&area, 40, 40)?;
    drop((log, region, map, new));
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    check_page(&area, 41, 41)
}

/// Its node is what QEMU has open.
fn a_region_that_was_plain_memory_is_tracked_by_its_node() -> Outcome {
    let setting = Setting::create(RegionBuilder::new((PAGES * PAGE_SIZE) as u64).name("plain").mode(0o600))?;
    setting.fill_all()?;
    setting.region.ready()?;
    let node = MapHandle::open("plain", Access::ReadWrite)?;
    let area = AreaBuilder::default().map(&node, 0, PAGES)?;
    setting.region.make_vma_anonymous()?;
    let memory = Tracked {
        file: setting.region.staging().try_clone()?,
        area,
        log: Adopted::new(&node)?,
    };
    refused!(Adopted::new(&memory.file), BUSY);
    memory.log.track()?;
    memory.logs([3, 4], |time| {
        memory.area.poke(3 * PAGE_SIZE, time);
        setting.area()?.poke(4 * PAGE_SIZE, time);
        Ok(())
    })?;
    memory.log.untrack()?;
    equal!(memory.log.tracking()?.tracked, 0);
    check_page(&memory.area, 40, 40)
}

fn mappings_are_the_regions_again_after_the_log() -> Outcome {
    let region = Incomplete::new(RegionBuilder::new((PAGES * PAGE_SIZE) as u64))?;
    let Incomplete { setting, memory } = &region;
    let this = std::process::id() as i32;
    let line = maps_line(this, memory.area.address())?;
    for _ in 0..2 {
        memory.log.track()?;
        let later = setting.area()?;
        equal!(maps_line(this, memory.area.address())?, line);
        refused!(register_buffer(&later, 0..2), FAULT);
        memory.log.untrack()?;
        equal!(maps_line(this, memory.area.address())?, line);
        equal!(setting.region.info()?.mappings, 2);
        // It can be pinned for long, and each page faults once.
        drop(register_buffer(&later, 0..2)?);
        (0..PAGES / 2).for_each(|page| drop(memory.area.page(page)));
        let before = minor_faults()?;
        (0..PAGES / 2).for_each(|page| memory.area.poke(page * PAGE_SIZE + 8, 1));
        let faults = minor_faults()? - before;
        ensure!(faults < 8, "{faults} faults of pages that were mapped");
    }
    // It is served as before.
    let reader = setting.reader(40)?;
    equal!(setting.take_request()?, 40);
    setting.fill([40])?;
    check_words(&reader.join()?, 40)?;
    setting.fill((PAGES / 2..PAGES).filter(|page| *page != 40))?;
    setting.region.make_vma_anonymous()?;
    check_page(&memory.area, 50, 50)
}

fn a_region_outlives_its_tracker() -> Outcome {
    let Incomplete { setting, memory } = Incomplete::tracked(0)?;
    let Tracked { file: _, area, log } = memory;
    let later = setting.area()?;
    drop(log);
    later.poke(3 * PAGE_SIZE, 1);
    area.poke(4 * PAGE_SIZE, 1);
    equal!(area.peek(3 * PAGE_SIZE), 1);
    equal!(setting.region.info()?.mappings, 2);
    // It can be tracked anew, and mappings that were made while it was tracked, too.
    let log = Adopted::new(&*setting.region)?;
    equal!(log.track()?.mappings, 2);
    wait_until("no page is held", || Ok(log.bitmap(0..PAGES, true)?.held == 0))?;
    later.poke(5 * PAGE_SIZE, 1);
    equal!(log.bitmap(0..PAGES, false)?.pages, [5]);
    Ok(())
}

/// A program holds its own lock while it waits for a page. To end the log takes that lock, and the page comes when the daemon has gone.
fn a_daemon_that_tracks_and_dies_holds_nobody_up() -> Outcome {
    let setting = Setting::new(PAGES)?;
    setting.fill([0])?;
    let id = setting.region.id();
    let area = setting.area()?;
    let board = Board::new()?;
    // The descriptor of the log is the later one, which the end of a process closes first.
    let daemon = Program::start_with(|| {
        let log = Adopted::new(&setting.map)?;
        log.track()?;
        board.set(0, 1)?;
        board.wait(63, 1)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    let Setting { region, map } = setting;
    drop(region);
    let program = Program::start(|| {
        wake_op(&area, 40 * PAGE_SIZE)?;
        Ok(vec![])
    })?;
    wait_until("it waits", || Ok(map.info()?.waiters == 1))?;
    daemon.signal(Signal::KILL)?;
    daemon.join_killed(Signal::KILL)?;
    let mut found = None;
    wait_until("the next daemon is attached", || {
        found = Control::open()?.attach_id(id).ok();
        Ok(found.is_some())
    })?;
    let server = Server::start(&std::sync::Arc::new(found.ok_or("no region")?));
    program.join()?;
    equal!(server.stop()?, [40]);
    // The log ends by itself.
    wait_until("it can be tracked", || {
        Ok(Adopted::new(&map).is_ok_and(|log| log.track().is_ok()))
    })
}

fn a_tracked_region_outlives_its_daemon_and_its_descriptors() -> Outcome {
    let Incomplete { setting, memory } = Incomplete::tracked(0)?;
    let id = setting.region.id();
    let Tracked { file, area, log } = memory;
    drop((setting, file));
    area.poke(3 * PAGE_SIZE, 1);
    equal!(log.bitmap(0..PAGES, false)?.pages, [3]);
    // The next daemon finds it, and serves it.
    let region = std::sync::Arc::new(Control::open()?.attach_id(id)?);
    let server = Server::start(&region);
    check_page(&area, 40, 40)?;
    equal!(server.stop()?, [40]);
    equal!(calls::get_info(log.as_fd())?.id, id);
    drop(region);
    log.untrack()?;
    drop(log);
    area.poke(4 * PAGE_SIZE, 1);
    drop(area);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))
}
