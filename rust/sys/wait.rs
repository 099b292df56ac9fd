// SPDX-License-Identifier: GPL-2.0

//! Waiting for a key, killably, with a time limit, and being woken only if it is one's own.
//!
//! A thread that waits for a page says where it wants it, so that whoever brings the page can put it
//! there before he wakes the thread.
//!
//! Stands in for `kernel::sync::CondVar`, which has no killable wait, gives up its lock only, and
//! wakes all or one.

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

/// What may end a wait, besides what it waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitMode {
    /// A signal that kills. The task can be frozen meanwhile.
    Killable,
    /// The same for who has a lock that others need, and so is not frozen.
    KillableLocked,
    /// Any signal.
    Interruptible,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitOutcome {
    /// The condition holds.
    Done,
    /// The condition holds, and the waker has put the page where it was wanted.
    Mapped,
    /// A signal is pending.
    Signal,
    /// The time is over.
    Timeout,
}

/// The keys that a wake-up is for: `[start, end)`.
struct Keys {
    start: u64,
    end: u64,
    /// Whether all places that were found have their pages.
    mapped: bool,
}

impl Keys {
    fn contains(&self, key: u64) -> bool {
        (self.start..self.end).contains(&key)
    }
}

/// How far a page is on its way to the place of who waits for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MapProgress {
    /// Nobody puts it there.
    NotStarted,
    /// Somebody does so now.
    Started,
    /// It is there.
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

/// A queue of threads that all wait for the same, some of them in poll().
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

    /// Waits until `done` returns true, or for a signal, as [`WaitQueue::wait`].
    pub(crate) fn wait(&self, done: impl FnMut() -> bool) -> WaitOutcome {
        self.waiters.wait(0, None, WaitMode::Interruptible, 0, done)
    }

    /// The head, for poll().
    pub(super) fn as_ptr(&self) -> *mut bindings::wait_queue_head {
        self.waiters.head.get()
    }
}

/// One thread in the queue; lives on its stack for the time of the wait.
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

    /// Wakes the threads that wait for a key in `[start, end)`. `mapped`: the places that
    /// [`Self::addresses`] gave have their pages.
    pub(crate) fn wake(&self, start: u64, end: u64, mapped: bool) {
        let keys = Keys { start, end, mapped };
        self.wake_keys(ptr::from_ref(&keys).cast_mut().cast());
    }

    /// Adds the places of the threads that wait for a key in `[start, end)`, as far as there is room.
    pub(crate) fn fault_addresses(&self, start: u64, end: u64, addresses: &mut FaultAddresses) {
        let keys = Keys {
            start,
            end,
            mapped: false,
        };
        self.for_each(|waiter| {
            if let (true, Some(address)) = (keys.contains(waiter.key), waiter.address) {
                // SAFETY: The waiter is in the queue: whoever touches the page holds a user of the
                // address space until its fault has been answered.
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

    /// Waits until `done` returns true, which is called with this thread in the queue: whoever makes
    /// it true and then wakes the key is not missed. `limit_ms` of 0 is no limit.
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
            // Only now, in the queue, does it matter if the answer is no.
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

    /// How many threads wait, and for how many nanoseconds the longest of them has.
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
        // SAFETY: The head is initialized. Its lock is never taken in interrupts: all who use this
        // queue are in process context.
        unsafe { bindings::spin_lock(&raw mut (*head).lock) };
        // SAFETY: The lock is held, so the list stays as it is.
        let mut at = unsafe { (*head).head.next };
        // SAFETY: Only the address is taken.
        while at != unsafe { &raw mut (*head).head } {
            // SAFETY: What hangs in this list is the entry of a `Waiter`, its first field (pollers are
            // in a [`PollQueue`] only, which has no use for this), and it cannot leave while the lock
            // is held; until it has left, only who holds the lock uses it.
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
