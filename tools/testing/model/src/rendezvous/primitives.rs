// SPDX-License-Identifier: GPL-2.0

//! The checker's locks, queues and atomic words, as the kernel's behave.

use crate::model::{
    page_map::{PageMap, words_for},
    rendezvous::{Queue, Rendezvous, Shard, Word},
    shards::Shards,
};
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};
use std::ops::DerefMut;
use std::sync::{Arc, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread in a queue.
struct Waiter {
    key: u64,
    /// The task's state: whether it runs on when it has nothing more to do.
    running: Mutex<bool>,
    changed: Condvar,
}

/// `wait_queue_head` with `prepare_to_wait_event()`, `schedule()`, `finish_wait()` and `__wake_up()`.
pub(super) struct WaitQueue {
    entries: Mutex<Vec<Arc<Waiter>>>,
    /// The mistake that the protocol forbids, to see the checker find it.
    looks_first: bool,
}

impl WaitQueue {
    fn new(looks_first: bool) -> Self {
        Self {
            entries: Mutex::new(Vec::new()),
            looks_first,
        }
    }

    fn prepare(&self, waiter: &Arc<Waiter>) {
        let mut entries = lock(&self.entries);
        if !entries.iter().any(|entry| Arc::ptr_eq(entry, waiter)) {
            entries.push(waiter.clone());
        }
        *lock(&waiter.running) = false;
    }

    fn finish(&self, waiter: &Arc<Waiter>) {
        lock(&self.entries).retain(|entry| !Arc::ptr_eq(entry, waiter));
    }

    fn wake_if(&self, wanted: impl Fn(u64) -> bool) {
        lock(&self.entries).retain(|entry| {
            if wanted(entry.key) {
                *lock(&entry.running) = true;
                entry.changed.notify_one();
            }
            !wanted(entry.key)
        });
    }
}

impl Waiter {
    fn schedule(&self) {
        let mut running = lock(&self.running);
        while !*running {
            running = self.changed.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue for WaitQueue {
    type Limit = ();
    type Woken = ();

    fn wait(&self, key: u64, (): (), mut done: impl FnMut() -> bool) {
        let waiter = Arc::new(Waiter {
            key,
            running: Mutex::new(false),
            changed: Condvar::new(),
        });
        loop {
            if self.looks_first && done() {
                break;
            }
            self.prepare(&waiter);
            if !self.looks_first && done() {
                break;
            }
            waiter.schedule();
        }
        self.finish(&waiter);
    }

    fn wake(&self, start: u64, end: u64) {
        self.wake_if(|key| (start..end).contains(&key));
    }

    fn wake_all(&self) {
        self.wake_if(|_| true);
    }
}

impl Word for AtomicU64 {
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
    takers: WaitQueue,
    queued: AtomicU64,
    next_shard: AtomicU64,
    /// Whether a daemon is attached: `Daemon::attached`.
    pub(super) attached: AtomicBool,
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
            takers: WaitQueue::new(looks_first),
            queued: AtomicU64::new(0),
            next_shard: AtomicU64::new(0),
            attached: AtomicBool::new(true),
        }
    }

    /// Where touches and the daemon meet.
    pub(super) fn rendezvous(&self) -> Rendezvous<'_, Arc<Part>, WaitQueue, AtomicU64> {
        Rendezvous {
            layout: self.layout,
            shards: &self.shards,
            takers: &self.takers,
            queued: &self.queued,
            next_shard: &self.next_shard,
        }
    }
}
