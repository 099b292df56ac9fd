// SPDX-License-Identifier: GPL-2.0-or-later
//! Holes and data in the file of a region.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{SeekFrom, seek};
use vmem::PAGE_SIZE;

use super::{Mount, region};
use crate::failure::{Outcome, equal, refused};
use crate::setting::{Setting, pages};

crate::tests![holes_are_present_pages_without_memory, page_that_is_coming_is_no_hole,];

const PAGE: u64 = PAGE_SIZE as u64;

fn holes_are_present_pages_without_memory() -> Outcome {
    const PAGES: usize = 32;
    let (mount, setting) = (Mount::new("a")?, Setting::create(region("one", PAGES))?);
    let file = mount.open("one")?;
    let end = PAGES as u64 * PAGE;
    let find = |from| seek(&file, from);
    // An absent page is data.
    equal!(find(SeekFrom::Hole(0))?, end);
    equal!(find(SeekFrom::Data(77))?, 77);
    setting.region.mark_zero(&[pages(8, 4), pages(20, 2)]).complete()?;
    setting.fill([12])?;
    equal!(find(SeekFrom::Hole(0))?, 8 * PAGE);
    equal!(find(SeekFrom::Data(8 * PAGE))?, 12 * PAGE);
    equal!(find(SeekFrom::Hole(9 * PAGE + 5))?, 9 * PAGE + 5);
    equal!(find(SeekFrom::Hole(12 * PAGE))?, 20 * PAGE);
    equal!(find(SeekFrom::Data(21 * PAGE))?, 22 * PAGE);
    equal!(find(SeekFrom::Hole(22 * PAGE))?, end);
    refused!(find(SeekFrom::Hole(end)), NXIO);
    refused!(find(SeekFrom::Data(end)), NXIO);
    setting.region.mark_unreadable(&[pages(31, 1)]).complete()?;
    setting.region.mark_zero(&[pages(22, 9)]).complete()?;
    // A copy fails at an unreadable page, and has no zeros for it.
    equal!(find(SeekFrom::Data(22 * PAGE))?, 31 * PAGE);
    setting.region.mark_zero(&[pages(31, 1)]).complete()?;
    refused!(find(SeekFrom::Data(22 * PAGE)), NXIO);
    equal!(find(SeekFrom::End(-5))?, end - 5);
    let other = Setting::create(region("two", 4))?;
    other.region.mark_zero(&[pages(0, 4)]).complete()?;
    let two = mount.open("two")?;
    equal!(seek(&two, SeekFrom::Hole(0))?, 0);
    other.area()?.poke(2 * PAGE_SIZE, 1);
    equal!(seek(&two, SeekFrom::Data(0))?, 2 * PAGE);
    equal!(seek(&two, SeekFrom::Hole(2 * PAGE))?, 3 * PAGE);
    Ok(())
}

fn page_that_is_coming_is_no_hole() -> Outcome {
    const PAGES: usize = 20_000;
    let (mount, setting) = (Mount::new("a")?, Setting::create(region("one", PAGES))?);
    let file = mount.open("one")?;
    let filled = AtomicUsize::new(0);
    thread::scope(|scope| -> Outcome {
        let filler = scope.spawn(|| -> Outcome {
            for page in 0..PAGES {
                setting.fill([page])?;
                filled.store(page + 1, Ordering::Relaxed);
            }
            Ok(())
        });
        // What comes next is an absent page at first, and a present one then; it is data all the time.
        while !filler.is_finished() {
            let next = filled.load(Ordering::Relaxed).min(PAGES - 1) as u64 * PAGE;
            equal!(seek(&file, SeekFrom::Hole(next))?, PAGES as u64 * PAGE);
            equal!(seek(&file, SeekFrom::Data(next))?, next);
        }
        filler.join().map_err(|_| "a thread has panicked")?
    })
}
