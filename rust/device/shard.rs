// SPDX-License-Identifier: GPL-2.0

//! A part of a region's pages, with locks of its own.

use crate::{
    model::page_map::{
        words_for,
        PageMap, //
    },
    sys::{
        task::available_memory,
        wait::WaitQueue, //
    }, //
};
use kernel::{
    alloc::flags::{
        GFP_KERNEL_ACCOUNT,
        __GFP_NOWARN, //
    },
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        Mutex,
        SpinLock, //
    }, //
};

/// Bits that the map takes for a page, not counting the small plane of planes.
const PLANES: u64 = 3;

/// A shard. `device.rs` has the order of its locks.
#[pin_data]
pub(crate) struct Shard {
    /// What is known of each page.
    #[pin]
    pub(super) map: SpinLock<PageMap<KVVec<u64>>>,
    /// Held from looking whether pages are present until they have been made so.
    #[pin]
    pub(crate) fill: Mutex<()>,
    /// Who waits for a page of this shard; the key is the page offset.
    #[pin]
    pub(super) waiters: WaitQueue,
}

impl Shard {
    /// `count` shards of `slots` pages each, all absent.
    ///
    /// The page map of a huge region on a small machine is `ENOMEM`, not a case for the OOM killer.
    pub(super) fn allocate(count: usize, slots: usize) -> Result<KVec<Pin<KBox<Self>>>> {
        let bytes = (words_for(slots) as u64)
            .saturating_mul(count as u64)
            .saturating_mul(PLANES * 8);
        if bytes > available_memory() / 2 {
            return Err(ENOMEM);
        }
        let mut shards = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            shards.push(Self::new(slots)?, GFP_KERNEL)?;
        }
        Ok(shards)
    }

    fn new(slots: usize) -> Result<Pin<KBox<Self>>> {
        let plane = |words| KVVec::from_elem(0u64, words, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
        let words = words_for(slots);
        let map = PageMap::new(
            plane(words)?,
            plane(words)?,
            plane(words)?,
            plane(words_for(words))?,
        );
        KBox::pin_init(
            pin_init!(Self {
                map <- new_spinlock!(map),
                fill <- new_mutex!(()),
                waiters <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )
    }
}
