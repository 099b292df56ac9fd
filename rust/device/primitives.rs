// SPDX-License-Identifier: GPL-2.0

//! The kernel's locks, queues and atomic words, as the model layer needs them.

use super::shard::Shard;
use crate::{
    model::{
        page_map::PageMap,
        rendezvous::{
            self,
            AtomicWord,
            Queue, //
        }, //
    },
    sys::{
        fault_address::FaultAddress,
        wait::{
            PollQueue,
            WaitMode,
            WaitOutcome,
            WaitQueue, //
        }, //
    }, //
};
use core::ops::DerefMut;
use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed, //
    }, //
};

/// How to wait for a page.
#[derive(Clone, Copy)]
pub(crate) struct WaitParams {
    /// Which signals end the wait.
    pub(crate) mode: WaitMode,
    /// The time limit in milliseconds; 0 is no limit.
    pub(crate) ms: u32,
    /// Where the fault wants to map the page, if another thread may map it there.
    pub(crate) address: Option<FaultAddress>,
}

impl Queue for WaitQueue {
    type Params = WaitParams;
    type Outcome = WaitOutcome;

    fn wait(&self, key: u64, params: WaitParams, done: impl FnMut() -> bool) -> WaitOutcome {
        WaitQueue::wait(self, key, params.address, params.mode, params.ms, done)
    }

    fn wake(&self, start: u64, end: u64) {
        WaitQueue::wake(self, start, end, false);
    }

    fn wake_all(&self) {
        WaitQueue::wake_all(self);
    }
}

impl Queue for PollQueue {
    /// A wait without a limit, which any signal ends.
    type Params = ();
    type Outcome = WaitOutcome;

    fn wait(&self, _key: u64, _limit: (), done: impl FnMut() -> bool) -> WaitOutcome {
        PollQueue::wait(self, done)
    }

    /// All threads wait for the same condition.
    fn wake(&self, _start: u64, _end: u64) {
        PollQueue::wake_all(self);
    }

    fn wake_all(&self) {
        PollQueue::wake_all(self);
    }
}

impl AtomicWord for Atomic<u64> {
    fn load(&self) -> u64 {
        Atomic::load(self, Acquire)
    }

    fn store(&self, value: u64) {
        Atomic::store(self, value, Relaxed);
    }

    fn add(&self, value: u64) {
        Atomic::add(self, value, Relaxed);
    }
}

impl rendezvous::Shard for Shard {
    type Words = KVVec<u64>;
    type Queue = WaitQueue;

    fn map(&self) -> impl DerefMut<Target = PageMap<KVVec<u64>>> {
        self.map.lock()
    }

    fn waiters(&self) -> &WaitQueue {
        &self.waiters
    }
}
