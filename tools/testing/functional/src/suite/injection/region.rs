// SPDX-License-Identifier: GPL-2.0-or-later
//! Each step of what is done to a region that is tracked fails once. No write is lost, and it is served on.

use std::os::fd::AsFd;

use rustix::io::Errno;
use vmem::{Control, PAGE_SIZE};
use vmem_functional_sys::{Area, AreaBuilder, drain_page_lists};
use vmem_sys::VMEM_TRACK_FILLS;
use vmem_sys::calls::{self, FillRange};

use super::{MEMORY, NO_COPY, errno, result, sweep};
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal};
use crate::setting::{Setting, bytes_of, check_page, contents};
use crate::world::wait_until;

crate::tests![
    a_region_is_adopted_cleanly_at_every_step,
    track_of_a_region_fails_cleanly_at_every_step,
    untrack_of_a_region_ends_the_log_whatever_fails,
    mmap_of_a_tracked_region_fails_cleanly_at_every_step,
    conversion_of_a_tracked_region_fails_cleanly_at_every_step,
    fills_of_a_tracked_region_are_logged_whatever_fails,
];

const PAGES: usize = 128;

/// A region whose first half is present and mapped.
struct Region {
    setting: Setting,
    area: Area,
    log: Adopted,
}

impl Region {
    fn new() -> Outcome<Self> {
        let setting = Setting::new(PAGES)?;
        setting.fill(0..PAGES / 2)?;
        let area = setting.area()?;
        (0..PAGES / 2).for_each(|page| area.poke(page * PAGE_SIZE, area.peek(page * PAGE_SIZE)));
        let log = Adopted::new(&setting.map)?;
        Ok(Self { setting, area, log })
    }

    fn tracked() -> Outcome<Self> {
        let region = Self::new()?;
        region.log.track_with(VMEM_TRACK_FILLS)?;
        region.settle()?;
        Ok(region)
    }

    fn settle(&self) -> Outcome {
        wait_until("no page is held", || {
            drain_page_lists()?;
            Ok(self.log.bitmap(0..PAGES, true)?.held == 0)
        })
    }

    /// Fails unless each write is logged, and absent pages are.
    fn check(&self) -> Outcome {
        self.settle()?;
        self.area.poke(5 * PAGE_SIZE + 9, 1);
        self.setting.area()?.poke(6 * PAGE_SIZE + 9, 1);
        self.logs(&[5, 6])?;
        equal!(calls::get_info(self.log.as_fd())?.requested, 0);
        Ok(())
    }

    fn logs(&self, pages: &[usize]) -> Outcome {
        let found = self.log.bitmap(0..PAGES, false)?.pages;
        ensure!(
            pages.iter().all(|page| found.contains(page)),
            "the log has {found:?}, and {pages:?} were written"
        );
        Ok(())
    }
}

fn a_region_is_adopted_cleanly_at_every_step() -> Outcome {
    sweep(
        "adopt a region",
        || Ok((Setting::new(PAGES)?, Control::open()?, None)),
        &MEMORY,
        |(setting, control, adopted)| {
            *adopted = Some(calls::adopt(control.as_fd(), setting.map.as_fd())?);
            Ok(())
        },
        |(setting, _, adopted)| {
            equal!(adopted.ok_or("it was adopted")?.id, setting.region.id());
            Ok(())
        },
    )
}

fn track_of_a_region_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "track a region",
        Region::new,
        &MEMORY,
        |region| region.log.track_anew(),
        |region| region.check(),
    )
}

fn untrack_of_a_region_ends_the_log_whatever_fails() -> Outcome {
    sweep(
        "untrack a region",
        Region::tracked,
        &MEMORY,
        |region| region.log.untrack(),
        |region| {
            region.log.track_anew()?;
            region.check()
        },
    )
}

fn mmap_of_a_tracked_region_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "mmap of a tracked region",
        || Ok((Region::tracked()?, None)),
        &NO_COPY,
        |(region, area)| {
            let map = AreaBuilder::default().map(&region.setting.map, 0, PAGES);
            *area = Some(map.map_err(|error| errno(&error))?);
            Ok(())
        },
        |(region, area)| {
            area.ok_or("it was mapped")?.poke(7 * PAGE_SIZE, 9);
            region.logs(&[7])?;
            region.check()
        },
    )
}

fn conversion_of_a_tracked_region_fails_cleanly_at_every_step() -> Outcome {
    sweep(
        "conversion of a tracked region",
        || {
            let region = Region::tracked()?;
            region.setting.fill(PAGES / 2..PAGES)?;
            region.area.poke(3 * PAGE_SIZE, 9);
            Ok(region)
        },
        &MEMORY,
        |region| calls::make_vma_anonymous(region.setting.region.as_fd()),
        |region| {
            region.logs(&[3])?;
            equal!(region.setting.region.info()?.mappings, 0);
            region.check()
        },
    )
}

fn fills_of_a_tracked_region_are_logged_whatever_fails() -> Outcome {
    sweep(
        "fill pages of a tracked region",
        Region::tracked,
        &[Errno::NOMEM, Errno::FAULT, Errno::NOSPC],
        |region| {
            let bytes = bytes_of(&contents(70));
            let fill = FillRange::new(70, &bytes).ok_or(Errno::INVAL)?;
            result(calls::fill_pages(region.setting.region.as_fd(), &[fill]))
        },
        |region| {
            region.logs(&[70])?;
            check_page(&region.area, 70, 70)
        },
    )
}
