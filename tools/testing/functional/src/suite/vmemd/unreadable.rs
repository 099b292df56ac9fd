// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages that the source cannot read, and regions as sources.

use std::fs::{self, File};

use vmem::{Control, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::BUS_ADRERR;

use super::{Daemon, PAGES, SIZE, Scratch, Source, check_page, map, open};
use crate::failure::{Outcome, ensure, equal};
use crate::setting::{Setting, pages};
use crate::suite::mark::{broken, bus_code};

crate::tests![
    pages_that_the_source_cannot_read_are_exit_code_4_and_can_be_cured,
    pages_that_the_source_cannot_read_are_broken_memory_if_that_is_wanted,
    regions_are_exported_on_demand_with_what_is_unreadable,
];

fn pages_that_the_source_cannot_read_are_exit_code_4_and_can_be_cured() -> Outcome {
    let file = Scratch::new("lost", PAGES)?;
    let whole = fs::read(&file.0)?;
    let source = Source::new(&[&file.export("lost")])?;
    File::options().write(true).open(&file.0)?.set_len(SIZE / 2)?;
    let daemon = Daemon::new(&source.address, &[])?;
    let handle = open("lost")?;
    let memory = map(&handle)?;
    let end = daemon.end()?.with_code(4)?;
    equal!(end.number("unreadable_pages")?, PAGES / 2);
    let info = handle.info()?;
    equal!((info.present, info.unreadable, info.plain), (PAGES / 2, PAGES / 2, false));
    check_page(&memory, PAGES / 2 - 1)?;
    let mut page = vec![0; PAGE_SIZE];
    equal!(memory.read_until_fault(SIZE as usize / 2, &mut page)?, 0);
    fs::write(&file.0, whole)?;
    drop(handle);
    Daemon::new(&source.address, &["--resume"])?.end()?.with_code(0)?;
    for pgoff in 0..PAGES {
        check_page(&memory, pgoff)?;
    }
    Ok(())
}

fn pages_that_the_source_cannot_read_are_broken_memory_if_that_is_wanted() -> Outcome {
    let code = |options: &[&str]| -> Outcome<i32> {
        let file = Scratch::new("broken", 4)?;
        let source = Source::new(&[&file.export("broken")])?;
        File::options().write(true).open(&file.0)?.set_len(2 * PAGE_SIZE as u64)?;
        let daemon = Daemon::new(&source.address, options)?;
        let map = open("broken")?;
        daemon.end()?.with_code(4)?;
        let region = Control::open()?.attach("broken")?.into();
        bus_code(&Setting { region, map })
    };
    equal!(code(&[])?, BUS_ADRERR);
    equal!(code(&["--on-unreadable", "sigbus"])?, BUS_ADRERR);
    equal!(code(&["--on-unreadable", "poison"])?, broken());
    Ok(())
}

fn regions_are_exported_on_demand_with_what_is_unreadable() -> Outcome {
    let near = Setting::create(RegionBuilder::new(50 * PAGE_SIZE as u64).name("near"))?;
    near.region.ready()?;
    near.fill((0..20).filter(|pgoff| pgoff % 5 != 4))?;
    near.region
        .mark_zero(&[4, 9, 14, 19].map(|pgoff| pages(pgoff, 1)))
        .complete()?;
    near.region.mark_unreadable(&[pages(20, 10)]).complete()?;
    let source = Source::new(&["far=/dev/vmem/near"])?;
    let daemon = Daemon::new(&source.address, &[])?;
    let handle = open("far")?;
    let memory = map(&handle)?;
    for pgoff in 0..20 {
        check_page(&memory, pgoff)?;
    }
    // What is absent in the one is requested there when the other one wants it.
    let requested = near.region.next_requests(1)?;
    ensure!(requested.iter().all(|page| page.get() >= 30), "{requested:?}");
    near.fill((30..50).filter(|pgoff| pgoff % 5 != 4))?;
    near.region
        .mark_zero(&[34, 39, 44, 49].map(|pgoff| pages(pgoff, 1)))
        .complete()?;
    let end = daemon.end()?.with_code(4)?;
    equal!(end.number("unreadable_pages")?, 10);
    for pgoff in 30..50 {
        check_page(&memory, pgoff)?;
    }
    equal!(handle.info()?.unreadable, 10);
    Ok(())
}
