// SPDX-License-Identifier: GPL-2.0-or-later

//! The checker's locks and atomic words, as the kernel's behave, and a region of them.

use super::queue::{WaitQueue, lock};
use crate::model::{
    page_map::{PageMap, words_for},
    rendezvous::{AtomicWord, Rendezvous, Shard},
    shards::{Shards, Slots},
};
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::ops::DerefMut;
use std::sync::Arc;

impl AtomicWord for AtomicU64 {
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        AtomicU64::store(self, value, Ordering::Relaxed);
    }

    fn add(&self, value: u64) {
        self.fetch_add(value, Ordering::Relaxed);
    }
}

/// A shard of a region.
pub(super) struct Part {
    map: Mutex<PageMap<Vec<u64>>>,
    waiters: WaitQueue,
}

impl Shard for Part {
    type Words = Vec<u64>;
    type Queue = WaitQueue;

    fn map(&self) -> impl DerefMut<Target = PageMap<Vec<u64>>> {
        lock(&self.map)
    }

    fn waiters(&self) -> &WaitQueue {
        &self.waiters
    }
}

/// A region, as far as the protocol goes.
pub(super) struct Region {
    pub(super) layout: Shards,
    shards: Vec<Arc<Part>>,
    /// The daemon, when it waits for requests.
    pub(super) request_waiters: WaitQueue,
    /// Who waits for a daemon: `Daemon::ready_waiters`.
    pub(super) ready_waiters: WaitQueue,
    queued: AtomicU64,
    next_shard: AtomicU64,
    /// Whether a daemon is attached: `Daemon::attached`.
    pub(super) attached: AtomicBool,
    /// Whether it serves: `Daemon::ready`.
    pub(super) ready: AtomicBool,
    /// Whether the region is plain: `Region::plain`.
    pub(super) plain: AtomicBool,
    /// Places where a page can be wanted, and whether it is there.
    pub(super) mapped: [AtomicBool; 2],
}

impl Region {
    /// A region of so many pages, all absent, with a daemon.
    pub(super) fn new(pages: u64) -> Self {
        Self::build(pages, false)
    }

    /// One whose threads look before they are in the queue.
    pub(super) fn that_looks_first(pages: u64) -> Self {
        Self::build(pages, true)
    }

    fn build(pages: u64, looks_first: bool) -> Self {
        let layout = Shards::new(pages);
        let words = words_for(layout.slots_per_shard());
        let plane = || vec![0; words];
        let part = || Part {
            map: Mutex::new(PageMap::new(plane(), plane(), plane(), vec![0; words_for(words)])),
            waiters: WaitQueue::new(looks_first),
        };
        Self {
            layout,
            shards: (0..layout.count()).map(|_| Arc::new(part())).collect(),
            request_waiters: WaitQueue::new(looks_first),
            ready_waiters: WaitQueue::new(looks_first),
            queued: AtomicU64::new(0),
            next_shard: AtomicU64::new(0),
            attached: AtomicBool::new(true),
            ready: AtomicBool::new(false),
            plain: AtomicBool::new(false),
            mapped: [AtomicBool::new(false), AtomicBool::new(false)],
        }
    }

    /// Who waits for pages of the shard of these slots.
    pub(super) fn waiters(&self, slots: Slots) -> &WaitQueue {
        &self.shards[slots.shard].waiters
    }

    /// Where touches and the daemon meet.
    pub(super) fn rendezvous(&self) -> Rendezvous<'_, Arc<Part>, WaitQueue, AtomicU64> {
        Rendezvous {
            layout: self.layout,
            shards: &self.shards,
            request_waiters: &self.request_waiters,
            queued: &self.queued,
            next_shard: &self.next_shard,
        }
    }
}
