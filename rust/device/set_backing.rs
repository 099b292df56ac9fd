// SPDX-License-Identifier: GPL-2.0

//! SET_BACKING.

use super::{
    backing::{
        Backing,
        Extents, //
    },
    region::{
        lock_killable,
        Region, //
    },
    registry, //
};
use crate::{
    model::range::{
        PageRange,
        PAGE_SIZE, //
    },
    sys::{
        backing_file::BackingFile,
        errno,
        task::cond_resched_or_killed,
        uapi::{
            vmem_backing,
            UserArg,
            VMEM_BACKING_NONE,
            VMEM_MAX_AROUND, //
        }, //
    }, //
};
use kernel::{
    error::code::ELOOP,
    prelude::*,
    sync::Arc, //
};

/// How many pages one touch reads, if the daemon does not say.
const AROUND: u32 = 16;

/// SET_BACKING.
pub(super) fn set_backing(region: &Region, arg: UserArg) -> Result {
    let call: vmem_backing = arg.read()?;
    if call.reserved0 != 0 || call.reserved != [0; 2] {
        return Err(EINVAL);
    }
    let range = region.pages().range(call.pgoff, call.nr_pages)?;
    let new = match call.flags {
        0 => Some(find(region, &call, range)?),
        VMEM_BACKING_NONE if call.fd == -1 && call.offset == 0 && call.around == 0 => None,
        _ => return Err(EINVAL),
    };
    change(region, range, new.as_ref())
}

/// The backing that the call names.
fn find(region: &Region, call: &vmem_backing, range: PageRange) -> Result<Arc<Backing>> {
    let around = match call.around {
        0 => AROUND,
        around if around.is_power_of_two() && around <= VMEM_MAX_AROUND => around,
        _ => return Err(EINVAL),
    };
    let end = range
        .bytes()
        .and_then(|bytes| call.offset.checked_add(bytes));
    if call.offset % PAGE_SIZE != 0 || end.is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(EINVAL);
    }
    let file = BackingFile::from_fd(call.fd)?;
    // Absent pages read as zeros there. So do those of the region itself.
    let other = registry::find_memory(file.inode_id());
    if other.is_ok_and(|other| other.region().id() == region.id() || !other.region().is_plain()) {
        return Err(ELOOP);
    }
    Backing::new(file, range.start(), call.offset, around.into())
}

/// Gives pages another backing, or none. After this, no worker reads the one that they had before.
pub(super) fn change(region: &Region, range: PageRange, new: Option<&Arc<Backing>>) -> Result {
    let pages = region.pages();
    // Until the reads are over: the next call does not know what this one waits for.
    let mut backings = region.lock_backings()?;
    if new.is_some() && region.is_plain() {
        // With the lock held: conversion withdraws what was set before.
        return Err(errno::nodata());
    }
    if new.is_none() && !region.is_backed() {
        return Ok(());
    }
    let changed = Extents::change(backings.as_deref(), range, new)?;
    if changed.is_some() {
        region.set_backed(true);
    }
    // What the shards have had: one and the same, unless a call before this was killed.
    let mut old = KVec::with_capacity(pages.shards().len(), GFP_KERNEL)?;
    for shard in pages.shards() {
        cond_resched_or_killed()?;
        // A touch that has looked before has copied its pages.
        let before = core::mem::replace(&mut *lock_killable(&shard.fill)?, changed.clone());
        if let Some(before) = before {
            old.push(before, GFP_KERNEL)?;
        }
    }
    if changed.is_none() {
        region.set_backed(false);
    }
    *backings = changed;
    if new.is_some() {
        for block in range.blocks() {
            cond_resched_or_killed()?;
            pages.withdraw_requests(block)?;
        }
    }
    old.iter().try_for_each(|old| old.await_idle(range))
}
