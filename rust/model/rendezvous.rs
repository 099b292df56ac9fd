// SPDX-License-Identifier: GPL-2.0

//! Where touches and the daemon meet: how a request reaches the daemon, and its answer who waits.
//!
//! One rule for all who wait: first into the queue, then look; and one for all who change: first
//! change, then wake. What locks, queues and atomic words are is left to who implements the traits:
//! the device layer has the kernel's, and `tools/testing/model` those of a model checker, which runs
//! this code in every order that the rules of memory allow.

use super::{
    page_map::{PageMap, Settled, Touch, Verdict},
    shards::{Shards, Slots},
};
use core::ops::{Deref, DerefMut};

/// Threads that wait, each for a key.
pub(crate) trait Queue {
    /// What may end a wait, besides what it waits for.
    type Params;
    /// How a wait ended.
    type Outcome;

    /// Waits until `done` returns true, which is called with this thread in the queue.
    fn wait(&self, key: u64, params: Self::Params, done: impl FnMut() -> bool) -> Self::Outcome;
    /// Wakes who waits for a key in `[start, end)`.
    fn wake(&self, start: u64, end: u64);
    /// Wakes all.
    fn wake_all(&self);
}

/// A word that threads change without a lock.
pub(crate) trait AtomicWord {
    /// Its value, and all that was done before it was set (acquire).
    fn load(&self) -> u64;
    /// Sets it (relaxed).
    fn store(&self, value: u64);
    /// Adds to it, wrapping (relaxed).
    fn add(&self, value: u64);
}

/// A part of the pages, with a lock of its own.
pub(crate) trait Shard {
    /// What holds a plane of its map.
    type Words: DerefMut<Target = [u64]>;
    /// What its waiters stand in.
    type Queue: Queue;

    /// What is known of each page, locked.
    fn map(&self) -> impl DerefMut<Target = PageMap<Self::Words>>;
    /// Who waits for a page of this shard; the key is the page offset.
    fn waiters(&self) -> &Self::Queue;
}

/// All the shards of a region, and the daemon's place.
pub(crate) struct Rendezvous<'a, S, Q, W> {
    /// Which shard has which page.
    pub(crate) layout: Shards,
    /// The shards, at most 64.
    pub(crate) shards: &'a [S],
    /// The daemon, when it waits for requests.
    pub(crate) request_waiters: &'a Q,
    /// One bit for each shard that has requests in its queue. Changed with the shard locked.
    pub(crate) queued: &'a W,
    /// Where the next search for requests begins, so that no shard is left waiting.
    pub(crate) next_shard: &'a W,
}

impl<S: Deref<Target: Shard>, Q: Queue, W: AtomicWord> Rendezvous<'_, S, Q, W> {
    /// A touch of the page of the first slot: what it finds. Requests the page if it is absent.
    pub(crate) fn touch(&self, slots: Slots) -> Touch {
        let touch = self
            .update_shard(slots.shard, |map| map.touch(slots))
            .unwrap_or(Touch::Unreadable);
        if touch == Touch::NewlyRequested {
            self.request_waiters.wake_all();
        }
        touch
    }

    /// Waits until the page `pgoff`, that of the first slot, has its final answer, or `cancelled`.
    /// [`None`] if there is no such page.
    pub(crate) fn await_page(
        &self,
        slots: Slots,
        params: <<S::Target as Shard>::Queue as Queue>::Params,
        cancelled: impl Fn() -> bool,
    ) -> Option<<<S::Target as Shard>::Queue as Queue>::Outcome> {
        let shard = self.shards.get(slots.shard)?;
        let pgoff = self.layout.pgoff(slots.shard, slots.first);
        Some(shard.waiters().wait(pgoff, params, || {
            shard.map().is_settled(slots) || cancelled()
        }))
    }

    /// Settles pages within one block, and wakes who waits for them.
    pub(crate) fn settle(&self, slots: Slots, verdict: Verdict) -> Settled {
        let start = self.layout.pgoff(slots.shard, slots.first);
        let end = start.saturating_add(slots.nr as u64);
        self.settle_and(slots, verdict, |queue| queue.wake(start, end))
    }

    /// Settles pages within one block; then, if somebody may wait for them, calls `wake` with the
    /// queue in which they wait.
    pub(crate) fn settle_and(
        &self,
        slots: Slots,
        verdict: Verdict,
        wake: impl FnOnce(&<S::Target as Shard>::Queue),
    ) -> Settled {
        let settled = self
            .update_shard(slots.shard, |map| map.settle(slots, verdict))
            .unwrap_or_default();
        if let (true, Some(shard)) = (settled.wake, self.shards.get(slots.shard)) {
            wake(shard.waiters());
        }
        settled
    }

    /// Whether there are requests to take.
    pub(crate) fn has_requests(&self) -> bool {
        self.queued.load() != 0
    }

    /// Waits until there are requests to take, or `cancelled`.
    pub(crate) fn await_requests(
        &self,
        params: Q::Params,
        cancelled: impl Fn() -> bool,
    ) -> Q::Outcome {
        self.request_waiters
            .wait(0, params, || self.has_requests() || cancelled())
    }

    /// Takes up to `max` requests and gives the page of each to `sink`. Returns how many.
    pub(crate) fn take(&self, max: usize, mut sink: impl FnMut(u64)) -> usize {
        let mut taken = 0;
        let first = (self.next_shard.load() % u64::from(u64::BITS)) as u32;
        // From `first` on, then the rest.
        let mut left = self.queued.load().rotate_right(first);
        while left != 0 && taken < max {
            let step = left.trailing_zeros();
            left &= left - 1;
            let at = ((first + step) % u64::BITS) as usize;
            let from_here = self.update_shard(at, |map| {
                map.take(max - taken, |slot| sink(self.layout.pgoff(at, slot)))
            });
            taken += from_here.unwrap_or(0);
            self.next_shard.store(at as u64 + 1);
        }
        taken
    }

    /// Puts requests back that were taken and could not be handed over.
    pub(crate) fn requeue(&self, pages: impl Iterator<Item = Slots>) {
        for slots in pages {
            let _ = self.update_shard(slots.shard, |map| map.requeue(slots));
        }
        self.request_waiters.wake_all();
    }

    /// The daemon goes. What it had taken and not answered is requested again, before `detach` lets
    /// the next one come; and then all who wait look whether it is in vain.
    pub(crate) fn detach_daemon(&self, detach: impl FnOnce()) {
        let nr = self.layout.slots_per_shard();
        self.requeue((0..self.shards.len()).map(|shard| Slots {
            shard,
            first: 0,
            nr,
        }));
        detach();
        for shard in self.shards {
            shard.waiters().wake_all();
        }
    }

    /// Changes the map of the shard `at`, and the bit that says whether it has requests. [`None`] if
    /// there is no such shard.
    fn update_shard<R>(
        &self,
        at: usize,
        change: impl FnOnce(&mut PageMap<<S::Target as Shard>::Words>) -> R,
    ) -> Option<R> {
        // There are no more shards than bits.
        let bit = 1u64 << (at % u64::BITS as usize);
        let mut map = self.shards.get(at)?.map();
        let before = map.counts().queued > 0;
        let result = change(&mut map);
        match (before, map.counts().queued > 0) {
            (false, true) => self.queued.add(bit),
            (true, false) => self.queued.add(bit.wrapping_neg()),
            _ => {}
        }
        Some(result)
    }
}
