// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions some of whose pages have yet to come, as the library tracks them and takes snapshots of them.

use std::fs;
use std::thread;

use vmem::{
    Access, Adopted, Control, Error, MapHandle, PAGE_SIZE, PageRange, ProcessMemory, RegionBuilder, Snapshot, SnapshotOptions,
    TrackOptions, Tracking,
};
use vmem_functional_sys::AreaBuilder;

use crate::failure::{Outcome, ensure, equal};
use crate::program::Program;
use crate::setting::{Board, Setting, bytes_of, contents, page, pages};
use crate::tracked::memfd;
use crate::world::wait_until;

crate::tests![
    the_library_adopts_a_region_that_is_not_complete,
    the_library_logs_fills_if_that_is_wanted,
    the_library_tells_what_of_a_snapshot_is_present,
    the_library_tells_why_a_page_of_a_snapshot_cannot_be_read,
    a_region_of_a_process_is_found_before_and_after_it_is_plain,
    a_region_whose_descriptor_its_process_has_closed_is_told,
];

pub(super) const PAGES: usize = 64;
pub(super) const MADV_REMOVE: i32 = 9;

/// A region with a node, whose first half is present.
pub(super) fn incomplete(name: &str) -> Outcome<Setting> {
    let setting = Setting::create(RegionBuilder::new((PAGES * PAGE_SIZE) as u64).name(name))?;
    setting.region.ready()?;
    setting.fill(0..PAGES / 2)?;
    Ok(setting)
}

pub(super) fn adopt(setting: &Setting) -> Outcome<Adopted> {
    Ok(Control::open()?.adopt(&setting.map)?)
}

/// The pages of ranges, one by one.
fn numbers(ranges: impl IntoIterator<Item = PageRange>) -> Vec<u64> {
    ranges
        .into_iter()
        .flat_map(|range| range.iter())
        .map(|page| page.get())
        .collect()
}

/// The log, when no page is in it because it is held.
pub(super) fn settle(tracking: &Tracking) -> Outcome {
    wait_until("no page is held", || {
        Ok(tracking.clean(tracking.pages()).complete()?.is_empty() && tracking.dirty()? == 0)
    })
}

fn the_library_adopts_a_region_that_is_not_complete() -> Outcome {
    let setting = incomplete("library")?;
    let control = Control::open()?;
    let node = MapHandle::open("library", Access::ReadWrite)?;
    let read_only = control.adopt(MapHandle::open("library", Access::ReadOnly)?);
    ensure!(matches!(read_only, Err(Error::NotWritable)), "{read_only:?}");
    let by_daemon = control.adopt(&*setting.region)?;
    let by_another = control.adopt(&setting.map);
    ensure!(matches!(by_another, Err(Error::MemoryInUse)), "{by_another:?}");
    drop(by_daemon);
    let adopted = control.adopt(&node)?;
    equal!((adopted.id(), adopted.pages()), (setting.region.id(), setting.region.pages()));
    let info = adopted.info()?;
    equal!((info.present, info.attached, info.plain), (PAGES as u64 / 2, true, false));
    setting.fill([40])?;
    let map = adopted.present_map()?;
    equal!(map.present(), PAGES as u64 / 2 + 1);
    equal!(map.runs().collect::<Vec<_>>(), [pages(0, PAGES / 2), pages(40, 1)]);
    equal!(map.absent().collect::<Vec<_>>(), [pages(32, 8), pages(41, 23)]);
    // Of other memory all is present.
    drop(adopted);
    let other = control.adopt(memfd(3)?)?;
    equal!(other.present_map()?.runs().collect::<Vec<_>>(), [pages(0, 3)]);
    Ok(())
}

fn the_library_logs_fills_if_that_is_wanted() -> Outcome {
    let setting = incomplete("fills")?;
    let adopted = adopt(&setting)?;
    let log = |tracking: &Tracking| Outcome::Ok(numbers(tracking.peek(adopted.pages()).complete()?));
    let tracking = adopted.track()?;
    settle(&tracking)?;
    setting.fill([40, 41])?;
    equal!(log(&tracking)?, Vec::<u64>::new());
    tracking.stop()?;
    let tracking = adopted.track_with(TrackOptions::default().fills(true))?;
    settle(&tracking)?;
    setting.fill([50, 51])?;
    setting.area()?.poke(3 * PAGE_SIZE, 1);
    equal!(log(&tracking)?, [3, 50, 51]);
    Ok(())
}

/// The first bytes of a page of a snapshot.
fn read(snapshot: &Snapshot, pgoff: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; PAGE_SIZE];
    snapshot.read_exact_at(&mut bytes, page(pgoff).offset())?;
    Ok(bytes)
}

fn the_library_tells_what_of_a_snapshot_is_present() -> Outcome {
    let setting = incomplete("present")?;
    let tracking = adopt(&setting)?.track()?;
    let snapshot = tracking.snapshot(SnapshotOptions::default())?;
    equal!(snapshot.present_map()?.absent().collect::<Vec<_>>(), [pages(32, 32)]);
    equal!(snapshot.data().collect::<Result<Vec<_>, _>>()?, [pages(0, PAGES)]);
    // A read waits for what is not.
    let found = thread::scope(|scope| -> Outcome<Vec<u8>> {
        let reader = scope.spawn(|| read(&snapshot, 40));
        equal!(setting.take_request()?, 40);
        setting.wait_waiters(1)?;
        setting.fill([40])?;
        Ok(reader.join().map_err(|_| "the reader has panicked")??)
    })?;
    ensure!(found == bytes_of(&contents(40)), "page 40 is not what it was");
    equal!(
        snapshot.present_map()?.absent().collect::<Vec<_>>(),
        [pages(32, 8), pages(41, 23)]
    );
    Ok(())
}

fn the_library_tells_why_a_page_of_a_snapshot_cannot_be_read() -> Outcome {
    let setting = incomplete("errors")?;
    let tracking = adopt(&setting)?.track()?;
    let snapshot = tracking.snapshot(SnapshotOptions::default())?;
    setting.region.mark_unreadable(&[pages(40, 1)]).complete()?;
    let area = setting.area()?;
    area.advise(41..42, MADV_REMOVE)?;
    area.advise(3..4, MADV_REMOVE)?;
    snapshot.done(pages(4, 1))?;
    let unreadable = read(&snapshot, 40);
    ensure!(matches!(unreadable, Err(Error::PageUnreadable)), "{unreadable:?}");
    for gone in [4, 41] {
        let found = read(&snapshot, gone);
        ensure!(matches!(found, Err(Error::PageDone)), "page {gone}: {found:?}");
    }
    ensure!(read(&snapshot, 3)? == bytes_of(&contents(3)), "page 3 is not what it was");
    equal!(snapshot.info()?.done, 2);
    // What is left is what can be read.
    equal!(
        snapshot.data().collect::<Result<Vec<_>, _>>()?,
        [pages(0, 4), pages(5, 36), pages(42, 22)]
    );
    Ok(())
}

/// A program that has a region by its node, and maps it, until the board says 1.
pub(super) fn user<'a>(name: &'a str, board: &'a Board) -> Outcome<Program> {
    let program = Program::start(|| {
        let node = MapHandle::open(name, Access::ReadWrite)?;
        let _area = AreaBuilder::default().map(&node, 0, PAGES)?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    Ok(program)
}

fn a_region_of_a_process_is_found_before_and_after_it_is_plain() -> Outcome {
    let setting = incomplete("found")?;
    let board = Board::new()?;
    let program = user("found", &board)?;
    let check = |path: &str, is_plain: bool| -> Outcome {
        let memory = ProcessMemory::open(program.pid(), path)?;
        let file = memory.file();
        let info = file.region.as_ref().ok_or(format!("{path}: not a region"))?;
        equal!((info.id, info.plain), (setting.region.id(), is_plain));
        equal!((file.size, file.writable), ((PAGES * PAGE_SIZE) as u64, true));
        equal!(file.allocated, info.present * PAGE_SIZE as u64);
        let adopted = Control::open()?.adopt(&memory)?;
        equal!(adopted.id(), setting.region.id());
        adopted.track()?.stop()?;
        Ok(())
    };
    check("/dev/vmem/found", false)?;
    check("vmem/found", false)?;
    // It has the test's map descriptor, too.
    check("vmem-map", false)?;
    setting.fill(PAGES / 2..PAGES)?;
    setting.region.make_vma_anonymous()?;
    check("/dev/vmem/found", true)?;
    board.set(1, 1)?;
    program.join().map(drop)
}

fn a_region_whose_descriptor_its_process_has_closed_is_told() -> Outcome {
    let board = Board::new()?;
    // Before the region is there, whose descriptors the program would inherit.
    let program = Program::start(|| {
        board.wait(2, 1)?;
        let node = MapHandle::open("closed", Access::ReadWrite)?;
        let _area = AreaBuilder::default().map(&node, 0, PAGES)?;
        drop(node);
        board.set(0, 1)?;
        board.wait(1, 1)?;
        Ok(vec![])
    })?;
    let setting = incomplete("closed")?;
    board.set(2, 1)?;
    board.wait(0, 1)?;
    let found = ProcessMemory::open(program.pid(), "/dev/vmem/closed");
    let maps = fs::read_to_string(format!("/proc/{}/maps", program.pid()))?;
    ensure!(matches!(found, Err(Error::MemoryNotOpen { .. })), "{found:?} of:\n{maps}");
    // Its node is another way to it.
    let info = MapHandle::open("closed", Access::ReadWrite)?.info()?;
    equal!((info.id, info.mappings), (setting.region.id(), 1));
    board.set(1, 1)?;
    program.join().map(drop)
}
