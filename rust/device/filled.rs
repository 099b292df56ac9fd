// SPDX-License-Identifier: GPL-2.0

//! The last step of a fill.

use super::{
    memories,
    region::Region, //
};
use crate::model::range::PageRange;
use kernel::prelude::*;

/// Makes pages present whose contents have come. If the log was started with fills, it has these
/// pages: at any time, each present page is in the log or has been reported.
pub(super) fn settle_filled(
    region: &Region,
    pages: PageRange,
    settle: impl FnOnce() -> Result<u64>,
) -> Result<u64> {
    let tracking = region
        .logs_fills()
        .then(|| memories::tracking_of_region(region))
        .flatten();
    let Some(tracking) = tracking else {
        return settle();
    };
    tracking.mark(pages);
    let changed = settle();
    tracking.mark(pages);
    changed
}
