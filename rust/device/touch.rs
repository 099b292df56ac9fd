// SPDX-License-Identifier: GPL-2.0

//! Touches of pages: an absent page is read from its backing, or is requested.

use super::{
    backing::Backing,
    backing_read::ReadWork,
    filled::settle_filled,
    region::{
        lock_killable,
        Region, //
    },
    shard::Shard, //
};
use crate::{
    model::{
        extents::contents_of,
        page_map::{
            Touch,
            Verdict, //
        },
        range::PageRange, //
    },
    sys::{
        cached_page::CachedPage,
        memcg::Memcg,
        staging::{
            FilledPage,
            PageSource, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        MutexGuard, //
    }, //
};

/// How often a touch tries for the lock of a shard. Another touch holds the lock while it copies a
/// few pages.
const TRIES: usize = 64;

/// A touch of a page. An absent page that has backing is present after this, if the page cache of
/// the file has it; else a worker reads it. An absent page without backing is requested. `charge` is
/// the memory cgroup of the program, if that is not the running task's. Returns the state that the
/// touch has found, or made.
///
/// It does not wait, so that a fault may call it with its lock held.
pub(super) fn touch(
    region: &Arc<Region>,
    pgoff: u64,
    charge: impl FnOnce() -> Option<Memcg>,
) -> Touch {
    touch_to_map(region, pgoff, charge).0
}

/// The same for a fault. If the touch has just read the page, returns the page, too.
pub(super) fn touch_to_map(
    region: &Arc<Region>,
    pgoff: u64,
    charge: impl FnOnce() -> Option<Memcg>,
) -> (Touch, Option<FilledPage>) {
    let pages = region.pages();
    let Ok(page) = pages.range(pgoff, 1) else {
        return (Touch::Unreadable, None);
    };
    if !region.is_backed() {
        let found = pages.touch(pgoff);
        if found != Touch::NewlyRequested || !region.is_backed() {
            return (found, None);
        }
        // The call that has just set backing may have taken requests back before this one came.
        let _ = pages.withdraw_requests(page);
    }
    if let Some(found) = pages.look(pgoff) {
        return (found, None);
    }
    let Ok((shard, _)) = pages.locate(page) else {
        return (Touch::Unreadable, None);
    };
    let charge = charge();
    if let Some(fill) = try_lock(shard) {
        let Some((backing, window)) = fill.as_deref().and_then(|fill| fill.find(pgoff)) else {
            // With the lock held: a call that sets backing takes the request back.
            return (pages.touch(pgoff), None);
        };
        if let Some(filled) = copy_cached(region, backing, window, pgoff, charge.as_ref()) {
            pages.faults.count();
            return (Touch::Present, Some(filled));
        }
    }
    let found = pages.claim(pgoff);
    if found == Touch::NewlyClaimed && ReadWork::start(region, pgoff, charge).is_err() {
        // There is no memory. The page is touched again.
        let _ = pages.release(page, false);
    }
    (found, None)
}

fn try_lock(shard: &Shard) -> Option<MutexGuard<'_, Option<Arc<super::backing::Extents>>>> {
    (0..TRIES).find_map(|_| {
        let guard = shard.fill.try_lock();
        if guard.is_none() {
            core::hint::spin_loop();
        }
        guard
    })
}

/// Fills a page, and those beside it in `window`, as far as the page cache of the file has them.
/// Returns the page, with its folio locked. [`None`] if the page itself is not to be had. The
/// shard's `fill` is held.
fn copy_cached(
    region: &Region,
    backing: &Backing,
    window: PageRange,
    pgoff: u64,
    charge: Option<&Memcg>,
) -> Option<FilledPage> {
    let pages = region.pages();
    let absent = pages.absent_around(window, pgoff)?;
    // A page is copied only if its contents are there: what a daemon has staged stays.
    let cached = |pgoff| {
        let len = contents_of(pgoff, region.length());
        backing.file().cached(backing.position(pgoff)?, len)
    };
    let copy = |pgoff, cached: &CachedPage<'_>| {
        let from = PageSource::Cache(cached);
        region.staging().fill_page(pgoff, from, charge).ok()
    };
    let copy_beside = |pgoff| copy(pgoff, &cached(pgoff)?).map(drop);
    let own = cached(pgoff)?;
    let mut start = pgoff;
    let mut end = pgoff.saturating_add(1);
    while end < absent.end() && copy_beside(end).is_some() {
        end = end.saturating_add(1);
    }
    while start > absent.start() && copy_beside(start.saturating_sub(1)).is_some() {
        start = start.saturating_sub(1);
    }
    // The last one: its folio stays locked, and no memory is allocated any more.
    let page = copy(pgoff, &own)?;
    let filled = pages.range(start, end.saturating_sub(start)).ok()?;
    let settle = || pages.settle(filled, Verdict::Present);
    let changed = settle_filled(region, filled, settle).ok()?;
    pages.backed.add(changed);
    Some(page.among(filled))
}

/// Whether a page is present, for a system call; if not, it is read, or requested. `EIO` if it is
/// not available.
pub(super) fn touch_for_call(region: &Arc<Region>, pgoff: u64) -> Result<bool> {
    match touch(region, pgoff, || None) {
        Touch::Present => Ok(true),
        Touch::Unreadable => Err(EIO),
        Touch::NewlyRequested | Touch::AlreadyRequested if region.fails_request(pgoff) => Err(EIO),
        Touch::NewlyRequested
        | Touch::AlreadyRequested
        | Touch::NewlyClaimed
        | Touch::AlreadyClaimed => Ok(false),
    }
}

/// Requests the absent pages of `range`, which lies in one block, without waiting for them. Pages
/// that have backing are left out: they are read when they are touched.
pub(super) fn request(region: &Arc<Region>, range: PageRange) -> Result {
    let pages = region.pages();
    if !region.is_backed() {
        for run in pages.absent_runs(range)? {
            for pgoff in run.start()..run.end() {
                touch(region, pgoff, || None);
            }
        }
        return Ok(());
    }
    let fill = lock_killable(&pages.locate(range)?.0.fill)?;
    let is_backed = |pgoff| {
        fill.as_deref()
            .is_some_and(|fill| fill.find(pgoff).is_some())
    };
    for run in pages.absent_runs(range)? {
        for pgoff in (run.start()..run.end()).filter(|pgoff| !is_backed(*pgoff)) {
            pages.touch(pgoff);
        }
    }
    Ok(())
}
