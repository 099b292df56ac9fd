// SPDX-License-Identifier: GPL-2.0-or-later

//! What the log promises, under the model checker: nobody who cleans and then copies misses a write.
//!
//! Programs write through a page table, and ask for the permission with the page locked, as the fault handler does; one writes by a system call,
//! which is heard of when it is over. One cleans and copies. In the end the copy is the page.

use loom::sync::atomic::{AtomicU64, Ordering::SeqCst};
use loom::sync::{Mutex, MutexGuard};
use loom::thread;
use std::sync::{Arc, PoisonError};

use crate::model::{
    dirty_log::{AtomicBits, DirtyLog},
    range::PageRange,
};

impl_bits!(AtomicU64);

/// What is done otherwise than it has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// The bit is set before the page is locked.
    BitWithoutTheLock,
    /// Whoever cleans does not look whether the page is locked.
    NoWaitForTheLock,
    /// A system call is heard of before it writes, and not after.
    HeardOfBefore,
}

/// A page of memory, its folio's lock and its page table, which a processor looks at and writes through at once.
struct Memory {
    log: DirtyLog<Vec<AtomicU64>>,
    lock: Mutex<()>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    writable: bool,
    contents: u64,
}

const PAGE: u64 = 3;

/// Locks; a panic of another thread is a failed test already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn page() -> PageRange {
    PageRange::within(PAGE, 1, 64).expect("a run")
}

impl Memory {
    fn new() -> Self {
        let plane = || vec![AtomicU64::new(0)];
        Self {
            log: DirtyLog::new(plane(), plane()),
            lock: Mutex::new(()),
            table: Mutex::new(Table::default()),
        }
    }

    fn store(&self, mistake: Mistake) {
        loop {
            {
                let mut table = lock(&self.table);
                if table.writable {
                    table.contents += 1;
                    return;
                }
            }
            if mistake == Mistake::BitWithoutTheLock {
                self.log.mark(page());
            }
            let _folio = lock(&self.lock);
            if mistake != Mistake::BitWithoutTheLock {
                self.log.mark(page());
            }
            lock(&self.table).writable = true;
        }
    }

    fn write(&self, mistake: Mistake) {
        if mistake == Mistake::HeardOfBefore {
            self.log.mark(page());
        }
        lock(&self.table).contents += 1;
        if mistake != Mistake::HeardOfBefore {
            self.log.mark(page());
        }
    }

    fn clean(&self, copy: &mut u64, mistake: Mistake) {
        if self.log.take(page())[0] == 0 {
            return;
        }
        if mistake != Mistake::NoWaitForTheLock {
            drop(lock(&self.lock));
        }
        lock(&self.table).writable = false;
        *copy = lock(&self.table).contents;
    }
}

/// One thread stores, another one stores, too, or writes by a system call; meanwhile the page is cleaned and copied, twice.
fn check(mistake: Mistake, calls: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let memory = Arc::new(Memory::new());
        let threads = [false, calls].map(|calls| {
            let memory = memory.clone();
            thread::spawn(move || match calls {
                false => memory.store(mistake),
                true => memory.write(mistake),
            })
        });
        let cleaner = thread::spawn({
            let memory = memory.clone();
            move || {
                let mut copy = 0;
                memory.clean(&mut copy, mistake);
                memory.clean(&mut copy, mistake);
                copy
            }
        });
        for thread in threads {
            thread.join().expect("a writer");
        }
        let mut copy = cleaner.join().expect("the cleaner");
        memory.clean(&mut copy, mistake);
        assert_eq!(copy, lock(&memory.table).contents, "a write is not in the copy");
    });
}

#[test]
fn no_store_is_missed() {
    check(Mistake::None, false);
}

#[test]
fn no_system_call_is_missed() {
    check(Mistake::None, true);
}

#[test]
#[should_panic(expected = "a write is not in the copy")]
fn a_bit_that_is_set_without_the_lock_misses_a_store() {
    check(Mistake::BitWithoutTheLock, false);
}

#[test]
#[should_panic(expected = "a write is not in the copy")]
fn a_page_that_is_not_seen_unlocked_misses_a_store() {
    check(Mistake::NoWaitForTheLock, false);
}

#[test]
#[should_panic(expected = "a write is not in the copy")]
fn a_system_call_that_is_heard_of_too_early_is_missed() {
    check(Mistake::HeardOfBefore, true);
}
