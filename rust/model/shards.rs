// SPDX-License-Identifier: GPL-2.0

//! Which shard holds a page.
//!
//! The pages of a region are distributed over its shards in blocks of [`BLOCK_PAGES`]. So threads
//! that fault in different blocks take different locks, and a run within a block takes one. The
//! number of a page within its shard is its *slot*.

use super::range::{PageRange, BLOCK_PAGES};
use core::num::NonZeroU64;

/// The maximal number of shards of a region: enough for 64 threads, and cheap for a small region.
const MAX_SHARDS: u64 = 64;

/// How a region's pages are distributed over its shards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shards {
    nr_pages: u64,
    nr_shards: NonZeroU64,
}

/// The slots `[first, first + nr)` of a shard, which lie in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
    pub(crate) shard: usize,
    pub(crate) first: usize,
    pub(crate) nr: usize,
}

impl Shards {
    /// The layout of a region of `nr_pages` pages.
    pub(crate) fn new(nr_pages: u64) -> Self {
        let blocks = nr_pages.div_ceil(BLOCK_PAGES);
        Self {
            nr_pages,
            nr_shards: NonZeroU64::new(blocks.min(MAX_SHARDS)).unwrap_or(NonZeroU64::MIN),
        }
    }

    /// How many shards there are; at least one.
    pub(crate) fn count(self) -> usize {
        self.nr_shards.get() as usize
    }

    /// How many slots each shard has: whole blocks, the same number in each.
    pub(crate) fn slots_per_shard(self) -> usize {
        let blocks = self.nr_pages.div_ceil(BLOCK_PAGES);
        (blocks.div_ceil(self.nr_shards.get()) * BLOCK_PAGES) as usize
    }

    /// The slots of the pages of `range`, which lies within one block (see [`PageRange::blocks`]).
    pub(crate) fn locate(self, range: PageRange) -> Slots {
        let block = range.start() / BLOCK_PAGES;
        let first = block / self.nr_shards * BLOCK_PAGES + range.start() % BLOCK_PAGES;
        Slots {
            shard: (block % self.nr_shards) as usize,
            first: first as usize,
            nr: range.len() as usize,
        }
    }

    /// The page in `slot` of `shard`: the inverse of [`Self::locate`].
    pub(crate) fn pgoff(self, shard: usize, slot: usize) -> u64 {
        let slot = slot as u64;
        let block = slot / BLOCK_PAGES * self.nr_shards.get() + shard as u64;
        block * BLOCK_PAGES + slot % BLOCK_PAGES
    }
}
