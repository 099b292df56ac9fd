// SPDX-License-Identifier: GPL-2.0-or-later

//! A queue of threads that wait, as `rust/sys/wait.rs` makes it of the kernel's: it has the same steps in the same order.

use crate::model::rendezvous::Queue;
use loom::sync::{Condvar, Mutex, MutexGuard};
use std::sync::{Arc, PoisonError};

/// Locks; a panic of another thread is a failed test already.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitOutcome {
    /// The condition holds.
    Done,
    /// The condition holds, and the waker has put the page where it was wanted.
    Mapped,
    /// A signal is pending.
    Signal,
    /// The time is over.
    Timeout,
}

/// What the kernel knows of a thread.
struct State {
    /// Whether it runs on when it has nothing more to do.
    running: bool,
    /// A signal that ends its waits is pending.
    signal: bool,
    /// The timer of its wait has fired.
    expired: bool,
}

/// A thread.
pub(super) struct Task {
    state: Mutex<State>,
    changed: Condvar,
}

impl Task {
    /// One that runs.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                running: true,
                signal: false,
                expired: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// Sends it a signal.
    pub(super) fn kill(&self) {
        self.change(|state| state.signal = true);
    }

    /// The time of its wait is over.
    pub(super) fn expire(&self) {
        self.change(|state| state.expired = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        state.running = true;
        self.changed.notify_one();
    }

    /// `try_to_wake_up()`: whether it was asleep, or about to be.
    fn wake(&self) -> bool {
        let was_running = lock(&self.state).running;
        self.change(|_| ());
        !was_running
    }

    /// `schedule_timeout()`: sleeps until it is woken, gets a signal, or its time is over. Returns whether there is time left.
    fn schedule(&self) -> bool {
        let mut state = lock(&self.state);
        while !(state.running || state.signal || state.expired) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.expired
    }
}

/// Who waits, and where the page is wanted, if it may be put there.
#[derive(Clone)]
pub(super) struct WaitParams {
    pub(super) task: Arc<Task>,
    pub(super) address: Option<usize>,
}

impl WaitParams {
    /// Waits without end.
    pub(super) fn none() -> Self {
        Self::of(&Task::new())
    }

    /// Waits until that thread gets a signal or its time is over.
    pub(super) fn of(task: &Arc<Task>) -> Self {
        Self {
            task: task.clone(),
            address: None,
        }
    }

    /// The page may be put there.
    pub(super) fn at(self, address: usize) -> Self {
        Self {
            address: Some(address),
            ..self
        }
    }
}

/// How far a page is on its way to the place of who waits for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivery {
    None,
    Begun,
    Done,
}

/// One thread in a queue. What changes of it does so with the queue locked.
struct Waiter {
    key: u64,
    address: Option<usize>,
    task: Arc<Task>,
    delivery: Mutex<Delivery>,
}

/// `wait_queue_head` with `prepare_to_wait_event()`, `finish_wait()` and `__wake_up()`.
pub(super) struct WaitQueue {
    entries: Mutex<Vec<Arc<Waiter>>>,
    /// The mistake that the protocol forbids, to see the checker find it.
    looks_first: bool,
}

impl WaitQueue {
    pub(super) fn new(looks_first: bool) -> Self {
        Self {
            entries: Mutex::new(Vec::new()),
            looks_first,
        }
    }

    /// Enters the queue, or leaves it and returns true if there is a signal.
    fn prepare(&self, waiter: &Arc<Waiter>) -> bool {
        let mut entries = lock(&self.entries);
        let mut state = lock(&waiter.task.state);
        if state.signal {
            entries.retain(|entry| !Arc::ptr_eq(entry, waiter));
            return true;
        }
        if !entries.iter().any(|entry| Arc::ptr_eq(entry, waiter)) {
            entries.push(waiter.clone());
        }
        state.running = false;
        false
    }

    fn finish(&self, waiter: &Arc<Waiter>) {
        lock(&waiter.task.state).running = true;
        lock(&self.entries).retain(|entry| !Arc::ptr_eq(entry, waiter));
    }

    /// Wakes those for which `wanted`, and takes those out that were asleep.
    fn wake_if(&self, wanted: impl Fn(&Waiter) -> bool) {
        lock(&self.entries).retain(|entry| !(wanted(entry) && entry.task.wake()));
    }

    /// Where those who wait for a key in `[start, end)` want their pages, as far as there is `room`.
    pub(super) fn addresses(&self, start: u64, end: u64, room: usize) -> Vec<usize> {
        let mut addresses = Vec::new();
        for waiter in lock(&self.entries).iter() {
            if let (true, Some(address)) = ((start..end).contains(&waiter.key), waiter.address) {
                if !addresses.contains(&address) {
                    if addresses.len() == room {
                        continue;
                    }
                    addresses.push(address);
                }
                *lock(&waiter.delivery) = Delivery::Begun;
            }
        }
        addresses
    }

    /// Wakes who waits for a key in `[start, end)`. `mapped`: the places that [`Self::addresses`] gave have their pages.
    pub(super) fn wake_placed(&self, start: u64, end: u64, mapped: bool) {
        self.wake_if(|waiter| {
            if !(start..end).contains(&waiter.key) {
                return false;
            }
            let mut delivery = lock(&waiter.delivery);
            if mapped && *delivery == Delivery::Begun {
                *delivery = Delivery::Done;
            }
            true
        });
    }

    /// Whether nobody is in it.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.entries).is_empty()
    }
}

impl Queue for WaitQueue {
    type Params = WaitParams;
    type Outcome = WaitOutcome;

    fn wait(&self, key: u64, params: WaitParams, mut done: impl FnMut() -> bool) -> WaitOutcome {
        let waiter = Arc::new(Waiter {
            key,
            address: params.address,
            task: params.task,
            delivery: Mutex::new(Delivery::None),
        });
        let mut left = true;
        let woken = loop {
            if self.looks_first && done() {
                break WaitOutcome::Done;
            }
            let signal = self.prepare(&waiter);
            if !self.looks_first && done() {
                break WaitOutcome::Done;
            }
            if signal {
                break WaitOutcome::Signal;
            }
            if !left {
                break WaitOutcome::Timeout;
            }
            left = waiter.task.schedule();
            if done() {
                break WaitOutcome::Done;
            }
        };
        self.finish(&waiter);
        let delivery = *lock(&waiter.delivery);
        match woken {
            WaitOutcome::Done if delivery == Delivery::Done => WaitOutcome::Mapped,
            woken => woken,
        }
    }

    fn wake(&self, start: u64, end: u64) {
        self.wake_placed(start, end, false);
    }

    fn wake_all(&self) {
        self.wake_if(|_| true);
    }
}
