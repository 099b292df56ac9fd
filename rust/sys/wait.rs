// SPDX-License-Identifier: GPL-2.0

//! Killable waits for a key, with a time limit. A wake-up wakes only the threads that wait for its
//! keys.
//!
//! A thread that waits for a page records the address of its fault. The thread that brings the page
//! maps it there before it wakes the waiter.
//!
//! Stands in for `kernel::sync::CondVar`, which has no killable wait, drops only its own lock, and
//! wakes all threads or one.

use super::fault_address::{
    FaultAddress,
    FaultAddresses, //
};
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

/// What else may end a wait, and whether the task can be frozen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitMode {
    /// A signal that kills. The task can be frozen while it waits.
    Killable,
    /// A signal that kills. The task holds a lock that others need, so it is not frozen.
    KillableLocked,
    /// Any signal.
    Interruptible,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitOutcome {
    /// The condition holds.
    Done,
    /// The condition holds, and the waker has mapped the page at the waiter's address.
    Mapped,
    /// A signal is pending.
    Signal,
    /// The time limit has passed.
    Timeout,
}

/// The keys of a wake-up: `[start, end)`.
struct Keys {
    start: u64,
    end: u64,
    /// Whether the page is mapped at all addresses that were collected.
    mapped: bool,
}

impl Keys {
    fn contains(&self, key: u64) -> bool {
        (self.start..self.end).contains(&key)
    }
}

/// Whether another thread maps the page at the waiter's address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MapProgress {
    /// The waiter's address was not collected.
    NotStarted,
    /// The thread that brings the page has collected the address.
    Started,
    /// The page is mapped.
    Done,
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

/// A queue of threads that all wait for the same condition, some of them in poll().
#[pin_data]
pub(crate) struct PollQueue {
    #[pin]
    waiters: WaitQueue,
}

impl PollQueue {
    /// An empty queue.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            waiters <- WaitQueue::new(),
        })
    }

    /// Wakes all.
    pub(crate) fn wake_all(&self) {
        self.waiters.wake_all();
    }

    /// Waits until `done` returns true or a signal is pending, as [`WaitQueue::wait`].
    pub(crate) fn wait(&self, done: impl FnMut() -> bool) -> WaitOutcome {
        self.waiters.wait(0, None, WaitMode::Interruptible, 0, done)
    }

    /// The head, for poll().
    pub(super) fn as_ptr(&self) -> *mut bindings::wait_queue_head {
        self.waiters.head.get()
    }
}

/// One thread in the queue. It is on the thread's stack during the wait.
#[repr(C)]
struct Waiter {
    entry: bindings::wait_queue_entry,
    key: u64,
    since: Instant<Monotonic>,
    address: Option<FaultAddress>,
    map_progress: MapProgress,
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

    /// Wakes the threads that wait for a key in `[start, end)`. `mapped` says that the page is
    /// mapped at all addresses from [`Self::fault_addresses`].
    pub(crate) fn wake(&self, start: u64, end: u64, mapped: bool) {
        let keys = Keys { start, end, mapped };
        self.wake_keys(ptr::from_ref(&keys).cast_mut().cast());
    }

    /// Adds the addresses of the threads that wait for a key in `[start, end)`, as far as they fit.
    pub(crate) fn fault_addresses(&self, start: u64, end: u64, addresses: &mut FaultAddresses) {
        let keys = Keys {
            start,
            end,
            mapped: false,
        };
        self.for_each(|waiter| {
            if let (true, Some(address)) = (keys.contains(waiter.key), waiter.address) {
                // SAFETY: The waiter is in the queue: a thread that touches a page holds a user of
                // the address space until its fault has been answered.
                if unsafe { addresses.add(waiter.key, address) } {
                    waiter.map_progress = MapProgress::Started;
                }
            }
        });
    }

    /// Wakes all.
    pub(crate) fn wake_all(&self) {
        self.wake_keys(ptr::null_mut());
    }

    fn wake_keys(&self, keys: *mut ffi::c_void) {
        // SAFETY: The head is initialized. `keys` is null or points to a `Keys` that outlives the
        // call; every function in this queue is [`wake_waiter`], or poll's, which takes a key that is
        // not null for flags: but such a queue is in a [`PollQueue`], whose key is null.
        unsafe { bindings::__wake_up(self.head.get(), bindings::TASK_NORMAL, 0, keys) };
    }

    /// Waits until `done` returns true. `done` is called with this thread in the queue, so a thread
    /// that makes the condition true and then wakes the key cannot be missed. A `limit_ms` of 0 is
    /// no limit.
    pub(crate) fn wait(
        &self,
        key: u64,
        address: Option<FaultAddress>,
        mode: WaitMode,
        limit_ms: u32,
        mut done: impl FnMut() -> bool,
    ) -> WaitOutcome {
        let state = match mode {
            // SAFETY: Names a number.
            WaitMode::Killable => unsafe { super::bindings::vmem_task_killable_freezable() },
            WaitMode::KillableLocked => bindings::TASK_KILLABLE,
            WaitMode::Interruptible => bindings::TASK_INTERRUPTIBLE,
        } as ffi::c_int;
        let mut left = match limit_ms {
            0 => ffi::c_long::MAX,
            ms => kernel::time::msecs_to_jiffies(ms) as ffi::c_long,
        };
        let waiter = Opaque::new(Waiter {
            entry: bindings::wait_queue_entry::default(),
            key,
            since: Instant::now(),
            address,
            map_progress: MapProgress::NotStarted,
        });
        let entry: *mut bindings::wait_queue_entry = waiter.get().cast();
        // SAFETY: `entry` is on this stack frame and no other thread knows it yet.
        unsafe {
            (*entry).private = kernel::task::Task::current_raw().cast();
            (*entry).func = Some(wake_waiter);
            bindings::INIT_LIST_HEAD(&raw mut (*entry).entry);
        }

        let woken = loop {
            // SAFETY: The head is initialized; `entry` is, too, and `finish_wait` below removes it
            // from the queue before its memory goes.
            let signal = unsafe { bindings::prepare_to_wait_event(self.head.get(), entry, state) };
            // A negative answer counts only now, with the thread in the queue.
            if done() {
                break WaitOutcome::Done;
            }
            if signal != 0 {
                break WaitOutcome::Signal;
            }
            if left == 0 {
                break WaitOutcome::Timeout;
            }
            // SAFETY: In process context, without spinlocks; `left` is not negative.
            left = unsafe { bindings::schedule_timeout(left) };
            if done() {
                break WaitOutcome::Done;
            }
        };
        // SAFETY: `entry` was prepared with this head.
        unsafe { bindings::finish_wait(self.head.get(), entry) };
        // SAFETY: It is not in the queue, so this thread is the only one that knows it.
        let map_progress = unsafe { (*waiter.get()).map_progress };
        match woken {
            WaitOutcome::Done if map_progress == MapProgress::Done => WaitOutcome::Mapped,
            woken => woken,
        }
    }

    /// How many threads wait, and how long the longest of these waits is, in nanoseconds.
    pub(crate) fn stats(&self) -> (u64, u64) {
        let (mut nr, mut oldest) = (0, 0);
        self.for_each(|waiter| {
            nr += 1;
            oldest = oldest.max(waiter.since.elapsed().as_nanos());
        });
        (nr, u64::try_from(oldest).unwrap_or(0))
    }

    /// Calls `visit` for each waiter, with the queue locked.
    fn for_each(&self, mut visit: impl FnMut(&mut Waiter)) {
        let head = self.head.get();
        // SAFETY: The head is initialized. Its lock is never taken in interrupts: all users of this
        // queue are in process context.
        unsafe { bindings::spin_lock(&raw mut (*head).lock) };
        // SAFETY: The lock is held, so the list stays as it is.
        let mut at = unsafe { (*head).head.next };
        // SAFETY: Only the address is taken.
        while at != unsafe { &raw mut (*head).head } {
            // SAFETY: Each entry of this list is the first field of a `Waiter` (pollers are only in
            // a [`PollQueue`], which does not use this), and it cannot leave the list while the
            // lock is held; until it has left, only the holder of the lock uses it.
            let waiter = unsafe {
                &mut *kernel::container_of!(at, bindings::wait_queue_entry, entry).cast::<Waiter>()
            };
            visit(waiter);
            at = waiter.entry.entry.next;
        }
        // SAFETY: It was taken above.
        unsafe { bindings::spin_unlock(&raw mut (*head).lock) };
    }
}

/// Wakes the thread of `entry` and removes it from the queue, if the wake-up is for its key.
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
        let waiter: *mut Waiter = entry.cast();
        // SAFETY: By the safety requirements of this function; `entry` is the first field.
        let (own, map_progress) = unsafe { ((*waiter).key, (*waiter).map_progress) };
        if !keys.contains(own) {
            return 0;
        }
        if keys.mapped && map_progress == MapProgress::Started {
            // SAFETY: As above; the queue is locked.
            unsafe { (*waiter).map_progress = MapProgress::Done };
        }
    }
    // SAFETY: By the safety requirements of this function.
    unsafe { bindings::autoremove_wake_function(entry, mode, flags, key) }
}
