// SPDX-License-Identifier: GPL-2.0

//! The protocol between touches and the daemon: how a request reaches the daemon, and how the
//! daemon's answer reaches the waiting threads.
//!
//! Threads that wait follow one rule: enter the queue first, then check the condition. Threads that
//! change the state follow another one: change first, then wake. Traits stand for locks, queues and
//! atomic words. The device layer implements them with the kernel's, and `tools/testing/model` with
//! those of a model checker, which runs this code in every order that the memory model allows.

use super::{
    page_map::{PageMap, Settled, Touch, Verdict},
    shards::{Shards, Slots},
};
use core::ops::{Deref, DerefMut};

/// How many slots are queued again with the lock of a shard held. Between these, others may have it.
const REQUEUE: usize = 1 << 15;

/// A queue of threads, each of which waits for a key.
pub(crate) trait Queue {
    /// What else may end a wait.
    type Params;
    /// How a wait ended.
    type Outcome;

    /// Waits until `done` returns true. `done` is called with this thread in the queue.
    fn wait(&self, key: u64, params: Self::Params, done: impl FnMut() -> bool) -> Self::Outcome;
    /// Wakes the threads that wait for a key in `[start, end)`.
    fn wake(&self, start: u64, end: u64);
    /// Wakes all threads.
    fn wake_all(&self);
}

/// A word that threads change without a lock.
pub(crate) trait AtomicWord {
    /// Returns the value (acquire).
    fn load(&self) -> u64;
    /// Sets the value (relaxed).
    fn store(&self, value: u64);
    /// Adds to the value, wrapping (relaxed).
    fn add(&self, value: u64);
}

/// A part of the pages, with its own lock.
pub(crate) trait Shard {
    /// Owns the words of a plane of the map.
    type Words: DerefMut<Target = [u64]>;
    /// The queue of waiting threads.
    type Queue: Queue;

    /// The page map, locked.
    fn map(&self) -> impl DerefMut<Target = PageMap<Self::Words>>;
    /// The threads that wait for a page of this shard. The key is the page offset.
    fn waiters(&self) -> &Self::Queue;
}

/// All shards of a region, and the queue of the daemon's threads.
pub(crate) struct Rendezvous<'a, S, Q, W> {
    /// Which shard has which page.
    pub(crate) layout: Shards,
    /// The shards, at most 64.
    pub(crate) shards: &'a [S],
    /// The daemon's threads that wait for requests.
    pub(crate) request_waiters: &'a Q,
    /// One bit for each shard that has queued requests. It is changed with the shard locked.
    pub(crate) queued: &'a W,
    /// The shard at which the next search for requests begins, so that each shard gets its turn.
    pub(crate) next_shard: &'a W,
}

impl<S: Deref<Target: Shard>, Q: Queue, W: AtomicWord> Rendezvous<'_, S, Q, W> {
    /// A touch of the page of the first slot. Requests the page if it is absent. Returns the state
    /// that the touch has found.
    pub(crate) fn touch(&self, slots: Slots) -> Touch {
        let touch = self
            .update_shard(slots.shard, |map| map.touch(slots))
            .unwrap_or(Touch::Unreadable);
        if touch == Touch::NewlyRequested {
            self.request_waiters.wake_all();
        }
        touch
    }

    /// The same by a thread that will see that an absent page is read, which claims the page instead.
    pub(crate) fn claim(&self, slots: Slots) -> Touch {
        self.update_shard(slots.shard, |map| map.claim(slots))
            .unwrap_or(Touch::Unreadable)
    }

    /// Gives up claims to pages within one block. With `requests`, the pages are then requested.
    /// Threads that wait for the pages touch them again.
    pub(crate) fn release(&self, slots: Slots, requests: bool) -> bool {
        let released = self.update_shard(slots.shard, |map| map.release(slots, requests));
        self.forgotten(slots, released);
        if requests {
            self.request_waiters.wake_all();
        }
        released.is_some_and(|nr| nr > 0)
    }

    /// Takes back requests for pages within one block. Threads that wait for the pages touch them
    /// again.
    pub(crate) fn withdraw(&self, slots: Slots) -> bool {
        let withdrawn = self.update_shard(slots.shard, |map| map.withdraw(slots));
        self.forgotten(slots, withdrawn);
        withdrawn.is_some_and(|nr| nr > 0)
    }

    /// So many pages of `slots` may be waited for, and nobody brings them now.
    fn forgotten(&self, slots: Slots, nr: Option<u64>) {
        if let (Some(1..), Some(shard)) = (nr, self.shards.get(slots.shard)) {
            let start = self.layout.pgoff(slots.shard, slots.first);
            let end = start.saturating_add(slots.nr as u64);
            shard.waiters().wake(start, end);
        }
    }

    /// Waits until the page of the first slot is present or unreadable, until it is neither
    /// requested nor claimed any more, or until `cancelled`. [`None`] if there is no such page.
    pub(crate) fn await_page(
        &self,
        slots: Slots,
        params: <<S::Target as Shard>::Queue as Queue>::Params,
        cancelled: impl Fn() -> bool,
    ) -> Option<<<S::Target as Shard>::Queue as Queue>::Outcome> {
        let shard = self.shards.get(slots.shard)?;
        let pgoff = self.layout.pgoff(slots.shard, slots.first);
        Some(shard.waiters().wait(pgoff, params, || {
            !shard.map().is_awaited(slots) || cancelled()
        }))
    }

    /// Settles pages within one block, and wakes the threads that wait for them.
    pub(crate) fn settle(&self, slots: Slots, verdict: Verdict) -> Settled {
        let start = self.layout.pgoff(slots.shard, slots.first);
        let end = start.saturating_add(slots.nr as u64);
        self.settle_and(slots, verdict, |queue| queue.wake(start, end))
    }

    /// Settles pages within one block. Then, if a thread may wait for them, calls `wake` with its
    /// queue.
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

    /// Waits until there are requests to take, or until `cancelled`.
    pub(crate) fn await_requests(
        &self,
        params: Q::Params,
        cancelled: impl Fn() -> bool,
    ) -> Q::Outcome {
        self.request_waiters
            .wait(0, params, || self.has_requests() || cancelled())
    }

    /// Takes up to `max` requests and passes the page offset of each to `sink`. Returns how many.
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

    /// Queues requests again that were taken and could not be copied to the daemon.
    pub(crate) fn requeue(&self, pages: impl Iterator<Item = Slots>) {
        for slots in pages {
            let _ = self.update_shard(slots.shard, |map| map.requeue(slots));
        }
        self.request_waiters.wake_all();
    }

    /// Queues all requests again that the daemon has taken and not answered.
    pub(crate) fn requeue_taken(&self) {
        let nr = self.layout.slots_per_shard();
        let pieces = |shard| {
            (0..nr).step_by(REQUEUE).map(move |first| Slots {
                shard,
                first,
                nr: REQUEUE.min(nr - first),
            })
        };
        self.requeue((0..self.shards.len()).flat_map(pieces));
    }

    /// Ends the service of a daemon. First, requests that the daemon has taken and not answered are
    /// queued again. Then `detach` lets the next daemon attach. Then all waiting threads are woken
    /// and check whether their wait is cancelled.
    pub(crate) fn detach_daemon(&self, detach: impl FnOnce()) {
        self.requeue_taken();
        detach();
        for shard in self.shards {
            shard.waiters().wake_all();
        }
    }

    /// Changes the map of the shard `at`, and its bit in `queued`. [`None`] if there is no such
    /// shard.
    fn update_shard<R>(
        &self,
        at: usize,
        change: impl FnOnce(&mut PageMap<<S::Target as Shard>::Words>) -> R,
    ) -> Option<R> {
        // There are at most as many shards as bits.
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
