// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory of a machine of several nodes: where a program's mbind() wants it, before the region is plain and after.
//!
//! On a machine of one node these tests are left out.

use vmem::{PAGE_SIZE, RegionBuilder};

use crate::failure::{Outcome, ensure, equal};
use crate::setting::{Setting, check_page};
use crate::tracked::Tracked;

crate::tests![
    mbind_says_on_which_node_pages_are_filled,
    mbind_of_one_mapping_is_for_all_as_on_a_memfd,
    mbind_before_conversion_holds_after_it,
    tracked_pages_that_move_to_the_other_node_keep_their_log,
];

const MADV_REMOVE: i32 = 9;
const PAGES: usize = 1024;

/// Whether the machine has the two nodes that the tests want.
pub(crate) fn available() -> bool {
    std::path::Path::new("/sys/devices/system/node/node1").exists()
}

fn settings() -> Outcome<[Setting; 2]> {
    let builder = RegionBuilder::new((PAGES * PAGE_SIZE) as u64);
    Ok([Setting::create(builder.clone())?, Setting::create(builder.huge())?])
}

fn mbind_says_on_which_node_pages_are_filled() -> Outcome {
    for node in [0, 1] {
        for setting in settings()? {
            let area = setting.area()?;
            area.bind(0..PAGES / 2, node)?;
            area.bind(PAGES / 2..PAGES, 1 - node)?;
            setting.no_request()?;
            setting.fill_all()?;
            for pgoff in 0..PAGES {
                equal!(area.node_of(pgoff)?, if pgoff < PAGES / 2 { node } else { 1 - node });
            }
            check_page(&area, 7, 7)?;
        }
    }
    Ok(())
}

fn mbind_of_one_mapping_is_for_all_as_on_a_memfd() -> Outcome {
    let setting = Setting::new(PAGES)?;
    let (area, other) = (setting.area()?, setting.area()?);
    for node in [0, 1] {
        area.bind(0..PAGES, node)?;
        equal!(other.bound_to(5)?, Some(node));
    }
    Ok(())
}

fn mbind_before_conversion_holds_after_it() -> Outcome {
    for node in [0, 1] {
        for setting in settings()? {
            let area = setting.area()?;
            area.bind(0..PAGES, node)?;
            setting.fill_all()?;
            equal!(area.bound_to(0)?, Some(node));
            setting.region.make_vma_anonymous()?;
            equal!(area.bound_to(0)?, Some(node));
            // Memory that comes anew comes from there.
            area.advise(0..PAGES, MADV_REMOVE)?;
            for pgoff in 0..PAGES {
                area.poke(pgoff * PAGE_SIZE, 1);
                equal!(area.node_of(pgoff)?, node);
            }
            // And what is said now is heard.
            area.bind(0..PAGES, 1 - node)?;
            area.advise(0..PAGES, MADV_REMOVE)?;
            area.poke(0, 1);
            equal!((area.bound_to(0)?, area.node_of(0)?), (Some(1 - node), 1 - node));
        }
    }
    Ok(())
}

fn tracked_pages_that_move_to_the_other_node_keep_their_log() -> Outcome {
    const PAGES: usize = 64;
    let memory = Tracked::new(PAGES)?;
    memory.settle()?;
    // Clean pages, read ones and written ones.
    for page in 8..32 {
        memory.area.peek(page * PAGE_SIZE);
    }
    for page in 16..24 {
        memory.area.poke(page * PAGE_SIZE, 1);
    }
    let mut moved = 0;
    for page in 0..PAGES {
        let node = 1 - memory.area.node_of(page)?;
        // A page that somebody has in hand just now does not move.
        if memory.area.move_to(page, node).is_ok() && memory.area.node_of(page)? == node {
            moved += 1;
        }
    }
    ensure!(moved > PAGES / 2, "{moved} pages have moved only");
    memory.check_log(16..24)?;
    // None can be written unseen at its new place.
    for page in 12..20 {
        memory.area.poke(page * PAGE_SIZE, 2);
    }
    memory.check_log(12..24)?;
    let written: Vec<_> = (0..PAGES).filter(|page| page % 5 == 0).collect();
    memory.logs(written.iter().copied(), |time| {
        for page in &written {
            memory.area.poke(page * PAGE_SIZE + 1, time);
            let node = 1 - memory.area.node_of(*page)?;
            let _ = memory.area.move_to(*page, node);
        }
        Ok(())
    })
}
