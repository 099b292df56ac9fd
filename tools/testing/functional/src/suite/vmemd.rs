// SPDX-License-Identifier: GPL-2.0-or-later
//! vmemd on real regions: what the programs see, whatever happens to daemon and source.

pub(crate) mod backing;
pub(crate) mod files;
pub(crate) mod fill;
pub(crate) mod holes;
pub(crate) mod loss;
pub(crate) mod nbd;
pub(crate) mod node;
pub(crate) mod process;
mod programs;
pub(crate) mod recognition;
mod scratch;
pub(crate) mod seed;
pub(crate) mod unreadable;

use vmem::{Access, Info, MapHandle, Mapping, PAGE_SIZE, Sharing};

use crate::failure::{Outcome, ensure};
use crate::setting::{bytes_of, contents};
use crate::world::{nodes, wait_until};
use programs::Program;
pub(super) use programs::{Daemon, Process, Source, beside};
pub(super) use scratch::Scratch;

const PAGES: u64 = 2000;
const SIZE: u64 = PAGES * PAGE_SIZE as u64;

/// Opens a region as soon as it is there.
pub(super) fn open(name: &str) -> Outcome<MapHandle> {
    wait_until("the region is there", || Ok(nodes()?.iter().any(|node| node == name)))?;
    Ok(MapHandle::open(name, Access::ReadWrite)?)
}

pub(super) fn map(handle: &MapHandle) -> Outcome<Mapping> {
    handle.wait_ready()?;
    Ok(handle.map(Access::ReadWrite, Sharing::Shared)?)
}

/// The region's state, once it is as it shall be.
fn wait_info(handle: &MapHandle, what: &str, holds: impl Fn(&Info) -> bool) -> Outcome<Info> {
    wait_until(what, || Ok(holds(&handle.info()?)))?;
    Ok(handle.info()?)
}

pub(super) fn check_page(mapping: &Mapping, pgoff: u64) -> Outcome {
    let mut page = vec![0; PAGE_SIZE];
    mapping.read_at(pgoff as usize * PAGE_SIZE, &mut page)?;
    let expected = if pgoff % 5 == 4 {
        vec![0; PAGE_SIZE]
    } else {
        bytes_of(&contents(pgoff))
    };
    ensure!(page == expected, "page {pgoff} is not that of the source");
    Ok(())
}
