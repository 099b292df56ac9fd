// SPDX-License-Identifier: GPL-2.0-or-later
//! The same on a region that asks for huge pages: there may be none, and what fails may be in the middle of one.

use std::ops::Range;
use std::os::fd::AsFd;

use vmem::{PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder};
use vmem_sys::calls::{self, FillRange};
use vmem_sys::vmem_range;

use super::{MEMORY, NO_COPY, Neighbour, errno, result, sweep};
use crate::failure::{Outcome, ensure, equal};
use crate::server::Server;
use crate::setting::{Setting, bytes_of, check_page, check_zero, contents, smaps};
use crate::world::{field, module_users, wait_until};

crate::tests![
    filling_a_huge_page_fails_cleanly_at_every_step,
    a_huge_page_is_made_present_or_not_at_every_step,
    removing_a_part_of_a_huge_page_fails_cleanly_at_every_step,
    conversion_with_a_huge_page_fails_cleanly_at_every_step,
];

const MADV_REMOVE: i32 = 9;
/// Pages in a huge page.
const HUGE: usize = 512;

fn absent() -> Outcome<Setting> {
    Setting::create(RegionBuilder::new((HUGE * PAGE_SIZE) as u64).huge())
}

fn present() -> Outcome<Setting> {
    let setting = absent()?;
    setting.fill_all()?;
    Ok(setting)
}

/// Maps all of it where a huge page fits.
fn aligned(setting: &Setting) -> Outcome<Area> {
    Ok(AreaBuilder::default().aligned(HUGE).map(&setting.map, 0, HUGE)?)
}

/// That there are huge pages at all, or the rest would prove nothing.
fn huge_pages_are_there() -> Outcome {
    let setting = present()?;
    let area = aligned(&setting)?;
    result(calls::make_pages_present(setting.region.as_fd(), &[ALL]))?;
    let mapped = field(&smaps(std::process::id(), area.address())?, "ShmemPmdMapped")?;
    ensure!(mapped > 0, "no huge page is mapped");
    Ok(())
}

const ALL: vmem_range = vmem_range {
    pgoff: 0,
    nr_pages: HUGE as u64,
};

fn filling_a_huge_page_fails_cleanly_at_every_step() -> Outcome {
    let bytes: Vec<u8> = (0..HUGE as u64).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect();
    let all = FillRange::new(0, &bytes).ok_or("these are whole pages")?;
    sweep(
        "fill of a huge page",
        absent,
        &MEMORY,
        |setting| result(calls::fill_pages(setting.region.as_fd(), &[all])),
        |setting| {
            equal!(setting.region.info()?.present, HUGE as u64);
            setting.checker(0..HUGE)?.join().map(drop)
        },
    )
}

fn a_huge_page_is_made_present_or_not_at_every_step() -> Outcome {
    huge_pages_are_there()?;
    sweep(
        "make_pages_present of a huge page",
        || {
            let setting = present()?;
            let area = aligned(&setting)?;
            let neighbour = Neighbour::new(&setting, 300)?;
            Ok((setting, area, neighbour))
        },
        &MEMORY,
        |(setting, _, _)| result(calls::make_pages_present(setting.region.as_fd(), &[ALL])),
        |(_, area, neighbour)| {
            (0..HUGE).try_for_each(|page| check_page(&area, page, page))?;
            neighbour.look()
        },
    )
}

/// The pages `gone` of a region have been removed, of which only those of `filled` had been there: these are zero, and all others as they were.
fn removed(setting: &Setting, area: &Area, gone: Range<usize>, filled: Range<usize>) -> Outcome {
    gone.clone().try_for_each(|page| check_zero(area, page))?;
    let present = filled
        .clone()
        .chain(gone.clone().filter(|page| !filled.contains(page)))
        .count();
    equal!(setting.region.info()?.present, present as u64);
    let server = Server::start(&setting.region);
    setting
        .checker((0..setting.pages()).filter(|page| !gone.contains(page)))?
        .join()?;
    server.stop().map(drop)
}

fn removing_a_part_of_a_huge_page_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "madvise(MADV_REMOVE) of a part of a huge page",
        || {
            let setting = absent()?;
            setting.fill(0..8)?;
            let area = aligned(&setting)?;
            check_page(&area, 7, 7)?;
            Ok((setting, area))
        },
        &NO_COPY,
        |(_, area)| area.advise(4..300, MADV_REMOVE).map_err(|error| errno(&error)),
        |(setting, area)| removed(&setting, &area, 4..300, 0..8),
    )
}

fn conversion_with_a_huge_page_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "make_vma_anonymous with a huge page",
        || {
            let setting = present()?;
            let area = aligned(&setting)?;
            check_page(&area, 4, 4)?;
            let neighbour = Neighbour::new(&setting, 300)?;
            Ok((setting, area, neighbour))
        },
        &NO_COPY,
        |(setting, _, _)| calls::make_vma_anonymous(setting.region.as_fd()),
        |(setting, area, neighbour)| {
            drop(setting);
            wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
            (0..HUGE).try_for_each(|page| check_page(&area, page, page))?;
            neighbour.look()
        },
    )
}
