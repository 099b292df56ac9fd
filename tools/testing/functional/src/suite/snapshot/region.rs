// SPDX-License-Identifier: GPL-2.0-or-later
//! Snapshots of regions some of whose pages have yet to come: they come with what they had at the instant.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use rustix::process::Signal;
use vmem::{PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::AreaBuilder;
use vmem_sys::calls;

use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal, refused};
use crate::image::Image;
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Setting, bytes_of, check_page, check_words, contents, pages};
use crate::tracked::Tracked;

crate::tests![
    writes_to_a_complete_region_are_logged_and_kept,
    a_page_that_comes_and_is_written_is_the_image,
    a_reader_waits_for_a_page_that_is_absent,
    a_reader_that_waits_can_be_killed,
    a_reader_that_waits_in_vain_is_told,
    a_page_that_cannot_be_had_is_eio,
    a_page_that_is_discarded_before_it_comes_is_enodata,
    absent_pages_are_data,
    present_map_of_a_snapshot_shows_pages_that_have_come,
    a_touch_of_a_mapping_waits_for_a_page_that_is_absent,
    daemon_writes_to_the_staging_file_are_in_the_image,
    the_image_of_a_region_that_becomes_plain_memory_stays,
];

const PAGES: usize = 64;
const MADV_REMOVE: i32 = 9;

/// A region whose first half is present, and which is tracked.
fn incomplete() -> Outcome<(Setting, Tracked)> {
    incomplete_as(RegionBuilder::new((PAGES * PAGE_SIZE) as u64))
}

fn incomplete_as(builder: RegionBuilder) -> Outcome<(Setting, Tracked)> {
    let setting = Setting::create(builder)?;
    setting.fill(0..PAGES / 2)?;
    let memory = Tracked {
        file: setting.region.staging().try_clone()?,
        area: setting.area()?,
        log: Adopted::new(&setting.map)?,
    };
    memory.log.track()?;
    memory.settle()?;
    Ok((setting, memory))
}

/// Fails unless page `number` of the image has these contents of it.
fn check(image: &Image, number: usize, which: u64) -> Outcome {
    ensure!(
        image.page(number)? == bytes_of(&contents(which)),
        "page {number} of the image is not what it was"
    );
    Ok(())
}

fn writes_to_a_complete_region_are_logged_and_kept() -> Outcome {
    let (setting, memory) = incomplete()?;
    setting.fill(PAGES / 2..PAGES)?;
    memory.logs([3, 40], |time| {
        memory.area.poke(3 * PAGE_SIZE, time);
        setting.area()?.poke(40 * PAGE_SIZE, time);
        Ok(())
    })?;
    memory.logs_once([5, 6], || Ok(memory.area.advise(5..7, MADV_REMOVE)?))
}

fn a_page_that_comes_and_is_written_is_the_image() -> Outcome {
    let (setting, memory) = incomplete()?;
    let image = Image::take(&memory.log, 0, 0)?;
    setting.fill([33])?;
    memory.area.write_page(33, &contents(500));
    let server = Server::start(&setting.region);
    memory.area.write_page(40, &contents(501));
    equal!(server.stop()?, [40]);
    memory.area.write_page(3, &contents(502));
    for page in [3, 4, 33, 40] {
        check(&image, page, page as u64)?;
    }
    equal!(image.info()?.copied, 3);
    [(33, 500), (40, 501), (3, 502)]
        .into_iter()
        .try_for_each(|(at, which)| check_page(&memory.area, at, which))
}

fn a_reader_waits_for_a_page_that_is_absent() -> Outcome {
    let (setting, memory) = incomplete()?;
    let image = Image::take(&memory.log, 0, 0)?;
    let reader = Program::start(|| {
        // From a present page on into an absent one.
        let mut bytes = vec![0; 2 * PAGE_SIZE];
        image.file().read_exact_at(&mut bytes, 31 * PAGE_SIZE as u64)?;
        ensure!(bytes[PAGE_SIZE..] == bytes_of(&contents(32)), "page 32 is not what it was");
        Ok(vec![])
    })?;
    equal!(setting.take_request()?, 32);
    setting.wait_waiters(1)?;
    setting.fill([32])?;
    reader.join()?;
    // Nobody has written to it.
    equal!(image.info()?.copied, 0);
    memory.check_log([])
}

fn a_reader_that_waits_can_be_killed() -> Outcome {
    let (setting, memory) = incomplete()?;
    let image = Image::take(&memory.log, 0, 0)?;
    let map = image.map(AreaBuilder::default().read_only())?;
    let readers = [
        Program::start(|| image.page(40).map(|_| vec![]).map_err(Into::into))?,
        Program::start(|| Ok(map.page(41)))?,
    ];
    setting.wait_waiters(2)?;
    for reader in readers {
        reader.signal(Signal::KILL)?;
        reader.join_killed(Signal::KILL)?;
    }
    setting.wait_waiters(0)?;
    setting.fill([40])?;
    check(&image, 40, 40)
}

fn a_reader_that_waits_in_vain_is_told() -> Outcome {
    let (setting, memory) = incomplete()?;
    let image = Image::take(&memory.log, 0, 0)?;
    let reader = |page| {
        let reader = Program::start(|| {
            let error = image.page(page).err().and_then(|error| error.raw_os_error());
            Ok(vec![error.unwrap_or(0) as u64])
        })?;
        setting.wait_waiters(1)?;
        Ok::<_, crate::failure::Failure>(reader)
    };
    let told = |reader: Program, errno: Errno| -> Outcome {
        equal!(reader.join()?, [errno.raw_os_error() as u64]);
        Ok(())
    };
    let one = reader(40)?;
    image.done(40, 1)?;
    told(one, Errno::NODATA)?;
    let one = reader(41)?;
    memory.area.advise(41..42, MADV_REMOVE)?;
    told(one, Errno::NODATA)?;
    let one = reader(42)?;
    memory.log.untrack()?;
    told(one, Errno::STALE)
}

fn a_page_that_cannot_be_had_is_eio() -> Outcome {
    let builder = RegionBuilder::new((PAGES * PAGE_SIZE) as u64).sigbus_without_daemon();
    let (setting, memory) = incomplete_as(builder)?;
    let image = Image::take(&memory.log, 0, 0)?;
    setting.region.mark_unreadable(&[pages(40, 1)]).complete()?;
    refused!(image.page(40), IO);
    drop(setting);
    refused!(image.page(41), IO);
    let map = image.map(AreaBuilder::default().read_only())?;
    Program::start(|| Ok(map.page(42)))?.join_killed(Signal::BUS)?;
    check(&image, 5, 5)
}

fn a_page_that_is_discarded_before_it_comes_is_enodata() -> Outcome {
    let (_served, memory) = incomplete()?;
    let image = Image::take(&memory.log, 0, 0)?;
    memory.area.advise(3..4, MADV_REMOVE)?;
    memory.area.advise(40..42, MADV_REMOVE)?;
    check(&image, 3, 3)?;
    refused!(image.page(40), NODATA);
    refused!(image.page(41), NODATA);
    equal!(image.info()?.done, 2);
    let map = image.map(AreaBuilder::default().read_only())?;
    Program::start(|| Ok(map.page(41)))?.join_killed(Signal::BUS)
}

fn absent_pages_are_data() -> Outcome {
    let (setting, memory) = incomplete()?;
    setting.region.mark_zero(&[pages(32, 4)]).complete()?;
    let image = Image::take(&memory.log, 0, 0)?;
    setting.region.mark_zero(&[pages(40, 4)]).complete()?;
    let expected: Vec<_> = (0..PAGES)
        .filter(|page| !(32..36).contains(page) && !(40..44).contains(page))
        .collect();
    equal!(image.data()?, expected);
    setting.no_request()
}

fn present_map_of_a_snapshot_shows_pages_that_have_come() -> Outcome {
    let (setting, memory) = incomplete()?;
    let image = Image::take(&memory.log, 0, 0)?;
    let present = |image: &Image| -> Outcome<u64> {
        let mut bits = [0];
        calls::get_present(image.as_fd(), 0, PAGES as u64, &mut bits)?;
        Ok(bits[0])
    };
    equal!(present(&image)?, u64::from(u32::MAX));
    setting.fill([40])?;
    equal!(present(&image)?, u64::from(u32::MAX) | (1 << 40));
    let other = Tracked::new(PAGES)?;
    equal!(present(&Image::take(&other.log, 0, 0)?)?, u64::MAX);
    Ok(())
}

fn a_touch_of_a_mapping_waits_for_a_page_that_is_absent() -> Outcome {
    let (setting, memory) = incomplete()?;
    let image = Image::take(&memory.log, 0, 0)?;
    let map = image.map(AreaBuilder::default().read_only())?;
    let reader = Program::start(|| Ok(map.page(40)))?;
    equal!(setting.take_request()?, 40);
    setting.wait_waiters(1)?;
    setting.fill([40])?;
    memory.area.write_page(40, &contents(500));
    check_words(&reader.join()?, 40)?;
    check_page(&memory.area, 40, 500)
}

/// A daemon that does not use FILL_PAGES.
fn daemon_writes_to_the_staging_file_are_in_the_image() -> Outcome {
    let (setting, memory) = incomplete()?;
    let staging = AreaBuilder::default().map(setting.region.staging(), 0, PAGES)?;
    let image = Image::take(&memory.log, 0, 0)?;
    memory.file.write_all_at(&bytes_of(&contents(40)), 40 * PAGE_SIZE as u64)?;
    staging.write_page(41, &contents(41));
    setting.region.mark_cached(&[pages(40, 2)]).complete()?;
    memory.area.write_page(40, &contents(500));
    check(&image, 40, 40)?;
    check(&image, 41, 41)
}

fn the_image_of_a_region_that_becomes_plain_memory_stays() -> Outcome {
    let (setting, memory) = incomplete()?;
    let image = Image::take(&memory.log, 0, 0)?;
    memory.area.write_page(3, &contents(500));
    setting.fill(PAGES / 2..PAGES)?;
    setting.region.make_vma_anonymous()?;
    for page in [3, 4, 40] {
        memory.area.write_page(page, &contents(501));
    }
    setting.area()?.write_page(41, &contents(501));
    let expected: Vec<u8> = (0..PAGES as u64).flat_map(|page| bytes_of(&contents(page))).collect();
    image.check(&expected)
}
