// SPDX-License-Identifier: GPL-2.0

//! What a region tells of itself.

use super::{
    fault::Mapped,
    region::Region, //
};
use crate::{
    model::{
        page_map::words_for,
        range::{
            PageRange,
            BLOCK_PAGES, //
        }, //
    },
    sys::{
        mm::Mappings,
        task::breathe,
        uapi::{
            vmem_info,
            vmem_present,
            UserArg,
            UserBits,
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

/// The state and the counters.
fn info(region: &Region) -> vmem_info {
    let counts = region.counts();
    let (waiters, oldest_wait_ns) = region.shards().fold((0, 0), |(nr, oldest), shard| {
        let (more, age) = shard.waiters.census();
        (nr + more, age.max(oldest))
    });
    let mut state = 0;
    for (holds, bit) in [
        (region.is_attached(), VMEM_STATE_ATTACHED),
        (region.is_ready(), VMEM_STATE_READY),
        (region.is_plain(), VMEM_STATE_PLAIN),
    ] {
        if holds {
            state |= bit;
        }
    }
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
        faults: region.counters().faults.get(),
        requests: region.counters().requests.get(),
        sigbus: region.counters().sigbus.get(),
        mappings: Mappings::<Mapped>::of(region.staging()).count(),
        reserved: [0; 3],
    }
}

/// GET_INFO.
pub(crate) fn get_info(region: &Region, arg: UserArg) -> Result {
    arg.write(&info(region))
}

/// `/proc/PID/fdinfo`: the fields of `struct vmem_info`.
pub(crate) fn show(region: &Region, m: &SeqFile) {
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
    ] {
        seq_print!(m, "vmem-{name}:\t{value}\n");
    }
}

/// GET_PRESENT.
pub(crate) fn get_present(region: &Region, arg: UserArg) -> Result {
    const WORDS: usize = (BLOCK_PAGES / 64) as usize;

    let mut call: vmem_present = arg.read()?;
    let range = region.range(call.pgoff, call.nr_pages)?;
    if range.start() % 64 != 0 {
        return Err(EINVAL);
    }
    call.present = 0;
    let mut out = UserBits::new(call.bitmap, words_for(range.len() as usize))?;
    for block in range.blocks() {
        breathe()?;
        let mut words = [0; WORDS];
        let nr = words_for(block.len() as usize).min(WORDS);
        let Some(words) = words.get_mut(..nr) else {
            continue;
        };
        region.present_words(block, words)?;
        trim(block, words);
        call.present += words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum::<u64>();
        out.write(words)?;
    }
    arg.write(&call)
}

/// Clears the bits after the last page of `block`.
fn trim(block: PageRange, words: &mut [u64]) {
    let rest = block.len() % 64;
    if let (Some(last), true) = (words.last_mut(), rest != 0) {
        *last &= (1 << rest) - 1;
    }
}
