// SPDX-License-Identifier: GPL-2.0

//! Waiting for a key, killably, with a time limit, and being woken only if it is one's own.
//!
//! Stands in for `kernel::sync::CondVar`, which has no killable wait, gives up its lock only, and
//! wakes all or one.

use core::ptr;
use kernel::{
    bindings,
    ffi,
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    },
    types::Opaque, //
};

/// What may end a wait, besides what it waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// A signal that kills.
    Killable,
    /// Any signal.
    Interruptible,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The condition holds.
    Done,
    /// A signal is pending.
    Signal,
    /// The time is over.
    Timeout,
}

/// The keys that a wake-up is for: `[start, end)`.
struct Keys {
    start: u64,
    end: u64,
}

/// A queue of threads, each of which waits for a key.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue head has a lock of its own and may be used from any thread.
unsafe impl Send for WaitQueue {}
// SAFETY: As above.
unsafe impl Sync for WaitQueue {}

/// One thread in the queue; lives on its stack for the time of the wait.
#[repr(C)]
struct Waiter {
    entry: bindings::wait_queue_entry,
    key: u64,
    since: Instant<Monotonic>,
}

impl WaitQueue {
    /// An empty queue.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            head <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is memory for a wait queue head that stays where it is; the name
                // and the class key live for ever.
                unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"vmem".as_char_ptr(),
                        kernel::static_lock_class!().as_ptr(),
                    )
                }
            }),
        })
    }

    /// Wakes the threads that wait for a key in `[start, end)`.
    pub(crate) fn wake(&self, start: u64, end: u64) {
        let keys = Keys { start, end };
        self.wake_keys(ptr::from_ref(&keys).cast_mut().cast());
    }

    /// Wakes all.
    pub(crate) fn wake_all(&self) {
        self.wake_keys(ptr::null_mut());
    }

    fn wake_keys(&self, keys: *mut ffi::c_void) {
        // SAFETY: The head is initialized. `keys` is null or points to a `Keys` that outlives the
        // call; every function in this queue is [`wake_waiter`], or poll's, which takes the key as
        // flags only if it is not null: and those are added by [`Self::register`] alone, to queues
        // which are woken with `wake_all`.
        unsafe { bindings::__wake_up(self.head.get(), bindings::TASK_NORMAL, 0, keys) };
    }

    /// The head, for poll(); such a queue is woken by [`Self::wake_all`] only.
    pub(super) fn as_ptr(&self) -> *mut bindings::wait_queue_head {
        self.head.get()
    }

    /// Waits until `done` returns true, which is called with this thread in the queue: whoever makes
    /// it true and then wakes the key is not missed. `limit_ms` of 0 is no limit.
    pub(crate) fn wait(
        &self,
        key: u64,
        patience: Patience,
        limit_ms: u32,
        mut done: impl FnMut() -> bool,
    ) -> Woken {
        let state = match patience {
            Patience::Killable => bindings::TASK_KILLABLE,
            Patience::Interruptible => bindings::TASK_INTERRUPTIBLE,
        } as ffi::c_int;
        let mut left = match limit_ms {
            0 => ffi::c_long::MAX,
            ms => kernel::time::msecs_to_jiffies(ms) as ffi::c_long,
        };
        let waiter = Opaque::new(Waiter {
            entry: bindings::wait_queue_entry::default(),
            key,
            since: Instant::now(),
        });
        let entry: *mut bindings::wait_queue_entry = waiter.get().cast();
        // SAFETY: `entry` is on this stack frame and nobody else knows it yet.
        unsafe {
            (*entry).private = kernel::task::Task::current_raw().cast();
            (*entry).func = Some(wake_waiter);
            bindings::INIT_LIST_HEAD(&raw mut (*entry).entry);
        }

        let woken = loop {
            // SAFETY: The head is initialized; `entry` is, too, and `finish_wait` below takes it out
            // of the queue before its memory goes.
            let signal = unsafe { bindings::prepare_to_wait_event(self.head.get(), entry, state) };
            if done() {
                break Woken::Done;
            }
            if signal != 0 {
                break Woken::Signal;
            }
            if left == 0 {
                break Woken::Timeout;
            }
            // SAFETY: In process context, without spinlocks; `left` is not negative.
            left = unsafe { bindings::schedule_timeout(left) };
        };
        // SAFETY: `entry` was prepared with this head.
        unsafe { bindings::finish_wait(self.head.get(), entry) };
        woken
    }

    /// How many threads wait, and for how many nanoseconds the longest of them has. Not for a queue
    /// with pollers.
    pub(crate) fn census(&self) -> (u64, u64) {
        let head = self.head.get();
        let (mut nr, mut oldest) = (0, 0);
        // SAFETY: The head is initialized. Its lock is never taken in interrupts: all who use this
        // queue are in process context.
        unsafe { bindings::spin_lock(&raw mut (*head).lock) };
        // SAFETY: The lock is held, so the list stays as it is.
        let mut at = unsafe { (*head).head.next };
        // SAFETY: Only the address is taken.
        while at != unsafe { &raw mut (*head).head } {
            // SAFETY: What hangs in this list is the entry of a `Waiter`, its first field, and it
            // cannot leave while the lock is held.
            let waiter = unsafe {
                &*kernel::container_of!(at, bindings::wait_queue_entry, entry).cast::<Waiter>()
            };
            nr += 1;
            oldest = oldest.max(waiter.since.elapsed().as_nanos());
            at = waiter.entry.entry.next;
        }
        // SAFETY: It was taken above.
        unsafe { bindings::spin_unlock(&raw mut (*head).lock) };
        (nr, u64::try_from(oldest).unwrap_or(0))
    }
}

/// Wakes the thread of `entry`, if the wake-up is for its key, and takes it out of the queue.
///
/// # Safety
///
/// `entry` is the entry of a [`Waiter`], in a queue whose lock is held; `key` is null or points to
/// [`Keys`].
unsafe extern "C" fn wake_waiter(
    entry: *mut bindings::wait_queue_entry,
    mode: ffi::c_uint,
    flags: ffi::c_int,
    key: *mut ffi::c_void,
) -> ffi::c_int {
    if !key.is_null() {
        // SAFETY: By the safety requirements of this function.
        let keys = unsafe { &*key.cast::<Keys>() };
        // SAFETY: By the safety requirements of this function; `entry` is the first field.
        let own = unsafe { (*entry.cast::<Waiter>()).key };
        if own < keys.start || own >= keys.end {
            return 0;
        }
    }
    // SAFETY: By the safety requirements of this function.
    unsafe { bindings::autoremove_wake_function(entry, mode, flags, key) }
}
