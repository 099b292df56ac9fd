// SPDX-License-Identifier: GPL-2.0

//! A part of a region's pages, with its own locks.

use super::backing::Extents;
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
        Arc,
        Mutex,
        SpinLock, //
    }, //
};

/// Bits that the map takes for each page, without the summary plane.
const PLANES: u64 = 3;

/// A shard. `Documentation/locking.rst` has the order of its locks.
#[pin_data]
pub(crate) struct Shard {
    /// The page map.
    #[pin]
    pub(super) map: SpinLock<PageMap<KVVec<u64>>>,
    /// Held from the check which pages are present until the others have been made so. It protects
    /// what backs the pages.
    #[pin]
    pub(crate) fill: Mutex<Option<Arc<Extents>>>,
    /// The threads that wait for a page of this shard. The key is the page offset.
    #[pin]
    pub(super) waiters: WaitQueue,
}

impl Shard {
    /// `count` shards of `slots` pages each, all absent.
    ///
    /// If the page map of a huge region does not fit into memory, the result is `ENOMEM`, and the
    /// OOM killer does not act.
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
                fill <- new_mutex!(None),
                waiters <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )
    }
}
