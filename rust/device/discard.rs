// SPDX-License-Identifier: GPL-2.0

//! What a program does to a region's pages, other than touch them.

use super::region::Region;
use crate::{
    model::{
        page_map::Verdict,
        range::PAGE_SIZE, //
    },
    sys::task::breathe, //
};
use kernel::prelude::*;

/// A program discards pages (MADV_REMOVE): they are zeros from now on, also those that were absent,
/// which are not fetched any more.
pub(crate) fn discard(region: &Region, offset: u64, len: u64) -> Result {
    if offset % PAGE_SIZE != 0 || len % PAGE_SIZE != 0 {
        return Err(EINVAL);
    }
    let nr = (len / PAGE_SIZE).min(region.pages().nr().saturating_sub(offset / PAGE_SIZE));
    for block in region.pages().range(offset / PAGE_SIZE, nr)?.blocks() {
        breathe()?;
        let _fill = region.pages().locate(block)?.0.fill.lock();
        region.staging().drop_pages(block)?;
        region.pages().settle(block, Verdict::Present)?;
    }
    Ok(())
}
