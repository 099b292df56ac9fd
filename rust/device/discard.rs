// SPDX-License-Identifier: GPL-2.0

//! The discard of a region's pages by a program.

use super::{
    memories,
    region::Region, //
};
use crate::{
    model::{
        page_map::Verdict,
        range::{
            PageRange,
            PAGE_SIZE, //
        }, //
    },
    sys::task::cond_resched_or_killed, //
};
use kernel::prelude::*;

/// Discards pages (MADV_REMOVE). They are zeros from now on. Absent ones become present, and are
/// not fetched any more.
pub(crate) fn discard(region: &Region, offset: u64, len: u64) -> Result {
    if offset % PAGE_SIZE != 0 || len % PAGE_SIZE != 0 {
        return Err(EINVAL);
    }
    let nr = (len / PAGE_SIZE).min(region.pages().nr().saturating_sub(offset / PAGE_SIZE));
    for block in region.pages().range(offset / PAGE_SIZE, nr)?.blocks() {
        cond_resched_or_killed()?;
        discard_block(region, block)?;
    }
    region.times.modify();
    if let Some(tracking) = memories::tracking_of_region(region) {
        tracking.written.count();
    }
    Ok(())
}

/// The same for pages of one block. For a dirty log it is a call that writes to them.
fn discard_block(region: &Region, block: PageRange) -> Result {
    let _fill = region.pages().locate(block)?.0.fill.lock();
    let tracking = region
        .is_logged()
        .then(|| memories::tracking_of_region(region))
        .flatten();
    let Some(tracking) = tracking else {
        return make_zero(region, block);
    };
    tracking.copy_before_write().enter(Some(block))?;
    let zeroed = region.pages().absent_runs(block).and_then(|mut absent| {
        // Their contents at the instant of a snapshot will not arrive any more.
        absent.try_for_each(|run| tracking.copy_before_write().exclude(run))?;
        make_zero(region, block)
    });
    // Also after an error: some pages may be zeros.
    tracking.mark(block);
    tracking.copy_before_write().leave();
    zeroed
}

fn make_zero(region: &Region, block: PageRange) -> Result {
    region.staging().drop_pages(block)?;
    region.pages().settle(block, Verdict::Present)?;
    Ok(())
}
