// SPDX-License-Identifier: GPL-2.0

//! Information about the module and about regions.

use super::{
    fault::Mapped,
    region::Region, //
};
use crate::{
    model::{
        page_map::words_for,
        range::{
            PageRange,
            BLOCK_PAGES,
            PAGE_SIZE, //
        }, //
    },
    sys::{
        mm::Mappings,
        task::cond_resched_or_killed,
        uapi::{
            vmem_features,
            vmem_info,
            vmem_present,
            UserArg,
            UserBits,
            VMEM_FEATURE_BACKING,
            VMEM_FEATURE_FILES,
            VMEM_FEATURE_FILL,
            VMEM_FEATURE_POISON,
            VMEM_FEATURE_RESUME,
            VMEM_FEATURE_SNAPSHOT,
            VMEM_FEATURE_STAGE,
            VMEM_FEATURE_TRACK,
            VMEM_FEATURE_TRACK_ALL,
            VMEM_MAX_BATCH,
            VMEM_MAX_SIZE,
            VMEM_STATE_ATTACHED,
            VMEM_STATE_PLAIN,
            VMEM_STATE_READY, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    seq_file::SeqFile,
    seq_print, //
};

/// GET_FEATURES.
pub(crate) fn get_features(arg: UserArg) -> Result {
    let features = VMEM_FEATURE_FILL
        | VMEM_FEATURE_POISON
        | VMEM_FEATURE_TRACK
        | VMEM_FEATURE_SNAPSHOT
        | VMEM_FEATURE_STAGE
        | VMEM_FEATURE_FILES
        | VMEM_FEATURE_BACKING
        | VMEM_FEATURE_TRACK_ALL
        | VMEM_FEATURE_RESUME;
    arg.write(&vmem_features {
        features: features.into(),
        max_size: VMEM_MAX_SIZE,
        page_size: PAGE_SIZE as u32,
        max_batch: VMEM_MAX_BATCH,
        reserved: [0; 5],
    })
}

/// The state and the counters.
pub(crate) fn info(region: &Region) -> vmem_info {
    // What others follow from comes first: a conversion lets mappings go, a daemon is ready while
    // it is attached, and ends when its pages are present.
    let mappings = Mappings::<Mapped>::of(region.staging()).count();
    let is_attached = region.daemon().is_attached();
    let is_ready = is_attached && region.daemon().is_ready();
    let mut state = 0;
    for (holds, bit) in [
        (is_attached, VMEM_STATE_ATTACHED),
        (is_ready, VMEM_STATE_READY),
        (region.is_plain(), VMEM_STATE_PLAIN),
    ] {
        if holds {
            state |= bit;
        }
    }
    let backed = region.pages().backed.get();
    let counts = region.pages().counts();
    let (waiters, oldest_wait_ns) = region.pages().waiters();
    vmem_info {
        id: region.id(),
        size: region.size(),
        flags: region.flags(),
        state,
        present: counts.present,
        unreadable: counts.unreadable,
        requested: counts.requested,
        queued: counts.queued,
        waiters,
        oldest_wait_ns,
        faults: region.pages().faults.get(),
        requests: region.pages().requests.get(),
        sigbus: region.sigbus.get(),
        mappings,
        length: region.length(),
        backed,
        reserved: 0,
    }
}

/// GET_INFO.
pub(crate) fn get_info(region: &Region, arg: UserArg) -> Result {
    arg.write(&info(region))
}

/// `/proc/PID/fdinfo`: the fields of `struct vmem_info`.
pub(crate) fn show_fdinfo(region: &Region, m: &SeqFile) {
    let info = info(region);
    for (name, value) in [
        ("id", info.id),
        ("size", info.size),
        ("flags", info.flags.into()),
        ("state", info.state.into()),
        ("present", info.present),
        ("unreadable", info.unreadable),
        ("requested", info.requested),
        ("queued", info.queued),
        ("waiters", info.waiters),
        ("oldest_wait_ns", info.oldest_wait_ns),
        ("faults", info.faults),
        ("requests", info.requests),
        ("sigbus", info.sigbus),
        ("mappings", info.mappings),
        ("length", info.length),
        ("backed", info.backed),
    ] {
        seq_print!(m, "vmem-{name}:\t{value}\n");
    }
}

/// GET_PRESENT.
pub(crate) fn get_present(region: &Region, arg: UserArg) -> Result {
    get_present_of(Some(region), region.pages().nr(), arg)
}

/// The same for memory of `nr` pages: of the region, or else of memory whose pages are all present.
pub(crate) fn get_present_of(region: Option<&Region>, nr: u64, arg: UserArg) -> Result {
    let mut call: vmem_present = arg.read()?;
    let range = PageRange::within(call.pgoff, call.nr_pages, nr).ok_or(EINVAL)?;
    if range.start() % 64 != 0 {
        return Err(EINVAL);
    }
    call.present = 0;
    let mut out = UserBits::new(call.bitmap, words_for(range.len() as usize))?;
    for block in range.blocks() {
        cond_resched_or_killed()?;
        let bits = match region {
            Some(region) => region.pages().present_bits(block)?,
            None => [u64::MAX; BLOCK_PAGES as usize / 64],
        };
        let first = (block.start() % BLOCK_PAGES / 64) as usize;
        for (at, word) in bits
            .iter()
            .skip(first)
            .take(words_for(block.len() as usize))
            .enumerate()
        {
            let left = block.len() - at as u64 * 64;
            // Bits after the last page are clear.
            let word = if left < 64 {
                word & ((1 << left) - 1)
            } else {
                *word
            };
            call.present += u64::from(word.count_ones());
            out.write(word)?;
        }
    }
    arg.write(&call)
}
